"""The run folder: which steps are done, which have to run again and why, and how an interrupted step resumes.

    runs/laptop/<step>/            an artifact, whole; stage.json in it was written last
    runs/laptop/<step>.partial/    a step at work, or interrupted; key.json says for which inputs

A step is done when its stage.json names the same recipe section and the same digests of its inputs as now. Digests are
of content: a step that runs again with the same result does not cause the steps after it to run again. Files and
folders outside of the run count by their content too.
"""

import glob
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from groundup import __version__
from groundup.core.errors import UserError
from groundup.core.files import digest, digest_of_all, write_json
from groundup.core.locks import alone
from groundup.core.log import to_file
from groundup.core.machine import machine
from groundup.core.plain_files import hub_advice, seen_from
from groundup.core.progress import duration
from groundup.core.seals import MANIFEST, SEAL, open_stage, read_manifest, read_sealed, verify, write_sealed
from groundup.pipeline.recipe import Recipe

__all__ = ["Planned", "Run", "Step", "StepContext", "open_stage"]
logger = logging.getLogger(__name__)
KEY, ELAPSED, LOG = "key.json", "elapsed.json", "log.txt"
FROM_HUB = ("base", "sft", "reward", "model", "tokenizer")  # inputs that Hugging Face has too
LIBRARIES = ("torch", "numpy", "tokenizers", "pyarrow", "resiliparse", "fastwarc")


@dataclass(frozen=True)
class Step:
    """One step of a run. `make(context)` writes files into `context.work` and returns the step's results."""

    name: str
    needs: tuple[str, ...]  # its inputs: each the name of the step that makes it, unless `bound` says otherwise
    make: Callable[["StepContext"], dict[str, Any]]
    sections: tuple[str, ...] = ()  # of the recipe; those of the step's kind when empty
    files: Callable[[Recipe], list[Path]] = lambda recipe: []  # or folders, outside the run: their content is input too
    content: Callable[[Path], str | None] = digest  # of an output: what the steps after it depend on; None: nothing
    # What can be checked before it is this step's turn: the input that a check needs, "" for none, and a function of the recipe
    # and the folders of the inputs, which raises UserError.
    checks: tuple[tuple[str, Callable[[Recipe, dict[str, Path]], None]], ...] = ()
    kind: str = ""  # the section of the recipe that holds its settings; its name when empty
    bound: Mapping[str, str | Path] = field(default_factory=dict)  # input -> another step's name, or a folder outside the run
    recipe: Recipe | None = None  # with settings of its own; the run's when None

    def source(self, need: str) -> str | Path:
        """Where an input comes from: the name of a step, or a folder."""
        return self.bound.get(need, need)

    def inputs(self, run: Path) -> dict[str, Path]:
        """The folder of each input. A path outside of the run is relative to where the program was started."""
        sources = {need: self.source(need) for need in self.needs}
        return {need: run / source if isinstance(source, str) else source for need, source in sources.items()}

    def sources(self) -> list[str]:
        """The steps that must be done before."""
        return [source for source in map(self.source, self.needs) if isinstance(source, str)]


@dataclass
class StepContext:
    """What `make` of a step takes."""

    recipe: Recipe
    work: Path  # write here; whatever an interrupted attempt left is still in it
    inputs: dict[str, Path]  # name of the input -> folder of a finished step, or one outside the run
    name: str

    def log(self, text: str) -> None:
        """A derived decision and its reason."""
        logger.info(text)


@dataclass
class Planned:
    """A step in the plan of a run."""

    step: Step
    state: str  # "done", "make" or "check": whether a step of the last is made depends on the result of an earlier one
    reason: str


@dataclass
class Run:
    folder: Path
    recipe: Recipe
    steps: tuple[Step, ...]

    def plan(self) -> list[Planned]:
        """What `execute` would do, and why; nothing is written.

        Raises UserError where `execute` would, as where a finished artifact was altered.
        """
        self._require_files()
        planned: list[Planned] = []
        remade: set[str] = set()
        for step in self.steps:
            manifest = self._manifest(step.name)
            causes = [name for name in step.sources() if name in remade]
            if manifest is None:
                interrupted = (self._partial(step) / KEY).exists()
                reason = "resumes where it was interrupted" if interrupted else "not made yet"
                planned.append(Planned(step, "make", reason))
            elif changes := _changed(manifest["key"]["recipe"], self._section(step)):
                planned.append(Planned(step, "make", "; ".join(changes)))
            elif causes:
                planned.append(Planned(step, "check", f"made again if {' or '.join(causes)} comes out different"))
            elif stale := self._stale_inputs(step, manifest):
                planned.append(Planned(step, "make", f"{' and '.join(stale)} changed"))
            elif gone := [need for need in manifest["key"]["inputs"] if need not in step.needs]:
                planned.append(Planned(step, "make", f"made before with {' and '.join(gone)}"))
            elif altered := _different(manifest["key"].get("files", {}), self._files(step)):
                planned.append(Planned(step, "make", f"{' and '.join(altered)} changed"))
            else:
                verify(self._artifact(step.name))
                planned.append(Planned(step, "done", f"took {duration(manifest['seconds'])}"))
                continue
            remade.add(step.name)
        return planned

    def execute(self) -> dict[str, dict[str, Any]]:
        """Make what is not done, in order. Returns the manifest of every stage.

        Raises UserError when another run works in the folder or a finished artifact was altered.
        """
        if self.folder.is_dir() and not os.access(self.folder, os.W_OK):
            return self._finished_without_writing()
        self._require_files()
        manifests: dict[str, dict[str, Any]] = {}
        checked: set[tuple[str, Callable]] = set()
        with alone(self.folder, lock_file=self.folder / ".lock"), to_file(self.folder / LOG):
            for number, step in enumerate(self.steps, start=1):
                self._promote(step)
                manifest, key = self._manifest(step.name), self._key(step)
                if manifest is not None and manifest["key"] == key:
                    verify(self.folder / step.name)
                else:
                    self._run_checks(number - 1, manifests, checked)
                    logger.info(f"[{number}/{len(self.steps)}] {step.name}", extra={"indent": ""})
                    manifest = self._make(step, key)
                manifests[step.name] = manifest
        return manifests

    def _finished_without_writing(self) -> dict[str, dict[str, Any]]:
        """The manifest of every stage of a finished run in a folder that is read-only, as an archive or another user's is.

        Neither lock nor log is written. Raises UserError where a step would have to be made.
        """
        for planned in self.plan():
            if planned.state != "done":
                raise UserError(
                    f"{self.folder}: may not be written, and step {planned.step.name} is to be made "
                    f"({planned.reason[:100]}); give another run folder, or copy it"
                )
        return {step.name: read_manifest(self._artifact(step.name)) for step in self.steps}

    def _run_checks(self, first: int, manifests: dict[str, Any], checked: set[tuple[str, Callable]]) -> None:
        """Run each check of the steps from `first` on as soon as its input is made. Raises the UserError of the first to fail."""
        for step in self.steps[first:]:
            for need, check in step.checks:
                available = not need or isinstance(step.source(need), Path) or step.source(need) in manifests
                if available and (step.name, check) not in checked:
                    checked.add((step.name, check))
                    check(self._recipe(step), step.inputs(self.folder))

    def _make(self, step: Step, key: dict[str, Any]) -> dict[str, Any]:
        work = self._partial(step)
        if (work.exists() or work.is_symlink()) and not _same_key(work / KEY, key):
            logger.warning(f"{work} is of other inputs, or damaged: starting again")
            _remove(work)
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / KEY, key)
        context = StepContext(self._recipe(step), work, step.inputs(self.folder), step.name)
        try:
            results, seconds = _timed(work, lambda: step.make(context))
        except UserError as error:
            raise UserError(self._with_section(step, str(error))) from None
        outside = [need for need in step.needs if isinstance(step.source(need), Path)]
        altered = [str(step.source(need)) for need in outside if key["inputs"][need] != self._digest(step.source(need))]
        if altered := altered or _different(key.get("files", {}), self._files(step)):
            raise UserError(f"{' and '.join(altered)} changed while step {step.name} read it; run the same command again")
        manifest = write_manifest(work, step.name, key, seconds, results, step.content)
        self._promote(step)
        logger.info(f"{step.name}: {duration(seconds)}")
        return manifest

    def _promote(self, step: Step) -> None:
        """Move a finished partial folder into place; also finishes a move that a kill interrupted."""
        work, final = self._partial(step), self.folder / step.name
        if not (work / MANIFEST).is_file():
            return
        read_manifest(work)
        (work / KEY).unlink(missing_ok=True)
        if final.is_dir() and not final.is_symlink():  # what a link leads to is not ours to take away
            (final / MANIFEST).unlink(missing_ok=True)
        _remove(final)
        work.rename(final)

    def _key(self, step: Step) -> dict[str, Any]:
        files = self._files(step)
        return {
            "recipe": self._section(step),
            "inputs": {need: self._digest(step.source(need)) for need in step.needs},
            **({"files": files} if files else {}),
        }

    def _with_section(self, step: Step, text: str) -> str:
        """Put the section before a setting that a chapter names, as in "depth: ..."."""
        name = re.match(r"\w+(?= =|:)", text)
        for section in step.sections or (step.kind or step.name,):
            if name and name[0] in type(getattr(self._recipe(step), section)).model_fields:
                return f"{section}.{text}"
        return text

    def _recipe(self, step: Step) -> Recipe:
        return step.recipe or self.recipe

    def _digest(self, source: str | Path) -> str | None:
        """The digest of what a step made, None where it is not made; or of the content of a folder outside."""
        if isinstance(source, Path):
            return digest_of_all(source)
        return (self._manifest(source) or {}).get("digest")

    def _files(self, step: Step) -> dict[str, str]:
        return {str(path): digest_of_all(path) for path in step.files(self._recipe(step))}

    def _require_files(self) -> None:
        """Raises UserError for files that later steps need, before the first steps spend hours."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder}: a file, where a run's folder is wanted; give another name")
        for step in self.steps:
            self._require_own_folders(step)
            outside = [path for path in map(step.source, step.needs) if isinstance(path, Path)]
            for path in [*outside, *step.files(self._recipe(step))]:
                if not (path.is_file() or path.is_dir()):
                    trouble = "a device, pipe or socket" if path.exists() else f"no such file{seen_from(path)}"
                    models = [step.source(need) for need in step.needs if need in FROM_HUB]
                    model = path.parent if path.name in ("config.json", "tokenizer.json") else path if path in models else Path()
                    advice = hub_advice(model)
                    raise UserError(f"{path}: {trouble}, which step {step.name} needs; give its right path{advice}")
                if path.is_file() and path in outside:
                    raise UserError(f"{path}: a file, where step {step.name} needs a folder of a step; give its right path")
                if path.is_dir() and self.folder.resolve().is_relative_to(path.resolve()):
                    raise UserError(f"{self.folder}: is inside of {path}, which step {step.name} reads; give another run folder")
                verify(path if path.is_dir() else path.parent, "*" if path.is_dir() else glob.escape(path.name))

    def _require_own_folders(self, step: Step) -> None:
        """Raises UserError where a step's folder is not ours: it must not be deleted, as the rest of interrupted work is."""
        final, work = self.folder / step.name, self._partial(step)
        marks = {final: [final / MANIFEST, work / MANIFEST], work: [work / MANIFEST, work / KEY, work / f"{KEY}.partial"]}
        for folder, any_of in marks.items():
            if folder.is_symlink() or not folder.exists():
                continue
            if not folder.is_dir() or (any(folder.iterdir()) and not any(map(os.path.lexists, any_of))):
                raise UserError(f"{folder}: is there, and no step of a run made it; give another run folder, or move it away")

    def _section(self, step: Step) -> dict[str, Any]:
        recipe = self._recipe(step)
        sections = {name: getattr(recipe, name).model_dump() for name in step.sections or (step.kind or step.name,)}
        return {"seed": recipe.seed, **sections}

    def _stale_inputs(self, step: Step, manifest: dict[str, Any]) -> list[str]:
        recorded = manifest["key"]["inputs"]
        return [str(step.source(need)) for need in step.needs if recorded.get(need) != self._digest(step.source(need))]

    def _artifact(self, name: str) -> Path:
        """The folder of a step's artifact: a partial folder with a manifest is finished and only waits for its rename."""
        work = self.folder / f"{name}.partial"
        return work if (work / MANIFEST).is_file() else self.folder / name

    def _manifest(self, name: str) -> dict[str, Any] | None:
        folder = self._artifact(name)
        return read_manifest(folder) if (folder / MANIFEST).is_file() else None

    def _partial(self, step: Step) -> Path:
        return self.folder / f"{step.name}.partial"


def make_single_step(
    folder: Path, name: str, key: dict[str, Any], make: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """Make `folder` as a step outside of any run: `make(work)` writes its files and returns its results. Returns the manifest.

    Where it was made with the same `key` before, nothing is done; one that was killed resumes. Raises UserError where the
    folder holds anything else, or another process is making it.
    """
    key = json.loads(json.dumps({"groundup": __version__, **key}))
    folder = folder.absolute()
    if (manifest := _finished_single_step(folder, key)) is not None:  # without the lock: its folder may be read-only
        return manifest
    with alone(folder):
        manifest = _finished_single_step(folder, key)
        return _make_single_step(folder, name, key, make) if manifest is None else manifest


def _finished_single_step(folder: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    if changes := _changed(manifest["key"], key):
        raise UserError(f"{folder}: holds another result ({'; '.join(changes)[:120]}); give another folder, or delete it")
    verify(folder)
    return manifest


def _make_single_step(
    folder: Path, name: str, key: dict[str, Any], make: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    work = folder.with_name(f"{folder.name}.partial")
    for path, ours in ((folder, False), (work, (work / KEY).is_file() or (work / MANIFEST).is_file())):
        if path.exists() and not ours and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"{path}: is there already, and not empty; give another folder, or delete it")
    if work.exists() and not _same_key(work / KEY, key):
        _remove(work)
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / KEY, key)
    results, seconds = _timed(work, lambda: make(work))
    manifest = write_manifest(work, name, key, seconds, results)
    _remove(folder)
    work.rename(folder)
    return manifest


def _timed(work: Path, make: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """What `make` returns, and the seconds that it took, with those of interrupted attempts."""
    before, start = _elapsed(work / ELAPSED), time.monotonic()
    try:
        results = make()
    finally:
        seconds = before + time.monotonic() - start
        if work.exists():
            _note_elapsed(work / ELAPSED, seconds)
    return results, seconds


def write_manifest(
    work: Path, name: str, key: dict[str, Any], seconds: float, results: dict[str, Any],
    content: Callable[[Path], str | None] = digest,
) -> dict[str, Any]:  # fmt: skip
    """Finish the step in the folder `work`: write stage.json and delete what was kept for resuming. Returns the manifest."""
    resume_files = [work / KEY, work / ELAPSED, *work.rglob(f"*.{SEAL}")]
    paths = [path for path in sorted(work.rglob("*")) if path.is_file() and path not in resume_files]
    outputs = {path.relative_to(work).as_posix(): digest(path) for path in paths}
    contents = outputs
    if content is not digest:
        digests = {path.relative_to(work).as_posix(): content(path) for path in paths}
        contents = {name: content_digest for name, content_digest in digests.items() if content_digest is not None}
    manifest = {
        "stage": name,
        "key": key,
        "outputs": outputs,
        "digest": _digest_of_digests(contents),
        "versions": _versions(),
        "machine": machine(),
        "seconds": round(seconds, 1),
        "results": results,
    }
    for path in resume_files[1:]:
        path.unlink(missing_ok=True)
    sealed = write_sealed(work / MANIFEST, manifest)
    (work / KEY).unlink(missing_ok=True)  # last: a folder with neither file counts as not ours
    return sealed


def _remove(path: Path) -> None:
    """Delete a file, or a folder with its content; of a link only the link."""
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
            lines.append(f"{prefix}{name}: {json.dumps(old, ensure_ascii=False)} -> {json.dumps(new, ensure_ascii=False)}")
    return lines


def _same_key(path: Path, key: dict[str, Any]) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(key))
    except (OSError, ValueError):
        return False


def _elapsed(path: Path) -> float:
    return float((read_sealed(path) or {}).get("seconds", 0.0))


def _note_elapsed(path: Path, seconds: float) -> None:
    """Best effort: a full disk must be reported by the step itself, not as a failure to note the time."""
    try:
        write_sealed(path, {"seconds": seconds})
    except OSError:
        path.unlink(missing_ok=True)


def _digest_of_digests(outputs: dict[str, str]) -> str:
    return hashlib.blake2b(json.dumps(outputs, sort_keys=True).encode(), digest_size=16).hexdigest()


def _versions() -> dict[str, str]:
    return {
        "groundup": __version__,
        "python": platform.python_version(),
        **{lib: metadata.version(lib) for lib in LIBRARIES},
    }
