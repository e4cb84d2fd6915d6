"""Files are verified before they are used: work that a kill left, and finished stages.

A seal is a digest: inside a JSON object under `seal`, next to any other file as `<name>.seal`. It shows damage (a flipped
bit, a cut) and changes by hand; it is no signature.
"""

import fnmatch
import glob
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.files import digest, read_json, write_json, write_text

logger = logging.getLogger(__name__)

MANIFEST = "stage.json"
SEAL = "seal"
ENTRIES = {"stage", "key", "outputs", "digest", "seconds", "results", SEAL}


def write_sealed(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """Write a JSON object with its seal; returns it as `read_sealed` will."""
    plain = json.loads(json.dumps(value))
    sealed = {**plain, SEAL: _seal_of(plain)}
    write_json(path, sealed)
    return sealed


def read_sealed(path: Path, log_damage: bool = True) -> dict[str, Any] | None:
    """The object without its seal; None where the file is missing or damaged. Damage is logged if `log_damage`."""
    if not path.exists():
        return None
    try:
        value = read_json(path)
    except (UserError, OSError):
        value = None
    if not isinstance(value, dict) or value.pop(SEAL, None) != _seal_of(value):
        if log_damage:
            _log_damaged(path)
        return None
    return value


def seal(path: Path) -> None:
    """Write the digest of a file next to it."""
    write_text(_seal_path(path), digest(path) + "\n")


def is_sealed(path: Path) -> bool:
    """Whether the file exists as it was sealed; damage is logged."""
    seal_path = _seal_path(path)
    if not (path.is_file() and seal_path.is_file()):
        return False
    if digest(path).encode() + b"\n" == seal_path.read_bytes():
        return True
    _log_damaged(path)
    return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished stage. Raises UserError when it was altered or damaged."""
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except UserError:
        manifest = None
    if not isinstance(manifest, dict) or not manifest.keys() >= ENTRIES:
        raise UserError(f"{path}: not the manifest of a stage; delete {folder} to have it made again")
    plain = {name: value for name, value in manifest.items() if name != SEAL}
    if manifest[SEAL] != _seal_of(plain):
        raise UserError(f"{path} was altered or damaged since it was written; delete {folder} to have it made again")
    return manifest


def verify(folder: Path, pattern: str = "*") -> None:
    """Compare the files of a finished stage whose names match `pattern` with their digests; a folder that is no stage passes.

    Raises UserError, naming the file, when one is missing or was altered.
    """
    if not (folder / MANIFEST).is_file():
        return
    manifest = read_manifest(folder)
    for name, expected in manifest["outputs"].items():
        path = folder / name
        if fnmatch.fnmatchcase(name, pattern) and (not path.is_file() or digest(path) != expected):
            state = "was altered" if path.is_file() else "is missing"
            raise UserError(
                f"{path} {state} since stage {manifest['stage']} made it; delete {folder} to have it made again"
            )


def checked(path: Path) -> Path:
    """The path itself, verified if a finished stage made the file. Raises UserError as `verify` does."""
    verify(path.parent, glob.escape(path.name))
    return path


def open_stage(run: Path, name: str) -> Path:
    """The folder of a finished stage, with every file verified. Raises UserError when it is missing or was altered."""
    if not (run / name / MANIFEST).is_file():
        raise UserError(f"{run}: no finished stage {name!r} there; `groundup run` makes it in this folder")
    verify(run / name)
    return run / name


def _log_damaged(path: Path) -> None:
    logger.warning(f"{path} is damaged: made again")


def _seal_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.{SEAL}")


def _seal_of(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
