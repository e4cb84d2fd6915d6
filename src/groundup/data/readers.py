"""Readers: rows of JSON, CSV, Parquet and plain text files, of a known kind (`file_kinds.py`), as Arrow record batches of text.

A batch holds about 512 kB, however long its rows are; a bad row is counted by its reason and passed over; texts become valid
UTF-8.
"""

import csv
import io
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
from groundup.data.columns import as_notes, as_text, has_dates, is_text
from groundup.data.file_kinds import DECRYPT, STATED_DELIMITER, Kind, is_page, kind_of
from groundup.data.plain_values import JSON

MAX_TEXT_BYTES = 64 << 20  # of one document
BATCH_BYTES = 1 << 19
BATCH_ROWS = 128  # at most: rows can be much longer than their mean
SEARCHED_ROWS = 1000  # for the column of texts, before a file without it is refused
DAMAGED, NOT_UTF8 = "damaged", "not UTF-8"
ADVICE = {DAMAGED: "get the file again", NOT_UTF8: "save the file as UTF-8"}
DAMAGE = (OSError, EOFError, pa.ArrowException)
# Of values that Python cannot represent; LookupError: an unknown time zone.
NO_VALUE = (ValueError, OverflowError, LookupError, pa.ArrowException)
SIGNATURE = 28  # bytes behind the metadata where some columns are encrypted


class Refused(Counter[str]):
    """Counts of rows or files that were passed over, by reason, and the location of the first of them."""

    first = ""

    def add(self, reason: str, location: str, count: int = 1) -> None:
        if count:
            self[reason] += count
            self.first = self.first or ": ".join(filter(None, [location, reason, ADVICE.get(reason)]))

    def merge(self, other: "Refused") -> None:
        self.update(other)
        self.first = self.first or other.first

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored_refused, (dict(self), self.first)  # a Counter's own loses the rest

    def __str__(self) -> str:
        counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.items()) if count)
        advice = "".join(f"; {reason}: {what}" for reason, what in ADVICE.items() if self[reason] and what not in self.first)
        return f"{counts}; first {self.first}{advice}" if self.first else counts


def _restored_refused(counts: dict[str, int], first: str) -> Refused:
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

    Each part of a plain text (`streams.parts`) is a row. `part` is a range of rows of Parquet, within one row group, or of
    bytes of uncompressed JSON lines in UTF-8 (a line belongs to the part in which it begins; rows are counted from there).
    Other columns that hold lists or structs count as absent.
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
        rows: Iterator[tuple[int, dict[str, Any]]] = (
            (number, {text: body.decode("utf-8", "replace")}) for number, body in enumerate(texts(path, refused, kind))
        )
    else:
        rows = _with_column(records(path, refused, kind, part, 2 * max_bytes), path, text, part)
    yield from gathered(rows, str(path), text, others, refused, max_bytes)


def texts(path: Path, refused: Refused, kind: Kind) -> Iterator[bytes]:
    """The documents of a text file, as bytes in its encoding (UTF-16 and UTF-32 become UTF-8)."""
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
            types = str(batch.schema.types)
            decode = _as_json if "binary" in types or "map<" in types else lambda row: row
            yield from ((number, decode(row)) for number, row in _dicts(path, start, batch, refused))
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
    """Number and row, for each row of a batch; rows with a value that its type does not allow are counted."""
    for number in range(len(batch)):
        row_batch = batch.slice(number, 1)
        try:
            [row] = row_batch.to_pylist()
        except UnicodeDecodeError:
            refused.add("invalid UTF-8", f"{path}: row {start + number + 1}")
            continue
        except NO_VALUE:
            # Python has no times in nanoseconds, none after the year 9999, and no time zones beyond its tables. A row is not
            # dropped for its date, in whichever column that is.
            without_dates = [name for name in row_batch.schema.names if not has_dates(row_batch.schema.field(name).type)]
            try:
                [row] = row_batch.select(without_dates).to_pylist()
            except NO_VALUE:
                refused.add(DAMAGED, f"{path}: row {start + number + 1}")
                continue
        yield start + number, row


def _as_json(value: Any) -> Any:
    """A row of Parquet, with bytes that are UTF-8 as text, since some writers have no strings, and maps as objects."""
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) and isinstance(item[0], str | bytes) for item in value):  # Arrow's maps
            return {_as_json(name): _as_json(item) for name, item in value}
        return [_as_json(item) for item in value]
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
    """Number (from 0) and columns (by the header) of each row of a file of CSV.

    A row with more cells than columns has unquoted commas, so its texts would end too early: it is counted as bad. Of columns
    of one name the first counts, as in Parquet.
    """
    lists = csv_lists(path, refused, kind, max_bytes)
    header = [name.strip() for name in next(lists, [])]
    repeated = len(set(header)) < len(header)
    for number, cells in enumerate(lists):
        if any(cells[len(header) :]):
            refused.add("more cells than columns", f"{path}: row {number + 1}")
            continue
        columns = list(zip(header, cells, strict=False))
        yield number, dict(columns) | (dict(reversed(columns)) if repeated else {})


@contextmanager
def _opened(path: Path, kind: Kind, refused: Refused) -> Iterator[IO[bytes]]:
    """The content of a file in UTF-8. Damage ends the reading and is counted."""
    with open_plain(path) as file:
        try:
            yield streams.content(file, kind.packing, kind.encoding, kind.mark)
        except DAMAGE:
            refused.add(DAMAGED, str(path))


def _csv(stream: IO[bytes], kind: Kind, path: Path, refused: Refused, max_bytes: int) -> Iterator[list[str]]:
    csv.field_size_limit(min(max_bytes, 2**31 - 1))
    text_stream = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
    lines = iter(lambda: text_stream.readline(max_bytes), "")  # bounded, for files without line ends
    first_lines = [line for line in islice(lines, 1) if not STATED_DELIMITER.fullmatch(line)]
    skipped = 0 if first_lines else 1  # the line that states the delimiter
    # Without strict, csv takes all that follows an open quote for one cell, and silently changes texts with quotes as \".
    clean = (line.replace("\0", "\ufffd") for line in chain(first_lines, lines))
    quoting = csv.QUOTE_MINIMAL if kind.quoted else csv.QUOTE_NONE
    reader = csv.reader(clean, delimiter=kind.delimiter, quoting=quoting, strict=True)
    while True:
        first_line_number = skipped + reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = "all behind a quote that is not closed" if "unexpected end" in str(error) else "not CSV"
            refused.add(reason, f"{path}: line {first_line_number}")
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
    """Rows as record batches, as `batches` yields them."""
    pending: list[tuple[Any, ...]] = []
    size = 0
    for number, row in rows:
        body = row.get(text)
        if not isinstance(body, str):
            refused.add("no text", f"{source}: row {number + 1}")
            continue
        body = well_formed(body)
        length = len(body.encode())
        if 64 * body.count("\ufffd") > len(body) + 256:
            refused.add(NOT_UTF8, f"{source}: row {number + 1}")
            continue
        if length > max_bytes:
            refused.add("size", f"{source}: row {number + 1}")
            continue
        pending.append((number, body, *(_note(row.get(name)) for name in others)))
        size += length
        if size >= BATCH_BYTES:
            yield _batch(pending, others)
            pending, size = [], 0
    if pending:
        yield _batch(pending, others)


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
    """The rows. Raises UserError when none of the first thousand (or of all, if fewer) has the column of texts."""
    first_row: dict[str, Any] = {}
    pending: list[tuple[int, dict[str, Any]]] | None = []
    for number, row in rows:
        if pending is None:
            yield number, row
            continue
        has_text = text in row and not isinstance(row[text], list | dict)
        pending.append((number, row if has_text else {}))
        first_row = first_row or row
        if has_text:
            yield from pending
            pending = None
        elif len(pending) >= SEARCHED_ROWS:
            break
    if pending and part and part[0]:
        yield from pending  # in the middle of a file, they are only counted
    elif pending:
        raise UserError(_no_texts(path, text, first_row, len(pending)))


def _no_texts(path: Path, text: str, row: dict[str, Any], rows: int) -> str:
    """`row`: the first one, of so many."""
    if rows == 1 and any(isinstance(value, list | dict) for value in row.values()):
        # An export with a head, a notebook, or a table by columns, which `to_json` of pandas writes if not told otherwise.
        return f'{path}: one JSON object ({_known(row)}), not rows: give an array or lines of objects, as [{{"{text}": "..."}}]'
    if text in row:
        return f"{path}: column {text!r} holds lists or objects, not text: give the texts as strings"
    return no_column(path, text, row)


def no_column(source: object, text: str, names: Iterable[str]) -> str:
    known = _known(names) or "none"
    return f"{source}: no column {text!r}, it has {known}: name that of the texts {text!r} (or a source's text_column)"


def _known(names: Iterable[str]) -> str:
    return ", ".join(str(name)[:30] for name in list(names)[:12])


def _lines(
    file: IO[bytes], path: Path, refused: Refused, part: tuple[int, int] | None, limit: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line. A line longer than `limit` is passed over without being held in memory."""
    number, stop = -1, None
    if part:
        start, stop = part
        if start:
            file.seek(start - 1)
            _skip_line(file, limit)  # the rest of the previous part's last line; where that ended, only its line end
    while (stop is None or file.tell() < stop) and (line := file.readline(limit)):
        number += 1
        if not line.endswith(b"\n") and len(line) >= limit:
            _skip_line(file, limit)
            refused.add("size", f"{path}: {_line_position(number, part)}")
            continue
        if not line.strip():
            continue
        # Without byte-order marks of concatenated files, the record separators of RFC 7464, and commas as in an array.
        text = line.decode("utf-8", "replace").lstrip("\ufeff\x1e").rstrip().removesuffix(",")
        try:
            row = JSON.decode(text)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield number, row
        else:
            refused.add("not a JSON object", f"{path}: {_line_position(number, part)}")


def _line_position(number: int, part: tuple[int, int] | None) -> str:
    return f"line {number + 1}" + (f" after byte {part[0]}" if part and part[0] else "")


def _skip_line(file: IO[bytes], limit: int) -> None:
    while (line := file.readline(limit)) and not line.endswith(b"\n"):
        pass


def _values(file: IO[bytes], path: Path, refused: Refused, limit: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON over several lines, one after another or in arrays. Reading ends at the first invalid JSON."""
    decode, separators = JSON.raw_decode, re.compile(r"[\s,]*")
    text_stream = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
    # A position in the buffer, not a copy of the rest for each of thousands of values, which would take as long as all else.
    buffer, position, number, depth, ended = "", 0, 0, 0, False
    while True:
        if separator := separators.match(buffer, position):
            position = separator.end()
        if buffer[position : position + 1] in ("[", "]") and position < len(buffer):
            depth, position = depth + (1 if buffer[position] == "[" else -1), position + 1
            continue
        value, end = None, 0
        if position < len(buffer):
            with suppress(ValueError, RecursionError):
                value, end = decode(buffer, position)
        if end and (end < len(buffer) or ended):
            position = end
            if isinstance(value, dict):
                yield number, value
            else:
                refused.add("not a JSON object", f"{path}: value {number + 1}")
            number += 1
        elif ended or len(buffer) - position > limit:
            if position < len(buffer) or depth:
                refused.add(DAMAGED, f"{path}: value {number + 1}")
            return
        else:  # double what remains, so that long values are not decoded too often
            chunk = text_stream.read(max(streams.CHUNK, len(buffer) - position))
            buffer, position, ended = buffer[position:] + chunk, 0, not chunk


def _parquet(
    path: Path, text: str, others: Sequence[str], refused: Refused, part: tuple[int, int] | None, max_bytes: int
) -> Iterator[pa.RecordBatch]:
    for start, batch in _parquet_batches(path, (text, *others), refused, part):
        bodies, all_text = as_text(batch[text])
        sizes = pc.binary_length(bodies)
        refused.add("no text", f"{path}: rows from {start + 1}", batch[text].null_count)
        refused.add("not text", f"{path}: rows from {start + 1}", bodies.null_count - batch[text].null_count)
        fits = pc.less_equal(sizes, max_bytes)
        refused.add("size", f"{path}: rows from {start + 1}", pc.sum(pc.invert(fits)).as_py() or 0)
        notes = [as_notes(batch[name] if name in batch.schema.names else pa.nulls(len(batch))) for name in others]
        rows = pa.array(np.arange(start, start + len(batch)))
        complete = pa.record_batch([rows, bodies, *notes], names=["row", "text", *others])
        yield complete if all_text and pc.all(fits).as_py() else complete.filter(fits)  # a null does not fit


def parquet_file(path: Path, text: str | None = None) -> pq.ParquetFile:
    """An open Parquet file. Raises UserError when it is not Parquet, or its column `text` is missing or holds no text."""
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
            # Arrow aborts the process when it is asked about an encrypted column.
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
            with suppress(*DAMAGE, ValueError):  # damage is counted when the rows are read
                parts = min(max(1, round(_group_bytes(file, number, text) / size)), max(1, rows))
            borders = [first + rows * part // parts for part in range(parts + 1)]
            ranges += [(start, stop) for start, stop in pairwise(borders) if stop > start]
            first += rows
        return ranges


def _group_bytes(file: pq.ParquetFile, number: int, column: str | None) -> int:
    group = file.metadata.row_group(number)
    if column is None:
        return int(group.total_byte_size)
    # For a damaged chunk this raises; Arrow aborts the process when it is asked for the size of one.
    next(file.iter_batches(1, row_groups=[number], columns=[column], use_threads=False), None)
    pa.default_memory_pool().release_unused()
    paths = [file.schema.column(index).path for index in range(group.num_columns)]
    # A name can hold a dot.
    column_indices = [index for index, path in enumerate(paths) if path == column or path.startswith(f"{column}.")]
    return sum(group.column(index).total_uncompressed_size for index in column_indices)


def _parquet_batches(
    path: Path, wanted: Sequence[str] | None, refused: Refused, part: tuple[int, int] | None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """First row's number, and batch, of each batch of a Parquet file: rows of BATCH_BYTES together, at their mean size."""
    with parquet_file(path, wanted[0] if wanted else None) as file:
        columns = [name for name in dict.fromkeys(wanted) if name in file.schema_arrow.names] if wanted else None
        group_start, row = 0, 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            group_start, row, group_end = group_start + rows, group_start, group_start + rows
            if part and (group_end <= part[0] or row >= part[1]):
                continue
            try:
                mean = _group_bytes(file, group, wanted[0] if wanted else None) / max(1, rows)
                batch_rows = int(min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, mean))))
                for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns, use_threads=False):
                    pa.default_memory_pool().release_unused()  # a page can be 1,024 texts: freed memory must not add up
                    start, row = row, row + len(batch)
                    skipped = max(0, part[0] - start) if part else 0
                    length = (min(row, part[1]) if part else row) - start - skipped
                    if length > 0:
                        yield start + skipped, _once_each(batch.slice(skipped, length))
                    if part and row >= part[1]:
                        return
            except (pa.ArrowException, OSError, ValueError):
                refused.add(DAMAGED, f"{path}: row {row + 1}", (min(group_end, part[1]) if part else group_end) - row)


def _once_each(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with the first of each group of columns of one name."""
    names = batch.schema.names
    return batch if len(set(names)) == len(names) else batch.select([names.index(name) for name in dict.fromkeys(names)])
