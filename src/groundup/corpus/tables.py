"""Tables of the chapter: files that fit in memory, each written as a whole or not at all.

What is kept is Parquet. What only the next step reads is Arrow's own format: it is written in half the time, and one column
is read without the others.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import groundup.core.arrow  # noqa: F401 (for what it keeps away)
from groundup.core.files import replacing


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    # One file: pq.read_table would set up a data set and its threads for each.
    with pq.ParquetFile(path) as file:
        return file.read(columns=columns, use_threads=False)


def write_table(table: pa.Table, path: Path) -> None:
    # For shards this small, dictionaries take a quarter of the time and save no space.
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=False)


def read_working(path: Path, columns: list[str] | None = None) -> pa.Table:
    """All columns, or the named ones, in the order of the file. Raises pa.ArrowInvalid when the file is damaged."""
    indices = list(map(working_schema(path).get_field_index, columns)) if columns else None
    options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=indices)
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file, options=options) as reader:
        return reader.read_all()


def write_working(table: pa.Table, path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with replacing(path) as temporary, pa.ipc.new_file(temporary, table.schema, options=options) as writer:
        writer.write_table(table)


def working_schema(path: Path) -> pa.Schema:
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        return reader.schema
