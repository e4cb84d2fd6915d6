"""Which document is a copy of which, among the new ones and those of earlier corpora; nothing is dropped here.

Of documents with one address, of one text, or nearly so, one stays: that of the earliest corpus; then the longest; then
the one with the least id. The order is total, so whichever of the three drops a document, what it is dropped for comes
before it, and one of each group is left. Of nearly equal documents, a whole cluster is one group. Addresses are compared
within one corpus only: FineWeb (Penedo et al. 2024, appendix E.3) found that doing so over all its crawls made training
worse, and a page fetched again a year later may well say something new.

A corpus keeps the signatures of its documents, so that a later one is compared with them and not with the texts. The
signatures are on disk and are compared within a stated bound of memory; beside it stand row numbers, 8 bytes each, and
ids as pairs of numbers.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from groundup.core.errors import UserError
from groundup.core.files import replacing
from groundup.corpus import ids
from groundup.corpus.dedup import duplicates

FILE = "signatures.parquet"
ROWS_AT_ONCE = 1 << 14


@dataclass
class Documents:
    """What is compared. Documents without words are not among them."""

    ids: np.ndarray  # uint64 [documents, 2], as in `ids.py`
    text_keys: np.ndarray  # uint64 [documents, 2]
    lengths: np.ndarray  # int64 [documents], characters
    signed: np.ndarray  # bool [documents]: has a signature, which a text of punctuation only has not
    stays: np.ndarray  # uint64 [documents, 2]: the id of the document that stays for it in its own corpus


@dataclass
class Copies:
    """For each new document the row, int64, of the one it is a copy of; -1 where it stays."""

    same_url_as: np.ndarray  # rows of `ids`
    duplicate_of: np.ndarray  # rows of `ids`
    near_duplicate_of: np.ndarray  # rows of `stays`
    cluster: np.ndarray  # rows of `stays`: what stays for it and all that are nearly equal; itself, where that is so
    ids: np.ndarray  # uint64 [all documents, 2], the new ones last
    stays: np.ndarray  # uint64 [all documents, 2]

    def names(self, column: str) -> np.ndarray:
        """The ids that the rows of this column mean, uint64 [all documents, 2]."""
        return self.ids if column in ("same_url_as", "duplicate_of") else self.stays


def as_numbers(keys: list[str]) -> np.ndarray:
    """uint64 [documents, 2], of what `duplicates.text_key` gives."""
    return np.frombuffer(bytes.fromhex("".join(keys)), "<u8").reshape(-1, 2)


def find(
    new: Documents,
    url_hashes: np.ndarray,
    signatures: Callable[[], Iterator[np.ndarray]],
    permutations: int,
    jaccard: float,
    out: Path,
    against: Iterable[Path] = (),
    memory_mb: int = 256,
) -> Copies:
    """Compare the new documents with each other and with the corpora in the folders `against`, the earliest first.

    `url_hashes` are uint64 [documents], of `duplicates.url_hash`. `signatures()` gives those of the new documents, in
    blocks of uint32 [documents, permutations]; rows that are not `signed` do not matter. Writes `signatures.parquet`
    into the folder `out`.
    Raises UserError when an earlier corpus holds no signatures, or others than these.
    """
    files = [_made_like(signatures_of(folder), permutations) for folder in against]
    every = [*map(_read, files), new]
    names, stays, text_keys, lengths, signed = (
        getattr(new, name) if len(every) == 1 else np.concatenate([getattr(one, name) for one in every])
        for name in ("ids", "stays", "text_keys", "lengths", "signed")
    )
    corpus = np.repeat(np.arange(len(every), dtype=np.int32), [len(one.ids) for one in every])
    order, itself = np.lexsort((names[:, 1], names[:, 0], -lengths, corpus)), np.arange(len(names))
    start = len(names) - len(new.ids)
    by_url = start + first_of_group(url_hashes, order[order >= start] - start)
    by_text = first_of_group(_numbered(text_keys), order)
    compared = np.flatnonzero((by_text == itself) & signed)
    blocks = _chosen(chain(*map(_read_signatures, files), signatures()), compared)
    pairs = duplicates.near_duplicate_pairs(blocks, jaccard, memory_mb, out)
    groups = itself.copy()
    groups[compared] = compared[duplicates.clusters(len(compared), pairs)]
    by_near = first_of_group(groups, order)

    rows, by_text = itself[start:], by_text[start:]
    cluster = by_near[by_text]
    _write(new, stays, cluster, signatures(), permutations, out / FILE)
    return Copies(
        same_url_as=_others(by_url, rows),
        duplicate_of=_others(by_text, rows),
        near_duplicate_of=_others(np.where(by_text == rows, by_near[rows], rows), rows),
        cluster=cluster,
        ids=names,
        stays=stays,
    )


def first_of_group(groups: np.ndarray, order: np.ndarray) -> np.ndarray:
    """int64 [documents]: for each document the one of its group that comes first in `order`."""
    numbers, members = np.unique(groups, return_inverse=True)
    first = np.full(len(numbers), -1)
    first[members[order[::-1]]] = order[::-1]  # of several assignments the last one holds
    return first[members]


def _numbered(keys: np.ndarray) -> np.ndarray:
    """A number for each row of keys, equal for equal rows."""
    order = np.lexsort(keys.T)
    differs = (keys[order][1:] != keys[order][:-1]).any(axis=1)
    numbers = np.zeros(len(keys), dtype=np.int64)
    numbers[order[1:]] = np.cumsum(differs)
    return numbers


def _others(chosen: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.where(chosen == rows, -1, chosen)


def _chosen(blocks: Iterable[np.ndarray], rows: np.ndarray) -> Iterator[np.ndarray]:
    """Those of the blocks' rows, counted through, that `rows` names."""
    start = 0
    for block in blocks:
        here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + len(block))]
        if len(here):
            yield block[here - start]
        start += len(block)


def _schema(permutations: int) -> pa.Schema:
    kind = f"{duplicates.SHINGLE_WORDS}-grams of words or characters, {permutations} permutations, seed {duplicates.MINHASH_SEED}"
    columns = [("id", pa.string()), ("cluster", pa.string()), ("text_key_0", pa.uint64()), ("text_key_1", pa.uint64())]
    columns += [("length", pa.int64()), ("signed", pa.bool_()), ("signature", pa.list_(pa.uint32(), permutations))]
    return pa.schema(columns, {"made_by": f"rensa RMinHash: {kind}"})


def _write(
    new: Documents,
    stays: np.ndarray,
    cluster: np.ndarray,
    signatures: Iterable[np.ndarray],
    permutations: int,
    path: Path,
) -> None:
    schema, start = _schema(permutations), 0
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="lz4", use_dictionary=False) as writer:
        for block in signatures:
            part = slice(start, start + len(block))
            start += len(block)
            columns = [ids.to_hex(new.ids[part]), ids.to_hex(stays[cluster[part]]), *new.text_keys[part].T]
            columns += [new.lengths[part], new.signed[part]]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=False)]
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1), pa.uint32()), permutations))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def signatures_of(folder: Path) -> Path:
    """The signatures of the corpus in a folder. Raises UserError when there are none."""
    for path in (folder / FILE, folder / "annotations" / FILE):
        if path.is_file():
            return path
    raise UserError(f"{folder}: no {FILE} in it; give the folder that an earlier `groundup corpus` wrote")


def _made_like(path: Path, permutations: int) -> Path:
    if (pq.read_schema(path).metadata or {}).get(b"made_by") != _schema(permutations).metadata[b"made_by"]:
        raise UserError(f"{path}: signatures of another kind; annotate both corpora with the same settings")
    return path


def _read(path: Path) -> Documents:
    table = pq.read_table(path, columns=["id", "cluster", "text_key_0", "text_key_1", "length", "signed"])
    try:
        names, stays = (ids.from_hex(table[name]) for name in ("id", "cluster"))
    except ValueError as error:
        raise UserError(f"{path}: {error}; annotate that corpus again") from None
    keys = np.stack([table["text_key_0"].to_numpy(), table["text_key_1"].to_numpy()], axis=1)
    return Documents(names, keys, table["length"].to_numpy(), table["signed"].to_numpy(), stays)


def _read_signatures(path: Path) -> Iterator[np.ndarray]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=["signature"]):
            column = batch.column("signature")
            yield column.flatten().to_numpy().reshape(len(column), -1)
