"""Documents that lie in rows: JSON lines (plain, gzip or zstd), Parquet, and data sets of the Hugging Face hub.

One column holds the text; it is chosen by name. A row is a page under its own `url` where it has one, else under
`file:///<folder>/<file>/<row>`. A column called `html` holds web pages, any other plain text.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from groundup.corpus.records import MAX_RECORD_BYTES
from groundup.corpus.urls import quoted, split_url
from groundup.corpus.warc import Page
from groundup.errors import UserError

COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
LINES = (".jsonl", ".ndjson")
SUFFIXES = (*(lines + packed for lines in LINES for packed in ("", *COMPRESSION)), ".json.gz", ".json.zst", ".parquet")
BATCH_ROWS = 256


def read_rows(path: Path, column: str, refused: Counter[str]) -> Iterator[Page]:
    """The pages of a JSONL or Parquet file. Rows that give none are counted in `refused`, by reason.

    Raises UserError when no row has the column, naming those there are, or when the file is not what its name says.
    """
    rows = _parquet(path, column, refused) if path.suffix == ".parquet" else _json_lines(path, refused)
    place = f"file:///{quoted(path.resolve().parent.name)}/{quoted(path.name)}"
    yield from _pages(rows, str(path), place, column, refused)


def read_hub(source: str, column: str, refused: Counter[str]) -> Iterator[Page]:
    """The pages of `hf:org/name[:split]` (split `train` if not said), streamed; a local folder's path will do as name.

    Raises UserError when the extra `hf` is not installed, or the data set cannot be had or has no such column.
    """
    name, _, split = source.removeprefix("hf:").partition(":")
    try:
        import datasets
    except ImportError:
        raise UserError(f"{source}: the package datasets is missing: pip install 'groundup[hf]'") from None
    try:
        rows = iter(datasets.load_dataset(name, split=split or "train", streaming=True))
        first = next(rows, None)
    except Exception as error:  # the library raises dozens of kinds, those of the network among them
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{source}: cannot be had ({why}): check the name, the split and the network") from None
    place = f"file:///{quoted(Path(name).name)}/{split or 'train'}"
    every = chain([] if first is None else [first], rows)
    yield from _pages(enumerate(every), source, place, column, refused)


def _pages(
    rows: Iterable[tuple[int, dict[str, Any]]], source: str, place: str, column: str, refused: Counter[str]
) -> Iterator[Page]:
    found = False
    for number, row in rows:
        if column not in row and not found:
            raise UserError(f"{source}: no column {column!r}, it has {', '.join(map(str, row))}: set text_column")
        found = True
        text = row.get(column)
        if not isinstance(text, str) or not text.strip():
            refused["no text"] += 1
            continue
        body = text.encode("utf-8", "replace")
        if len(body) > MAX_RECORD_BYTES:
            refused["size"] += 1
            continue
        url = row.get("url")
        url = url if isinstance(url, str) and url.startswith(("http://", "https://")) else f"{place}/{number}"
        if split_url(url) is None:
            refused["malformed URL"] += 1
            continue
        yield Page(url, "text/html" if column == "html" else "text/plain", body, "utf-8")


def _json_lines(path: Path, refused: Counter[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line's number from 0 and its object. A line longer than a page may be is passed over."""
    limit, number, inside = 2 * MAX_RECORD_BYTES, -1, False
    with io.BufferedReader(pa.input_stream(str(path), compression=COMPRESSION.get(path.suffix))) as file:
        while True:
            try:
                line = file.readline(limit)
            except OSError:  # the compressed file is broken or ends early
                refused["damaged"] += 1
                return
            if not line:
                return
            continued, inside = inside, not line.endswith(b"\n") and len(line) >= limit
            if continued:
                continue
            number += 1
            if inside:
                refused["size"] += 1
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield number, row
            else:
                refused["not a JSON object"] += 1


def _parquet(path: Path, column: str, refused: Counter[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:100]})") from None
    with file:
        names = file.schema_arrow.names
        if column not in names:
            raise UserError(f"{path}: no column {column!r}, it has {', '.join(names)}: set text_column")
        number = 0
        wanted = [name for name in dict.fromkeys((column, "url")) if name in names]
        try:
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            refused["damaged"] += file.metadata.num_rows - number
