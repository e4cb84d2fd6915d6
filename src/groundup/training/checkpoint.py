"""Training state on disk: safetensors and a digest, whole or absent, the last two kept. Nothing is pickled.

A process may be killed at any moment: a state counts only once its digest is written, and a damaged one is passed
over, with a warning, for the one before.

Tensors are stored whole and written one at a time, so a state opens at any number of processes: each reads its own rows.
(torch.distributed.checkpoint would do that too, but its metadata is a pickle.)
"""

import hashlib
import json
import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from groundup.core.errors import UserError
from groundup.core.files import digest, replacing
from groundup.core.seals import read_sealed, write_sealed
from groundup.training.parallel import ALONE, Processes, full, local

logger = logging.getLogger(__name__)

STATES_KEPT = 2
_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64"}


def save(
    folder: Path, step: int, tensors: dict[str, Tensor], processes: Processes = ALONE, metrics_digest: str = ""
) -> None:
    """All processes call it, since sharded tensors are put together; the first writes.

    metrics_digest: of the metrics up to this step, which `latest` compares.
    """
    full_tensors = (full(tensor.detach()) for tensor in tensors.values())
    if not processes.first:
        deque(full_tensors, maxlen=0)
        return
    path = _path(folder, step)
    note = path.with_suffix(".json")
    try:
        write_sealed(note, {"step": step, "blake2b": _write(path, tensors, full_tensors), "beside": metrics_digest})
    except OSError as error:
        deque(full_tensors, maxlen=0)  # or the others would wait for ever
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from None
    notes = _newest_first(folder)
    saved_index = notes.index(note)  # newer states were passed over as damaged, and must not count among those kept
    for stale in notes[:saved_index] + notes[saved_index + STATES_KEPT :]:
        stale.unlink()
        stale.with_suffix(".safetensors").unlink(missing_ok=True)


def latest(folder: Path, metrics_digest: Callable[[int], str] | None = None) -> int | None:
    """Steps done at the newest undamaged state, or None.

    metrics_digest(step): the digest that `save` was given, of the metrics as they are now; None: not compared.
    """
    for note in _newest_first(folder):
        state = note.with_suffix(".safetensors")
        recorded = read_sealed(note, log_damage=False)
        if recorded is None:
            trouble = f"{note.name} is not readable"
        elif _path(folder, recorded["step"]) != state:
            trouble = f"{note.name} is of another step"
        elif not state.is_file():
            trouble = "is missing"
        elif digest(state) != recorded["blake2b"]:
            trouble = "its digest differs"
        elif metrics_digest and recorded["beside"] != metrics_digest(recorded["step"]):
            trouble = "the metrics of its steps differ"
        else:
            return recorded["step"]
        logger.warning(f"{state}: damaged ({trouble}); the state before it is used")
    return None


def load(folder: Path, step: int, tensors: dict[str, Tensor], processes: Processes = ALONE) -> None:
    """Fill `tensors` in place, of sharded ones this process's rows. Raises UserError for the state of another model."""
    path = _path(folder, step)
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            stored = set(file.keys())
            for name, tensor in tensors.items():
                if name not in stored or file.get_slice(name).get_shape() != list(tensor.shape):
                    actual = f"is {tuple(file.get_slice(name).get_shape())}" if name in stored else "is absent"
                    raise UserError(
                        f"{path}: {name} should be {tuple(tensor.shape)}, {actual}: the state of another model; "
                        "delete it or choose another folder"
                    )
                own_rows = local(tensor)
                sharded = own_rows is not tensor
                own_rows.copy_(file.get_slice(name)[processes.rows(len(tensor))] if sharded else file.get_tensor(name))
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); delete it") from None


def copy(folder: Path, step: int, target: Path, more_files: Sequence[str] = ()) -> None:
    """Copy the state at `step`, and `more_files` of the folder, to the new folder `target`, which is whole or absent."""
    state = _path(folder, step)
    partial = target.with_name(f"{target.name}.copying")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in (state, state.with_suffix(".json"), *(folder / name for name in more_files)):
        shutil.copyfile(path, partial / path.name)
    partial.rename(target)


def clear(folder: Path) -> None:
    """Delete the states, and parts of them that a kill left: training is over and its result is saved."""
    for path in folder.glob("state-*"):
        path.unlink()


def _write(path: Path, tensors: dict[str, Tensor], full_tensors: Iterable[Tensor]) -> str:
    """A safetensors file, one tensor in memory at a time; returns its digest.

    The format: the length of the header (uint64, little-endian); the header, JSON, padded to 8 bytes; the tensors.
    """
    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    hashed = hashlib.blake2b(digest_size=16)
    with replacing(path) as temporary, temporary.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            hashed.update(part)
            file.write(part)
        for tensor in full_tensors:
            content = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            hashed.update(content)
            file.write(content)
    return hashed.hexdigest()


def _path(folder: Path, step: int) -> Path:
    return folder / f"state-{step:08d}.safetensors"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.json"), reverse=True)
