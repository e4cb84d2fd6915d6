"""The run folder: which stages are done, what has to be made again and why, and how a cut-off stage continues.

    runs/laptop/<stage>/            an artifact, whole; stage.json in it was written last
    runs/laptop/<stage>.partial/    a stage at work, or cut off; key.json says for which inputs

A stage is done when its stage.json names the same recipe section and the same digests of its inputs as now. Digests are
of content: a stage that is made again with the same result does not cause the stages after it to be made again. Files and
folders outside of the run count by their content too.
"""

import glob
import hashlib
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from groundup import __version__
from groundup.core.seals import MANIFEST, SEAL, open_stage, read_manifest, read_sealed, verify, write_sealed
from groundup.core.text import printable
from groundup.errors import UserError
from groundup.files import digest, digest_of_all, write_json
from groundup.progress import duration
from groundup.recipe import Recipe

__all__ = ["Context", "Run", "Stage", "Step", "open_stage"]
KEY, ELAPSED = "key.json", "elapsed.json"
LIBRARIES = ("torch", "numpy", "tokenizers", "pyarrow", "resiliparse", "fastwarc")


@dataclass(frozen=True)
class Stage:
    """One step of the road. `make(context)` writes files into `context.work` and returns the stage's results."""

    name: str
    needs: tuple[str, ...]
    make: Callable[["Context"], dict[str, Any]]
    sections: tuple[str, ...] = ()  # of the recipe; the stage's own name when empty
    files: Callable[[Recipe], list[Path]] = lambda recipe: []  # or folders, outside the run: their content is input too
    content: Callable[[Path], str | None] = digest  # of an output: what the stages after it depend on; None: nothing
    # What can be known before it is this stage's turn: the stage after which it is known, "" for none, and a function of
    # the recipe and the run folder that raises UserError.
    ahead: tuple[tuple[str, Callable[[Recipe, Path], None]], ...] = ()


@dataclass
class Context:
    """What a stage is given."""

    recipe: Recipe
    work: Path  # write here; whatever a cut-off attempt left is still in it
    inputs: dict[str, Path]  # folders of the finished stages that it needs
    name: str

    def say(self, text: str) -> None:
        """Tell the person a derived decision and its reason."""
        print(printable(f"  {text}"), file=sys.stderr, flush=True)


@dataclass
class Step:
    """A stage in the plan of a run."""

    stage: Stage
    state: str  # "done", "make" or "check": the last depends on what an earlier stage brings
    reason: str


@dataclass
class Run:
    folder: Path
    recipe: Recipe
    stages: tuple[Stage, ...]

    def plan(self) -> list[Step]:
        """What `execute` would do, and why; nothing is written."""
        self._require_files()
        steps: list[Step] = []
        remade: set[str] = set()
        for stage in self.stages:
            manifest = self._manifest(stage.name)
            causes = [need for need in stage.needs if need in remade]
            if manifest is None:
                cut_off = (self._partial(stage) / KEY).exists()
                reason = "continues where it was cut off" if cut_off else "not made yet"
                steps.append(Step(stage, "make", reason))
            elif changes := _changed(manifest["key"]["recipe"], self._section(stage)):
                steps.append(Step(stage, "make", "; ".join(changes)))
            elif causes:
                steps.append(Step(stage, "check", f"made again if {' or '.join(causes)} comes out different"))
            elif stale := self._stale_inputs(stage, manifest):
                steps.append(Step(stage, "make", f"{' and '.join(stale)} changed"))
            elif altered := _different(manifest["key"].get("files", {}), self._files(stage)):
                steps.append(Step(stage, "make", f"{' and '.join(altered)} changed"))
            else:
                steps.append(Step(stage, "done", f"took {duration(manifest['seconds'])}"))
                continue
            remade.add(stage.name)
        return steps

    def execute(self) -> dict[str, dict[str, Any]]:
        """Make what is not done, in order. Returns the manifest of every stage.

        Raises UserError when another run works in the folder or a finished artifact was altered.
        """
        self._require_files()
        manifests: dict[str, dict[str, Any]] = {}
        looked: set[Callable] = set()
        with self._locked():
            for number, stage in enumerate(self.stages, start=1):
                self._promote(stage)
                manifest, key = self._manifest(stage.name), self._key(stage)
                if manifest is not None and manifest["key"] == key:
                    verify(self.folder / stage.name)
                else:
                    self._look_ahead(number - 1, manifests, looked)
                    print(printable(f"[{number}/{len(self.stages)}] {stage.name}"), file=sys.stderr, flush=True)
                    manifest = self._make(stage, key)
                manifests[stage.name] = manifest
        return manifests

    def _look_ahead(self, first: int, made: dict[str, Any], looked: set[Callable]) -> None:
        """What would end a later stage is said before the next one is made, as soon as it can be known."""
        for stage in self.stages[first:]:
            for known, check in stage.ahead:
                if (not known or known in made) and check not in looked:
                    looked.add(check)
                    check(self.recipe, self.folder)

    def _make(self, stage: Stage, key: dict[str, Any]) -> dict[str, Any]:
        work = self._partial(stage)
        if (work.exists() or work.is_symlink()) and not _same_key(work / KEY, key):
            print(printable(f"  {work} is of other inputs, or damaged: begun anew"), file=sys.stderr, flush=True)
            _remove(work)
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / KEY, key)
        before, start = _elapsed(work / ELAPSED), time.monotonic()
        context = Context(self.recipe, work, {need: self.folder / need for need in stage.needs}, stage.name)
        try:
            results = stage.make(context)
        finally:
            seconds = before + time.monotonic() - start
            if work.exists():
                _note_elapsed(work / ELAPSED, seconds)
        if altered := _different(key.get("files", {}), self._files(stage)):
            raise UserError(f"{' and '.join(altered)} changed while stage {stage.name} read it; run the same command again")
        aside = [work / KEY, work / ELAPSED, *work.rglob(f"*.{SEAL}")]  # for going on; the manifest takes their place
        paths = [path for path in sorted(work.rglob("*")) if path.is_file() and path not in aside]
        outputs = {path.relative_to(work).as_posix(): digest(path) for path in paths}
        contents = outputs
        if stage.content is not digest:
            found = {path.relative_to(work).as_posix(): stage.content(path) for path in paths}
            contents = {name: content for name, content in found.items() if content is not None}
        manifest = {
            "stage": stage.name,
            "key": key,
            "outputs": outputs,
            "digest": _combined(contents),
            "versions": _versions(),
            "seconds": round(seconds, 1),
            "results": results,
        }
        for path in aside:
            path.unlink(missing_ok=True)
        manifest = write_sealed(work / MANIFEST, manifest)
        self._promote(stage)
        print(printable(f"  {stage.name}: {duration(seconds)}"), file=sys.stderr, flush=True)
        return manifest

    def _promote(self, stage: Stage) -> None:
        """Move a finished partial folder into place; also finishes a move that a kill cut off."""
        work, final = self._partial(stage), self.folder / stage.name
        if not (work / MANIFEST).is_file():
            return
        read_manifest(work)
        if final.is_dir() and not final.is_symlink():  # what a link leads to is not ours to take away
            (final / MANIFEST).unlink(missing_ok=True)
        _remove(final)
        work.rename(final)

    def _key(self, stage: Stage) -> dict[str, Any]:
        files = self._files(stage)
        return {
            "recipe": self._section(stage),
            "inputs": {need: self._manifest(need)["digest"] for need in stage.needs},
            **({"files": files} if files else {}),
        }

    def _files(self, stage: Stage) -> dict[str, str]:
        return {str(path): digest_of_all(path) for path in stage.files(self.recipe)}

    def _require_files(self) -> None:
        """Before hours are spent on the stages that come first."""
        for stage in self.stages:
            for path in stage.files(self.recipe):
                if not (path.is_file() or path.is_dir()):
                    raise UserError(f"{path}: no such file, which stage {stage.name} needs; give its right path")
                verify(path if path.is_dir() else path.parent, "*" if path.is_dir() else glob.escape(path.name))

    def _section(self, stage: Stage) -> dict[str, Any]:
        sections = {name: getattr(self.recipe, name).model_dump() for name in stage.sections or (stage.name,)}
        return {"seed": self.recipe.seed, **sections}

    def _stale_inputs(self, stage: Stage, manifest: dict[str, Any]) -> list[str]:
        recorded = manifest["key"]["inputs"]
        return [need for need in stage.needs if recorded.get(need) != (self._manifest(need) or {}).get("digest")]

    def _manifest(self, name: str) -> dict[str, Any] | None:
        made = self.folder / f"{name}.partial"  # if it is whole, it only waits for its rename
        folder = made if (made / MANIFEST).is_file() else self.folder / name
        return read_manifest(folder) if (folder / MANIFEST).is_file() else None

    def _partial(self, stage: Stage) -> Path:
        return self.folder / f"{stage.name}.partial"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise UserError(f"{self.folder}: another groundup run is working in this folder; wait for it") from None


def _remove(path: Path) -> None:
    """A folder with all that is in it; of a link the link alone."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _different(before: dict[str, str], now: dict[str, str]) -> list[str]:
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def _changed(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """['base.depth: 4 -> 6', ...]"""
    lines = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _changed(old, new, f"{prefix}{name}.")
        elif json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
            lines.append(f"{prefix}{name}: {json.dumps(old)} -> {json.dumps(new)}")
    return lines


def _same_key(path: Path, key: dict[str, Any]) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(key))
    except (OSError, ValueError):
        return False


def _elapsed(path: Path) -> float:
    return float((read_sealed(path) or {}).get("seconds", 0.0))


def _note_elapsed(path: Path, seconds: float) -> None:
    """Best effort: a full disk must be reported as what it is, not as a failure to note the time."""
    try:
        write_sealed(path, {"seconds": seconds})
    except OSError:
        path.unlink(missing_ok=True)


def _combined(outputs: dict[str, str]) -> str:
    return hashlib.blake2b(json.dumps(outputs, sort_keys=True).encode(), digest_size=16).hexdigest()


def _versions() -> dict[str, str]:
    return {
        "groundup": __version__,
        "python": platform.python_version(),
        **{lib: metadata.version(lib) for lib in LIBRARIES},
    }
