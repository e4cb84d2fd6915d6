"""SFT, reward model and DPO by two processes, as torchrun starts them, learn what one alone does."""

import json
import subprocess
import sys

import pytest
import torch

from groundup.core.device import Device
from groundup.core.errors import UserError
from groundup.model import model_folder
from groundup.posttraining import dpo
from groundup.posttraining.config import DpoConfig
from groundup.training.parallel import Processes
from groundup.training.runtime import Runtime

WORDS = ("path", "file", "function", "what", "returns", "def", "the", "it")
RECIPE = """
standard = ["sft", "reward", "dpo"]
[given]
base = "model"
[sft]
data = "talks.jsonl"
batch_examples = 5
packing = true
max_answer_tokens = 16
held_out_questions = 4
[reward]
data = "pairs.jsonl"
batch_pairs = 7
pairs_at_once = 2
[dpo]
data = "pairs.jsonl"
batch_pairs = 7
"""


@pytest.fixture(scope="module")
def runs(toy_decoder, toy_tokenizer, tmp_path_factory, environment):
    place = tmp_path_factory.mktemp("processes")
    model = toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size, max_position_embeddings=96)
    model_folder.save(place / "model", model, toy_tokenizer, chat=True)
    talks = [
        {"prompt": f"what is {WORDS[number % 8]} {number}", "completion": " ".join(WORDS[: 1 + number % 7])}
        for number in range(17)
    ]
    pairs = [
        {"prompt": f"what {number}", "chosen": f"the path {number}", "rejected": "it " * (1 + number % 3)} for number in range(17)
    ]
    for name, rows in (("talks", talks), ("pairs", pairs)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "recipe.toml").write_text(RECIPE)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", "--rdzv-backend=c10d",
                "--rdzv-endpoint=127.0.0.1:0"]  # fmt: skip
    for name, how in (("alone", []), ("together", torchrun)):
        done = subprocess.run(
            [sys.executable, *how, "-m", "groundup", "--quiet", "run", "recipe.toml", "--run", name]
            if not how else [sys.executable, *how, "-m", "--", "groundup", "--quiet", "run", "recipe.toml", "--run", name],
            # In float32 on every processor: in bfloat16 one process goes by kernels, and two round otherwise.
            env=environment | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "GROUNDUP_KERNELS": "avx2"},
            capture_output=True, text=True, cwd=place, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 1  # the first alone prints
    return place


@pytest.mark.parametrize("step", ["sft", "reward", "dpo"])
def test_two_processes_learn_as_one(runs, step):
    alone, together = (
        [json.loads(line) for line in (runs / name / step / "training" / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "together")
    )
    assert len(alone) == len(together) >= 2 and alone[-1]["loss"] != alone[0]["loss"]
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys() and two == pytest.approx(one, abs=2e-4)
    assert not list((runs / "together" / step).rglob("state-*"))


@pytest.mark.parametrize("count", [1, 2, 5, 7])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_row_of_a_step_is_one_processs(count, world):
    shares = [Processes(rank, world).mine(count) for rank in range(world)]
    assert sorted(number for numbers, counts in shares if counts for number in numbers) == list(range(count))
    assert all(numbers for numbers, _ in shares)  # or the others would wait for its gradients


def test_a_loss_of_a_whole_batch_is_for_one_process(tmp_path):
    runtime = Runtime(Device(torch.device("cpu"), torch.float32, 1, "cpu", ()), tmp_path, "dpo", processes=Processes(0, 2))
    with pytest.raises(UserError, match="aot is of a whole batch, which several processes would share"):
        dpo.train(None, None, [], DpoConfig(loss="aot"), runtime)
