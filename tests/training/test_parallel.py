"""Two processes, as `torchrun` starts them, against one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groundup.training.parallel import ALONE, Processes, full, local

sys.path.insert(0, str(Path(__file__).parent))
from toy_training import run, tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory, environment):
    """Thirty steps alone, replicated, sharded; changing over after twenty, from alone to sharded and back; experts."""
    folder = tmp_path_factory.mktemp("parallel")
    file = tokens(folder)
    run(file, folder / "alone", 30, ALONE)
    run(file, folder / "alone, then sharded", 20, ALONE)
    run(file, folder / "experts alone", 15, ALONE)
    jobs = ("replicated:replicated:30", "sharded:sharded:30", "alone, then sharded:sharded:30",
            "sharded, then alone:sharded:20", "experts replicated:replicated:15", "experts sharded:sharded:15")  # fmt: skip
    done = torchrun(environment, Path(__file__).with_name("toy_training.py"), folder, *jobs)
    assert done.returncode == 0, done.stderr
    run(file, folder / "sharded, then alone", 30, ALONE)
    return folder


def torchrun(environment, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
               "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]  # fmt: skip
    return subprocess.run(
        [*command, *map(str, words)],
        env=environment | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("how", ["replicated", "sharded", "alone, then sharded", "sharded, then alone"])
def test_two_processes_train_as_one(folder, how):
    alone, together = rows(folder / "alone"), rows(folder / how)
    assert len(alone) == len(together) == 30
    assert alone[-1]["loss"] < alone[0]["loss"] / 2
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        assert two == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize("how", ["experts replicated", "experts sharded"])
def test_experts_are_balanced_over_the_processes(folder, how):
    """The loads, too, are those of the whole batch."""
    alone, together = rows(folder / "experts alone"), rows(folder / how)
    for one, two in zip(alone, together, strict=True):
        assert {"max_load", "dead_experts", "router_entropy"} <= one.keys() == two.keys()
        assert two == pytest.approx(one, abs=1e-4)


def test_alone_nothing_is_spread(toy_decoder):
    model, objective = toy_decoder(), object()
    assert ALONE.spread(model, objective, torch.device("cpu")) is objective
    assert ALONE.sum([0.1, 2.0]) == [0.1, 2.0] and ALONE.rows(5) == slice(0, 5)
    tensor = torch.ones(3)
    assert local(tensor) is tensor and full(tensor) is tensor
    assert not Processes(shard=True).shard  # one process has nothing to share


@pytest.mark.parametrize("total", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_rows_are_those_of_a_chunk(total, world):
    """As FSDP2 cuts: by torch.chunk, which leaves the last processes fewer rows or none."""
    chunks = [chunk.tolist() for chunk in torch.arange(total).chunk(world)]
    chunks += [[]] * (world - len(chunks))
    assert [torch.arange(total)[Processes(rank, world).rows(total)].tolist() for rank in range(world)] == chunks


def test_the_pipeline_under_torchrun(tmp_path, environment):
    """The first process runs it, all train, as often as there is a training; only the first prints and writes."""
    done = torchrun(environment, Path(__file__).with_name("toy_pipeline.py"), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if " by " in line]
    assert [line.split(" with ")[0] for line in said] == [f"{name} by 0" for name in ("corpus", "tokenizer", "tokens", "between")]
    assert said[-1].endswith("with 2 threads")  # the recipe's: those of a training's processes together
    assert done.stdout.count("made\n") == 1
    assert "2 processes; FSDP2" in done.stderr and "2 processes; DDP" in done.stderr and done.stderr.count("steps of") == 2
    from groundup.model.model_folder import load_decoder

    for name, depth in (("base", 1), ("deeper", 2)):
        model = load_decoder(tmp_path / "run" / name)
        assert model.config.num_hidden_layers == depth
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
        assert len(rows(tmp_path / "run" / name / "training")) == 6
    again = torchrun(environment, Path(__file__).with_name("toy_pipeline.py"), tmp_path / "run")
    assert again.returncode == 0 and again.stdout.count("made\n") == 1, again.stderr  # and the others do not wait


def test_of_processes_that_look_the_first_alone_prints(tmp_path, environment, tiny_recipe):
    look = ["-m", "groundup", "run", str(tiny_recipe), "--set", "standard=['pages']", "--dry-run"]
    for rank, printed in ((0, 1), (1, 0)):
        done = subprocess.run(
            [sys.executable, *look], env=environment | {"RANK": str(rank), "WORLD_SIZE": "2"}, capture_output=True, text=True,
            cwd=tmp_path, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 and len(done.stdout.splitlines()) == printed, done.stderr
        assert (done.stderr == "") == (not printed)
