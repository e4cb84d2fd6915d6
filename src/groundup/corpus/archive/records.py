"""The records of a web archive with their offsets: WARC (ISO 28500) of any version, and ARC, read as if it were WARC.

Libraries stop at damage, or read on in silence: a Content-Length that is too large swallows the records after it. Here
a record must end where another begins. Where it does not, its true end is searched for; whatever is cut short or passed
over is counted. Memory is bounded by the largest record that is wanted.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from groundup.corpus.archive import compression
from groundup.corpus.archive.http_message import HEAD_END

MAX_RECORD_BYTES = 64 << 20
MAX_HEAD = 1 << 16
MAX_PASSED = 8  # times the largest record: how much of one compressed member is searched for the next record
MAX_LISTED = 1000
LOOK_AHEAD = 8192  # bytes that hold the start of a record with its URL
VERSION = re.compile(rb"WARC/\d")
BLANK = re.compile(rb"[\r\n]+")
NEXT_WARC = re.compile(compression.WARC_START)
NEXT_ARC = re.compile(rb"(?<=\n)" + compression.ARC_START)
ARC_FILE = re.compile(rb"\s*filedesc:")
ARC_HEAD = re.compile(rb"([a-z][a-z0-9+.-]{1,20}:[^\r\n]{0,4000}) (\d{1,3}(?:\.\d{1,3}){3}) (\d{8,20}) ([^\r\n]{1,200})\r{0,2}\n")


class DamagedRange(NamedTuple):
    """A damaged part of a file. `start` and `end` are offsets on disk, of the compressed members concerned if any."""

    file: str
    what: str  # "truncated" or "lost"
    start: int
    end: int
    bytes: int  # missing (where known) or passed over: on disk where compression is broken, else of the content


@dataclass
class Losses:
    """Counts of one reading: `lost` is the number of damaged places passed over, `lost_bytes` their bytes (see `DamagedRange`).

    A record that is cut short is read as far as it goes: it counts in `records` and in `truncated`. All places
    are counted; the first 1,000 are listed.
    """

    records: int = 0
    truncated: int = 0
    lost: int = 0
    lost_bytes: int = 0
    malformed: int = 0  # records passed over because of a malformed URL
    places: list[DamagedRange] = field(default_factory=list)

    def add(self, damaged: DamagedRange) -> None:
        if damaged.what == "lost":
            self.lost += 1
            self.lost_bytes += damaged.bytes
        else:
            self.truncated += 1
        if len(self.places) < MAX_LISTED:
            self.places.append(damaged)


@dataclass
class Record:
    """A record as it is in the archive; `headers` by lower-case name. An ARC record has the headers of a WARC record."""

    kind: str  # response, resource, conversion, metadata, request, warcinfo, revisit, ...
    headers: dict[str, str]
    block: bytes
    complete: bool
    offsets: tuple[int, int]  # start and end on disk

    @property
    def url(self) -> str:
        return self.headers.get("warc-target-uri", "").strip("<>")  # some writers understood WARC 1.0 to require <>


def natural(text: str) -> int | None:
    """The number that untrusted text states in decimal digits, below 10^18; None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def read_records(path: Path, losses: Losses) -> Iterator[Record]:
    """All records of an archive, in order, each as far as it is there."""
    with path.open("rb") as file:
        yield from records_of(file, path.name, losses, MAX_RECORD_BYTES)


def records_of(file: BinaryIO, name: str, losses: Losses, max_record_bytes: int) -> Iterator[Record]:
    """`read_records` of any seekable file; `name` is what `losses` calls it."""

    def add_lost(start: int, end: int) -> None:
        losses.add(DamagedRange(name, "lost", start, end, end - start))

    arc = None
    for run in compression.runs(file, add_lost):
        window = _Window(run)
        if arc is None:
            window.fill(compression.PEEK)
            arc = window.matches(ARC_FILE) is not None or ".arc" in name
        yield from _records(window, arc, name, losses, max_record_bytes)


class _Window:
    """The part of a run's inflated bytes that is being parsed; grows at the end, is dropped from the start."""

    def __init__(self, run: compression.InflatedRun) -> None:
        self.run = run
        self.data: bytes | bytearray = b""
        self.at = 0  # index in `data` of the next byte to be read
        self.dropped = 0  # inflated bytes before `data`

    def fill(self, size: int) -> int:
        """Read on until `size` bytes or more are available, or the run ends; returns how many are."""
        while len(self.data) - self.at < size and (more := self.run.read()):
            if self.at == len(self.data):
                self.dropped += self.at
                self.data, self.at = more, 0  # without a copy: usually a whole member
                continue
            if isinstance(self.data, bytes):
                self.data = bytearray(self.data)
            if self.at > len(self.data) // 2:  # so that each byte is copied about once
                del self.data[: self.at]
                self.dropped += self.at
                self.at = 0
            self.data += more
        return len(self.data) - self.at

    @property
    def position(self) -> int:
        return self.dropped + self.at

    def take(self, size: int) -> bytes:
        taken = bytes(memoryview(self.data)[self.at : self.at + size])
        self.at += len(taken)
        return taken

    def matches(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        return pattern.match(self.data, self.at)

    def find(self, pattern: re.Pattern[bytes], start: int, end: int) -> int | None:
        """Distance from the next byte to the first match within these distances."""
        match = pattern.search(self.data, self.at + start, self.at + end)
        return match.start() - self.at if match else None


def _records(window: _Window, arc: bool, name: str, losses: Losses, max_bytes: int) -> Iterator[Record]:
    """The records of one run. What is between them and not blank is lost, and counted."""
    next_start = NEXT_ARC if arc else NEXT_WARC
    while True:
        while window.fill(LOOK_AHEAD) and (blank := window.matches(BLANK)):
            window.at = blank.end()
        if not window.fill(MAX_HEAD):
            return
        start = window.position
        head = _arc_head(window) if arc else _warc_head(window)
        length = None
        if head is None:
            _pass_over(window, next_start, start, max_bytes)
        elif (head[1] or 0) <= max_bytes or not _skip_block(window, head[1]):
            length = _block_length(window, head[1], arc, next_start, max_bytes)
            if length is None:
                _pass_over(window, next_start, start, max_bytes)
        if head is None or length is None:
            offsets = window.run.on_disk(start, window.position)
            losses.add(DamagedRange(name, "lost", *offsets, window.position - start))
            continue
        headers, declared = head
        block = window.take(length)
        offsets = window.run.on_disk(start, window.position)
        if declared is None or (declared != length and window.fill(1)):  # up to the next record, with the blank line before it
            block = block.removesuffix(b"\n" if arc else b"\r\n\r\n")
        missing = max((declared or 0) - len(block), 0)
        losses.records += 1
        if missing or (declared is None and window.run.damaged):
            losses.add(DamagedRange(name, "truncated", *offsets, missing))
        kind = headers.get("warc-type", "").lower()
        yield Record(kind, headers, block, not missing, offsets)


def _block_length(
    window: _Window, declared: int | None, arc: bool, next_start: re.Pattern[bytes], max_bytes: int
) -> int | None:
    """How many of the next bytes are the block: as many as declared, if they end at another record or at the end.

    Otherwise all up to the next record; if there is none, as many as declared. None: more than `max_bytes`.
    """
    wanted = max_bytes if declared is None else min(declared, max_bytes)
    available = window.fill(wanted + LOOK_AHEAD)
    if declared is not None and available >= declared and _ends_at_boundary(window, declared, arc):
        return declared if declared <= max_bytes else None
    next_record = window.find(next_start, 0, min(available, max_bytes + LOOK_AHEAD))
    if next_record is not None and (declared is None or next_record < declared):
        length = next_record
    else:
        length = available if declared is None else min(declared, available)
    return length if length <= max_bytes and (declared is None or declared <= max_bytes or next_record is not None) else None


def _warc_head(window: _Window) -> tuple[dict[str, str], int | None] | None:
    """The header fields of the record that begins here, and its Content-Length if stated; None if no record begins."""
    if not window.matches(VERSION):
        return None
    end = window.find(HEAD_END, 0, MAX_HEAD)
    if end is None:
        return None
    # Only a line feed ends a line: a value may hold other characters that end lines elsewhere, such as U+2028.
    lines = [line.rstrip("\r") for line in window.take(end).decode("utf-8", "replace").split("\n")]
    window.at = window.matches(HEAD_END).end()  # type: ignore[union-attr]
    headers: dict[str, str] = {}
    name = ""
    for line in lines[1:]:
        if line[:1] in (" ", "\t") and name:  # a folded line
            headers[name] += " " + line.strip()
        else:
            name, colon, value = line.partition(":")
            name = name.strip().lower() if colon else ""
            if name:
                headers.setdefault(name, value.strip())
    return headers, natural(headers.get("content-length", ""))


def _arc_head(window: _Window) -> tuple[dict[str, str], int | None] | None:
    """The same for ARC 1 and 2: URL, address, date, type and, last, length, on one line."""
    line = window.matches(ARC_HEAD)
    if not line:
        return None
    window.at = line.end()
    url, _, date, rest = (part.decode("utf-8", "replace") for part in line.groups())
    fields = rest.split()
    content_type, *_, length = fields if len(fields) > 1 else [*fields, "", ""]
    kind = "warcinfo" if url.startswith("filedesc:") else "response"
    headers = {"arc": "1", "warc-type": kind, "warc-target-uri": url, "warc-date": date, "content-type": content_type}
    return headers, natural(length)


def _ends_at_boundary(window: _Window, length: int, arc: bool) -> bool:
    """Whether a record of this length would end where another begins, or where the run ends."""
    after = BLANK.match(window.data, window.at + length)
    at = after.end() if after else window.at + length
    if at >= len(window.data):
        return True
    return (ARC_HEAD if arc else VERSION).match(window.data, at) is not None


def _skip_block(window: _Window, length: int | None) -> bool:
    """Pass over a block of a plain file, if a record or the end of the file follows it."""
    run = window.run
    if length is None or run.opener:
        return False
    target = window.position + length
    size = run.file.seek(0, io.SEEK_END)
    run.file.seek(min(target, size))
    ahead = run.file.read(compression.PEEK)
    if target > size or (ahead.strip() and not compression.RECORD_START.match(ahead)):
        return False
    run.position = run.end = target
    run.finished = False
    window.data, window.at, window.dropped = b"", 0, target
    return True


def _pass_over(window: _Window, next_start: re.Pattern[bytes], start: int, max_bytes: int) -> None:
    """Go to where the next record begins."""
    window.at += window.position == start  # otherwise the search would find the same record again
    passed = 0
    while available := window.fill(compression.CHUNK):
        distance = window.find(next_start, 0, available)
        if distance is not None:
            window.at += distance
            return
        step = available - LOOK_AHEAD if available >= compression.CHUNK else available
        window.at += step
        passed += step
        if passed > MAX_PASSED * max_bytes and window.run.opener:  # a decompression bomb, or as good as one
            window.run.abandon()
