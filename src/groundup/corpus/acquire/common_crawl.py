"""Pages of Common Crawl: whole WARC files in their order, or those that its index finds for a host, language or type.

The index is Common Crawl's CDX in ZipNum blocks: `cluster.idx` names, in the order of reversed hosts ("org,example)/"),
the first capture of each block of about 3,000, so a host is found by bisection. What has no order, a language or a
type, is sampled: blocks are drawn from all over the index, in an order that is the same each time, a few captures each.
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
WINDOW = 16 << 10  # bytes of cluster.idx that are asked for at a time: about 130 of its lines
LINE = 4 << 10  # longer than any of its lines
SAMPLE = 100  # captures of one block before the next block: neighbours are pages of one host
MAX_BLOCK_BYTES = 64 << 20  # of a CDX block, inflated
PATH = re.compile(r"(?!.*\.\.)\w[\w./=-]{0,500}", re.ASCII)  # all that the names of its files are made of


@dataclass
class CommonCrawl:
    """`cc:CC-MAIN-2026-17`; what was damaged or is no page is counted in `refused`, what was fetched is kept in `log`.

    `host`: of this host and those under it. `language`: three letters, the first that was found in the page. `mime`: the
    type that was found, not the one that was said.
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
        """Raises UserError for a name that is no crawl's, when the server forbids, or is busy for too long; then the log
        holds what was fetched."""
        crawl, refused, mime = self.source.removeprefix("cc:"), self.refused, self.mime
        if not re.fullmatch(r"CC-MAIN-\d{4}-\d{2}", crawl):
            raise UserError(
                f"{self.source}: not the name of a crawl: give cc:CC-MAIN-2026-17, as listed on commoncrawl.org"
            )
        losses = Losses()
        with Ranges(self.base or BASE, self.log, self.connections) as ranges:
            if self.host or self.language or mime:
                found = _captures(ranges, crawl, refused, self.host, self.language, mime)
                parts = ranges.in_order(found)
                pages = (page for part in parts for page in _record(part, losses))
            else:
                pages = _whole_files(ranges, crawl, refused, losses)
            for page in pages:
                if mime or page.content_type in PAGE_TYPES:
                    yield page
                else:
                    refused["type"] += 1
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


def _record(part: bytes, losses: Losses) -> Iterator[Page]:
    before = losses.records + losses.lost
    yield from pages_of(io.BytesIO(part), "record", losses)
    losses.lost += losses.records + losses.lost == before  # there was nothing


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
    """Where the records are that the index has for these; only whole pages, no redirects or errors."""
    index = f"cc-index/collections/{crawl}/indexes/"
    try:
        prefix = surt(host) if host else None
    except UnicodeError:
        raise UserError(f"host = {host!r:.80}: not the name of a host: give it as in example.org") from None
    blocks = ((line, slice(None)) for line in _blocks_of(ranges, index, prefix)) if prefix else _sample(ranges, index)
    for line, part in blocks:
        _, name, start, length = [*line.decode("utf-8", "replace").split("\t"), "", "", "", ""][:4]
        try:
            block = ranges.get(_place(index + name, start, length, MAX_BLOCK_BYTES))
        except (ValueError, Missing):
            refused["damaged index"] += 1
            continue
        wanted = []
        for capture in _inflated(block, MAX_BLOCK_BYTES).splitlines():
            key, _, rest = capture.partition(b" ")
            if prefix and not key.startswith((f"{prefix})".encode(), f"{prefix},".encode())):
                continue
            try:
                found = json.loads(rest[rest.index(b"{") :])
                if _fits(found, language, mime):
                    wanted.append(_place(found["filename"], found["offset"], found["length"], MAX_RECORD_BYTES))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                refused["damaged index"] += 1
        yield from wanted if prefix else sorted(wanted, key=lambda place: _digest(*place))[part]


def _place(path: str, start: object, length: object, max_bytes: int) -> Range:
    """The range that a line of an index names. Raises ValueError where it is none that could be asked for."""
    first, size = natural(str(start)), natural(str(length))
    if not PATH.fullmatch(path) or first is None or size is None or not 0 < size <= max_bytes:
        raise ValueError("no such range")
    return path, first, size


def _fits(capture: dict[str, Any], language: str | None, mime: str | None) -> bool:
    found = capture.get("mime-detected") or capture.get("mime")
    return (
        capture.get("status") == "200"
        and "/warc/" in capture["filename"]
        and (found == mime if mime else found in PAGE_TYPES)
        and (language is None or (capture.get("languages") or "").split(",")[0] == language)
    )


def _blocks_of(ranges: Ranges, index: str, prefix: str) -> Iterator[bytes]:
    """The lines of cluster.idx whose blocks can hold captures of a host or those under it."""
    # In the index's order "org,example)" < "org,example,sub)" < "org,example-", and nothing else is between.
    first, beyond = f"{prefix})".encode(), f"{prefix}-".encode()
    low, high = 0, _windows(ranges, index)
    while high - low > 1:  # the last window that begins before the host
        middle = (low + high) // 2
        lines = _window(ranges, index, middle)
        if lines and lines[0] >= first:
            high = middle
        else:
            low = middle
    before: bytes | None = None  # whose block ends, perhaps, with the host's first captures
    for number in range(low, _windows(ranges, index)):
        for line in _window(ranges, index, number):
            if line < first:
                before = line
                continue
            if before:
                yield before
                before = None
            if line >= beyond:
                return
            yield line
    if before:
        yield before


def _sample(ranges: Ranges, index: str) -> Iterator[tuple[bytes, slice]]:
    """All lines of cluster.idx, one of each window in turn, and which captures to take of the block."""
    order = sorted(range(_windows(ranges, index)), key=_digest)
    for part in (slice(SAMPLE), slice(SAMPLE, None)):
        for turn in count():
            left = False
            for number in order:
                lines = sorted(_window(ranges, index, number), key=_digest)
                if turn < len(lines):
                    left = True
                    yield lines[turn], part
            if not left:
                break


def _digest(*values: object) -> bytes:
    return blake2b(repr(values).encode(), digest_size=16).digest()


def _windows(ranges: Ranges, index: str) -> int:
    wanted = (index + "cluster.idx", 0, WINDOW + LINE)
    ranges.get(wanted)
    return -(-ranges.total(*wanted) // WINDOW)


def _window(ranges: Ranges, index: str, number: int) -> list[bytes]:
    """The lines that begin in this window."""
    start = number * WINDOW
    before = int(number > 0)  # the byte before tells whether a line begins with the first
    content = ranges.get((index + "cluster.idx", start - before, WINDOW + LINE + before))
    at = content.find(b"\n") + 1 if before else 0
    lines = []
    while before == 0 or at > 0:
        end = content.find(b"\n", at)
        if at - before >= WINDOW or at >= len(content):
            break
        lines.append(content[at : end if end >= 0 else None])
        if end < 0:
            break
        at = end + 1
    return lines
