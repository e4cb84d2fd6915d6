"""WARC 1.1 (ISO 28500), the field's file of web pages: one gzip member a record, so a file can be cut and mended.

Reading trusts nothing: pages come from anywhere and are often damaged. The bytes are inflated here, member by member,
and parsed by FastWARC; where a gzip member is broken, reading goes on at the next one that begins with a WARC header,
and everything that was passed over is counted.
"""

import gzip
import io
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

MAX_RECORD_BYTES = 64 << 20
GZIP_MAGIC = b"\x1f\x8b\x08"
CHUNK = 1 << 16


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


@dataclass
class Losses:
    """What reading a WARC went through: `lost` counts damaged places passed over, `lost_bytes` their bytes on disk."""

    records: int = 0
    truncated: int = 0
    lost: int = 0
    lost_bytes: int = 0


def read_pages(path: Path, losses: Losses, max_record_bytes: int = MAX_RECORD_BYTES) -> Iterator[Page]:
    """The pages of a WARC file, in order: responses with status 200, and resources. Counts go into `losses`.

    A page whose record is cut short is yielded as far as it goes, and counted. Larger records, as they stand in the
    file or once decoded, are lost.
    """
    for record, block in read_records(path, losses, max_record_bytes):
        page = page_of(record, block, losses, max_record_bytes)
        if page:
            yield page


def read_records(
    path: Path, losses: Losses, max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[tuple[WarcRecord, bytes]]:
    """Responses, resources and metadata, each with its content block as far as it is there."""
    wanted = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.metadata
    with path.open("rb") as file:
        for stream in _streams(file, losses):
            try:
                for record in ArchiveIterator(stream, record_types=wanted, parse_http=False, quirks_mode=True):
                    length = record.content_length
                    if length > max_record_bytes:
                        losses.lost += 1
                        continue
                    block = record.reader.read(length) if length else b""
                    losses.records += 1
                    losses.truncated += len(block) < length
                    yield record, block
                    if len(block) < length:  # nothing can follow in this stream; FastWARC would give the same again
                        break
            except (OSError, ValueError):  # no WARC header where one should be
                losses.lost += 1


def url_of(record: WarcRecord) -> str:
    return (record.headers.get("WARC-Target-URI") or "").strip().strip("<>")  # WARC 1.0 was read as asking for <>


def page_of(record: WarcRecord, block: bytes, losses: Losses, max_record_bytes: int = MAX_RECORD_BYTES) -> Page | None:
    """The page that a record holds, if it holds one: a response with status 200, or a resource."""
    url = url_of(record)
    if record.record_type == WarcRecordType.metadata or not url:
        return None
    if record.record_type == WarcRecordType.resource:
        content_type, charset = parse_content_type(record.headers.get("Content-Type") or "")
        return Page(url, content_type, block, charset)
    if not record.is_http:
        return None
    try:
        status, content_type, body = _http(block, "all", max_record_bytes)
    except (OSError, ValueError):
        try:
            status, content_type, body = _http(block, "none", max_record_bytes)
            if body.startswith(GZIP_MAGIC):
                raise ValueError("neither decoded nor decodable") from None
        except (OSError, ValueError):  # otherwise an archive kept the page decoded, under the headers it came with
            losses.lost += 1
            return None
    if status != 200:
        return None
    if len(body) > max_record_bytes:  # a small record can decode to a very large body
        losses.lost += 1
        return None
    kind, charset = parse_content_type(content_type)
    return Page(url, kind, body, charset)


def _http(block: bytes, decode: Literal["all", "none"], max_bytes: int) -> tuple[int | None, str, bytes]:
    """Status, Content-Type and body (at most one byte more than `max_bytes`) of an HTTP response."""
    record = WarcRecord()  # not the archive's own, which must stay as it is for iteration to go on
    record.is_http = True
    record.set_bytes_content(block)
    record.parse_http(auto_decode=decode, quirks_mode=True)
    if record.http_headers is None:
        raise ValueError("no HTTP head")
    content_type = record.http_headers.get("Content-Type") or ""
    return record.http_headers.status_code, content_type, record.reader.read(max_bytes + 1)


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


class _Inflated(io.RawIOBase):
    """The content of gzip members from `start` on, up to the next member that begins a WARC record.

    Members that go on inside a record (a file compressed in blocks) are joined. Damage ends the stream early and sets
    `damaged`; `end` is where the next stream starts, or how far the sound bytes reach.
    """

    def __init__(self, file: BinaryIO, start: int) -> None:
        super().__init__()
        self.file = file
        self.end = start
        self.damaged = self.finished = False
        self.position = 0
        self.inflate = zlib.decompressobj(wbits=31)
        self.open_member = False
        file.seek(start)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = size if size > 0 else CHUNK
        while not self.finished:
            if self.inflate.eof:
                self.end = self.file.tell() - len(self.inflate.unused_data)
                self.open_member = False
                if _begins_record(self.file, self.end):
                    break
                self.file.seek(self.end)
                self.inflate = zlib.decompressobj(wbits=31)
            fed = self.inflate.unconsumed_tail or self.file.read(CHUNK)
            try:
                out = self.inflate.decompress(fed, size)
            except zlib.error:
                self.damaged = True
                break
            if not fed and not out and not self.inflate.eof:  # a cut-off file, or simply its end
                self.damaged = self.open_member
                break
            self.open_member = True
            if out:
                self.position += len(out)
                return out
        self.finished = True
        return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # FastWARC only asks where it is.
        if offset == 0 and whence == io.SEEK_CUR:
            return self.position
        raise io.UnsupportedOperation("seek")

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        out = self.read(len(buffer))
        buffer[: len(out)] = out
        return len(out)


def _streams(file: BinaryIO, losses: Losses) -> Iterator[BinaryIO | _Inflated]:
    """Streams of inflated WARC bytes, a new one wherever reading can begin afresh."""
    if file.read(len(GZIP_MAGIC)) != GZIP_MAGIC:
        file.seek(0)
        yield file  # not compressed, or in a way that FastWARC knows: read as one stream
        return
    size, start = file.seek(0, io.SEEK_END), 0
    while start < size:
        stream = _Inflated(file, start)
        yield stream
        while stream.read(CHUNK):  # what the parser left
            pass
        if stream.damaged:
            following = _next_record(file, max(stream.end, start + 1), size)
            losses.lost += 1
            losses.lost_bytes += following - stream.end
            start = following
        else:
            start = stream.end


def _next_record(file: BinaryIO, start: int, size: int) -> int:
    """Offset of the first gzip member at or after `start` whose content begins with a WARC header; `size` if none."""
    overlap = len(GZIP_MAGIC) - 1
    while start < size:
        file.seek(start)
        window = file.read(CHUNK + overlap)
        at = window.find(GZIP_MAGIC)
        while at >= 0:
            if _begins_record(file, start + at):
                return start + at
            at = window.find(GZIP_MAGIC, at + 1)
        start += CHUNK
    return size


def _begins_record(file: BinaryIO, offset: int) -> bool:
    file.seek(offset)
    try:
        return zlib.decompressobj(wbits=31).decompress(file.read(512), 5) == b"WARC/"
    except zlib.error:
        return False
