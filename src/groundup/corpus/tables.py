"""Parquet files of the chapter: each of a size that fits in memory, written whole or not at all."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from groundup.files import replacing


class _NoPandas:
    """To see whether a list is one of pandas' columns, pyarrow imports pandas where it is installed: 0.2 s a process.

    When it has not found it once, it asks again only where it needs it.
    """

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError


if "pandas" not in sys.modules:
    sys.meta_path.insert(0, _NoPandas)  # type: ignore[arg-type]
    pa.array([])
    sys.meta_path.remove(_NoPandas)  # type: ignore[arg-type]


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    # One file: pq.read_table would set up a data set and its threads for each.
    with pq.ParquetFile(path) as file:
        return file.read(columns=columns, use_threads=False)


def write_table(table: pa.Table, path: Path, working: bool = False) -> None:
    """A `working` one is read again soon: written in half the time, a third larger."""
    options = {"compression": "lz4", "use_dictionary": False} if working else {"compression": "zstd"}
    with replacing(path) as temporary:
        pq.write_table(table, temporary, **options)
