import copy
import json
import math
from collections import Counter

import pytest
import torch

from groundup.core.device import Device
from groundup.core.errors import UserError
from groundup.generation.engine import Sampling
from groundup.posttraining import sft
from groundup.posttraining.config import SftConfig
from groundup.posttraining.reference_answers import answer
from groundup.posttraining.sft import compare_with_base, train
from groundup.posttraining.tokenize_rows import conversation
from groundup.tokenizer.chat import render
from groundup.training import loop
from groundup.training.runtime import Runtime

CPU = Device(torch.device("cpu"), torch.float32, 1, "a processor", ())
PAIRS = [("what is a", "the path"), ("what is b", "the file"), ("what is c", "it returns"), ("what is d", "def")]


def questions(pairs=PAIRS):
    return [
        {
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}],
            "reference": said,
            "kind": "toy",
        }
        for asked, said in pairs
    ]


def settings(**changes):
    return SftConfig(**{"epochs": 40, "batch_examples": 4, "learning_rate": 5e-3, "max_answer_tokens": 16, **changes})


@pytest.fixture
def base(toy_decoder, toy_tokenizer):
    return toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size)


def test_the_model_learns_the_answers_and_when_to_stop(base, toy_decoder, toy_tokenizer, tmp_path):
    steps = train(base, toy_tokenizer, questions(), settings(), Runtime(CPU, tmp_path, "sft"))
    assert steps == 40
    rows = [json.loads(line) for line in (tmp_path / "training" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(math.log(300), rel=0.05) and rows[-1]["loss"] < 0.2
    answers = answer(base, toy_tokenizer, [asked for asked, _ in PAIRS], Sampling(16, temperature=0), 0)
    assert answers == [(said, True) for _, said in PAIRS]

    untuned = toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size)
    found = compare_with_base(base, untuned, toy_tokenizer, questions(), 16, 0)
    assert found["held_out"]["overlap"]["sft"]["overlap"] == 1 > found["held_out"]["overlap"]["base"]["overlap"]
    gain, kinds = found["held_out"]["gain"], found["held_out"]["overlap_by_kind"]
    gained = [found["held_out"]["overlap"][name]["overlap"] for name in ("sft", "base")]
    assert gain["difference"] == pytest.approx(gained[0] - gained[1]) and 0 < gain["low"] <= gain["high"]
    assert gain["n"] == len(PAIRS) and kinds["toy"]["gain"] == gain
    assert found["held_out"]["bits_per_byte"]["sft"] < 0.3 * found["held_out"]["bits_per_byte"]["base"]
    assert [sample["sft"] for sample in found["samples"]] == [said for _, said in PAIRS]


def test_the_questions_carry_no_loss(base, toy_tokenizer, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(sft, "tune", lambda model, objective, batches, *rest, **options: taken.extend(batches(0)))
    train(base, toy_tokenizer, questions(), settings(), Runtime(CPU, tmp_path, "sft"))
    [batch] = taken
    answers = sorted(batch["targets"][row][batch["weight"][row] > 0].tolist() for row in range(4))
    assert answers == sorted([*toy_tokenizer.encode(said), toy_tokenizer.message_end] for _, said in PAIRS)
    assert batch["weight"].sum().item() == pytest.approx(1) and len(batch["weight"].unique()) == 2


def test_answers_that_do_not_fit_are_left_out(base, toy_tokenizer, tmp_path):
    long = ("what is e", "the path of the file " * 30)
    assert train(base, toy_tokenizer, questions([*PAIRS, long]), settings(epochs=1), Runtime(CPU, tmp_path / "a", "sft")) == 1
    for pairs in ([], [long]):
        with pytest.raises(UserError, match="sft: no questions to learn from"):
            train(base, toy_tokenizer, questions(pairs), settings(), Runtime(CPU, tmp_path / "b", "sft"))


def test_rows_that_teach_nothing_are_left_out(base, toy_tokenizer, tmp_path, monkeypatch):
    masked = lambda tokenizer, row: (ids := render(tokenizer, row["messages"])[0], [0] * len(ids))  # noqa: E731
    some = questions()
    monkeypatch.setattr(sft, "conversation", lambda *given: masked(*given) if given[1] is some[0] else conversation(*given))
    left_out = Counter()
    runtime = Runtime(CPU, tmp_path, "sft", left_out=left_out)
    assert train(base, toy_tokenizer, some, settings(epochs=1, batch_examples=1), runtime) == 3
    assert left_out == {"without a token to learn: the mask is empty": 1}


def test_an_earlier_answer_alone_may_be_learned(base, toy_tokenizer, tmp_path):
    [row] = questions(PAIRS[:1])
    more = [{"role": "user", "content": "and"}, {"role": "assistant", "content": "it", "weight": 0}]
    row["messages"] = [*row["messages"], *more]
    assert train(base, toy_tokenizer, [row], settings(epochs=1), Runtime(CPU, tmp_path, "sft")) == 1


def test_held_out_questions_are_measured_while_it_trains(base, toy_tokenizer, tmp_path):
    rows = questions()
    train(base, toy_tokenizer, rows[:2], settings(), Runtime(CPU, tmp_path, "sft"), rows[2:])
    metrics = [json.loads(line) for line in (tmp_path / "training" / "metrics.jsonl").read_text().splitlines()]
    measured = [row["held_out"] for row in metrics if "held_out" in row]
    assert len(measured) == 8 and "held_out" in metrics[-1]
    assert measured[-1] > metrics[-1]["loss"] + 1  # two answers are learned by heart, the others are not


def test_answers_while_it_trains_are_the_same_where_it_was_killed(base, toy_tokenizer, tmp_path, monkeypatch, killed):
    rows, too_long = questions(), {"prompt": "what " * 90, "completion": "def"}
    unseen = [{"prompt": "no conversation"}, *rows[2:], too_long]
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)

    def trained(name):
        train(copy.deepcopy(base), toy_tokenizer, rows[:2], settings(epochs=16), Runtime(CPU, tmp_path / name, "sft"), unseen)
        return (tmp_path / name / "training" / "answers.jsonl").read_text()

    whole = trained("whole")
    with pytest.raises(killed(sft, "_log_answers", 4)):
        trained("cut")
    assert trained("cut") == whole
    found = [json.loads(line) for line in whole.splitlines()]
    assert [row["step"] for row in found[::2]] == [row["step"] for row in found[1::2]] == list(range(1, 16, 2))
    assert {row["question"] for row in found} == {asked for asked, _ in PAIRS[2:]}
    assert found[-1].keys() == {"step", "question", "answer", "ended"}
