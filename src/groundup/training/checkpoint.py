"""Training state on disk: safetensors and a digest, whole or absent, the last two kept. Nothing is pickled.

Written for the moment of the kill: a state counts only once its digest stands beside it, and a damaged one is passed
over for the one before.
"""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from groundup.files import digest, write_json, write_tensors

KEPT = 2


def save(folder: Path, step: int, tensors: dict[str, Tensor]) -> None:
    path = folder / f"state-{step:08d}.safetensors"
    written = write_tensors(path, {name: tensor.contiguous() for name, tensor in tensors.items()})
    write_json(path.with_suffix(".json"), {"step": step, "blake2b": written})
    for old in _newest_first(folder)[KEPT:]:
        remove(old)


def latest(folder: Path) -> tuple[int, dict[str, Tensor]] | None:
    """The newest undamaged state: (steps done, tensors), or None."""
    for note in _newest_first(folder):
        state = note.with_suffix(".safetensors")
        try:
            recorded = json.loads(note.read_text(encoding="utf-8"))
            if digest(state) == recorded["blake2b"]:
                return recorded["step"], load_file(state)
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    return None


def clear(folder: Path) -> None:
    """Training is over and its result is saved; the states, and what a kill left of one, are not needed any more."""
    for left in folder.glob("state-*"):
        left.unlink()


def remove(note: Path) -> None:
    note.unlink(missing_ok=True)
    note.with_suffix(".safetensors").unlink(missing_ok=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.json"), reverse=True)
