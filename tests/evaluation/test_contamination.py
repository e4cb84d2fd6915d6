"""The order test on files that were and were not trained on, what gives an order away, and n-gram overlap."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.core.statistics import students_tail
from groundup.data.readers import Refused
from groundup.evaluation import contamination
from groundup.evaluation.contamination import exchangeable, order_test
from groundup.evaluation.open_model import open_model
from groundup.evaluation.tasks import open_task
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from contaminated import train


def words_of(seed, count=200):
    chance = random.Random(seed)
    return ["".join(chance.choice("bdfgklmnprstvz") + chance.choice("aeiou") for _ in range(3)) for _ in range(count)]


WORDS = words_of(0)


def lines(seed, count=100, length=6):
    chance = random.Random(seed)
    return [" ".join(chance.choice(WORDS) for _ in range(length)) for _ in range(count)]


PLANTED = lines(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model whose training data holds the lines of PLANTED ten times in their order, among others."""
    tokenizer = Tokenizer.from_merges(bpe.train(bpe.count_pretokens(lines(2, 300)), 900))
    place = tmp_path_factory.mktemp("contamination") / "model"
    train(place, tokenizer, PLANTED, [lines(seed, 20) for seed in range(10, 30)])
    return open_model(str(place))


def rows(texts):
    return [{"text": text} for text in texts]


def test_a_file_that_was_trained_on_ten_times(trained):
    found = order_test(trained, exchangeable(rows(PLANTED), "it"), permutations=6)
    assert found["p"] < 1e-3 and found["examples"] == 100 and found["shards"] == 25


def test_what_was_not_trained_on_has_every_p_as_often(trained):
    stats = pytest.importorskip("scipy.stats")
    found = [
        order_test(trained, exchangeable(rows(lines(seed, 24)), "it"), permutations=3, seed=seed)["p"] for seed in range(100, 120)
    ]
    assert stats.kstest(found, "uniform").pvalue > 0.05
    shuffled = [PLANTED[place] for place in np.random.default_rng(0).permutation(len(PLANTED))]
    assert order_test(trained, exchangeable(rows(shuffled), "it"), permutations=8)["p"] > 1e-3  # known lines, another order


def test_numbers_that_ascend_break_the_test_and_are_cut(trained):
    texts = lines(7, 60)
    numbered = [{"id": f"q/{number}", "question": f"{number}. {text} {number % 3}"} for number, text in enumerate(texts, start=1)]
    found = exchangeable(numbered, "it")
    assert found.cut == ["id", "question"] and not any(character in "12" for text in found.texts for character in text[:-1])
    assert found.texts[4] == f"q/ \n . {texts[4]} 2"
    falling = exchangeable(numbered[::-1], "it")
    assert falling.cut == ["id", "question"]


def test_sorted_columns_are_left_out():
    named = [{"name": word, "text": text} for word, text in zip(sorted(WORDS[:60]), lines(1, 60), strict=True)]
    found = exchangeable(named, "it")
    assert found.left_out == ["name"] and found.texts == lines(1, 60)
    with pytest.raises(UserError, match="sorted by text"):
        exchangeable(rows(sorted(lines(1, 60))), "it")


def test_examples_of_a_passage_are_shuffled_within_it(trained):
    passages = [{"passage": f"{WORDS[n // 4]} and so on", "question": text} for n, text in enumerate(lines(1, 80))]
    found = exchangeable(passages, "it")
    assert found.grouped_by == ["passage"] and len(set(found.groups)) == 20
    part, groups = np.arange(3, 19), np.array(found.groups)
    shuffled = contamination._shuffled(part, groups, np.random.default_rng(0))
    assert (groups[shuffled] == groups[part]).all() and sorted(shuffled) == [*part] and [*shuffled] != [*part]
    assert order_test(trained, found, permutations=2)["shuffled_within"] == ["passage"]


def test_rows_that_stand_there_twice_count_once():
    texts = lines(1, 60)
    twice = [text for number, text in enumerate(texts) for _ in range(2 if number % 6 == 0 else 1)]
    assert exchangeable(rows(twice), "it").texts == texts


def test_too_few_examples():
    with pytest.raises(UserError, match="it: 6 examples"):
        exchangeable(rows(lines(1, 6)), "it")


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.one_of(
    st.text(max_size=8), st.integers(), st.none(), st.booleans(), st.floats(), st.lists(st.text(max_size=3), max_size=2)
), max_size=3), max_size=40))  # fmt: skip
def test_any_rows_are_exchangeable_or_one_line(some):
    try:
        found = exchangeable(some, "it")
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) <= 300
    else:
        assert len(found.texts) == len(found.groups) <= len(some)


@pytest.mark.parametrize("t,freedom,p", [(2.776445, 4, 0.025), (63.656741, 1, 0.005), (0, 7, 0.5), (-2.776445, 4, 0.975)])
def test_students_tail_of_the_tables(t, freedom, p):
    assert students_tail(t, freedom) == pytest.approx(p, rel=1e-6)


@given(st.floats(-1e3, 1e3), st.integers(1, 300))
def test_students_tail_is_scipys(t, freedom):
    stats = pytest.importorskip("scipy.stats")
    assert students_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-8, abs=1e-300)


# --- overlap ------------------------------------------------------------------------------------------------------


@pytest.fixture
def exam(tmp_path):
    """Forty questions of which the even ones stand in documents, each in another form, and sixty clean documents."""
    texts = lines(5, 40, length=15)
    questions = [
        {"question": text, "options": [WORDS[n], WORDS[n + 1]], "right": n % 2, "n": n} for n, text in enumerate(texts)
    ]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (tmp_path / "exam.toml").write_text(
        'kind = "choices"\nfiles = ["exam.jsonl"]\nprompt = "Question: {{ question }}\\nAnswer:"\nchoices = "options"\n'
        'answer = "right"\n'
    )
    forms = [
        lambda row: f"{row['question']}\n{row['options'][0]}",
        lambda row: json.dumps(row),
        lambda row: f"Question: {row['question']}\nAnswer: {row['options'][row['right']]}",
        lambda row: row["question"].upper().replace(" ", ", "),
    ]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    documents = [" ".join(lines(seed, 20)) for seed in range(1000, 1060)]
    documents += [
        f"{lines(n, 1)[0]} {forms[number % 4](questions[n])} {lines(n, 2)[1]}" for number, n in enumerate(range(0, 40, 2))
    ]
    (corpus / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return tmp_path


@pytest.mark.parametrize("task", ["exam.toml", "exam.jsonl"])
def test_every_planted_example_is_found_and_no_other(groundup_here, trained, exam, task):
    done = groundup_here(
        "contamination", trained.folder, "--task", exam / task, "--corpus", exam / "corpus", "--permutations", 2,
        "--out", exam / "report.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["overlap"]["numbers"] == [*range(0, 40, 2)] and found["overlap"]["documents"] == 80
    assert 0 <= found["order"]["p"] <= 1 and json.loads((exam / "report.json").read_text()) == found
    assert "20 of 40 examples are in 80 documents" in done.stderr


def test_an_example_that_is_planted_a_hundred_times_is_found(exam):
    [row] = [json.loads((exam / "exam.jsonl").read_text().splitlines()[1])]
    with (exam / "corpus" / "texts.jsonl").open("a") as file:
        for number in range(100):
            file.write(json.dumps({"text": f"{number} {row['question']} {number}"}) + "\n")
    given = [json.loads(line) for line in (exam / "exam.jsonl").read_text().splitlines()]
    found = contamination.overlap(given, None, [exam / "corpus"], "it")
    assert found["numbers"] == sorted([1, *range(0, 40, 2)])


def test_paragraphs_or_lines_of_a_text(tmp_path):
    texts = lines(3, 12)
    (tmp_path / "lines.txt").write_text("\n".join(texts))
    (tmp_path / "paragraphs.txt").write_text("\n\n".join(f"{text}\nand" for text in texts))
    refused = contamination.Refused()
    assert contamination._rows(tmp_path / "lines.txt", refused) == rows(texts)
    assert contamination._rows(tmp_path / "paragraphs.txt", refused) == rows([f"{text}\nand" for text in texts])


@pytest.mark.parametrize("words,said", [
    (["--task", "nothing"], "neither a file nor a shipped task"),
    (["--task", "few.txt"], "few.txt: 2 examples"),
    (["--task", "few.txt", "--corpus", "nowhere"], "2 examples"),
])  # fmt: skip
def test_what_ends_in_one_line(groundup_here, trained, tmp_path, monkeypatch, words, said):
    (tmp_path / "few.txt").write_text("one line\nanother line\n")
    monkeypatch.chdir(tmp_path)
    done = groundup_here("contamination", trained.folder, *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('kind = "choices"\nprompt = "{{ q }}"\nchoices = "o"\nanswer = "a"\n', [{"o": ["one", "two"], "a": -1}]),
        ('kind = "existence"\nprompt = "{{ q }}"\nexists = "e"\ntarget = "o"\n', [{"e": True, "o": ["x"]}, {"e": False}]),
        ('kind = "last word"\nprompt = "{{ text }}"\ntarget = "x"\n', None),
        ('kind = "pairs"\nalternatives = "o"\ntarget = "{{ q }}"\n', [{"o": ["one goes before", "two goes before"]}]),
    ],
)
def test_examples_of_every_kind_are_looked_for(tmp_path, text, rows):
    """Also where the answers are kept back, an example has no answer, or an example is not a row."""
    questions = [" ".join(f"word{n * 20 + place}" for place in range(15)) for n in range(12)]
    name = "own.txt" if rows is None else "own.jsonl"
    given = [json.dumps({"q": question, **rows[n % len(rows)]}) for n, question in enumerate(questions)] if rows else questions
    (tmp_path / name).write_text(("\n" if rows else "\n\n").join(given))
    (tmp_path / "own.toml").write_text(f'files = ["{name}"]\n{text}')
    task = open_task(str(tmp_path / "own.toml"))
    held = [f"it said {questions[3]} and more", f"one goes before {' '.join(questions[7].split()[:10])} at last"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in held))
    found = contamination.overlap(contamination._rows(tmp_path / name, Refused()), task, [tmp_path / "texts.jsonl"], "own")
    assert found["numbers"] == [3, 7][: 1 + ("pairs" in text)] and found["examples"] == 12
