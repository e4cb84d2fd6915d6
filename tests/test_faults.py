"""Trouble of the machine: a disk that is full, a training state that is damaged. One line, and nothing lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

resource = pytest.importorskip("resource", reason="file sizes cannot be limited on Windows")

# A file that would outgrow the limit fails as on a full disk, with EFBIG instead of ENOSPC.
LIMITS = [
    ("pages", 50_000),
    ("annotations", 20_000),
    ("corpus", 300_000),
    ("tokenizer", 20_000),
    ("tokens", 100_000),
    ("sft", 30_000),  # its questions
    ("sft", 600_000),  # its training state
    ("reward", 300_000),
    ("dpo", 1_000_000),
    ("report", 10_000),
]


def run_afresh(environment, recipe, folder, limit=None):
    """In a process of its own, whose end is part of what is tested."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "groundup", "run", str(recipe), "--run", str(folder)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, preexec_fn=limited if limit else None
    )


@pytest.fixture
def run_here(groundup_here):
    def call(recipe, folder, limit=None):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or soft, hard))
        try:
            return groundup_here("run", recipe, "--run", folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return call


def contents(folder):
    manifests = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/stage.json")}
    return {name: manifest["outputs"] for name, manifest in manifests.items() if name not in ("pages", "report")}


@pytest.mark.parametrize(("stage", "limit"), LIMITS)
def test_a_full_disk_is_said_in_one_line_and_the_same_command_goes_on(
    run_here, tiny_recipe, tiny_run, tmp_path, stage, limit
):
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "copy"))
    shutil.rmtree(folder / stage)
    outcome = run_here(tiny_recipe, folder, limit)
    assert outcome.returncode == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr and outcome.stdout == ""
    *before, last = outcome.stderr.splitlines()
    assert last.startswith("groundup: ") and "run the same command again" in last
    assert not any(line.startswith("groundup: ") for line in before)
    assert not (folder / stage).exists()  # nothing half-written counts as made
    outcome = run_here(tiny_recipe, folder)
    assert outcome.returncode == 0, outcome.stderr
    assert contents(folder) == contents(tiny_run.folder)


def test_the_pipeline_from_nothing_through_one_limit_after_the_other(run_here, environment, tiny_recipe, tmp_path, tiny_run):
    """Every attempt comes further than the one before; what was made is kept. First and last are processes of their own."""
    folder, made = tmp_path / "run", -1
    for limit in (100_000, 600_000, 1_500_000, 2_000_000):
        if made < 0:
            outcome = run_afresh(environment, tiny_recipe, folder, limit)
        else:
            outcome = run_here(tiny_recipe, folder, limit)
        assert outcome.returncode == 2 and "Traceback" not in outcome.stderr, outcome.stderr
        finished = len(list(folder.glob("*/stage.json")))
        assert finished > made
        made = finished
    outcome = run_afresh(environment, tiny_recipe, folder)
    assert outcome.returncode == 0, outcome.stderr
    assert contents(folder) == contents(tiny_run.folder)
