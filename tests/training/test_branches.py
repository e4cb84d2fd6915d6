"""A branch of a constant-rate run is, to the last bit, the run by itself."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from groundup.core.device import choose
from groundup.training import branches, checkpoint
from groundup.training.branches import branch, share_of_work
from groundup.training.config import PretrainingConfig
from groundup.training.runtime import Runtime

sys.path.insert(0, str(Path(__file__).parent))
from toy_corpus import DOCUMENTS, tokenizer, write_tokens

LONGEST = 64 * 12


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder, DOCUMENTS, tokenizer())
    return folder


def settings(length):
    return PretrainingConfig(depth=1, context_length=16, tokens=length, batch_tokens=64)


def branched(tokens, trunk, folder, length):
    model, results = branch(tokenizer(), tokens, settings(length), Runtime(choose(1), folder, "branch"), LONGEST, trunk)
    return {name: one.detach().clone() for name, one in model.named_parameters()}, results["steps"]


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def alone(tokens, tmp_path_factory):
    """Each length with a trunk of its own, trained in one go."""
    at = tmp_path_factory.mktemp("alone")
    return {length: branched(tokens, at / f"trunk{length}", at / str(length), length) for length in (64 * 5, LONGEST)}


def test_two_lengths_of_one_trunk_are_those_of_two(tokens, alone, tmp_path):
    short = branched(tokens, tmp_path / "trunk", tmp_path / "short", 64 * 5)
    long = branched(tokens, tmp_path / "trunk", tmp_path / "long", LONGEST)
    assert (short[1], long[1]) == (5, 12)
    assert same(short[0], alone[64 * 5][0]) and same(long[0], alone[LONGEST][0])
    assert not same(short[0], long[0])


def test_the_trunk_is_trained_once(tokens, tmp_path, monkeypatch):
    made, real = [], branches.train_rows

    def counted(*arguments, **more):
        made.append(arguments[3].steps - (checkpoint.latest(arguments[-1].training) or 0))
        return real(*arguments, **more)

    monkeypatch.setattr(branches, "train_rows", counted)
    for length in (64 * 5, LONGEST):
        branched(tokens, tmp_path / "trunk", tmp_path / str(length), length)
    assert made == [3, 2, 4, 5]  # the trunk to 3, the decay of 5; the trunk on to 7, the decay of 12


def test_a_longer_one_first_gives_the_same(tokens, alone, tmp_path):
    long = branched(tokens, tmp_path / "trunk", tmp_path / "long", LONGEST)
    short = branched(tokens, tmp_path / "trunk", tmp_path / "short", 64 * 5)
    assert same(short[0], alone[64 * 5][0]) and same(long[0], alone[LONGEST][0])


@pytest.mark.parametrize("kill", [1, 4, 6, 11])
def test_one_that_was_killed_resumes_to_the_same(tokens, alone, tmp_path, monkeypatch, kill):
    from groundup.training.optimizer import Optimizer

    real, steps = Optimizer.step, []

    def dies(self, multiplier):
        steps.append(multiplier)
        if len(steps) == kill:
            raise KeyboardInterrupt
        real(self, multiplier)

    monkeypatch.setattr(Optimizer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        branched(tokens, tmp_path / "trunk", tmp_path / "long", LONGEST)
    monkeypatch.setattr(Optimizer, "step", real)
    assert same(branched(tokens, tmp_path / "trunk", tmp_path / "long", LONGEST)[0], alone[LONGEST][0])


def test_a_copy_that_was_cut_off_counts_for_nothing(tokens, alone, tmp_path):
    branched(tokens, tmp_path / "trunk", tmp_path / "long", LONGEST)
    (tmp_path / "again").mkdir()
    (tmp_path / "long" / "training").rename(tmp_path / "again" / "training.copying")
    shutil.rmtree(tmp_path / "trunk")
    assert same(branched(tokens, tmp_path / "trunk", tmp_path / "again", LONGEST)[0], alone[LONGEST][0])


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_warm_up_is_as_long_as_is_given(tokens, tmp_path, monkeypatch, warmup):
    from groundup.training.optimizer import Optimizer

    real, seen = Optimizer.step, []
    monkeypatch.setattr(Optimizer, "step", lambda self, multiplier: (seen.append(multiplier), real(self, multiplier))[1])
    runtime = Runtime(choose(1), tmp_path / "long", "branch")
    branch(tokenizer(), tokens, settings(LONGEST), runtime, LONGEST, tmp_path / "trunk", warmup)
    assert seen[:3] == pytest.approx([1 / 3, 2 / 3, 1] if warmup else [1, 1, 1]) and len(seen) == 12


def test_the_work_of_branches():
    assert share_of_work([10], 0.4) == [1.0]
    assert share_of_work([5, 10], 0.4) == [1.0, pytest.approx(0.7)]
    shares = share_of_work([1, 2, 4, 8, 16], 0.4)
    whole = sum(share * length for share, length in zip(shares, [1, 2, 4, 8, 16], strict=True))
    assert whole == pytest.approx(0.6 * 16 + 0.4 * 31)
