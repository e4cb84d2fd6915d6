"""Readers: rows of files as Arrow record batches of text: JSON, CSV, Parquet and plain text, by their kind (`file_kinds.py`).

A batch holds about 1 MB, whatever a row is; a bad row is counted by its reason and passed over; texts become valid UTF-8.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import groundup.core.arrow  # noqa: F401 (for what it keeps away)
from groundup.core.errors import UserError
from groundup.core.plain_files import open_plain
from groundup.core.text import well_formed
from groundup.data import streams
from groundup.data.columns import as_text, has_dates, is_text, notes_of
from groundup.data.file_kinds import DECRYPT, STATED_DELIMITER, Kind, is_page, kind_of

MAX_TEXT_BYTES = 64 << 20  # of one document
BATCH_BYTES = 1 << 19
BATCH_ROWS = 128  # at most: rows can be far longer than their mean
SEARCHED_ROWS = 1000  # for the column of texts, before a file is refused for want of it
DAMAGED, AGAIN = "damaged", ": get the file again"
DAMAGE = (OSError, EOFError, pa.ArrowException)
NO_VALUE = (ValueError, OverflowError, LookupError, pa.ArrowException)  # what Python has none of; LookupError: a zone
SIGNATURE = 28  # bytes behind the list of columns where some of them are encrypted


class Refused(Counter[str]):
    """How many rows or files were passed over, by reason, and where the first of them was."""

    first = ""

    def add(self, reason: str, place: str, count: int = 1) -> None:
        if count:
            self[reason] += count
            self.first = self.first or f"{place}: {reason}{AGAIN if reason == DAMAGED else ''}"

    def merge(self, other: "Refused") -> None:
        self.update(other)
        self.first = self.first or other.first

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (dict(self), self.first)  # a Counter's own forgets the rest

    def __str__(self) -> str:
        counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.items()) if count)
        again = f"; {DAMAGED}{AGAIN}" if self[DAMAGED] and AGAIN not in self.first else ""
        return f"{counts}; first {self.first}{again}" if self.first else counts


def _restored(counts: dict[str, int], first: str) -> Refused:
    refused = Refused(counts)
    refused.first = first
    return refused


def batches(
    path: Path,
    text: str,
    others: Sequence[str],
    refused: Refused,
    kind: Kind | None = None,
    part: tuple[int, int] | None = None,
    max_bytes: int = MAX_TEXT_BYTES,
) -> Iterator[pa.RecordBatch]:
    """Record batches with `row` (int64, from 0), `text` (large strings, no nulls) and the other columns (strings or null).

    Of a plain text each part of `streams.parts` is a row. `part` is a range of rows of Parquet, within one row group, or
    of bytes of JSON lines that are not wrapped in anything (a line belongs where it begins; its row is counted from
    there). Other columns that hold lists or structs count as absent.
    Raises UserError when the file is neither text nor Parquet, has no column `text`, or that is of another type.
    """
    kind = kind or kind_of(path)
    if kind.form == "archive":
        raise UserError(f"{path}: a web archive, not a file of texts: `groundup corpus` makes texts of it")
    if kind.form == "text" and is_page(path, kind):
        raise UserError(f"{path}: a web page, not a text: `groundup corpus` makes texts of it")
    if kind.form == "parquet":
        yield from _parquet(path, text, others, refused, part, max_bytes)
        return
    if kind.form == "text":
        found: Iterator[tuple[int, dict[str, Any]]] = (
            (number, {text: body.decode("utf-8", "replace")}) for number, body in enumerate(texts(path, refused, kind))
        )
    else:
        found = _with_column(records(path, refused, kind, part, 2 * max_bytes), path, text, part)
    yield from gathered(found, str(path), text, others, refused, max_bytes)


def texts(path: Path, refused: Refused, kind: Kind) -> Iterator[bytes]:
    """The documents of a text file, as bytes in its own encoding (UTF-8 where it was another Unicode one)."""
    with _opened(path, kind, refused) as stream:
        yield from streams.parts(stream)


def records(
    path: Path,
    refused: Refused,
    kind: Kind | None = None,
    part: tuple[int, int] | None = None,
    max_bytes: int = 2 * MAX_TEXT_BYTES,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 0) and content of each row of a file of JSON or CSV with a header, or of Parquet with all columns."""
    kind = kind or kind_of(path)
    if kind.form == "parquet":
        for start, batch in _parquet_batches(path, None, refused, None):
            read = _read if "binary" in str(batch.schema.types) else lambda row: row
            yield from ((number, read(row)) for number, row in _dicts(path, start, batch, refused))
        return
    if kind.form == "csv":
        yield from csv_rows(path, refused, kind, max_bytes)
        return
    with _opened(path, kind, refused) as stream:
        if kind.form == "lines":
            yield from _lines(stream, path, refused, part, max_bytes)
        else:
            yield from _values(stream, path, refused, max_bytes)


def _dicts(path: Path, start: int, batch: pa.RecordBatch, refused: Refused) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a batch; those of which a value is none that its type allows are counted."""
    for number in range(len(batch)):
        one = batch.slice(number, 1)
        try:
            [row] = one.to_pylist()
        except UnicodeDecodeError:
            refused.add("invalid UTF-8", f"{path}: row {start + number + 1}")
            continue
        except NO_VALUE:
            # Python has no time of nanoseconds, none after the year 9999, nor a zone that it has no table of; a row is not
            # lost for its date, wherever that stands.
            plain = [name for name in one.schema.names if not has_dates(one.schema.field(name).type)]
            try:
                [row] = one.select(plain).to_pylist()
            except NO_VALUE:
                refused.add(DAMAGED, f"{path}: row {start + number + 1}")
                continue
        yield start + number, row


def _read(value: Any) -> Any:
    """What a row of Parquet holds, with bytes that are UTF-8 as text: some writers know no strings."""
    if isinstance(value, dict):
        return {name: _read(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_read(one) for one in value]
    with suppress(UnicodeDecodeError):
        return value.decode() if isinstance(value, bytes) else value
    return value


def csv_lists(path: Path, refused: Refused, kind: Kind, max_bytes: int = 2 * MAX_TEXT_BYTES) -> Iterator[list[str]]:
    """The rows of a file of CSV, its header among them."""
    with _opened(path, kind, refused) as stream:
        yield from _csv(stream, kind, path, refused, max_bytes)


def csv_rows(
    path: Path, refused: Refused, kind: Kind, max_bytes: int = 2 * MAX_TEXT_BYTES
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Where each row of a file of CSV stands, from 0, and its columns, by the header.

    A row with more cells than columns has commas that nobody quoted, so its texts end too early: it is counted.
    """
    lists = csv_lists(path, refused, kind, max_bytes)
    header = [name.strip() for name in next(lists, [])]
    for number, cells in enumerate(lists):
        if any(cells[len(header) :]):
            refused.add("more cells than columns", f"{path}: row {number + 1}")
        else:
            yield number, dict(zip(header, cells, strict=False))


@contextmanager
def _opened(path: Path, kind: Kind, refused: Refused) -> Iterator[IO[bytes]]:
    """The content of a file in UTF-8. Damage ends its reading and is counted."""
    with open_plain(path) as file:
        try:
            yield streams.content(file, kind.packing, kind.encoding, kind.mark)
        except DAMAGE:
            refused.add(DAMAGED, str(path))


def _csv(stream: IO[bytes], kind: Kind, path: Path, refused: Refused, max_bytes: int) -> Iterator[list[str]]:
    csv.field_size_limit(min(max_bytes, 2**31 - 1))
    lines = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
    pieces = iter(lambda: lines.readline(max_bytes), "")  # a bound, where no line ends
    first = [line for line in islice(pieces, 1) if not STATED_DELIMITER.fullmatch(line)]
    # Not strict, it takes what follows an open quote for one cell, and changes texts with quotes as \" without a word.
    clean = (line.replace("\0", "\ufffd") for line in chain(first, pieces))
    quoting = csv.QUOTE_MINIMAL if kind.quoted else csv.QUOTE_NONE
    reader = csv.reader(clean, delimiter=kind.delimiter, quoting=quoting, strict=True)
    while True:
        begun = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = "all behind a quote that is not closed" if "unexpected end" in str(error) else "not CSV"
            refused.add(reason, f"{path}: line {begun}")
            continue
        if row:
            yield row


def gathered(
    rows: Iterable[tuple[int, dict[str, Any]]],
    source: str,
    text: str,
    others: Sequence[str],
    refused: Refused,
    max_bytes: int = MAX_TEXT_BYTES,
) -> Iterator[pa.RecordBatch]:
    """Rows as `batches` gives them."""
    held: list[tuple[Any, ...]] = []
    size = 0
    for number, row in rows:
        body = row.get(text)
        if not isinstance(body, str):
            refused.add("no text", f"{source}: row {number + 1}")
            continue
        body = well_formed(body)
        length = len(body.encode())
        if 64 * body.count("\ufffd") > len(body) + 256:
            refused.add("not UTF-8", f"{source}: row {number + 1}")
            continue
        if length > max_bytes:
            refused.add("size", f"{source}: row {number + 1}")
            continue
        held.append((number, body, *(_note(row.get(name)) for name in others)))
        size += length
        if size >= BATCH_BYTES:
            yield _batch(held, others)
            held, size = [], 0
    if held:
        yield _batch(held, others)


def _batch(rows: list[tuple[Any, ...]], others: Sequence[str]) -> pa.RecordBatch:
    numbers, bodies, *notes = zip(*rows, strict=True)
    columns = [pa.array(numbers, pa.int64()), pa.array(bodies, pa.large_string())]
    return pa.record_batch([*columns, *(pa.array(note, pa.string()) for note in notes)], names=["row", "text", *others])


def _note(value: Any) -> str | None:
    if isinstance(value, str):
        return well_formed(value)
    return None if value is None or isinstance(value, list | dict) else str(value)


def _with_column(
    rows: Iterable[tuple[int, dict[str, Any]]], path: Path, text: str, part: tuple[int, int] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows. Raises UserError when none of the first thousand, or of all there are, has the column of texts."""
    names: list[str] = []
    waiting: list[tuple[int, dict[str, Any]]] | None = []
    for number, row in rows:
        if waiting is None:
            yield number, row
            continue
        waiting.append((number, row if text in row else {}))
        names = names or list(row)
        if text in row:
            yield from waiting
            waiting = None
        elif len(waiting) >= SEARCHED_ROWS:
            break
    if waiting and part and part[0]:
        yield from waiting  # in the middle of a file, they are only counted
    elif waiting:
        raise UserError(no_column(path, text, names))


def no_column(source: object, text: str, names: Iterable[str]) -> str:
    known = ", ".join(str(name)[:30] for name in list(names)[:12])
    return f"{source}: no column {text!r}, it has {known or 'none'}: name that of the texts {text!r} (or a source's text_column)"


def _lines(
    file: IO[bytes], path: Path, refused: Refused, part: tuple[int, int] | None, limit: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line's number and object. A line longer than `limit` is passed over without being held."""
    number, stop = -1, None
    if part:
        start, stop = part
        if start:
            file.seek(start - 1)
            _skip_line(file, limit)  # the rest of a line of the part before; or, at its very end, only its line end
    while (stop is None or file.tell() < stop) and (line := file.readline(limit)):
        number += 1
        if not line.endswith(b"\n") and len(line) >= limit:
            _skip_line(file, limit)
            refused.add("size", f"{path}: {_place(number, part)}")
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8", "replace").lstrip("\ufeff\x1e"))  # marks of files put together, or of RFC 7464
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield number, row
        else:
            refused.add("not a JSON object", f"{path}: {_place(number, part)}")


def _place(number: int, part: tuple[int, int] | None) -> str:
    return f"line {number + 1}" + (f" after byte {part[0]}" if part and part[0] else "")


def _skip_line(file: IO[bytes], limit: int) -> None:
    while (line := file.readline(limit)) and not line.endswith(b"\n"):
        pass


def _values(file: IO[bytes], path: Path, refused: Refused, limit: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON over several lines, one after another or in arrays. After what is no JSON nothing is read."""
    decode, between = json.JSONDecoder().raw_decode, re.compile(r"[\s,]*")
    lines = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
    # A place in what is held, not what is left of it: a copy for each of thousands of values would be the time of all else.
    held, at, number, depth, ended = "", 0, 0, 0, False
    while True:
        if found := between.match(held, at):
            at = found.end()
        if held[at : at + 1] in ("[", "]") and at < len(held):
            depth, at = depth + (1 if held[at] == "[" else -1), at + 1
            continue
        value, end = None, 0
        if at < len(held):
            with suppress(ValueError, RecursionError):
                value, end = decode(held, at)
        if end and (end < len(held) or ended):
            at = end
            if isinstance(value, dict):
                yield number, value
            else:
                refused.add("not a JSON object", f"{path}: value {number + 1}")
            number += 1
        elif ended or len(held) - at > limit:
            if at < len(held) or depth:
                refused.add(DAMAGED, f"{path}: value {number + 1}")
            return
        else:  # read as much again as is left, so that long values are not decoded too often
            more = lines.read(max(streams.CHUNK, len(held) - at))
            held, at, ended = held[at:] + more, 0, not more


def _parquet(
    path: Path, text: str, others: Sequence[str], refused: Refused, part: tuple[int, int] | None, max_bytes: int
) -> Iterator[pa.RecordBatch]:
    for start, batch in _parquet_batches(path, (text, *others), refused, part):
        bodies, whole = as_text(batch[text])
        sizes = pc.binary_length(bodies)
        refused.add("no text", f"{path}: rows from {start + 1}", batch[text].null_count)
        refused.add("not text", f"{path}: rows from {start + 1}", bodies.null_count - batch[text].null_count)
        fits = pc.less_equal(sizes, max_bytes)
        refused.add("size", f"{path}: rows from {start + 1}", pc.sum(pc.invert(fits)).as_py() or 0)
        notes = [notes_of(batch[name] if name in batch.schema.names else pa.nulls(len(batch))) for name in others]
        rows = pa.array(np.arange(start, start + len(batch)))
        full = pa.record_batch([rows, bodies, *notes], names=["row", "text", *others])
        yield full if whole and pc.all(fits).as_py() else full.filter(fits)  # a null does not fit


def parquet_file(path: Path, text: str | None = None) -> pq.ParquetFile:
    """Raises UserError when it is not Parquet, or its column `text` is missing or no text."""
    open_plain(path).close()
    try:
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        schema, length = file.schema_arrow, file.metadata.serialized_size
        names, _ = schema.names, [file.schema.column(index).path for index in range(len(file.schema))]  # all are UTF-8
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:100]})") from None
    with open_plain(path) as raw:
        raw.seek(-8, 2)
        if int.from_bytes(raw.read(4), "little") - length == SIGNATURE:
            # Arrow ends the process where it is asked about an encrypted column.
            raise UserError(f"{path}: encrypted Parquet: {DECRYPT}")
    if text is not None:
        if text not in names:
            raise UserError(no_column(path, text, names))
        kind = schema.types[names.index(text)]
        if not (is_text(kind) or pa.types.is_null(kind)):
            raise UserError(f"{path}: column {text!r} is {str(kind)[:60]}, not text: give the texts as strings")
    return file


def text_ranges(path: Path, text: str, size: int) -> list[tuple[int, int]]:
    """Ranges of rows of a Parquet file with about `size` bytes of text each, none over two row groups."""
    with parquet_file(path, text) as file:
        ranges, first = [], 0
        for number in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            parts = 1
            with suppress(*DAMAGE, ValueError):  # which is counted where it is read
                parts = min(max(1, round(_group_bytes(file, number, text) / size)), max(1, rows))
            cuts = [first + rows * part // parts for part in range(parts + 1)]
            ranges += [(start, stop) for start, stop in pairwise(cuts) if stop > start]
            first += rows
        return ranges


def _group_bytes(file: pq.ParquetFile, number: int, column: str | None) -> int:
    group = file.metadata.row_group(number)
    if column is None:
        return int(group.total_byte_size)
    # Of a damaged chunk this raises, where Arrow ends the process when it is asked for its size.
    next(file.iter_batches(1, row_groups=[number], columns=[column], use_threads=False), None)
    pa.default_memory_pool().release_unused()
    paths = [file.schema.column(index).path for index in range(group.num_columns)]
    own = [index for index, path in enumerate(paths) if path == column or path.startswith(f"{column}.")]  # a name can hold a dot
    return sum(group.column(index).total_uncompressed_size for index in own)


def _parquet_batches(
    path: Path, wanted: Sequence[str] | None, refused: Refused, part: tuple[int, int] | None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Number of its first row, and each batch of a Parquet file, as many rows as come to BATCH_BYTES at their mean size."""
    with parquet_file(path, wanted[0] if wanted else None) as file:
        columns = [name for name in dict.fromkeys(wanted) if name in file.schema_arrow.names] if wanted else None
        first, row = 0, 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            first, row, ended = first + rows, first, first + rows
            if part and (ended <= part[0] or row >= part[1]):
                continue
            try:
                mean = _group_bytes(file, group, wanted[0] if wanted else None) / max(1, rows)
                at_once = int(min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, mean))))
                for batch in file.iter_batches(at_once, row_groups=[group], columns=columns, use_threads=False):
                    pa.default_memory_pool().release_unused()  # a page can be 1,024 texts: freed ones must not add up
                    start, row = row, row + len(batch)
                    skipped = max(0, part[0] - start) if part else 0
                    length = (min(row, part[1]) if part else row) - start - skipped
                    if length > 0:
                        yield start + skipped, _once_each(batch.slice(skipped, length))
                    if part and row >= part[1]:
                        return
            except (pa.ArrowException, OSError, ValueError):
                refused.add(DAMAGED, f"{path}: row {row + 1}", (min(ended, part[1]) if part else ended) - row)


def _once_each(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The first of columns of one name."""
    names = batch.schema.names
    return batch if len(set(names)) == len(names) else batch.select([names.index(name) for name in dict.fromkeys(names)])
