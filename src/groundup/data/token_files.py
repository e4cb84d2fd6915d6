"""Documents of token ids on disk, in the layout of Megatron-LM's indexed datasets.

    .bin   the ids of all sequences, one after the other
    .idx   "MMIDIDX" and two zero bytes, version 1 (uint64), code of the number type (uint8), sequences (uint64),
           documents + 1 (uint64); then of each sequence its length (int32) and its byte offset in .bin (int64);
           then the first sequence of each document, and the number of sequences (int64). All little-endian.

Here a sequence is a document. Reading maps .bin into memory: a slice of a corpus of any size reads only itself.
"""

import shutil
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from groundup.core.errors import UserError
from groundup.core.files import replacing

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_CODES = {8: np.dtype("<u2"), 4: np.dtype("<i4")}


def dtype_for(vocabulary: int) -> np.dtype:
    """The smaller number type that holds every id of a vocabulary: uint16 or int32."""
    return _CODES[8] if vocabulary <= 1 << 16 else _CODES[4]


def write(path_stem: Path, sequences: Iterable[np.ndarray], dtype: np.dtype) -> None:
    """Write `path_stem`.bin and .idx. `dtype` is uint16 or int32; an id it cannot hold raises ValueError."""
    dtype = np.dtype(dtype).newbyteorder("<")
    bin_path, idx_path = _paths(path_stem)
    idx_path.unlink(missing_ok=True)  # written last: an index always belongs to the ids beside it
    lengths = []
    with replacing(bin_path) as temporary, temporary.open("wb") as file:
        for sequence in sequences:
            ids = np.asarray(sequence)
            stored = ids.astype(dtype)
            if not np.array_equal(stored, ids):
                raise ValueError(f"sequence {len(lengths)} holds an id that {dtype} cannot hold")
            file.write(stored.tobytes())
            lengths.append(len(ids))
    _write_index(idx_path, np.array(lengths, "<i4"), dtype)


def join(path_stem: Path, parts: Iterable[Path], dtype: np.dtype) -> None:
    """Write the token files `parts` (stems), all of `dtype`, one after the other as one."""
    bin_path, idx_path = _paths(path_stem)
    idx_path.unlink(missing_ok=True)
    lengths = [np.empty(0, "<i4")]
    with replacing(bin_path) as temporary, temporary.open("wb") as file:
        for part in parts:
            lengths.append(TokenFile(part).lengths)
            with _paths(part)[0].open("rb") as ids:
                shutil.copyfileobj(ids, file)
    _write_index(idx_path, np.concatenate(lengths), np.dtype(dtype).newbyteorder("<"))


def _write_index(path: Path, sizes: np.ndarray, dtype: np.dtype) -> None:
    code = {stored_dtype: code for code, stored_dtype in _CODES.items()}[dtype]
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, 1, code, len(sizes), len(sizes) + 1))
        file.write(sizes.tobytes())
        file.write(_pointers(sizes, dtype).tobytes())
        file.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())


class TokenFile:
    """A pair of files written by `write`, mapped into memory; `file[i]` is the i-th document's ids.

    `lengths` (documents,) int32, `tokens` (sum of lengths,) all ids in a row. Raises UserError when a file is missing,
    cut short or altered in its layout, or when the two do not belong together. (Changed ids inside .bin are still ids:
    only a digest shows them.)
    """

    def __init__(self, path_stem: Path) -> None:
        bin_path, idx_path = _paths(path_stem)
        for path in (idx_path, bin_path):
            if not path.is_file():
                raise UserError(f"{path}: no such file; make the token files again")
        index = idx_path.read_bytes()
        advice = "make the token files again"
        if len(index) < _HEADER.size or not index.startswith(_MAGIC):
            raise UserError(f"{idx_path}: not the index of a token file; {advice}")
        _, version, code, sequences, documents = _HEADER.unpack_from(index)
        if version != 1 or code not in _CODES:
            raise UserError(f"{idx_path}: version {version} with number type {code} is not readable; {advice}")
        if len(index) != _HEADER.size + 12 * sequences + 8 * documents:
            raise UserError(f"{idx_path}: {len(index)} bytes do not hold {sequences} sequences; {advice}")
        dtype = _CODES[code]
        self.lengths = np.frombuffer(index, "<i4", sequences, _HEADER.size)
        pointers = np.frombuffer(index, "<i8", sequences, _HEADER.size + 4 * sequences)
        firsts = np.frombuffer(index, "<i8", documents, _HEADER.size + 12 * sequences)
        if (
            (self.lengths < 0).any()
            or not np.array_equal(pointers, _pointers(self.lengths, dtype))
            or not np.array_equal(firsts, np.arange(sequences + 1))
        ):
            raise UserError(f"{idx_path}: lengths, offsets and documents contradict each other; {advice}")
        size = int(self.lengths.sum(dtype=np.int64)) * dtype.itemsize
        if bin_path.stat().st_size != size:
            raise UserError(f"{bin_path}: {bin_path.stat().st_size} bytes, but its index tells of {size}; {advice}")
        self._ends = np.cumsum(self.lengths, dtype=np.int64)
        # An empty file cannot be mapped.
        self.tokens = np.memmap(bin_path, dtype, "r") if size else np.empty(0, dtype)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> np.ndarray:
        end = self._ends[number]
        return self.tokens[end - self.lengths[number] : end]


def _paths(path_stem: Path) -> tuple[Path, Path]:
    # Not with_suffix: a stem like "train.best" keeps its dot.
    stem = Path(path_stem)
    return stem.with_name(stem.name + ".bin"), stem.with_name(stem.name + ".idx")


def _pointers(lengths: np.ndarray, dtype: np.dtype) -> np.ndarray:
    ends = np.cumsum(lengths, dtype=np.int64)
    return ((ends - lengths) * dtype.itemsize).astype("<i8")
