"""Documents from files, in shards: Parquet with a `text` column, JSON lines with a `text` key, or plain text files.

What a shard is hangs on the file alone, never on the number of workers. `domain`, where the file has it, is kept;
otherwise the file's name stands for it. Where the file has a `split` column, one split can be asked for; it and
`language` are empty where the file does not say.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import groundup.arrow  # noqa: F401 (for what it keeps away)
from groundup.core.seals import checked
from groundup.errors import UserError
from groundup.files import digest
from groundup.tokenizer.counts import well_formed

SHARD_BYTES = 16 << 20  # of text
ROWS_AT_ONCE = 128
READ_AT_ONCE = 1 << 20
ANNOTATIONS = ("domain", "language", "split")
FOLDER_SUFFIXES = (".parquet", ".jsonl", ".txt")


@dataclass(frozen=True)
class Shard:
    """Part of a file: rows of Parquet, bytes of JSON lines (a line belongs where it begins), or all of a text file."""

    path: Path
    content: str  # digest of the whole file
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The same for the same part of the same content under the same name, in whatever folder."""
        return f"{self.path.stem}-{self.content[:16]}-{self.start}-{self.stop}"


def find(inputs: Iterable[Path]) -> list[Shard]:
    """Shards of files, folders of files, corpus folders and run folders. Raises UserError where there is nothing."""
    shards = []
    for path in (file for given in inputs for file in _files(Path(given))):
        content = digest(path)
        if path.suffix == ".parquet":
            shards += [Shard(path, content, start, stop) for start, stop in _row_ranges(path)]
        elif path.suffix == ".jsonl":
            size = path.stat().st_size
            starts = range(0, size, SHARD_BYTES)
            shards += [Shard(path, content, start, min(start + SHARD_BYTES, size)) for start in starts]
        else:
            shards.append(Shard(path, content, 0, path.stat().st_size))
    return shards


def read(shard: Shard, split: str | None = None) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Batches of a shard: texts and domains (Arrow arrays of strings, no nulls among the texts).

    Bytes that are not UTF-8 become U+FFFD. Raises UserError for rows without text and lines that are not JSON.
    """
    for batch in read_annotated(shard, split):
        yield batch["text"], batch["domain"]


def texts(shards: Iterable[Shard], split: str | None = None) -> Iterator[str]:
    """The texts of some shards, one by one."""
    for shard in shards:
        for batch, _ in read(shard, split):
            yield from batch.to_pylist()


def read_annotated(shard: Shard, split: str | None = None) -> Iterator[pa.RecordBatch]:
    """The same with all that is known of a document: strings `text`, `domain`, `language`, `split`."""
    if shard.path.suffix == ".parquet":
        yield from _read_parquet(shard, split)
    elif shard.path.suffix == ".jsonl":
        yield from _read_jsonl(shard, split)
    elif text := shard.path.read_bytes().decode("utf-8", "replace"):
        yield _columns([{"text": text}], shard)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [checked(path)]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    for corpus in (path / "corpus" / "documents.parquet", path / "documents.parquet"):
        if corpus.is_file():
            return [checked(corpus)]
    found = sorted(file for file in path.iterdir() if file.suffix in FOLDER_SUFFIXES and file.is_file())
    if not found:
        raise UserError(f"{path}: no corpus and no {', '.join(FOLDER_SUFFIXES)} files in it")
    return found


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, buffer_size=READ_AT_ONCE, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not readable as Parquet ({error})") from None
    if "text" not in file.schema_arrow.names:
        raise UserError(f"{path}: no column `text`; it has {', '.join(file.schema_arrow.names)}")
    return file


def _row_ranges(path: Path) -> list[tuple[int, int]]:
    metadata = _open(path).metadata
    ranges, first = [], 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")
        parts = min(max(1, round(size / SHARD_BYTES)), max(1, group.num_rows))
        cuts = [first + group.num_rows * part // parts for part in range(parts + 1)]
        ranges += [(start, stop) for start, stop in pairwise(cuts) if stop > start]
        first += group.num_rows
    return ranges


def _read_parquet(shard: Shard, split: str | None) -> Iterator[pa.RecordBatch]:
    file = _open(shard.path)
    ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)])
    group = int(np.searchsorted(ends, shard.start, "right"))  # a shard lies in one row group
    columns = [name for name in ("text", *ANNOTATIONS) if name in file.schema_arrow.names]
    row = int(ends[group]) - file.metadata.row_group(group).num_rows
    batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False)
    for batch in batches:
        pa.default_memory_pool().release_unused()  # a page can be 1,024 texts: freed ones must not add up
        first, last = max(shard.start - row, 0), min(shard.stop - row, len(batch))
        here = batch.slice(first, max(0, last - first))
        row += len(batch)
        if split and "split" in columns:
            here = here.filter(pc.equal(here["split"], split))
        if len(here):
            notes = [
                (here[name].cast(pa.string()) if name in columns else pa.nulls(len(here), pa.string())).fill_null(other)
                for name, other in zip(ANNOTATIONS, (shard.path.stem, "", ""), strict=True)
            ]
            yield pa.record_batch([_well_formed(here["text"]), *notes], names=["text", *ANNOTATIONS])
        if row >= shard.stop:
            return


def _read_jsonl(shard: Shard, split: str | None) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    size = 0
    with shard.path.open("rb") as file:
        file.seek(max(0, shard.start - 1))
        if shard.start:
            file.readline()  # the rest of a line of the shard before; or, at its very end, only its line end
        while (place := file.tell()) < shard.stop and (line := file.readline()):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8", "replace"))
            except json.JSONDecodeError as error:
                raise UserError(f"{shard.path}: the line at byte {place} is not JSON ({error.msg})") from None
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise UserError(f"{shard.path}: the line at byte {place} has no string `text`")
            if not split or row.get("split", split) == split:
                rows.append(row)
                size += len(line)
            if size >= READ_AT_ONCE:
                yield _columns(rows, shard)
                rows, size = [], 0
    if rows:
        yield _columns(rows, shard)


def _columns(rows: list[dict[str, Any]], shard: Shard) -> pa.RecordBatch:
    texts = pa.array([well_formed(row["text"]) for row in rows], pa.large_string())
    notes = [
        pa.array([well_formed(str(row.get(name) or other)) for row in rows])
        for name, other in zip(ANNOTATIONS, (shard.path.stem, "", ""), strict=True)
    ]
    return pa.record_batch([texts, *notes], names=["text", *ANNOTATIONS])


def _well_formed(texts: pa.Array) -> pa.Array:
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        decoded = [(text or b"").decode("utf-8", "replace") for text in texts.cast(pa.large_binary()).to_pylist()]
        return pa.array(decoded, pa.large_string())
    return texts.fill_null("")
