"""What TensorBoard itself reads of the event files is what stands in metrics.jsonl."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from groundup.core.errors import UserError
from groundup.report.tensorboard import export


def read(folder):
    """Metric -> [(step, value)]."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(path):
    found = {}
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        step = row.pop("step")
        for name, value in row.items():
            found.setdefault(name, []).append((step, np.float32(value)))
    return found


def test_every_training_of_a_run(groundup_here, tiny_run, tmp_path):
    for _ in range(2):  # the second call writes anew, and adds nothing
        outcome = groundup_here("tensorboard", tiny_run.folder, "--out", tmp_path)
        assert outcome.returncode == 0, outcome.stderr
        steps = json.loads(outcome.stdout.splitlines()[-1])["steps"]
        assert {"base", "sft", "reward", "dpo", "ppo"} <= set(steps)
        for name in steps:
            assert read(tmp_path / name) == expected(tiny_run.folder / name / "training" / "metrics.jsonl")


def test_follow_a_training_at_work(environment, tmp_path):
    metrics = tmp_path / "run" / "base.partial" / "training" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": 9 - step, "grad_norm": "inf" if step == 1 else 0.5}) for step in range(4)]
    metrics.write_text("\n".join(lines[:2]) + "\n" + lines[2][:7])  # the third is in the making
    command = [sys.executable, "-m", "groundup", "tensorboard", tmp_path / "run", "--follow"]
    follower = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out = tmp_path / "run" / "tensorboard" / "base"

    def until(steps):
        end = time.monotonic() + 60
        while time.monotonic() < end and (not out.exists() or len(read(out).get("loss", [])) < steps):
            time.sleep(0.1)
        return [step for step, _ in read(out)["loss"]]

    try:
        assert until(2) == [0, 1]
        assert read(out)["grad_norm"][1] == (1, float("inf"))
        metrics.write_text(lines[0] + "\n")  # killed, and resumed one step before
        time.sleep(2.5)
        metrics.write_text("\n".join(lines) + "\n")
        metrics.parent.rename(metrics.parent.with_suffix(""))  # the stage is finished
        assert until(4) == [0, 1, 2, 3]
    finally:
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=30)
    assert follower.returncode == 130 and b"Traceback" not in said


def test_a_stage_that_is_made_again_begins_anew(tmp_path):
    for losses in ((3.0, 2.0, 1.0), (5.0, 4.0)):
        stage = tmp_path / "run" / "base"
        shutil.rmtree(stage, ignore_errors=True)
        (stage / "training").mkdir(parents=True)
        rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses)]
        (stage / "training" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "out" / "base").mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / "base" / "mine.txt").touch()
        export(tmp_path / "run", tmp_path / "out")
        assert read(tmp_path / "out" / "base")["loss"] == list(enumerate(losses))
    assert sorted(path.suffix for path in (tmp_path / "out" / "base").iterdir()) == [".groundup", ".txt"]


def test_what_cannot_be_shown_is_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no metrics\\.jsonl of a training"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no such run folder"):
        export(tmp_path / "none", tmp_path / "out", follow=True)
    stage = tmp_path / "base"
    (stage / "training").mkdir(parents=True)
    (stage / "training" / "metrics.jsonl").write_text("loss 3\n")
    with pytest.raises(UserError, match="not lines of JSON"):
        export(tmp_path, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install 'groundup\\[tensorboard\\]'"):
        export(tmp_path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_metrics_of_a_finished_step_without_a_whole_line_are_refused(tiny_run, tmp_path):
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    metrics = tmp_path / "run" / "ppo" / "training" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:20])
    with pytest.raises(UserError, match="was altered"):
        export(tmp_path / "run", tmp_path / "out")
