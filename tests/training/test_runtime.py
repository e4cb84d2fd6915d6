"""Every trainer takes the same things in the same order, and keeps to one folder what is its own."""

import inspect

import pytest
import torch

from groundup.core.device import Device
from groundup.posttraining import dpo, grpo, ppo, reward, sft
from groundup.training.long_context import train_longer
from groundup.training.pretraining import pretrain
from groundup.training.runtime import Runtime

TRAINERS = [sft.train, reward.train, dpo.train, ppo.train, grpo.train, train_longer]


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda one: f"{one.__module__}.{one.__name__}")
def test_one_order_of_arguments(trainer):
    model, tokenizer, data, settings, runtime, *more = inspect.signature(trainer).parameters
    assert model in ("model", "policy") and (tokenizer, settings, runtime) == ("tokenizer", "settings", "runtime")
    assert data in ("tokens", "questions", "pairs")
    assert not {"device", "dtype", "seed", "folder", "processes", "left_out", "log", "label"} & {*more}  # of the runtime


def test_pre_training_makes_its_model_itself():
    assert list(inspect.signature(pretrain).parameters) == ["tokenizer", "tokens", "settings", "runtime", "mixture"]


def test_two_runtimes_do_not_count_together(tmp_path):
    device = Device(torch.device("cpu"), torch.float32, 1, "cpu", ())
    one, other = (Runtime(device, tmp_path / name, "sft") for name in "ab")
    one.left_out["too long"] += 1
    assert not other.left_out and one.training == tmp_path / "a" / "training" and not one.training.exists()
