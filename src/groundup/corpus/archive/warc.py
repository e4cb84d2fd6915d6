"""WARC 1.1 (ISO 28500), the field's file of web pages: one gzip member per record, so a file can be cut and repaired.

Writes records, and reads the pages in the records of `records.py`, with their encodings undone.
"""

import base64
import gzip
import hashlib
import json
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from groundup.corpus.archive import http_message
from groundup.corpus.archive.compression import CHUNK
from groundup.corpus.archive.content_type import kind_of_body, parse_content_type
from groundup.corpus.archive.records import MAX_RECORD_BYTES, DamagedRange, Losses, Record, records_of
from groundup.corpus.urls import split_url

# ISO 28500, 5.13 and 5.16: the program that fetched the page gave up, or the rest is in records of its own.
CUT_SHORT = ("warc-truncated", "warc-segment-number")


class WarcWriter:
    """Writes records to `path`, each flushed when written: a killed writer leaves at most one record cut off.

    with WarcWriter(path) as warc:
        warc.response("https://a.org/", 200, [("Content-Type", "text/html")], body)
    """

    def __init__(self, path: Path, append: bool = False) -> None:
        self.file = path.open("ab" if append else "wb")

    def __enter__(self) -> "WarcWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def response(self, url: str, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """An HTTP response. `body` has its transfer encoding undone, and the headers are changed accordingly."""
        kept = [(name, value) for name, value in headers if name.lower() not in ("transfer-encoding", "content-length")]
        kept.append(("Content-Length", str(len(body))))
        head = "".join(f"{name}: {_one_line(value)}\r\n" for name, value in kept)
        block = f"HTTP/1.1 {status} \r\n{head}\r\n".encode("latin-1", "replace") + body
        self._record("response", url, "application/http; msgtype=response", block, payload=body)

    def resource(self, url: str, content_type: str, body: bytes) -> None:
        """A document that did not come by HTTP, such as a file."""
        self._record("resource", url, content_type, body, payload=body)

    def metadata(self, url: str, fields: list[tuple[str, str]]) -> None:
        """Fields about a URL that gave no page."""
        block = "".join(f"{name}: {_one_line(value)}\r\n" for name, value in fields).encode()
        self._record("metadata", url, "application/warc-fields", block)

    def _record(self, kind: str, url: str, content_type: str, block: bytes, payload: bytes | None = None) -> None:
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        head = (
            f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {_one_line(url)}\r\nWARC-Date: {date}\r\n"
            f"WARC-Record-ID: <urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{kind} {date} {url}')}>\r\n"
            f"WARC-Block-Digest: {_sha1(block)}\r\n"
            + (f"WARC-Payload-Digest: {_sha1(payload)}\r\n" if payload is not None else "")
            + f"Content-Type: {_one_line(content_type)}\r\nContent-Length: {len(block)}\r\n\r\n"
        )
        self.file.write(gzip.compress(head.encode() + block + b"\r\n\r\n", compresslevel=6, mtime=0))
        self.file.flush()


def _sha1(content: bytes) -> str:
    """A digest as FastWARC, warcio and Heritrix write and check it. It guards against damage, not against forgery."""
    return "sha1:" + base64.b32encode(hashlib.sha1(content, usedforsecurity=False).digest()).decode()


def _one_line(value: str) -> str:
    # A line break in a value would start a header of the sender's choosing.
    return " ".join(value.split())


@dataclass
class Page:
    """One document. `body` has content and transfer encodings undone; `content_type` is in lower case, without parameters.
    For pages of an archive it is what `content_type.kind_of_body` decides from the stated type and the body."""

    url: str
    content_type: str
    body: bytes
    charset: str | None = None


def read_pages(path: Path, losses: Losses, max_record_bytes: int = MAX_RECORD_BYTES) -> Iterator[Page]:
    """The pages of a WARC, ARC or WET file, in order: responses with status 200, resources and texts made of pages.

    Plain, gzip, zstd or LZ4, by the bytes, not by the name. Counts go into `losses`. A page that is cut short
    is yielded as far as it goes, and counted. Larger records, as they are in the file or once decoded, are lost.
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
    if split_url(record.url) is None:
        losses.malformed += 1
        return None
    stated_type, identified = record.headers.get("content-type", ""), record.headers.get("warc-identified-payload-type", "")
    arc = bool(record.headers.get("arc"))
    cut_short = any(name in record.headers for name in CUT_SHORT)
    if record.kind != "response" or (arc and not record.block.startswith(b"HTTP/")):
        if record.complete and cut_short:
            losses.add(DamagedRange(name, "truncated", *record.offsets, 0))
        return _page(record.url, stated_type, identified, record.block, "utf-8" if record.kind == "conversion" else None)
    try:
        message = http_message.parse(record.block, max_record_bytes)
    except ValueError:
        losses.add(DamagedRange(name, "lost", *record.offsets, len(record.block)))
        return None
    if message is None or message.status != 200:
        return None
    if len(message.body) > max_record_bytes:  # a small record can decode to a very large body
        losses.add(DamagedRange(name, "lost", *record.offsets, len(record.block)))
        return None
    if record.complete and (cut_short or not message.complete):
        losses.add(DamagedRange(name, "truncated", *record.offsets, 0))
    return _page(record.url, message.headers.get("content-type", ""), stated_type if arc else identified, message.body)


def _page(url: str, content_type: str, identified: str, body: bytes, charset: str | None = None) -> Page:
    kind, stated_charset = parse_content_type([content_type])
    charset = stated_charset or charset
    return Page(url, kind_of_body(kind, identified, body, charset), body, charset)


def digest_of_pages(path: Path) -> str:
    """BLAKE2b-128 of the pages of an archive, in order: addresses, types and bodies, but no dates and identifiers."""
    digest = hashlib.blake2b(digest_size=16)
    for page in read_pages(path, Losses()):
        head = json.dumps([page.url, page.content_type, page.charset, len(page.body)])
        digest.update(head.encode() + b"\n" + page.body)
    return digest.hexdigest()


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
