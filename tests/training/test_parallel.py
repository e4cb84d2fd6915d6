"""Two processes, as `torchrun` starts them, against one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_training import run, tokens

from groundup.training.parallel import ALONE

PROGRAM = Path(__file__).with_name("toy_training.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, environment):
    """Fifty steps alone, replicated and sharded; and the first 30 sharded, whose state is left for the test to continue."""
    folder = tmp_path_factory.mktemp("parallel")
    run(tokens(folder), folder / "alone", 50, ALONE)
    torchrun(environment, folder, "replicated,sharded", 50)
    return folder


def torchrun(environment, folder, modes, steps):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    done = subprocess.run(
        [*command, str(PROGRAM), str(folder), modes, str(steps)],
        env=environment | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", ["replicated", "sharded"])
def test_two_processes_train_as_one(folder, mode):
    alone, together = rows(folder / "alone"), rows(folder / mode)
    assert len(alone) == len(together) == 50
    assert alone[-1]["loss"] < alone[0]["loss"] / 2
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            tolerance = 1e-5 if name in ("loss", "held_out") else 1e-4
            assert two[name] == pytest.approx(one[name], abs=tolerance, rel=0 if name == "loss" else 1e-4), (name, one)


def test_three_processes(folder):
    pass
