"""The metrics of a run for TensorBoard, which reads event files; metrics.jsonl remains the source."""

import json
import logging
import time
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.seals import verify

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
SUFFIX = ".groundup"  # of our event files; each call writes them anew


def export(run: Path, out: Path, follow: bool = False) -> dict[str, Any]:
    """Write the metrics of every training in `run` to event files in `out`, a folder each.

    follow: keep writing what trainings add, until interrupted. Raises UserError where there are no metrics, or no TensorBoard.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("tensorboard is not installed; pip install 'groundup[tensorboard]'") from None
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    if not (_metrics_files(run) or follow):
        raise UserError(f"{run}: no metrics.jsonl of a training in it yet; following waits for one")
    writers: dict[str, SummaryWriter] = {}
    written: dict[str, list[dict[str, Any]]] = {}
    logger.info(f"tensorboard --logdir {out}")
    try:
        while True:
            for name, path in _metrics_files(run).items():
                rows = _rows(path)
                if path.is_file():  # also where it has no whole line
                    verify(_training_folder(path), "*metrics.jsonl")
                if not rows:
                    continue
                if name not in writers or rows[0] != written[name][0]:  # or the stage is made again, differently
                    if name in writers:
                        writers[name].close()
                    for old in (out / name).glob(f"events.out.tfevents.*{SUFFIX}"):
                        old.unlink()
                    writers[name], written[name] = SummaryWriter(str(out / name), filename_suffix=SUFFIX), []
                # A training that was killed does its last steps again, to the same values.
                for row in rows[len(written[name]) :]:
                    for metric, value in row.items():
                        if metric != "step":
                            writers[name].add_scalar(metric, float(value), int(row["step"]))
                    written[name].append(row)
                writers[name].flush()
            if not follow:
                return {"out": str(out), "steps": {name: len(rows) for name, rows in written.items()}}
            time.sleep(POLL_SECONDS)
    finally:
        for writer in writers.values():
            writer.close()


def _metrics_files(run: Path) -> dict[str, Path]:
    """The name and metrics.jsonl of each training, finished or at work."""
    paths = sorted([*run.glob("*/metrics.jsonl"), *run.glob("*/training/metrics.jsonl")])  # of an encoder, of a step
    return {_training_folder(path).relative_to(run).as_posix().replace(".partial", "", 1): path for path in paths}


def _training_folder(path: Path) -> Path:
    """The folder of a training of which `path` are the metrics."""
    return path.parents[1] if path.parent.name == "training" else path.parent


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the whole lines; the last line may be incomplete."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except FileNotFoundError:  # the step was finished meanwhile, and its folder renamed
        return []
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not lines of JSON: {error}") from None
