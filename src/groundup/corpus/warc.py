"""WARC 1.1 (ISO 28500), the field's file of web pages: one gzip member a record, so a file can be cut and mended.

Reading trusts nothing: pages come from anywhere and are often damaged. Libraries stop at damage, or read on in silence
(a Content-Length that is too large swallows the records after it), so records are parsed here, over the runs of
`members.py`: each must end where another begins, and whatever is cut short or passed over is counted, with its place.
ARC, the format before WARC, is read as if it were WARC.
"""

import gzip
import io
import re
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

from groundup.corpus import http_message, members
from groundup.corpus.members import CHUNK

MAX_RECORD_BYTES = 64 << 20
MAX_HEAD = 1 << 16
MAX_PASSED = 8  # times the largest record, of one compressed member, in search of the next record
MAX_PLACES = 1000
LOOK_AHEAD = 8192  # so that the start of a record, with its URL, is seen whole
VERSION = re.compile(rb"WARC/\d")
BLANK = re.compile(rb"[\r\n]+")
NEXT_WARC = re.compile(members.WARC_START)
NEXT_ARC = re.compile(rb"(?<=\n)" + members.ARC_START)
ARC_FILE = re.compile(rb"\s*filedesc:")
ARC_HEAD = re.compile(rb"([a-z][a-z0-9+.-]{1,20}:[^\r\n]{0,4000}) (\d{1,3}(?:\.\d{1,3}){3}) (\d{8,20}) ([^\r\n]{1,200})\r?\n")


class WarcWriter:
    """Writes records to `path`, each flushed when written: a killed writer leaves at most one record cut off.

    with WarcWriter(path) as warc:
        warc.response("https://a.org/", 200, [("Content-Type", "text/html")], body)
    """

    def __init__(self, path: Path, append: bool = False) -> None:
        self.file = path.open("ab" if append else "wb")

    def __enter__(self) -> "WarcWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def response(self, url: str, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """An HTTP response. `body` has its transfer encoding undone, and the headers are made to say so."""
        kept = [(name, value) for name, value in headers if name.lower() not in ("transfer-encoding", "content-length")]
        kept.append(("Content-Length", str(len(body))))
        head = "".join(f"{name}: {_one_line(value)}\r\n" for name, value in kept)
        block = f"HTTP/1.1 {status} \r\n{head}\r\n".encode("latin-1", "replace") + body
        self._record("response", url, "application/http; msgtype=response", block)

    def resource(self, url: str, content_type: str, body: bytes) -> None:
        """A document that came by no HTTP, such as a file."""
        self._record("resource", url, content_type, body)

    def metadata(self, url: str, fields: list[tuple[str, str]]) -> None:
        """What there is to say of a URL that gave no page."""
        block = "".join(f"{name}: {_one_line(value)}\r\n" for name, value in fields).encode()
        self._record("metadata", url, "application/warc-fields", block)

    def _record(self, kind: str, url: str, content_type: str, block: bytes) -> None:
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        head = (
            f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {_one_line(url)}\r\nWARC-Date: {date}\r\n"
            f"WARC-Record-ID: <urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{kind} {date} {url}')}>\r\n"
            f"Content-Type: {_one_line(content_type)}\r\nContent-Length: {len(block)}\r\n\r\n"
        )
        self.file.write(gzip.compress(head.encode() + block + b"\r\n\r\n", compresslevel=6, mtime=0))
        self.file.flush()


def _one_line(value: str) -> str:
    # A line break in a value would start a header of the sender's choosing.
    return " ".join(value.split())


@dataclass
class Page:
    """One document. `body` has content and transfer encodings undone; `content_type` is lower case, no parameters."""

    url: str
    content_type: str
    body: bytes
    charset: str | None = None


class Place(NamedTuple):
    """Where a file was damaged. `start` and `end` are offsets on disk, of the compressed members concerned if any."""

    file: str
    what: str  # "truncated" or "lost"
    start: int
    end: int
    bytes: int  # missing (where known) or passed over: on disk where compression is broken, else of the content


@dataclass
class Losses:
    """What reading went through: `lost` counts damaged places passed over, `lost_bytes` their bytes (see `Place`).

    A record that is cut short is read as far as it goes: it counts among `records` and among `truncated`. All places
    are counted; the first 1,000 are listed.
    """

    records: int = 0
    truncated: int = 0
    lost: int = 0
    lost_bytes: int = 0
    places: list[Place] = field(default_factory=list)

    def add(self, place: Place) -> None:
        if place.what == "lost":
            self.lost += 1
            self.lost_bytes += place.bytes
        else:
            self.truncated += 1
        if len(self.places) < MAX_PLACES:
            self.places.append(place)


@dataclass
class Record:
    """A record as it stands in the archive; `headers` by lower-case name. An ARC record reads as the same of WARC."""

    kind: str  # response, resource, conversion, metadata, request, warcinfo, revisit, ...
    headers: dict[str, str]
    block: bytes
    whole: bool
    place: tuple[int, int]  # on disk

    @property
    def url(self) -> str:
        return self.headers.get("warc-target-uri", "").strip("<>")  # WARC 1.0 was read as asking for <>


def read_pages(path: Path, losses: Losses, max_record_bytes: int = MAX_RECORD_BYTES) -> Iterator[Page]:
    """The pages of a WARC, ARC or WET file, in order: responses with status 200, resources and texts made of pages.

    Plain, gzip, zstd or LZ4, by what the bytes are, not by the name. Counts go into `losses`. A page that is cut short
    is yielded as far as it goes, and counted. Larger records, as they stand in the file or once decoded, are lost.
    """
    with path.open("rb") as file:
        yield from pages_of(file, path.name, losses, max_record_bytes)


def pages_of(
    file: BinaryIO, name: str, losses: Losses, max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[Page]:
    """`read_pages` of any seekable file; `name` is what `losses` calls it."""
    for record in records_of(file, name, losses, max_record_bytes):
        page = page_of(record, name, losses, max_record_bytes)
        if page:
            yield page


def page_of(record: Record, name: str, losses: Losses, max_record_bytes: int = MAX_RECORD_BYTES) -> Page | None:
    """The page that a record holds, if it holds one."""
    if not record.url or record.kind not in ("response", "resource", "conversion"):
        return None
    content_type, charset = parse_content_type(record.headers.get("content-type", ""))
    if record.kind == "conversion":
        return Page(record.url, content_type, record.block, charset or "utf-8")
    if record.kind == "resource" or (record.headers.get("arc") and not record.block.startswith(b"HTTP/")):
        return Page(record.url, content_type, record.block, charset)
    try:
        message = http_message.parse(record.block, max_record_bytes)
    except ValueError:
        losses.add(Place(name, "lost", *record.place, len(record.block)))
        return None
    if message is None or message.status != 200:
        return None
    if len(message.body) > max_record_bytes:  # a small record can decode to a very large body
        losses.add(Place(name, "lost", *record.place, len(record.block)))
        return None
    if record.whole and not message.whole:
        losses.add(Place(name, "truncated", *record.place, 0))
    kind, charset = parse_content_type(message.headers.get("content-type", ""))
    return Page(record.url, kind, message.body, charset)


def parse_content_type(value: str) -> tuple[str, str | None]:
    """'Text/HTML; charset="UTF-8"' -> ('text/html', 'utf-8')."""
    kind, *parameters = value.lower().split(";")
    for parameter in parameters:
        name, _, given = parameter.partition("=")
        if name.strip() == "charset" and given.strip(" \"'"):
            return kind.strip(), given.strip(" \"'")
    return kind.strip(), None


def complete_prefix(path: Path) -> int:
    """Bytes at the start of a file written by `WarcWriter` that hold complete records, each verified by its CRC."""
    complete, inflate = 0, zlib.decompressobj(wbits=31)
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            while data:
                try:
                    inflate.decompress(data)
                except zlib.error:
                    return complete
                data = inflate.unused_data
                if inflate.eof:
                    complete, inflate = file.tell() - len(data), zlib.decompressobj(wbits=31)
    return complete


def read_records(path: Path, losses: Losses, max_record_bytes: int = MAX_RECORD_BYTES) -> Iterator[Record]:
    """All records of an archive, in order, each as far as it is there."""
    with path.open("rb") as file:
        yield from records_of(file, path.name, losses, max_record_bytes)


def records_of(file: BinaryIO, name: str, losses: Losses, max_record_bytes: int) -> Iterator[Record]:
    """`read_records` of any seekable file; `name` is what `losses` calls it."""

    def lost(start: int, end: int) -> None:
        losses.add(Place(name, "lost", start, end, end - start))

    arc = None
    for run in members.runs(file, lost):
        window = _Window(run)
        if arc is None:
            window.fill(members.PEEK)
            arc = window.matches(ARC_FILE) is not None or ".arc" in name
        yield from _records(window, arc, name, losses, max_record_bytes)


class _Window:
    """The part of a run's inflated bytes that is being looked at; grows at the end, is dropped from the start."""

    def __init__(self, run: members.Run) -> None:
        self.run = run
        self.data = bytearray()
        self.at = 0  # index in `data` of the next byte to be read
        self.dropped = 0  # inflated bytes before `data`

    def fill(self, size: int) -> int:
        """Bytes there are to look at: `size` or more, or all that are left."""
        if self.at > len(self.data) // 2 and len(self.data) - self.at < size:  # so that each byte is moved about once
            del self.data[: self.at]
            self.dropped += self.at
            self.at = 0
        while len(self.data) - self.at < size and (more := self.run.read()):
            self.data += more
        return len(self.data) - self.at

    @property
    def position(self) -> int:
        return self.dropped + self.at

    def take(self, size: int) -> bytes:
        taken = bytes(memoryview(self.data)[self.at : self.at + size])
        self.at += len(taken)
        return taken

    def matches(self, pattern: re.Pattern[bytes], offset: int = 0) -> re.Match[bytes] | None:
        return pattern.match(self.data, self.at + offset)

    def find(self, pattern: re.Pattern[bytes], start: int, end: int) -> int | None:
        """Distance from the next byte to the first match within these distances."""
        found = pattern.search(self.data, self.at + start, self.at + end)
        return found.start() - self.at if found else None


def _records(window: _Window, arc: bool, name: str, losses: Losses, max_bytes: int) -> Iterator[Record]:
    """The records of one run. What stands between them and is not blank is lost, and counted."""
    next_start = NEXT_ARC if arc else NEXT_WARC
    while True:
        while window.fill(LOOK_AHEAD) and (blank := window.matches(BLANK)):
            window.at = blank.end()
        if not window.fill(MAX_HEAD):
            return
        start = window.position
        head = _arc_head(window) if arc else _warc_head(window)
        if head is None:
            _pass_over(window, next_start, start, name, losses, max_bytes)
            continue
        headers, length = head
        available = window.fill(min(max_bytes if length is None else length, max_bytes) + LOOK_AHEAD)
        if length is not None and length > max_bytes and window.run.opener is None:
            # The next record of a plain file can be looked for where it should be.
            if _jump(window, length):
                _count_lost(window, start, name, losses)
                continue
        declared, found = length, None
        if length is None or available < length or not _boundary(window, length, arc):
            found = window.find(next_start, 0, min(available, max_bytes + LOOK_AHEAD))
            if found is not None and (length is None or found < length):
                length = found
        if (available if length is None else length) > max_bytes:
            _pass_over(window, next_start, start, name, losses, max_bytes)
            continue
        block = window.take(available if length is None else length)
        if declared is None or found is not None:  # it was cut where the next begins: the blank line is not its own
            block = block.removesuffix(b"\n" if arc else b"\r\n\r\n")
        place = window.run.on_disk(start, window.position)
        cut = (declared is not None and len(block) < declared) or (declared is None and window.run.damaged)
        losses.records += 1
        if cut:
            losses.add(Place(name, "truncated", *place, (declared or len(block)) - len(block)))
        yield Record(headers.get("warc-type", "").lower(), headers, block, not cut, place)


def _warc_head(window: _Window) -> tuple[dict[str, str], int | None] | None:
    """The header fields of the record that begins here, and its Content-Length if it says one; None if none begins."""
    if not window.matches(VERSION):
        return None
    end = window.find(http_message.HEAD_END, 0, MAX_HEAD)
    if end is None:
        return None
    lines = window.take(end).decode("utf-8", "replace").splitlines()
    window.at = window.matches(http_message.HEAD_END).end()  # type: ignore[union-attr]
    headers: dict[str, str] = {}
    name = ""
    for line in lines[1:]:
        if line[:1] in " \t" and name:  # a folded line
            headers[name] += " " + line.strip()
        else:
            name, colon, value = line.partition(":")
            name = name.strip().lower() if colon else ""
            if name:
                headers.setdefault(name, value.strip())
    length = headers.get("content-length", "")
    return headers, int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None


def _arc_head(window: _Window) -> tuple[dict[str, str], int | None] | None:
    """The same of ARC 1 and 2: URL, address, date, type and, last, length, on one line."""
    line = window.matches(ARC_HEAD)
    if not line:
        return None
    window.at = line.end()
    url, _, date, rest = (part.decode("utf-8", "replace") for part in line.groups())
    content_type, *_, length = [*rest.split(), ""] if len(rest.split()) < 2 else rest.split()
    kind = "warcinfo" if url.startswith("filedesc:") else "response"
    headers = {"arc": "1", "warc-type": kind, "warc-target-uri": url, "warc-date": date, "content-type": content_type}
    return headers, int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None


def _boundary(window: _Window, length: int, arc: bool) -> bool:
    """Whether a record of this length would end where another begins, or the run."""
    after = BLANK.match(window.data, window.at + length)
    at = after.end() if after else window.at + length
    if at >= len(window.data):
        return True
    return (ARC_HEAD if arc else VERSION).match(window.data, at) is not None


def _jump(window: _Window, length: int) -> bool:
    """Pass over `length` bytes of a plain file if a record, or the end of the file, stands behind them."""
    run, target = window.run, window.position + length
    size = run.file.seek(0, io.SEEK_END)
    run.file.seek(target)
    if target > size or not (members.RECORD_START.match(ahead := run.file.read(members.PEEK)) or not ahead.strip()):
        return False
    run.position = run.end = target
    window.data, window.at, window.dropped = bytearray(), 0, target
    return True


def _pass_over(
    window: _Window, next_start: re.Pattern[bytes], start: int, name: str, losses: Losses, max_bytes: int
) -> None:
    """Go to where the next record begins and count what lies before it."""
    window.at += window.position == start  # else the same would be found again
    passed = 0
    while available := window.fill(members.CHUNK):
        found = window.find(next_start, 0, available)
        if found is not None:
            window.at += found
            break
        keep = LOOK_AHEAD if available >= members.CHUNK else 0
        window.at += available - keep
        passed += available - keep
        if passed > MAX_PASSED * max_bytes and window.run.opener:  # a decompression bomb, or as good as one
            window.run.abandon()
    _count_lost(window, start, name, losses)


def _count_lost(window: _Window, start: int, name: str, losses: Losses) -> None:
    losses.add(Place(name, "lost", *window.run.on_disk(start, window.position), window.position - start))
