"""Documents as the token files that pre-training reads: `train` and `held_out`, and a table of the documents in them."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from groundup.core.files import replacing
from groundup.data import token_files
from groundup.tokenizer.tokenizer import Tokenizer

TABLE = "documents.parquet"  # written last: where it exists, the token files are whole
BATCH = 1024  # documents encoded at once


def write(
    folder: Path, splits: Mapping[str, Iterable[Mapping[str, Any]]], tokenizer: Tokenizer, threads: int = 1
) -> dict[str, dict[str, int]]:
    """Write each split's documents (rows with `text`, `id`, `domain` and `best`), each encoded by `Tokenizer.document`.

    Returns {split: {"documents", "tokens", "bytes"}}; bytes are those of the texts.
    """
    table: list[dict[str, Any]] = []
    sizes = {}
    for split, documents in splits.items():
        rows: list[dict[str, Any]] = []
        sequences = _encoded(split, iter(documents), tokenizer, threads, rows)
        token_files.write(folder / split, sequences, token_files.dtype_for(tokenizer.size))
        sizes[split] = {"documents": len(rows), **{name: sum(row[name] for row in rows) for name in ("tokens", "bytes")}}
        table += rows
    with replacing(folder / TABLE) as temporary:
        pq.write_table(pa.Table.from_pylist(table), temporary, compression="zstd")
    return sizes


def _encoded(
    split: str, documents: Iterator[Mapping[str, Any]], tokenizer: Tokenizer, threads: int, rows: list[dict[str, Any]]
) -> Iterator[np.ndarray]:
    """Ids of each document; appends its row of the table to `rows`."""
    while batch := [*islice(documents, BATCH)]:
        encoded = tokenizer.encode_batch([row["text"] for row in batch], threads)
        for row, ids in zip(batch, map(tokenizer.document, encoded), strict=True):
            rows.append(
                {
                    "split": split,
                    "place": len(rows),
                    "id": row["id"],
                    "domain": row["domain"],
                    "best": row["best"],
                    "tokens": len(ids),
                    "bytes": len(row["text"].encode()),
                }
            )
            yield ids
