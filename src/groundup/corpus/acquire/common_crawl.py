"""Pages of Common Crawl: whole WARC files in their order, or those that its index finds for a host, language or type.

The index is Common Crawl's CDX in ZipNum blocks: `cluster.idx` names, in the order of reversed hosts ("org,example)/"),
the first capture of each block of about 3,000, so a host is found by bisection. The index is not sorted by language or
type, so these are sampled: a few captures each of blocks from all over the index, in an order that is the same each time.
Everything that was fetched is kept until the end, so a run that was killed fetches nothing twice (see `ranges.py`).
"""

import io
import json
import re
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.corpus.acquire.fetch import PAGE_TYPES
from groundup.corpus.acquire.ranges import CONNECTIONS, MAX_WHOLE_BYTES, Missing, Range, RangeFile, Ranges
from groundup.corpus.archive.http_message import undo_encodings
from groundup.corpus.archive.records import MAX_RECORD_BYTES, natural
from groundup.corpus.archive.warc import Losses, Page, pages_of

BASE = "https://data.commoncrawl.org/"
WINDOW = 16 << 10  # bytes of cluster.idx that are requested at a time: about 130 of its lines
LINE = 4 << 10  # bytes: longer than any of its lines
SAMPLE = 100  # captures of one block before the next block: neighbours are pages of one host
MAX_BLOCK_BYTES = 64 << 20  # of a CDX block, inflated
PATH = re.compile(r"(?!.*\.\.)\w[\w./=-]{0,500}", re.ASCII)  # all that the names of its files are made of


@dataclass
class CommonCrawl:
    """`cc:CC-MAIN-2026-17`; what was damaged or is no page is counted in `refused`, what was fetched is kept in `log`.

    `host`: this host and its subdomains. `language`: three letters, the language detected first in the page. `mime`: the
    detected type, not the one that the server stated.
    """

    source: str
    log: Path
    refused: Counter[str]
    host: str | None = None
    language: str | None = None
    mime: str | None = None
    base: str | None = None
    connections: int = CONNECTIONS

    def pages(self) -> Generator[Page, None, None]:
        """Raises UserError when the name is not a crawl's, or the server forbids or is busy for too long; what was fetched
        stays in the log."""
        crawl, refused, mime = self.source.removeprefix("cc:"), self.refused, self.mime
        if not re.fullmatch(r"CC-MAIN-\d{4}-\d{2}", crawl):
            raise UserError(
                f"{self.source}: not the name of a crawl: give cc:CC-MAIN-2026-17, as listed on commoncrawl.org"
            )
        losses = Losses()
        try:
            with Ranges(self.base or BASE, self.log, self.connections) as ranges:
                if self.host or self.language or mime:
                    record_ranges = _captures(ranges, crawl, refused, self.host, self.language, mime)
                    records = ranges.in_order(record_ranges)
                    pages = (page for record in records for page in _pages_of_record(record, losses))
                else:
                    pages = _whole_files(ranges, crawl, refused, losses)
                for page in pages:
                    if mime or page.content_type in PAGE_TYPES:
                        yield page
                    else:
                        refused["type"] += 1
        finally:  # also where the source's limit closes this generator
            refused["truncated"] += losses.truncated
            refused["damaged"] += losses.lost
            refused["malformed URL"] += losses.malformed


def _whole_files(ranges: Ranges, crawl: str, refused: Counter[str], losses: Losses) -> Iterator[Page]:
    listing = _inflated(ranges.get((f"crawl-data/{crawl}/warc.paths.gz", 0, None)), MAX_WHOLE_BYTES)
    for path in listing.decode("ascii", "replace").split():
        try:
            file = RangeFile(ranges, path) if PATH.fullmatch(path) else None
        except Missing:
            file = None
        if file:
            yield from pages_of(io.BufferedReader(file, 1 << 17), path.rpartition("/")[2], losses)
        else:
            refused["damaged index"] += 1


def _pages_of_record(record: bytes, losses: Losses) -> Iterator[Page]:
    before = losses.records + losses.lost
    yield from pages_of(io.BytesIO(record), "record", losses)
    losses.lost += losses.records + losses.lost == before  # neither a record nor damage: empty


def _inflated(content: bytes, max_bytes: int) -> bytes:
    try:
        return undo_encodings(content, "gzip", max_bytes)[0][:max_bytes]
    except ValueError:
        return b""


def surt(host: str) -> str:
    """'Www.Example.org' -> 'org,example': the index has hosts reversed, without www."""
    host = host.lower().strip(".").removeprefix("www.")
    return ",".join(reversed(host.encode("idna").decode().split(".")))


def _captures(
    ranges: Ranges, crawl: str, refused: Counter[str], host: str | None, language: str | None, mime: str | None
) -> Iterator[Range]:
    """The ranges of the records that the index has for these; pages only, no redirects or errors."""
    index = f"cc-index/collections/{crawl}/indexes/"
    try:
        prefix = surt(host) if host else None
    except UnicodeError:
        raise UserError(f"host = {host!r:.80}: not the name of a host: give it as in example.org") from None
    blocks = ((line, slice(None)) for line in _blocks_of(ranges, index, prefix)) if prefix else _sample(ranges, index)
    for line, chosen in blocks:
        _, name, start, length = [*line.decode("utf-8", "replace").split("\t"), "", "", "", ""][:4]
        try:
            block = ranges.get(_range_of(index + name, start, length, MAX_BLOCK_BYTES))
        except (ValueError, Missing):
            refused["damaged index"] += 1
            continue
        record_ranges = []
        for capture_line in _inflated(block, MAX_BLOCK_BYTES).splitlines():
            key, _, rest = capture_line.partition(b" ")
            if prefix and not key.startswith((f"{prefix})".encode(), f"{prefix},".encode())):
                continue
            try:
                capture = json.loads(rest[rest.index(b"{") :])
                if _fits(capture, language, mime):
                    record_ranges.append(_range_of(capture["filename"], capture["offset"], capture["length"], MAX_RECORD_BYTES))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                refused["damaged index"] += 1
        yield from record_ranges if prefix else sorted(record_ranges, key=lambda record_range: _digest(*record_range))[chosen]


def _range_of(path: str, start: object, length: object, max_bytes: int) -> Range:
    """The range that a line of an index names. Raises ValueError where it cannot be requested."""
    first, size = natural(str(start)), natural(str(length))
    if not PATH.fullmatch(path) or first is None or size is None or not 0 < size <= max_bytes:
        raise ValueError("no such range")
    return path, first, size


def _fits(capture: dict[str, Any], language: str | None, mime: str | None) -> bool:
    detected = capture.get("mime-detected") or capture.get("mime")
    return (
        capture.get("status") == "200"
        and "/warc/" in capture["filename"]
        and (detected == mime if mime else detected in PAGE_TYPES)
        and (language is None or (capture.get("languages") or "").split(",")[0] == language)
    )


def _blocks_of(ranges: Ranges, index: str, prefix: str) -> Iterator[bytes]:
    """The lines of cluster.idx whose blocks can hold captures of a host or its subdomains."""
    # In the index's order "org,example)" < "org,example,sub)" < "org,example-", and nothing else is between.
    first_key, key_after = f"{prefix})".encode(), f"{prefix}-".encode()
    low, high = 0, _window_count(ranges, index)
    while high - low > 1:  # the last window that begins before the host
        middle = (low + high) // 2
        lines = _lines_of_window(ranges, index, middle)
        if lines and lines[0] >= first_key:
            high = middle
        else:
            low = middle
    previous: bytes | None = None  # the line before: its block may end with the host's first captures
    for number in range(low, _window_count(ranges, index)):
        for line in _lines_of_window(ranges, index, number):
            if line < first_key:
                previous = line
                continue
            if previous:
                yield previous
                previous = None
            if line >= key_after:
                return
            yield line
    if previous:
        yield previous


def _sample(ranges: Ranges, index: str) -> Iterator[tuple[bytes, slice]]:
    """All lines of cluster.idx, one of each window in turn, and which captures of its block to take."""
    order = sorted(range(_window_count(ranges, index)), key=_digest)
    for chosen in (slice(SAMPLE), slice(SAMPLE, None)):
        for turn in count():
            any_left = False
            for number in order:
                lines = sorted(_lines_of_window(ranges, index, number), key=_digest)
                if turn < len(lines):
                    any_left = True
                    yield lines[turn], chosen
            if not any_left:
                break


def _digest(*values: object) -> bytes:
    return blake2b(repr(values).encode(), digest_size=16).digest()


def _window_count(ranges: Ranges, index: str) -> int:
    first_range = (index + "cluster.idx", 0, WINDOW + LINE)
    ranges.get(first_range)
    return -(-ranges.total(*first_range) // WINDOW)


def _lines_of_window(ranges: Ranges, index: str, number: int) -> list[bytes]:
    """The lines that begin in this window."""
    start = number * WINDOW
    overlap = int(number > 0)  # the byte before tells whether a line begins with the first
    content = ranges.get((index + "cluster.idx", start - overlap, WINDOW + LINE + overlap))
    at = content.find(b"\n") + 1 if overlap else 0
    lines = []
    while overlap == 0 or at > 0:
        end = content.find(b"\n", at)
        if at - overlap >= WINDOW or at >= len(content):
            break
        lines.append(content[at : end if end >= 0 else None])
        if end < 0:
            break
        at = end + 1
    return lines
