"""Parquet files of the chapter: each of a size that fits in memory, written whole or not at all."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import groundup.arrow  # noqa: F401 (for what it keeps away)
from groundup.files import replacing


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    # One file: pq.read_table would set up a data set and its threads for each.
    with pq.ParquetFile(path) as file:
        return file.read(columns=columns, use_threads=False)


def write_table(table: pa.Table, path: Path, working: bool = False) -> None:
    """A `working` one is read again soon: written in half the time, a third larger."""
    options = {"compression": "lz4", "use_dictionary": False} if working else {"compression": "zstd"}
    with replacing(path) as temporary:
        pq.write_table(table, temporary, **options)
