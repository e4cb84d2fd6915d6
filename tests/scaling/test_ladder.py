import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from groundup.core.errors import UserError
from groundup.core.files import read_jsonl
from groundup.data import token_files
from groundup.scaling import ladder, run_table
from groundup.scaling.ladder import Throughput
from groundup.training.loop import Diverged

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from toy_corpus import DOCUMENTS, tokenizer, write_tokens

RATE = Throughput(1e10, "given")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder, DOCUMENTS, tokenizer())
    return folder


@pytest.fixture
def three(tmp_path):
    """A plan of three small runs."""
    one = {"tokens": 256, "seed": 0, "seconds": 1.0}
    planned = [{"name": "a", "depth": 1, **one}, {"name": "b", "depth": 1, **one, "seed": 1}, {"name": "c", "depth": 2, **one}]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"architecture": "dense", "context_length": 16, "runs": planned}))
    return path


def test_a_killed_ladder_goes_on_and_ends_the_same(three, tokens, tmp_path, monkeypatch):
    whole = ladder.run(three, tokens, tokenizer(), tmp_path / "whole", threads=1)
    assert whole["runs"] == 3 and whole["diverged"] == 0
    real, begun = ladder.pretrain, []

    def killed(*arguments):
        begun.append(arguments[-1])
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(ladder, "pretrain", killed)
    with pytest.raises(KeyboardInterrupt):
        ladder.run(three, tokens, tokenizer(), tmp_path / "killed", threads=1)
    assert [row["name"] for row in read_jsonl(tmp_path / "killed" / "ledger.jsonl")] == ["a"]
    ladder.run(three, tokens, tokenizer(), tmp_path / "killed", threads=1)
    assert len(begun) == 4  # a, b killed; then b and c alone
    texts = [(tmp_path / name / "runs.csv").read_text() for name in ("whole", "killed")]
    assert texts[0] == texts[1]


def test_its_table_is_what_the_laws_are_fitted_to(three, tokens, tmp_path):
    ladder.run(three, tokens, tokenizer(), tmp_path / "out", threads=1)
    table = run_table.read(tmp_path / "out" / "runs.csv")
    assert len(table) == 3 and set(table.counts) == {"total", "without_embedding"}
    assert (table.loss < 1.5 * math.log(tokenizer().size)).all() and table.batch is not None
    assert table.parameters[0] == table.parameters[1] < table.parameters[2]
    assert table.loss[0] != table.loss[1]  # another seed
    assert (table.counts["total"] > table.counts["without_embedding"]).all()


def test_a_diverged_run_is_on_the_ledger_and_left_out_of_the_law(three, tokens, tmp_path, monkeypatch, caplog):
    scores = iter([math.nan, 1.0, 1.0])
    monkeypatch.setattr(ladder, "score", lambda model, held_out: [held_out[0] * -next(scores)])
    told = ladder.run(three, tokens, tokenizer(), tmp_path / "out", threads=1)
    assert told["diverged"] == 1 and len(run_table.read(tmp_path / "out" / "runs.csv")) == 2
    assert "1 diverged" in caplog.text


def test_a_run_that_ends_as_it_diverges_does_not_end_the_ladder(three, tokens, tmp_path, monkeypatch, caplog):
    real, names = ladder.pretrain, []

    def diverges(*arguments):
        names.append(arguments[-3])
        if len(names) == 2:
            raise Diverged("skipped 10 steps in a row")
        return real(*arguments)

    monkeypatch.setattr(ladder, "pretrain", diverges)
    told = ladder.run(three, tokens, tokenizer(), tmp_path / "out", threads=1)
    assert told["diverged"] == 1 and told["runs"] == len(names) == 3
    assert "it diverged, and the law is fitted without it" in caplog.text
    table = run_table.read(tmp_path / "out" / "runs.csv")
    assert len(table) == 2 and table.diverged == 1
    ladder.run(three, tokens, tokenizer(), tmp_path / "out", threads=1)
    assert len(names) == 3  # nor is it tried again


def test_runs_of_one_trunk_share_its_settings(three, tokens, tmp_path):
    plan = json.loads(three.read_text())
    plan["runs"] = [
        {"name": f"a{tokens}", "trunk": "a", "depth": 1, "tokens": tokens, "seed": 0, "batch_tokens": 64} for tokens in (256, 512)
    ]
    three.write_text(json.dumps(plan))
    told = ladder.run(three, tokens, tokenizer(), tmp_path / "out", threads=1)
    assert told["runs"] == 2 and list(run_table.read(tmp_path / "out" / "runs.csv").tokens) == [256, 512]
    for change in ({"depth": 2}, {"seed": 1}, {"batch_tokens": 128}, {"warmup_steps": 3}, {"trunk": "../a"}):
        three.write_text(json.dumps(plan | {"runs": [plan["runs"][0], plan["runs"][1] | change]}))
        with pytest.raises(UserError, match="run 2: the runs of a trunk"):
            ladder.read_plan(three)


def test_all_runs_of_a_ladder_warm_up_alike(three, tokens, tmp_path, monkeypatch):
    made = ladder.plan(None, 1e16, 512, 128, throughput=RATE)["runs"]
    (warmup,) = {run["warmup_steps"] for run in made}
    shortest = min(run["tokens"] // run["batch_tokens"] for run in made)
    assert 1 <= warmup < 0.2 * shortest  # long over when its decay begins, though the longest has 32 times its steps
    assert max(run["tokens"] for run in made) > 30 * min(run["tokens"] for run in made)
    plan, real, given = json.loads(three.read_text()), ladder.branch, []
    one = {"depth": 1, "seed": 0, "batch_tokens": 64, "trunk": "a", "warmup_steps": 2}
    plan["runs"] = [{"name": f"a{tokens}", "tokens": tokens, **one} for tokens in (256, 512)]
    three.write_text(json.dumps(plan))
    monkeypatch.setattr(ladder, "branch", lambda *arguments: given.append(arguments[-1]) or real(*arguments))
    ladder.run(three, tokens, tokenizer(), tmp_path / "out", threads=1)
    assert given == [2, 2]


@pytest.mark.parametrize("minutes", [120, 200, 600, 10_000])
def test_a_plan_fills_its_minutes_and_spans_both_exponents(minutes):
    made = ladder.plan(minutes, None, 512, 128, throughput=RATE)
    assert made["seconds"] == pytest.approx(60 * minutes, rel=1e-6) or made["seconds"] < 60 * minutes
    if minutes < 1000:
        assert made["seconds"] > 0.9 * 60 * minutes
    assert [run["flop"] for run in made["runs"]] == sorted(run["flop"] for run in made["runs"])
    sizes = {run["parameters"] for run in made["runs"]}
    assert len(sizes) >= 3 and len(made["runs"]) >= 8
    ratios = [run["tokens"] / run["parameters"] for run in made["runs"]]
    assert max(ratios) > 20 * min(ratios)
    assert {run["seed"] for run in made["runs"]} == {0, 1, 2}
    assert len({run["name"] for run in made["runs"]}) == len(made["runs"])


def test_more_minutes_give_larger_models():
    small, large = (ladder.plan(minutes, None, 512, 128, throughput=RATE)["runs"] for minutes in (120, 3000))
    assert max(run["depth"] for run in large) > max(run["depth"] for run in small)


def test_a_written_plan_reads_back(tmp_path):
    made = ladder.plan(None, 1e14, 512, 128, "lstm", throughput=RATE)
    (tmp_path / "plan.json").write_text(json.dumps(made))
    read = ladder.read_plan(tmp_path / "plan.json")
    assert len(read) == len(made["runs"]) and all(settings.architecture == "lstm" for _, settings in read)


@pytest.mark.parametrize(
    "minutes, flop, said",
    [
        (0.5, None, "0.5 minutes are too few"),
        (None, None, "one of them"),
        (5, 1e12, "one of them"),
        (1, None, "too few for 3 sizes"),
    ],
)
def test_a_budget_that_cannot_be_is_one_line(minutes, flop, said):
    with pytest.raises(UserError, match=said) as raised:
        ladder.plan(minutes, flop, 32_768, 128, throughput=RATE)
    assert len(str(raised.value)) <= 300


@pytest.mark.parametrize(
    "change, said",
    [
        ({"runs": []}, "no runs"),
        ({"runs": 3}, "no runs"),
        ({"runs": [3]}, "run 1 cannot be"),
        ({"runs": [{"name": "a", "seed": 0, "depth": 0, "tokens": 10}]}, "run 1 cannot be"),
        ({"runs": [{"name": "a", "seed": 0, "depth": 1}]}, "run 1 cannot be: no 'tokens'"),
        ({"runs": [{"name": "../a", "seed": 0, "depth": 1, "tokens": 10}]}, "a name of its own"),
        ({"runs": [{"name": "a", "seed": -1, "depth": 1, "tokens": 10}]}, "a name of its own"),
        ({"runs": [{"name": "a", "seed": 0, "depth": 1, "tokens": 10, "warmup_steps": -1}]}, "warmup_steps must be"),
        ({"runs": [{"name": "a", "seed": 0, "depth": 1, "tokens": 10, "warmup_steps": "1"}]}, "warmup_steps must be"),
        ({"architecture": "abacus"}, "run 1 cannot be"),
        ({"context_length": None}, "run 1 cannot be"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(three, change, said):
    three.write_text(json.dumps(json.loads(three.read_text()) | change))
    with pytest.raises(UserError, match=said) as raised:
        ladder.read_plan(three)
    assert "\n" not in str(raised.value)


def test_another_plan_needs_another_folder(three, tokens, tmp_path):
    ladder._claim(tmp_path / "out", {"plan": "another"})
    (tmp_path / "out" / "trunks").mkdir()  # in which something was begun
    with pytest.raises(UserError, match="another plan"):
        ladder.run(three, tokens, tokenizer(), tmp_path / "out", threads=1)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([5, 7, 3], [5, 7, 3]),
        ([900, 10, 900, 300], [345, 10, 345, 300]),  # the short ones whole, the rest shared by the long
        ([1000] * 3, [333] * 3),
        ([400] * 9, [250] * 4),  # of many documents some from all over
    ],
)
def test_runs_are_judged_by_beginnings_from_all_over_the_held_out_text(tmp_path, monkeypatch, lengths, expected):
    monkeypatch.setattr(ladder, "HELD_OUT_TOKENS", 1000)
    monkeypatch.setattr(ladder, "MIN_DOCUMENT_TOKENS", 250)
    token_files.write(tmp_path / "held_out", [np.full(size, at) for at, size in enumerate(lengths)], token_files.dtype_for(10))
    some = ladder.held_out_documents(tmp_path)
    assert [len(one) for one in some] == expected
    assert some[0][0] == 0 and some[-1][0] == len(lengths) - 1


def test_a_plan_counts_with_the_kernels_rate_where_they_train(monkeypatch):
    monkeypatch.setattr(ladder, "measured_peak", lambda *_: 1e12)
    for there, expected in ((True, 6e11), (False, 2.5e11)):
        monkeypatch.setattr(ladder.kernels, "are_there", lambda *_, there=there: there)
        assert ladder.measured_throughput("dense").flop_per_second == pytest.approx(expected)
        assert ladder.measured_throughput("lstm").flop_per_second == pytest.approx(2.5e11)


def test_kernels_are_there_for_processors_in_their_formats():
    there = not isinstance(ladder.kernels.float32_or_reason(), str)
    assert ladder.kernels.are_there(torch.device("cpu"), torch.float32) == there
    assert not ladder.kernels.are_there(torch.device("cpu"), torch.float16)
    assert not ladder.kernels.are_there(torch.device("cuda"), torch.float32)
