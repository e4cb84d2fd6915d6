"""What each convention takes for the model's choice, by hand; and records of every kind of task."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.core.seals import MANIFEST, write_sealed
from groundup.evaluation import evaluated_models, scoring, suite
from groundup.evaluation.continuations import Scored
from groundup.evaluation.evaluated_models import FolderModel, disjoint
from groundup.evaluation.open_model import open_model, opening_of
from groundup.evaluation.scoring import CONVENTIONS, conventions_of, grade_answer, records_of
from groundup.evaluation.tasks import Example, load, open_task
from groundup.model import model_folder
from groundup.model.likelihood import score

# "it", "the path", "a file é": the third has 9 bytes of 8 characters.
BY_HAND = {
    "answer": 0,
    "answers": [-6.0, -9.0, -14.0],
    "alone": [-5.0, -12.0, -13.5],
    "tokens": [1, 2, 4],
    "characters": [2, 8, 8],
    "bytes": [2, 8, 9],
    "letters": [-3.0, -1.0, -2.0],
    "listed_answers": [-9.0, -7.0, -6.5],
    "letter_of_all": -1,
    "generated": 2,
}


@pytest.mark.parametrize(
    ("convention", "chosen"),
    [
        ("letter", 1),  # -1.0 is the highest
        ("letter of vocabulary", -1),  # another token was likelier than any letter
        ("generated letter", 2),
        ("answer", 0),  # -6
        ("answer per token", 2),  # -6, -4.5, -3.5
        ("answer per character", 1),  # -3, -1.125, -1.75
        ("answer per byte", 1),  # -3, -1.125, -1.556
        ("answer PMI", 1),  # -1, +3, -0.5
        ("listed answer", 2),  # -6.5
    ],
)
def test_conventions_by_hand(convention, chosen):
    assert CONVENTIONS[convention](BY_HAND) == chosen


def test_bytes_and_characters_can_disagree():
    record = BY_HAND | {"answers": [-8.0, -8.0, -8.1], "bytes": [2, 8, 9]}
    assert CONVENTIONS["answer per character"](record) == 1 and CONVENTIONS["answer per byte"](record) == 2


def test_of_equals_the_first():
    assert CONVENTIONS["answer"](BY_HAND | {"answers": [-7.0, -6.0, -6.0]}) == 1


def test_every_convention_is_there_or_none_that_needs_letters():
    assert conventions_of(BY_HAND) == [*CONVENTIONS]
    without = {name: value for name, value in BY_HAND.items() if name != "letters"}
    assert len(conventions_of(without)) == 5 and conventions_of({"answers": [0, 1]}) == ["answer"]


@pytest.fixture(scope="module")
def model(toy_decoder, toy_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("scoring") / "model"
    toy = toy_decoder(seed=5, vocab_size=toy_tokenizer.size, max_position_embeddings=128)
    model_folder.save(path, toy, toy_tokenizer, chat=False)
    return open_model(str(path))


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"subject": "s", "question": f"What is {word}?", "A": "it", "B": "the path", "C": word, "D": "def é", "answer": "C"}
        for word in ("file", "path", "of")
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_task("mmlu", tmp_path / "q.jsonl", few_shot=0)


def test_records_of_choices(model, questions):
    examples = load(questions).rows
    records = records_of(model, questions, examples)
    for example, record in zip(examples, records, strict=True):
        pairs = [(example.prompt, f" {text}") for text in example.texts]
        assert record["answers"] == pytest.approx(suite.continuations(model.model, model.tokenizer, pairs), abs=1e-5)
        pairs = [(example.listed, f" {letter}") for letter in "ABCD"]
        assert record["letters"] == pytest.approx(suite.continuations(model.model, model.tokenizer, pairs), abs=1e-5)
        pairs = [(example.listed, f" {letter}. {text}") for letter, text in zip("ABCD", example.texts, strict=True)]
        assert record["listed_answers"] == pytest.approx(suite.continuations(model.model, model.tokenizer, pairs), abs=1e-5)
        pairs = [("", f" {text}") for text in example.texts]
        assert record["alone"] == pytest.approx(suite.continuations(model.model, model.tokenizer, pairs), abs=1e-5)
        assert record["bytes"][3] == record["characters"][3] + 1 and record["answer"] == 2


@pytest.mark.parametrize("size", [1, 7, 64])
def test_records_for_any_batch_size_and_order(model, questions, size):
    examples = load(questions).rows
    reference = records_of(model, questions, examples, 5)
    found = records_of(model, questions, examples[::-1], size)[::-1]
    for one, other in zip(found, reference, strict=True):
        assert one["answers"] == pytest.approx(other["answers"], abs=1e-5)
        assert [rule(one) for rule in CONVENTIONS.values()] == [rule(other) for rule in CONVENTIONS.values()]


def test_generated_letters(model, questions, monkeypatch):
    [example] = load(questions).rows[:1]
    space_c, c, the = (model.tokenizer.encode(text)[-1] for text in (" C", "C", " the"))

    def likeliest(token):
        def answer(_, requests, batch_size, steps):
            return [Scored(-1.0, ids[-1] == token and len(ids) - start <= 2, token) for ids, start in requests]

        monkeypatch.setattr(evaluated_models.continuations, "score", answer)
        [record] = records_of(model, questions, [example])
        return record["generated"]

    assert likeliest(c) == 2 and likeliest(the) == -1
    assert likeliest(space_c) in (2, -1)  # a tokenizer of bytes has no " C"


def test_a_prompt_that_is_too_long_is_cut_from_the_left_and_told(model, questions):
    [example] = load(questions).rows[:1]
    long = Example(0, "", "what " * 400 + example.prompt, example.texts, 2, example.listed)
    [cut, whole] = records_of(model, questions, [long, example])
    assert cut["truncated"] and not whole["truncated"]
    ids = [model.tokenizer.end_of_text, *model.tokenizer.encode(long.prompt + " it")][-129:]
    count = cut["tokens"][0]
    assert cut["answers"][0] == pytest.approx(float(score(model.model, [ids])[0][-count:].sum()), abs=1e-5)


def test_an_answer_that_is_too_long_is_skipped(model, questions):
    [example] = load(questions).rows[:1]
    long = Example(0, "", example.prompt, ("it " * 400, "the path", "a", "b"), 2, example.listed)
    found = records_of(model, questions, [example, long, example])
    assert found[1]["skipped"] == "an answer longer than the model's context"
    assert found[0] == found[2] and found[0]["answers"] == pytest.approx(records_of(model, questions, [example])[0]["answers"])


OF_EACH_KIND = {
    "pairs": 'kind="pairs"\nfiles=["rows.jsonl"]\nalternatives="[t, t + w]"',
    "last word": 'kind="last word"\nfiles=["rows.jsonl"]\nprompt="{{t}}"\ntarget="{{w}}"',
    "generation": 'kind="generation"\nfiles=["rows.jsonl"]\nprompt="{{t}}"\ntarget="w"\nmax_tokens=5',
    "perplexity": 'kind="perplexity"\nfiles=["rows.jsonl"]\ntext="{{t}}"',
    "windows": 'kind="perplexity"\nfiles=["rows.jsonl"]\ntext="{{t}}"\nwindows="disjoint"',
}


@pytest.mark.parametrize("kind", OF_EACH_KIND)
def test_records_of_each_kind_for_any_batch_size_and_order(kind, model, tmp_path):
    rows = [{"t": "what does it return " * n, "w": word} for n in range(1, 40, 3) for word in ("path", "the é file")]
    task = own(tmp_path, OF_EACH_KIND[kind], rows)
    examples = load(task).rows
    reference = records_of(model, task, examples, 5)
    for size, step in ((1, 1), (7, -1), (64, 1)):
        for one, other in zip(records_of(model, task, examples[::step], size)[::step], reference, strict=True):
            for name, value in other.items():
                assert one[name] == (pytest.approx(value, abs=1e-5, rel=1e-6) if name in ("answers", "nats") else value)


def own(tmp_path, text, rows):
    (tmp_path / "own.toml").write_text(text)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_task(str(tmp_path / "own.toml"))


def test_last_words(model, tmp_path):
    task = own(tmp_path, 'kind="last word"\nfiles=["rows.jsonl"]\nprompt="{{c}}"\ntarget="{{w}}"', [{"c": "the", "w": "path"}])
    [record] = records_of(model, task, load(task).rows)
    assert record["nats"] == pytest.approx(suite.continuations(model.model, model.tokenizer, [("the", " path")])[0], abs=1e-5)
    assert record["right"] == 0.0


def test_pairs_that_go_on_alike(model, tmp_path):
    text = 'kind="pairs"\nfiles=["rows.jsonl"]\nalternatives="[a, b]"\ntarget="{{t}}"\nanswer="1"'
    task = own(tmp_path, text, [{"a": "the file", "b": "the path", "t": "returns"}])
    [record] = records_of(model, task, load(task).rows)
    pairs = [("the file", " returns"), ("the path", " returns")]
    assert record["answers"] == pytest.approx(suite.continuations(model.model, model.tokenizer, pairs), abs=1e-5)
    assert record["answer"] == 1


def test_perplexity(model, tmp_path):
    texts = ["the path of the file", "what does it return é " * 30]
    task = own(tmp_path, 'kind="perplexity"\nfiles=["rows.jsonl"]\ntext="{{t}}"', [{"t": text} for text in texts])
    for record, text in zip(records_of(model, task, load(task).rows), texts, strict=True):
        [nats] = score(model.model, [[model.tokenizer.end_of_text, *model.tokenizer.encode(text)]])
        assert record["nats"] == pytest.approx(nats.sum(), rel=1e-5)
        assert record["bytes"] == len(text.encode()) and record["words"] == len(text.split())


@given(st.integers(1, 60), st.integers(1, 12))
def test_disjoint_windows_hold_every_token_once(length, context):
    ids = [*range(length)]
    windows = disjoint(ids, context)
    assert [token for ids, start in windows for token in ids[start:]] == ids[1:]
    assert all(0 < start < len(ids) <= context + 1 for ids, start in windows)
    assert all(len(ids) == context + 1 for ids, _ in windows if length > context)


GENERATION = """kind = "generation"
files = ["rows.jsonl"]
prompt = "{{ q }}"
target = "a"
max_tokens = 6
"""


def test_generation_is_greedy_and_ends_where_it_should(model, tmp_path):
    task = own(tmp_path, GENERATION, [{"q": "the file", "a": "x"}, {"q": "what " * 99, "a": "x"}])
    found = records_of(model, task, load(task).rows)
    assert [one["truncated"] for one in found] == [False, True]
    assert all("\n" not in one["text"] for one in found)


@pytest.mark.parametrize(
    ("written", "found", "right"),
    [
        ("It is 3 + 4 = 7.\n#### 7", "7", 1),
        ("#### 1,007", "1,007", 1),
        ("#### 1007.", "1007.", 1),
        ("#### -7", "-7", 0),
        ("the answer is 7", None, 0),
        ("#### ", None, 0),
        ("#### 7 eggs #### 8", "7", 1),
        ("", None, 0),
        ("Question: #### 7", None, 0),  # it is over before
        ("####7", None, 0),
    ],
)
def test_gsm8k_answers(written, found, right, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    task = open_task("gsm8k", tmp_path / "rows.jsonl", few_shot=0)
    expected = "1,007" if "007" in written else "7"
    record = grade_answer(written, task, [f"So it is.\n#### {expected}"])
    assert (record["found"], record["right"]) == (found, right)


@pytest.mark.parametrize(
    ("written", "exact", "f1"),
    [
        (" the Red car!", 1, 1), ("red", 0, 2 / 3), ("blue", 0, 0), ("", 0, 0), ("car red", 0, 1), ("a red car\nand more", 1, 1),
        ("RED CAR", 1, 1), ("red-car", 0, 0), ("big red car", 0, 0.8), ("an the", 0, 0),
    ],
)  # fmt: skip
def test_squad_answers(written, exact, f1, tmp_path):
    (tmp_path / "rows.json").write_text("{}\n")
    record = grade_answer(written, open_task("xquad", tmp_path / "rows.json"), ["green thing", "red car"])
    assert record["right"] == exact and record["f1"] == pytest.approx(f1)


@pytest.mark.parametrize(
    ("expression", "which", "found"),
    [
        (r"\d+", "first", "12"),
        (r"\d+", "last", "5"),
        (r"is (\w+)", "first", "12"),
        (r"(x)|(y)", "first", None),
        ("", "first", "it is 12, or 5"),
        (r"(-?[$0-9.,]{2,})|(-?[0-9]+)", "last", "5"),
        (r"$", "last", ""),
        (r"\b([A-Z])\b", "first", None),
        (r"o(r)?", "last", "r"),
        (r"(?i)IT", "first", "it"),
    ],
)
def test_extractors(expression, which, found):
    assert scoring.answer_extraction.extract(" it is 12, or 5 ", expression, which) == found


def test_extractors_that_are_none_or_take_too_long(monkeypatch):
    with pytest.raises(UserError, match="not a regular expression"):
        scoring.answer_extraction.require_expression("(", "own.toml: extract")

    def slow(*_, timeout):
        assert timeout
        raise TimeoutError

    monkeypatch.setattr(scoring.answer_extraction.regex, "finditer", slow)
    with pytest.raises(UserError, match="takes more than"):
        scoring.answer_extraction.extract("a", "a", "first")


def test_a_run_is_its_last_model(toy_decoder, toy_tokenizer, tmp_path):
    for stage in ("base", "sft"):
        decoder = toy_decoder(seed=5, vocab_size=toy_tokenizer.size)
        model_folder.save(tmp_path / stage, decoder, toy_tokenizer, chat=stage == "sft")
        with pytest.raises(UserError):  # not a run until a stage is finished
            open_model(str(tmp_path))
        manifest = {"stage": stage, "key": {}, "outputs": {}, "digest": "", "versions": {}, "machine": "", "seconds": 1}
        write_sealed(tmp_path / stage / MANIFEST, {**manifest, "results": {}})
        assert open_model(str(tmp_path)).folder == tmp_path / stage
        assert open_model(str(tmp_path / "base")).folder == tmp_path / "base"
        (tmp_path / stage / MANIFEST).rename(tmp_path / stage / "aside")
    for stage in ("base", "sft"):
        (tmp_path / stage / "aside").rename(tmp_path / stage / MANIFEST)
    assert open_model(str(tmp_path)).folder == tmp_path / "sft"


def test_the_first_token_of_a_folder(model, toy_tokenizer, tmp_path, monkeypatch):
    assert model.opening == [toy_tokenizer.end_of_text]
    description = json.loads((model.folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    assert opening_of(tmp_path) == []
    other = FolderModel("x", tmp_path, model.model, model.tokenizer, [])
    asked = []
    monkeypatch.setattr(other, "score", lambda requests, _: asked.extend(requests) or [Scored(-1.0, False, 0)] * 2)
    other.continuations([("the", " path"), ("", " path")], 1)
    first = toy_tokenizer.encode("the")
    assert asked[0].ids[: len(first)] == tuple(first) and asked[1].ids[0] == toy_tokenizer.end_of_text


def test_a_row_of_the_vocabulary_without_a_token_may_be_the_likeliest(toy_decoder, toy_tokenizer, questions, tmp_path):
    wider = toy_decoder(seed=5, vocab_size=toy_tokenizer.size + 64, max_position_embeddings=128)
    with torch.no_grad():
        wider.lm_head.weight[toy_tokenizer.size :] *= 50
    made = records_of(FolderModel("x", tmp_path, wider, toy_tokenizer, []), questions, load(questions).rows)
    assert [(one["generated"], one["letter_of_all"]) for one in made] == [(-1, -1)] * 3


class Dropping(evaluated_models.TokenModel):
    """A tokenizer that has no token for some characters, as those that normalise a text."""

    context, opening, begin_of_text = 64, [], 0

    def encode(self, text):
        return [ord(character) for character in text if character.isalpha()]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def score(self, requests, batch_size):
        return [Scored(-float(len(ids) - start), True, ids[start]) for ids, start in requests]


def test_an_answer_without_a_token_is_skipped():
    """Nothing is certain to follow anything; and the other answers have their scores."""
    found = Dropping().continuations([("is it", " so"), ("is it", " \u200b"), ("", "\u200b"), ("is", " it")], 8)
    assert [getattr(one, "reason", None) for one in found] == [None, *["an answer that has no token"] * 2, None]
    assert found[0].nats == found[3].nats == -2.0
