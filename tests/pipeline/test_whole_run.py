"""The whole pipeline on recipes/tiny.toml: what it leaves, what a second run does, and what a kill cannot change."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAGES = ["pages", "annotations", "corpus", "tokenizer", "tokens", "base", "evaluation", "sft", "preferences", "reward",
          "dpo", "ppo", "report"]  # fmt: skip
BYTE_IDENTICAL = [
    "corpus/documents.parquet", "corpus/dropped.parquet", "tokenizer/tokenizer.json", "tokens/train.bin",
    "tokens/train.idx", "tokens/held_out.bin", "tokens/held_out.idx", "tokens/documents.parquet", "sft/train.jsonl",
    "preferences/train.jsonl", "ppo/training/rollouts.jsonl",
    *(f"{stage}/model.safetensors" for stage in ("base", "sft", "reward", "dpo", "ppo")),
    *(f"{stage}/training/metrics.jsonl" for stage in ("base", "sft", "reward", "dpo", "ppo")),
]  # fmt: skip


def files(folder):
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "log.txt"))
    return {path.relative_to(folder).as_posix() for path in found}


def times(folder):
    return {name: (folder / name).stat().st_mtime_ns for name in files(folder)}


def table_of(run):
    """What stands on stderr at the end of a run."""
    err = run.outcome.stderr
    return err[err.index("\nstep ") :]


@pytest.fixture
def copy(tiny_run, tmp_path):
    """A run folder that a test may change."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "copy"))


def test_the_pipeline_runs_to_its_end(tiny_run):
    outcome = tiny_run.outcome
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    result = json.loads(outcome.stdout.splitlines()[-1])
    assert result["run"] == str(tiny_run.folder)
    assert Path(result["report"]).read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    assert list(result["seconds"]) == [*STAGES, "all"] and all(value >= 0 for value in result["seconds"].values())
    figures = result["figures"]
    assert figures["documents"] > 100 and figures["training_tokens"] > 140_000
    assert 0 < figures["bits_per_byte"]["model"] < 8 > figures["bits_per_byte"]["xz"] > 0
    assert 0 <= figures["reward_accuracy"] <= 1
    for name in ("dpo", "ppo"):
        preferred = figures["preferred_over_sft"][name]
        assert 0 <= preferred["low"] <= preferred["win_rate"] <= preferred["high"] <= 1


def test_it_tells_its_progress_and_warns_of_nothing(tiny_run):
    err = tiny_run.outcome.stderr
    assert re.findall(r"^\[(\d+)/13\] (\w+)$", err, re.M) == [(str(n), name) for n, name in enumerate(STAGES, 1)]
    assert not re.search(r"warning|traceback|deprecated", err, re.I), err
    assert len(tiny_run.outcome.stdout.splitlines()) == 1


def test_at_the_end_stands_a_table_with_time_and_figures_of_each_step(tiny_run, run_groundup, tiny_recipe):
    rows = {line.split()[0]: line for line in table_of(tiny_run).splitlines() if re.match(r"[a-z]+ ", line)}
    assert list(rows) == ["step", *STAGES, "all"]
    assert re.search(r"base +\d+m?\d*s +training tokens 149,504; parameters 184,640$", rows["base"])
    assert "bits per byte" in rows["evaluation"] and "win rate" in rows["dpo"] and "report.html" in rows["report"]
    quiet = run_groundup("-q", "run", tiny_recipe, "--run", tiny_run.folder)
    assert quiet.stderr == "" and quiet.stdout == tiny_run.outcome.stdout


def test_every_stage_leaves_a_manifest_and_nothing_half_done(tiny_run):
    for name in STAGES:
        manifest = json.loads((tiny_run.folder / name / "stage.json").read_text(encoding="utf-8"))
        assert manifest["stage"] == name and manifest["results"]
        assert files(tiny_run.folder / name) == {*manifest["outputs"], "stage.json"}
    left = [name for name in files(tiny_run.folder) if re.search(r"\.partial|state-\d+|\.pkl|\.pt$|key\.json", name)]
    assert left == []
    assert sorted(path.name for path in tiny_run.folder.iterdir() if path.is_dir()) == sorted(STAGES)


def test_the_model_learned(tiny_run):
    rows = [json.loads(line) for line in (tiny_run.folder / "base" / "training" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert rows[0]["loss"] == pytest.approx(6.93, abs=0.01)  # ln 1024: a fresh model knows nothing
    assert sum(row["loss"] for row in rows[-10:]) / 10 < 5.5
    assert json.loads((tiny_run.folder / "dpo" / "training" / "metrics.jsonl").read_text().splitlines()[0])["loss"] == (
        pytest.approx(0.6931, abs=1e-3)  # ln 2: the policy is still its reference
    )


def test_a_second_run_does_nothing(run_groundup, tiny_recipe, tiny_run):
    before = times(tiny_run.folder)
    outcome = run_groundup("run", tiny_recipe, "--run", tiny_run.folder)
    assert outcome.returncode == 0 and outcome.stderr == table_of(tiny_run)
    assert outcome.stdout == tiny_run.outcome.stdout
    assert times(tiny_run.folder) == before


def test_a_changed_value_redoes_only_what_depends_on_it(run_groundup, groundup_here, tiny_recipe, copy):
    change = ("run", tiny_recipe, "--run", copy, "--set", "dpo.beta=0.2")
    before = times(copy)
    dry = run_groundup(*change, "--dry-run")
    plan = json.loads(dry.stdout.splitlines()[-1])["plan"]
    assert {name for name, state in plan.items() if state != "done"} == {"dpo", "report"}
    assert "dpo.beta: 0.1 -> 0.2" in dry.stderr
    assert times(copy) == before
    outcome = groundup_here(*change)
    assert outcome.returncode == 0, outcome.stderr
    after = times(copy)
    redone = {name.split("/")[0] for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert redone == {"dpo", "report"}
    assert re.findall(r"^\[\d+/13\] (\w+)$", outcome.stderr, re.M) == ["dpo", "report"]
    dry = run_groundup(*change, "--dry-run")
    assert set(json.loads(dry.stdout.splitlines()[-1])["plan"].values()) == {"done"}


@pytest.mark.parametrize("name", ["corpus/documents.parquet", "sft/model.safetensors", "report/report.html"])
def test_an_altered_artifact_is_named(run_groundup, tiny_recipe, copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    before = times(copy)
    outcome = run_groundup("run", tiny_recipe, "--run", copy)
    assert outcome.returncode == 2 and outcome.stdout == ""
    stage = name.split("/")[0]
    assert outcome.stderr == (
        f"groundup: {copy / name} was altered since stage {stage} made it; "
        f"delete {copy / stage} to have it made again\n"
    )
    assert times(copy) == before


def test_weight_of_a_domain_that_is_not_there_names_the_key_to_mend(run_groundup, tiny_recipe, copy):
    outcome = run_groundup("run", tiny_recipe, "--run", copy, "--set", "mixture.weights.referense=0.1")
    assert outcome.returncode == 2 and "Traceback" not in outcome.stderr
    last = outcome.stderr.splitlines()[-1]
    assert "mixture.weights.referense" in last and "did you mean reference?" in last


# Checkpoints twice a second instead of every 15, so that a kill in a stage of seconds has one to continue from.
OFTEN = (
    "import groundup.training.loop as loop; loop.CHECKPOINT_SECONDS = 0.5\n"
    "from groundup.cli import main\n"
    "if __name__ == '__main__': main()\n"
)


def cut_off(command, environment, stage, delay, how):
    """Start a run in a session of its own and signal it `delay` seconds after `stage` begins: (process, its stderr)."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    said = ""
    for line in process.stderr:
        said += line
        if re.match(rf"\[\d+/13\] {stage}$", line):
            time.sleep(delay)
            process.send_signal(how)
            break
    process.wait(timeout=300)
    return process, said


def still_running(session, patience):
    """Processes of a session that have not ended within `patience` seconds; they are ended here."""
    end = time.monotonic() + patience
    while left := processes(session):
        if time.monotonic() > end:
            os.killpg(session, signal.SIGKILL)
            break
        time.sleep(0.1)
    return left


def processes(session):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if int(its_session) == session and state != "Z":
            found.append(path.parent.name)
    return found


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="no such signals on Windows")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@needs_signals
def test_a_run_that_was_killed_ends_with_the_same_bytes(environment, tiny_recipe, tiny_run, tmp_path):
    script = tmp_path / "often.py"
    script.write_text(OFTEN)
    folder = tmp_path / "killed"
    command = [sys.executable, str(script), "run", str(tiny_recipe), "--run", str(folder)]
    generator = random.Random(7)
    # The longest stage twice, as it must go on from a checkpoint.
    moments = sorted(["base", "base", *generator.sample(STAGES[:-1], 4)], key=STAGES.index)
    started = []
    try:
        for stage in moments:
            process, said = cut_off(command, environment, stage, generator.uniform(0.05, 2.0), signal.SIGKILL)
            started.append(process)
            # A short stage may end the run before its moment comes, if it is among the last.
            assert process.returncode in (-signal.SIGKILL, 0) and "Traceback" not in said, said
        assert sum(process.returncode == -signal.SIGKILL for process in started) >= 5
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    finally:
        for process in started:
            still_running(process.pid, 0)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    for name in BYTE_IDENTICAL:
        assert (folder / name).read_bytes() == (tiny_run.folder / name).read_bytes(), name
    assert files(folder) == files(tiny_run.folder)


@needs_proc
@pytest.mark.parametrize(("stage", "company"), [("pages", 1), ("annotations", 2)])
def test_nothing_of_a_killed_run_keeps_running(environment, tiny_recipe, copy, stage, company):
    """Killed while it has other processes at work: the documentation server, the pool."""
    shutil.rmtree(copy / stage)
    command = [sys.executable, "-m", "groundup", "run", str(tiny_recipe), "--run", str(copy), "--set", "threads=2"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while process.poll() is None and len(processes(process.pid)) <= company:
            time.sleep(0.05)
        time.sleep(0.7)  # until they have begun to work
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert still_running(process.pid, 10) == []


@needs_proc
@pytest.mark.parametrize(("stage", "delay"), [("pages", 1.0), ("annotations", 1.0), ("sft", 0.2)])  # which takes 0.7 s
def test_ctrl_c_says_how_to_go_on(environment, tiny_recipe, copy, stage, delay):
    shutil.rmtree(copy / stage)
    command = [sys.executable, "-m", "groundup", "run", str(tiny_recipe), "--run", str(copy)]
    process, _ = cut_off(command, environment, stage, delay, signal.SIGINT)
    assert process.returncode == 130
    assert process.stderr.read().splitlines()[-1] == "stopped; run the same command again to resume"
    assert not (copy / stage).exists()
    assert still_running(process.pid, 10) == []
