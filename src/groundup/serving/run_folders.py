"""The state of runs, for the page that watches them: steps, curves of metrics.jsonl, samples, the log's end.

A name from a request is compared with the names in the folder and never made into a path; links that lead out of the folder are
ignored.
"""

import json
import math
import os
import re
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.core.plain_files import open_plain
from groundup.core.seals import MANIFEST, read_manifest
from groundup.core.text import visible
from groundup.serving.protocol import RequestError

MOST_RUNS, MOST_STEPS = 200, 100
POINTS = 400  # of a curve: as many as a page is wide; with more, means of neighbouring points are shown
MOST_CURVES = 64  # metrics of a file; others are left out
KEPT_FILES = 16  # whose rows are remembered, so that only new ones are read
TRAINING = "training"  # the folder of a step with what its training wrote
METRICS = f"{TRAINING}/metrics.jsonl"
READ_AT_ONCE = 32 << 20  # bytes of it
SHOWN_SAMPLES, SHOWN_TEXT, SHOWN_LINES = 10, 400, 12
READ_OF_TEXT = 1 << 20  # bytes of samples and logs, from one end
STEP_LINE = re.compile(r"\[(\d+)/(\d+)\] ")


class Curves:
    """The rows of one metrics.jsonl; each reading begins where the last one ended."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.offset, self.bad = path, 0, 0, 0
        self.columns: dict[str, tuple[array[int], array[float]]] = {}
        self.last = -1

    def read_new(self) -> None:
        """Read the rows that were added. Raises UserError where it is no plain file."""
        with open_plain(self.path) as file:
            status = os.fstat(file.fileno())  # of the file that is open: another may take its name
            if status.st_ino != self.file or status.st_size < self.offset:
                self._forget(status.st_ino)
            file.seek(self.offset)
            while data := file.read(READ_AT_ONCE):
                complete = data.rfind(b"\n") + 1
                if not complete:
                    break
                for line in data[:complete].split(b"\n"):
                    if line:
                        self._add(line)
                self.offset += complete
                file.seek(self.offset)

    def _forget(self, file: int) -> None:
        self.file, self.offset, self.bad, self.columns, self.last = file, 0, 0, {}, -1

    def _add(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            step = int(row["step"])
            values = {str(name): float(value) for name, value in row.items() if name != "step"}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            self.bad += 1
            return
        if not self.last < step < 2**53:  # a training that was killed does its last steps again, to the same values
            return
        self.last = step
        for name, value in values.items():
            if name in self.columns or len(self.columns) < MOST_CURVES:
                steps, column = self.columns.setdefault(name, (array("q"), array("d")))
                steps.append(step)
                column.append(value)

    def points(self) -> dict[str, list[list[float | None]]]:
        """By metric (step, value); what is not finite is None."""
        return {visible(name): _thinned(steps, values) for name, (steps, values) in self.columns.items()}


def _thinned(steps: "array[int]", values: "array[float]") -> list[list[float | None]]:
    step_N, value_N = np.array(steps), np.array(values)
    if len(step_N) > POINTS:
        starts = np.linspace(0, len(step_N), POINTS, endpoint=False).astype(int)
        sizes = np.diff([*starts, len(step_N)])
        with np.errstate(invalid="ignore", over="ignore"):
            value_N = np.add.reduceat(value_N, starts) / sizes
        step_N = step_N[starts + sizes - 1]
    return [[int(step), float(value) if np.isfinite(value) else None] for step, value in zip(step_N, value_N, strict=True)]


class RunFolders:
    """The runs in a folder, or the folder as one run."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no folder of runs")
        self.folder = folder.resolve()
        self.curves_of: dict[Path, Curves] = {}
        self.lock = threading.Lock()

    def list(self) -> dict[str, Any]:
        """All runs; the one that changed last comes first."""
        runs = [{"run": name, "changed": _changed(path)} for name, path in self._run_folders().items()]
        return {"now": time.time(), "runs": sorted(runs, key=lambda run: -run["changed"])}

    def status(self, run: str) -> dict[str, Any]:
        """A run's steps, and how far it is. Raises RequestError for an unknown name."""
        folder = self._run_folder(run)
        steps = [_step_state(name, path) for name, path in self._step_folders(folder).items()]
        steps.sort(key=lambda step: (step["state"] == "at work", step["changed"]))
        lines = _last_lines(folder / "log.txt") if self._readable(folder / "log.txt") else []
        step_line = next((match for line in reversed(lines) if (match := STEP_LINE.search(line))), None)
        position = {"step": int(step_line[1]), "of": int(step_line[2])} if step_line else None
        log = [visible(line)[:SHOWN_TEXT] for line in lines[-SHOWN_LINES:]]
        return {"run": run, "now": time.time(), "steps": steps, "position": position, "log": log}

    def curves(self, run: str, step: str, seen: str) -> dict[str, Any]:
        """The metrics of a training; without the points where the version is the one that the page has `seen`."""
        path = self._step_folder(run, step) / METRICS
        if not self._readable(path):
            return {"version": "", "curves": {}, "bad": 0}
        with self.lock:
            curves = self.curves_of.pop(path, None) or Curves(path)
            self.curves_of[path] = curves  # the most recently used
            while len(self.curves_of) > KEPT_FILES:
                del self.curves_of[next(iter(self.curves_of))]
            curves.read_new()
            version = f"{curves.file}-{curves.offset}"
            return {"version": version, "bad": curves.bad, **({} if version == seen else {"curves": curves.points()})}

    def samples(self, run: str, step: str) -> dict[str, Any]:
        """Texts that the model wrote: the first of samples.jsonl, the last of a policy at work, or those of an evaluation."""
        step_folder = self._step_folder(run, step)
        folder = step_folder / TRAINING
        if self._readable(folder / "samples.jsonl"):
            with open_plain(folder / "samples.jsonl") as file:
                rows = _json_rows(file.read(READ_OF_TEXT).split(b"\n")[:-1])[:SHOWN_SAMPLES]
        elif self._readable(folder / "rollout_samples.jsonl"):
            rows = _json_rows([line.encode() for line in _last_lines(folder / "rollout_samples.jsonl")])[-SHOWN_SAMPLES:]
        else:
            finished = (step_folder / MANIFEST).is_file()
            samples = _results(read_manifest(step_folder)).get("samples") if finished else []
            rows = samples[:SHOWN_SAMPLES] if isinstance(samples, list) else []
        return {"samples": [_texts(row) for row in rows]}

    def _run_folders(self) -> dict[str, Path]:
        """Folder of each run, by its name as it is shown."""
        if _is_step(self.folder) or any((self.folder / name).is_file() for name in (".lock", "log.txt")):
            return {visible(self.folder.name): self.folder}
        inside = sorted(path for path in self.folder.iterdir() if self._inside(path))
        folders = [path for path in inside if _is_step(path) or self._step_folders(path)]
        return {visible(path.name): path for path in sorted(folders, key=_changed)[-MOST_RUNS:]}

    def _run_folder(self, name: str) -> Path:
        if (folder := self._run_folders().get(name)) is None:
            raise RequestError(f"no run {name[:80]!r}", "run", 404)
        return folder

    def _step_folders(self, run: Path) -> dict[str, Path]:
        """Steps that are finished or at work; a folder that is one step itself has that one alone."""
        if _is_step(run):
            return {visible(run.name.removesuffix(".partial")): run}
        inside = [path for path in sorted(run.iterdir()) if self._inside(path) and _is_step(path)][:MOST_STEPS]
        return {visible(path.name.removesuffix(".partial")): path for path in inside}

    def _step_folder(self, run: str, name: str) -> Path:
        if (folder := self._step_folders(self._run_folder(run)).get(name)) is None:
            raise RequestError(f"no step {name[:80]!r} in it", "step", 404)
        return folder

    def _inside(self, path: Path) -> bool:
        return path.is_dir() and path.resolve().is_relative_to(self.folder)

    def _readable(self, path: Path) -> bool:
        return path.is_file() and path.resolve().is_relative_to(self.folder)


def _is_step(path: Path) -> bool:
    names = (MANIFEST, METRICS, "key.json")
    return not (path / MANIFEST).is_symlink() and any((path / name).is_file() for name in names)


def _step_state(name: str, folder: Path) -> dict[str, Any]:
    step = {"name": name, "changed": _changed(folder), "seconds": None, "results": {}}
    step["trains"] = (folder / METRICS).is_file()
    if not (folder / MANIFEST).is_file():
        return {**step, "state": "at work"}
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return {**step, "state": "damaged", "results": {"": visible(str(error))[:SHOWN_TEXT]}}
    shown = {key: value for key, value in _results(manifest).items() if isinstance(value, str | int | float)}
    seconds = manifest["seconds"]
    finite = isinstance(seconds, int | float) and math.isfinite(seconds)
    return {**step, "state": "done", "seconds": seconds if finite else None, "results": _texts(shown)}


def _results(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["results"] if isinstance(manifest["results"], dict) else {}


def _changed(folder: Path) -> float:
    """When something in it was written last, in seconds since 1970; of a run, in one of its steps."""
    times = [folder.stat().st_mtime]
    for path in folder.iterdir():
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # renamed meanwhile, or a link to nothing
            continue
    return max(times)


def _last_lines(path: Path) -> list[str]:
    with open_plain(path) as file:
        start = max(0, os.fstat(file.fileno()).st_size - READ_OF_TEXT)
        file.seek(start)
        lines = file.read(READ_OF_TEXT).decode("utf-8", "replace").split("\n")
    return [line for line in lines[bool(start) :] if line]


def _json_rows(lines: list[bytes]) -> list[Any]:
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):  # not completely written yet
            continue
    return rows


def _texts(row: Any) -> dict[str, str]:
    given = row.items() if isinstance(row, dict) else [("", row)]
    texts = ((name, value if isinstance(value, str) else json.dumps(value)) for name, value in given)
    return {visible(str(name))[:80]: visible(value)[:SHOWN_TEXT] for name, value in texts}
