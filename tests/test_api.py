"""groundup from Python: what is imported when, one model through all its training, and what bad input is told."""

import ast
import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import groundup
from groundup import api
from groundup.core.errors import UserError
from groundup.evaluation.suite import continuations
from groundup.model.likelihood import score
from groundup.tokenizer.characters import Characters
from groundup.tokenizer.wordpiece import WordPiece
from groundup.training.optimizer import Optimizer

SENTENCES = ["the function returns the path", "it takes a file and a name", "an error is raised where no file is found"]
TEXTS = [". ".join(SENTENCES[(n + k) % 3] for k in range(3 + n)) for n in range(40)]
TALK = [
    {"messages": [{"role": "user", "content": f"what is {n}"}, {"role": "assistant", "content": "a path"}]} for n in range(6)
]
BETTER = [{"prompt": f"what is {n}", "chosen": "the path", "rejected": "file"} for n in range(6)]
QUESTIONS = [{"question": "what is it", "choices": ["a file", "a name", "path"], "answer": "C"}]
SMALL = {"depth": 1, "context_length": 64, "tokens": 2000, "batch_tokens": 128}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with tok, base, sft, dpo and reward."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = groundup.train_tokenizer(TEXTS, 300, folder / "tok")
    base = groundup.pretrain(TEXTS, tokenizer, folder / "base", **SMALL)
    chat = groundup.sft(base, TALK, folder / "sft", held_out=TALK[:1], batch_examples=2)
    groundup.dpo(chat, BETTER, folder / "dpo", batch_pairs=2)
    groundup.reward(chat, BETTER, folder / "reward", batch_pairs=2)
    return folder


@pytest.fixture(scope="module")
def base(made):
    return groundup.load(made / "base")


@pytest.fixture(scope="module")
def chat(made):
    return groundup.load(made, "sft")


def test_importing_it_imports_little_and_shows_all():
    code = "import groundup, sys, json; print(json.dumps([dir(groundup), sorted(sys.modules)]))"
    names, modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert names == sorted(groundup.__all__)
    assert not {"torch", "pydantic", "numpy", "pyarrow", "groundup.api"} & set(modules)


def test_the_names_are_those_of_the_api_and_known_to_type_checkers():
    tree = ast.parse(Path(groundup.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    assert sorted(name.name for name in block.body[0].names) == sorted(api.__all__)
    assert sorted([*api.__all__, "__version__"]) == sorted(groundup.__all__)
    assert all(getattr(groundup, name) is getattr(api, name) for name in api.__all__)
    assert all(getattr(api, name).__doc__ for name in api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = groundup.lode
    assert Path(groundup.__file__).with_name("py.typed").exists()


@pytest.mark.parametrize("kind, vocabulary, what", [
    ("bpe", 300, groundup.Tokenizer), ("wordpiece", 60, WordPiece), ("characters", 290, Characters), ("bytes", 260, Characters),
])  # fmt: skip
def test_tokenizers_of_all_kinds_are_called_and_have_a_length(kind, vocabulary, what, tmp_path):
    tokenizer = groundup.train_tokenizer(TEXTS, vocabulary, tmp_path / "tok", kind)
    assert isinstance(tokenizer, what) and len(tokenizer) == tokenizer.size <= vocabulary
    assert tokenizer("the path") == tokenizer.encode("the path") == groundup.load_tokenizer(tmp_path / "tok")("the path")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tok"]  # nothing stays of what was in memory


def test_a_tokenizer_of_paths_and_texts_is_that_of_the_texts(made, tmp_path):
    (tmp_path / "a.txt").write_text(TEXTS[0], encoding="utf-8")
    mixed = groundup.train_tokenizer([tmp_path / "a.txt", *TEXTS[1:]], 300, tmp_path / "tok")
    assert mixed.as_json() == groundup.load_tokenizer(made / "tok").as_json()


def test_generating(base):
    first = base.generate("the function", max_tokens=12, seed=3)
    assert first == base.generate("the function", max_tokens=12, seed=3)
    assert len({base.generate("the function", max_tokens=12, temperature=1.5, seed=seed) for seed in range(9)}) > 1
    greedy = {base.generate("the function", max_tokens=12, temperature=0, seed=seed) for seed in range(3)}
    assert len(greedy) == 1 == len({base.generate("the function", 12, 1.5, top_k=1, seed=n) for n in range(3)} | greedy)
    assert 0 < len(base.tokenizer(base.generate("the function", max_tokens=1))) <= 4


def test_likelihoods(base):
    pair = ("the function", " returns")
    assert base.log_likelihood(*pair) == continuations(base.network, base.tokenizer, [pair])[0] < 0
    text = TEXTS[-1]
    ids = [base.tokenizer.end_of_text, *base.tokenizer(text)]
    assert len(ids) > 3 * base.network.config.max_position_embeddings
    nats = -float(score(base.network, [ids])[0].sum())
    assert math.isclose(base.perplexity(text), math.exp(nats / (len(ids) - 1)), rel_tol=1e-6)
    assert math.isclose(base.bits_per_byte(text), nats / math.log(2) / len(text), rel_tol=1e-6)
    assert base.bits_per_byte(text) < 1 < base.bits_per_byte(text[::-1])


def test_chatting(base, chat):
    assert chat.chats and not base.chats
    asked = "what is 1"
    assert chat.chat(asked, seed=1) == chat.chat([{"role": "user", "content": asked}], seed=1)
    system = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
              {"role": "user", "content": "c"}]  # fmt: skip
    assert any(chat.chat(system, max_tokens=4, seed=seed) != chat.chat(system[1:], max_tokens=4, seed=seed) for seed in range(9))
    with pytest.raises(UserError, match="the model's context has room for"):
        chat.chat([*system[:3], {"role": "user", "content": "c " * 99}])
    with pytest.raises(UserError, match="was not trained to chat"):
        base.chat(asked)
    with pytest.raises(UserError, match="message 1"):
        chat.chat([{"role": "robot", "content": asked}])


def test_training_leaves_what_it_is_given_as_it_was(made, base, chat, tmp_path):
    groundup.dpo(base, BETTER, tmp_path / "dpo", batch_pairs=2)
    again = groundup.load(made / "base").network.state_dict()
    assert all(torch.equal(weights, again[name]) for name, weights in base.network.state_dict().items())
    assert not torch.equal(base.network.lm_head.weight, chat.network.lm_head.weight)
    rows = [json.loads(line) for line in (made / "sft" / "training" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == chat.results["steps"] == 3 and "held_out" in rows[-1]


def test_pretraining_holds_texts_out(made, base):
    rows = [json.loads(line) for line in (made / "base" / "training" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["held_out"] == base.results["held_out_loss"]
    assert not (made / "base" / "tokens").exists()


def test_a_preference_model(made):
    judge = groundup.PreferenceModel.load(made / "reward")
    better, worse = (judge.score([{"role": "user", "content": "what is 1"}, {"role": "assistant", "content": text}])
                     for text in ("the path", "file"))  # fmt: skip
    assert better > worse and judge.results["measured_on"] == "data"
    with pytest.raises(UserError, match="must be the assistant's"):
        judge.score([{"role": "user", "content": "what is 1"}])


def test_evaluating(base, tmp_path):
    found = groundup.evaluate(base, [*TEXTS[:9], TEXTS[-1]])
    alone = [groundup.evaluate(base, [text]) for text in (*TEXTS[:9], TEXTS[-1])]
    assert found["documents"] == 10 and found["low"] <= found["bits_per_byte"] <= found["high"]
    whole = sum(one["bits_per_byte"] * one["bytes"] for one in alone) / sum(one["bytes"] for one in alone)
    assert math.isclose(found["bits_per_byte"], whole, rel_tol=1e-5)
    (tmp_path / "a.txt").write_text(TEXTS[3], encoding="utf-8")
    assert groundup.evaluate(base, tmp_path) == groundup.evaluate(base, tmp_path / "a.txt") == alone[3]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    asked = groundup.evaluate(base, QUESTIONS)
    assert asked == groundup.evaluate(base, tmp_path / "q.jsonl") and asked["chance"] == 1 / 3 and asked["letter"]["n"] == 1


def test_the_same_call_does_nothing_and_another_is_refused(made, base):
    before = (made / "sft" / "stage.json").stat().st_mtime_ns
    again = groundup.sft(base, iter(TALK), made / "sft", held_out=TALK[:1], batch_examples=2)
    assert (made / "sft" / "stage.json").stat().st_mtime_ns == before and again.results["steps"] == 3
    for changed, what in (({"seed": 1}, "seed: 0 -> 1"), ({"epochs": 2}, "settings.epochs: 1 -> 2")):
        with pytest.raises(UserError, match=what):
            groundup.sft(base, TALK, made / "sft", held_out=TALK[:1], batch_examples=2, **changed)
    with pytest.raises(UserError, match="data: "):
        groundup.sft(base, TALK[:5], made / "sft", held_out=TALK[:1], batch_examples=2)
    with pytest.raises(UserError, match="model: "):
        groundup.sft(groundup.load(made / "dpo"), TALK, made / "sft", held_out=TALK[:1], batch_examples=2)


def test_a_killed_training_resumes_and_ends_the_same(made, base, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(api.model_files, "save", killed)
        groundup.sft(base, TALK, tmp_path / "sft", held_out=TALK[:1], batch_examples=2)
    assert not (tmp_path / "sft").exists() and list((tmp_path / "sft.partial" / "training").glob("*.safetensors"))
    calls = []
    monkeypatch.setattr("groundup.training.optimizer.Optimizer.step", lambda *_: calls.append(1))
    groundup.sft(base, TALK, tmp_path / "sft", held_out=TALK[:1], batch_examples=2)
    assert not calls and not (tmp_path / "sft.partial").exists()
    for name in ("model.safetensors", "training/metrics.jsonl", "config.json"):
        assert (tmp_path / "sft" / name).read_bytes() == (made / "sft" / name).read_bytes()


def test_a_pretraining_killed_between_steps_resumes_and_ends_the_same(made, tmp_path, monkeypatch):
    step, counted = Optimizer.step, []

    def counting(*arguments):
        if len(counted) == 9:
            raise KeyboardInterrupt
        counted.append(1)
        step(*arguments)

    tokenizer = groundup.load_tokenizer(made / "tok")
    monkeypatch.setattr("groundup.training.loop.CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Optimizer, "step", counting)
        groundup.pretrain(iter(TEXTS), tokenizer, tmp_path / "base", **SMALL)
    taken = []
    monkeypatch.setattr(Optimizer, "step", lambda *arguments: (taken.append(1), step(*arguments)))
    base = groundup.pretrain(TEXTS, tokenizer, tmp_path / "base", **SMALL)
    assert 0 < len(taken) < base.results["steps"]
    for name in ("model.safetensors", "training/metrics.jsonl"):
        assert (tmp_path / "base" / name).read_bytes() == (made / "base" / name).read_bytes()


def test_who_makes_the_same_folder_meanwhile_is_told_to_wait(tmp_path, monkeypatch):
    train = api.train_bpe

    def meanwhile(*arguments, **named):
        with pytest.raises(UserError, match="another groundup run is working"):
            groundup.train_tokenizer(TEXTS, 300, tmp_path / "tok")
        return train(*arguments, **named)

    monkeypatch.setattr(api, "train_bpe", meanwhile)
    assert len(groundup.train_tokenizer(TEXTS, 300, tmp_path / "tok")) == 300


@pytest.mark.parametrize("asked", [[], [3], 3, None, [{}], [{"role": "user"}], [{"role": "user", "content": 3}]], ids=str)
def test_what_is_no_conversation_is_told(chat, asked):
    with pytest.raises(UserError):
        chat.chat(asked)


def test_folders_of_others_are_left_alone(base, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "notes.txt").write_text("mine")
    for name in ("mine", "other"):
        with pytest.raises(UserError, match="not empty"):
            groundup.sft(base, TALK, tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*.txt")) == ["notes.txt"] * 2


def test_saving_gives_the_same_folder(made, chat, tmp_path):
    chat.save(tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        assert path.read_bytes() == (made / "sft" / path.name).read_bytes()
    assert groundup.load(tmp_path / "copy").chats
    with pytest.raises(UserError, match="a finished step"):
        chat.save(made / "base")


def test_a_view_of_a_run(made):
    run = groundup.open_run(made)
    assert run.steps == ["base", "sft", "reward", "dpo", "tok"]
    assert run.results["sft"]["steps"] == 3
    assert run.model("dpo").folder == groundup.load(made).folder == made / "dpo"
    for wrong, what in ((lambda: run.model("ppo"), "no finished step 'ppo'"), (lambda: run.report, "no finished stage 'report'"),
                        (lambda: run.model("reward"), "a reward model"), (lambda: run.model("tok"), "tok")):  # fmt: skip
        with pytest.raises(UserError, match=what):
            wrong()


def test_a_run_without_its_last_model_says_which_it_has(made, tmp_path):
    (tmp_path / "sft").symlink_to(made / "sft")
    with pytest.raises(UserError, match="step='sft'"):
        groundup.load(tmp_path)
    with pytest.raises(UserError, match="no finished step"):
        groundup.open_run(made / "sft")


def test_what_is_left_out_is_logged(base, tmp_path, caplog):
    bad = [{"messages": "none"}, 7, {"messages": [TALK[0]["messages"][0], {"role": "assistant", "content": "path " * 99}]}]
    with caplog.at_level(logging.WARNING, "groundup"):
        model = groundup.sft(base, [*bad, *TALK], tmp_path / "sft", max_answer_tokens=20)
    text = caplog.text
    assert "no list of messages: 1, not a row: 1; first conversations: row 1" in text and "1 rows left out" in text
    assert sum(model.results["left_out"].values()) == 1


def test_rows_without_text_in_files_are_logged_too(base, tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": TEXTS[0]}) + '\n{"text": 3}\n', encoding="utf-8")
    for number, use in enumerate((
        lambda: groundup.evaluate(base, path),
        lambda: groundup.train_tokenizer(path, 290, tmp_path / "characters", "characters"),
        lambda: groundup.train_tokenizer(path, 290, tmp_path / "bpe"),
        lambda: groundup.pretrain(path, base.tokenizer, tmp_path / "base", depth=1, context_length=16, tokens=32, held_out=0),
    ), start=1):  # fmt: skip
        with caplog.at_level(logging.WARNING, "groundup"):
            use()
        assert caplog.text.count(f"{path}: row 2") + caplog.text.count(f"{path}: line 2") == number, caplog.text


@pytest.mark.parametrize("call, what", [
    (lambda m, d: groundup.sft(m, TALK, d, epoch=3), "sft: no setting 'epoch'; did you mean epochs?"),
    (lambda m, d: groundup.sft(m, TALK, d, epochs="3"), "sft: epochs = '3': input should be a valid integer"),
    (lambda m, d: groundup.sft(m, TALK, d, max_objects=3), "sft: no setting 'max_objects'"),
    (lambda m, d: groundup.pretrain(TEXTS, m.tokenizer, d, shard=True), "pretrain: no setting 'shard'"),
    (lambda m, d: groundup.sft("a/folder", TALK, d), "model: str, where a Model is wanted"),
    (lambda m, d: groundup.evaluate(None, TEXTS), "model: NoneType"),
    (lambda m, d: groundup.evaluate(m, {}), "not a str: 1"),
    (lambda m, d: groundup.dpo(m, BETTER, d, beta=0), "dpo: beta = 0: input should be greater than 0"),
    (lambda m, d: groundup.reward(m, BETTER, d, depth=2), "reward: no setting 'depth'; known: "),
    (lambda m, d: groundup.pretrain(TEXTS, m.tokenizer, d, deepth=2), "pretrain: no setting 'deepth'; did you mean depth?"),
    (lambda m, d: groundup.pretrain(TEXTS, m.tokenizer, d, held_out=1), "held_out = 1"),
    (lambda m, d: groundup.pretrain("abc", m.tokenizer, d), "one str is no list of texts"),
    (lambda m, d: groundup.pretrain([None, " "], m.tokenizer, d), "empty: 1, not a str: 1; first texts\\[0\\]: not a str"),
    (lambda m, d: groundup.pretrain(TEXTS, Characters(), d), "byte-level BPE, not Characters"),
    (lambda m, d: groundup.pretrain(TEXTS[:1], m.tokenizer, d, context_length=4096), "do not fill one row"),
    (lambda m, d: groundup.train_tokenizer(TEXTS, 300, d, "unigram"), "no kind 'unigram'; known: bpe"),
    (lambda m, d: groundup.train_tokenizer(TEXTS, 3, d), "vocabulary = 3: input should be greater"),
    (lambda m, d: groundup.train_tokenizer(TEXTS, "3", d, "bytes"), "vocabulary = 3: it must be a whole number"),
    (lambda m, d: groundup.sft(m, TALK, d, seed=-1), "seed = -1"),
    (lambda m, d: groundup.sft(m, [], d), "holds no rows"),
    (lambda m, d: groundup.sft(m, 3, d), "data: int"),
    (lambda m, d: groundup.sft(m, [{}], d), "none of its 1 rows can be used as conversations"),
    (lambda m, d: groundup.sft(m, d / "none.jsonl", d), "no such file"),
    (lambda m, d: groundup.evaluate(m, []), "none that can be used"),
    (lambda m, d: groundup.evaluate(m, [{"question": "a", "choices": ["b"], "answer": 0}]), "2 to 26 texts"),
    (lambda m, d: m.generate("a", temperature=math.nan), "temperature is nan"),
    (lambda m, d: m.generate("a", temperature="hot"), "temperature is hot"),
    (lambda m, d: m.generate("a", max_tokens=0), "max_tokens is 0"),
    (lambda m, d: m.generate("a", top_p=0.0), "top_p is 0.0"),
    (lambda m, d: m.generate("a", top_k=-1), "top_k is -1"),
    (lambda m, d: m.generate("a", seed=2**64), "seed = "),
    (lambda m, d: m.generate(3), "text: int"),
    (lambda m, d: m.generate("a " * 99), "the model's context has room for"),
    (lambda m, d: m.log_likelihood("a", ""), "a continuation is empty"),
    (lambda m, d: m.perplexity(""), "no text to score"),
    (lambda m, d: groundup.load(d / "none"), "no such folder"),
    (lambda m, d: groundup.load_tokenizer(d), "no such file"),
])  # fmt: skip
def test_bad_input_is_told_in_one_line(base, tmp_path, call, what):
    with pytest.raises(UserError, match=what) as caught:
        call(base, tmp_path / "out")
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.texts.*"))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["messages", "role", "content", "prompt", "chosen", "rejected", "question", "choices", "answer"]), inner,
        max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150)
@given(st.lists(anything.filter(lambda one: not isinstance(one, str)), min_size=1, max_size=4))
def test_no_row_ends_in_a_traceback(rows):
    for read in (api.read_conversations, api.read_preferences, lambda some: api.read_questions(some, api.Refused())):
        try:
            read(rows)
        except UserError as error:
            assert "\n" not in str(error)


def test_weights_are_saved_in_bfloat16_where_it_is_asked(base, tmp_path):
    chat = groundup.sft(base, TALK, tmp_path / "half", batch_examples=6, save_dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert all(torch.equal(one, one.bfloat16().float()) for one in chat.network.parameters())  # it returns what is saved
    assert "| weights in | bfloat16 |" in (tmp_path / "half" / "README.md").read_text()
