"""Which document is a copy of which, among the new ones and those of earlier corpora; nothing is dropped here.

Of each group of URL, exact or near duplicates one is kept: that of the earliest corpus; then the longest; then the one with
the smallest id. The order is total, so whichever of the three drops a document, the one that it duplicates comes before it,
and one of each group is kept. A cluster of near duplicates is one group. URLs are compared within one corpus only: FineWeb
(Penedo et al. 2024, appendix E.3) found that comparing over all its crawls made training worse, and a page fetched again a
year later may well say something new.

A corpus stores the signatures of its documents, so that a later corpus is compared with them and not with the texts. The
signatures are on disk and are compared within a stated bound of memory; in addition, memory holds row numbers, 8 bytes each,
and ids as pairs of numbers.
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
BATCH_ROWS = 1 << 14


@dataclass
class Documents:
    """The documents that are compared; those without words are not."""

    ids: np.ndarray  # uint64 [documents, 2], as in `ids.py`
    text_keys: np.ndarray  # uint64 [documents, 2]
    lengths: np.ndarray  # int64 [documents], characters
    signed: np.ndarray  # bool [documents]: has a signature; a text of punctuation only has none
    representatives: np.ndarray  # uint64 [documents, 2]: id of the document that is kept for it, by its own corpus


@dataclass
class Copies:
    """For each new document the row, int64, of the one that it is a copy of; -1 where it is none."""

    same_url_as: np.ndarray  # rows of `ids`
    duplicate_of: np.ndarray  # rows of `ids`
    near_duplicate_of: np.ndarray  # rows of `representatives`
    cluster: np.ndarray  # rows of `representatives`: what is kept for it and all its near duplicates; it may be itself
    ids: np.ndarray  # uint64 [all documents, 2], the new ones last
    representatives: np.ndarray  # uint64 [all documents, 2]

    def ids_of(self, column: str) -> np.ndarray:
        """The ids that the rows in this column index, uint64 [all documents, 2]."""
        return self.ids if column in ("same_url_as", "duplicate_of") else self.representatives


def keys_from_hex(keys: list[str]) -> np.ndarray:
    """uint64 [documents, 2] from what `duplicates.text_key` returns."""
    return np.frombuffer(bytes.fromhex("".join(keys)), "<u8").reshape(-1, 2)


def find_copies(
    new: Documents,
    url_hashes: np.ndarray,
    signatures: Callable[[], Iterator[np.ndarray]],
    permutations: int,
    jaccard: float,
    out: Path,
    against: Iterable[Path] = (),
    memory_mb: int = 256,
) -> Copies:
    """Compare the new documents with each other and with the corpora in the folders `against`, earliest first.

    `url_hashes` are uint64 [documents], of `duplicates.url_hash`. `signatures()` yields those of the new documents, in
    blocks of uint32 [documents, permutations]; rows that are not `signed` do not matter. Writes `signatures.parquet`
    into the folder `out`.
    Raises UserError when an earlier corpus has no signatures, or signatures of other settings.
    """
    files = [_require_same_settings(signatures_of(folder), permutations) for folder in against]
    corpora = [*map(_read_documents, files), new]
    all_ids, representatives, text_keys, lengths, signed = (
        getattr(new, name) if len(corpora) == 1 else np.concatenate([getattr(documents, name) for documents in corpora])
        for name in ("ids", "representatives", "text_keys", "lengths", "signed")
    )
    corpus_number = np.repeat(np.arange(len(corpora), dtype=np.int32), [len(documents.ids) for documents in corpora])
    order, all_rows = np.lexsort((all_ids[:, 1], all_ids[:, 0], -lengths, corpus_number)), np.arange(len(all_ids))
    start = len(all_ids) - len(new.ids)
    first_by_url = start + first_of_group(url_hashes, order[order >= start] - start)
    first_by_text = first_of_group(_group_numbers(text_keys), order)
    compared_rows = np.flatnonzero((first_by_text == all_rows) & signed)
    blocks = _chosen_rows(chain(*map(_read_signatures, files), signatures()), compared_rows)
    pairs = duplicates.near_duplicate_pairs(blocks, jaccard, memory_mb, out)
    near_groups = all_rows.copy()
    near_groups[compared_rows] = compared_rows[duplicates.clusters(len(compared_rows), pairs)]
    first_by_near = first_of_group(near_groups, order)

    rows, first_by_text = all_rows[start:], first_by_text[start:]
    cluster = first_by_near[first_by_text]
    _write_signatures(new, representatives, cluster, signatures(), permutations, out / FILE)
    return Copies(
        same_url_as=_other_rows(first_by_url, rows),
        duplicate_of=_other_rows(first_by_text, rows),
        near_duplicate_of=_other_rows(np.where(first_by_text == rows, first_by_near[rows], rows), rows),
        cluster=cluster,
        ids=all_ids,
        representatives=representatives,
    )


def first_of_group(groups: np.ndarray, order: np.ndarray) -> np.ndarray:
    """int64 [documents]: for each document the one of its group that comes first in `order`."""
    distinct, group_of = np.unique(groups, return_inverse=True)
    first = np.full(len(distinct), -1)
    first[group_of[order[::-1]]] = order[::-1]  # of several assignments to one index the last counts
    return first[group_of]


def _group_numbers(keys: np.ndarray) -> np.ndarray:
    """int64 [keys]: a number for each row of keys, equal for equal rows."""
    order = np.lexsort(keys.T)
    differs = (keys[order][1:] != keys[order][:-1]).any(axis=1)
    numbers = np.zeros(len(keys), dtype=np.int64)
    numbers[order[1:]] = np.cumsum(differs)
    return numbers


def _other_rows(first: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.where(first == rows, -1, first)


def _chosen_rows(blocks: Iterable[np.ndarray], rows: np.ndarray) -> Iterator[np.ndarray]:
    """Those of the blocks' rows, numbered through all blocks, that are in `rows`."""
    start = 0
    for block in blocks:
        block_rows = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + len(block))]
        if len(block_rows):
            yield block[block_rows - start]
        start += len(block)


def _schema(permutations: int) -> pa.Schema:
    kind = f"{duplicates.SHINGLE_WORDS}-grams of words or characters, {permutations} permutations, seed {duplicates.MINHASH_SEED}"
    columns = [("id", pa.string()), ("cluster", pa.string()), ("text_key_0", pa.uint64()), ("text_key_1", pa.uint64())]
    columns += [("length", pa.int64()), ("signed", pa.bool_()), ("signature", pa.list_(pa.uint32(), permutations))]
    return pa.schema(columns, {"made_by": f"rensa RMinHash: {kind}"})


def _write_signatures(
    new: Documents,
    representatives: np.ndarray,
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
            columns = [ids.to_hex(new.ids[part]), ids.to_hex(representatives[cluster[part]]), *new.text_keys[part].T]
            columns += [new.lengths[part], new.signed[part]]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=False)]
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1), pa.uint32()), permutations))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def signatures_of(folder: Path) -> Path:
    """Path of the signatures of the corpus in a folder. Raises UserError when there are none."""
    for path in (folder / FILE, folder / "annotations" / FILE):
        if path.is_file():
            return path
    raise UserError(f"{folder}: no {FILE} in it; give the folder that an earlier `groundup corpus` wrote")


def _require_same_settings(path: Path, permutations: int) -> Path:
    if (pq.read_schema(path).metadata or {}).get(b"made_by") != _schema(permutations).metadata[b"made_by"]:
        raise UserError(f"{path}: signatures of another kind; annotate both corpora with the same settings")
    return path


def _read_documents(path: Path) -> Documents:
    table = pq.read_table(path, columns=["id", "cluster", "text_key_0", "text_key_1", "length", "signed"])
    try:
        own_ids, representatives = (ids.from_hex(table[name]) for name in ("id", "cluster"))
    except ValueError as error:
        raise UserError(f"{path}: {error}; annotate that corpus again") from None
    keys = np.stack([table["text_key_0"].to_numpy(), table["text_key_1"].to_numpy()], axis=1)
    return Documents(own_ids, keys, table["length"].to_numpy(), table["signed"].to_numpy(), representatives)


def _read_signatures(path: Path) -> Iterator[np.ndarray]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=["signature"]):
            column = batch.column("signature")
            yield column.flatten().to_numpy().reshape(len(column), -1)
