"""An HTTP response as an archive keeps it: status, headers, and the body with its encodings undone (RFC 9110, 9112).

Headers in archives and of servers are often wrong: a body under "Content-Encoding: gzip" that was decoded already, chunks
with wrong sizes. What a header claims is tried; where the bytes contradict it, the bytes count.
"""

import io
import re
import zlib
from dataclasses import dataclass

from fastwarc.stream_io import BrotliReader, ZstdReader

HEAD_END = re.compile(rb"\r{0,2}\n\r{0,2}\n")  # some writers end lines in CR CR LF
STATUS = re.compile(rb"\s*HTTP/\d(?:\.\d+)?[ \t]+(\d{3})")
CHUNK_SIZE = re.compile(rb"(?:\r?\n)?[ \t]*([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # bytes that no text has
LISTS = ("content-type", "content-encoding", "transfer-encoding")
MAX_HEADS = 8  # heads of other responses before the response's own
STEP = 1 << 16
SMALL_STEP = 64  # where a body is damaged, so that all before the damage is read


@dataclass
class HttpMessage:
    """`headers` by lower-case name, the first of each; of those in LISTS all, as one list. `complete` is false where the body
    breaks off or is damaged."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool


def parse(block: bytes, max_bytes: int) -> HttpMessage | None:
    """The response in a record's block, its body at most `max_bytes` + 1 long; None where the block is no response.

    Raises ValueError when the body is neither what its encoding says nor text.
    """
    status = STATUS.match(block)
    if not status:
        return None
    end = HEAD_END.search(block)
    # A head of 1xx, or a proxy's "200 Connection established", comes before the response's own.
    for _ in range(MAX_HEADS):
        after = STATUS.match(block, end.end()) if end else None
        if end is None or after is None or (status[1][:1] != b"1" and b"content-type" in block[: end.start()].lower()):
            break
        block, status = block[end.end() :], after
        end = HEAD_END.search(block)
    head, body = (block[: end.start()], block[end.end() :]) if end else (block, b"")
    headers: dict[str, str] = {}
    for line in head.splitlines()[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            key, text = name.decode("latin-1").strip().lower(), value.decode("latin-1").strip()
            if key in LISTS and key in headers:
                headers[key] += f",{text}"
            headers.setdefault(key, text)
    complete = end is not None
    transfer_encoding = headers.get("transfer-encoding", "").lower()
    if "chunked" in transfer_encoding:
        body, ended = unchunk(body)
        complete = complete and ended
    # RFC 9112, 7: a body may be compressed for the transfer too; chunks are its last coding.
    transfer_encodings = [name for name in transfer_encoding.split(",") if "chunked" not in name]
    encodings = ",".join([headers.get("content-encoding", ""), *transfer_encodings])
    body, ended = undo_encodings(body, encodings, max_bytes)
    return HttpMessage(int(status[1]), headers, body, complete and ended)


def unchunk(body: bytes) -> tuple[bytes, bool]:
    """The chunks joined, and whether the last one was there; a body without chunks is returned as it is.

    After a wrong size the bytes are taken as they are: a damaged page is better than none.
    """
    parts: list[bytes] = []
    at = 0
    while size := CHUNK_SIZE.match(body, at):
        length, at = int(size[1], 16), size.end()
        if length == 0:
            return b"".join(parts), True
        parts.append(body[at : at + length])
        at += length
        if at >= len(body):
            return b"".join(parts), False
    if not parts:
        return body, True
    rest = body[at:]
    return b"".join(parts) + (rest if rest.strip() else b""), False


def undo_encodings(body: bytes, encodings: str, max_bytes: int) -> tuple[bytes, bool]:
    """The body decoded, at most `max_bytes` + 1 bytes, and whether all of it could be decoded.

    Raises ValueError when nothing could be decoded, or the encoding is unknown, and the bytes are no text either.
    """
    complete = True
    for encoding in reversed([name.strip().lower() for name in encodings.split(",")]):
        if encoding in ("", "identity", "none", "utf-8"):  # the last two are no encodings, but are sent
            continue
        if encoding not in ("gzip", "x-gzip", "deflate", "br", "zstd"):
            if BINARY.search(body[:1024]):
                raise ValueError(f"unknown content encoding {encoding[:40]}")
            continue  # a charset, a type, or the wrapping of an object store's uploads
        decoded, ended = _decode(body, encoding, max_bytes)
        if decoded or ended:
            body, complete = decoded, complete and ended
        elif BINARY.search(body[:1024]):
            raise ValueError(f"not {encoding} and not text")
        # otherwise the archive holds the page decoded, under its original headers
    return body, complete


def _decode(body: bytes, encoding: str, max_bytes: int) -> tuple[bytes, bool]:
    for step in (STEP, SMALL_STEP):
        if encoding == "br":
            decoded, complete = _read_all(BrotliReader(io.BytesIO(body)), max_bytes, step)
        elif encoding == "zstd":
            decoded, complete = _read_all(ZstdReader(io.BytesIO(body)), max_bytes, step)
        elif encoding == "deflate":  # with zlib's header by the standard, without it by some servers
            wrapped = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
            decoded, complete = _inflate(body, zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS, max_bytes, step)
        else:
            decoded, complete = _inflate(body, 16 + zlib.MAX_WBITS, max_bytes, step)
        if complete:
            break
    return decoded, complete


def _read_all(reader: BrotliReader | ZstdReader, max_bytes: int, step: int) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    size = 0
    try:
        while size <= max_bytes and (part := reader.read(min(step, max_bytes + 1 - size))):
            parts.append(part)
            size += len(part)
    except OSError:
        return b"".join(parts), False
    return b"".join(parts), True


def _inflate(body: bytes, wbits: int, max_bytes: int, step: int) -> tuple[bytes, bool]:
    """Members one after another, as far as they are sound; bytes after the last that are no member are padding.

    zlib gets little at first, then twice as much each time, up to `step`: it returns a copy of what it did not use. Of the whole
    body that copy would be made again for each part and each member.
    """
    parts: list[bytes] = []
    size = members = at = 0
    rest = memoryview(body)
    while at < len(body) and size <= max_bytes:
        inflate, parts_before, feed_size = zlib.decompressobj(wbits), len(parts), SMALL_STEP
        try:
            while not inflate.eof and size <= max_bytes:
                compressed: bytes | memoryview = inflate.unconsumed_tail
                if not compressed:
                    compressed = rest[at : at + feed_size]
                    at, feed_size = at + len(compressed), min(2 * feed_size, step)
                part = inflate.decompress(compressed, min(step, max_bytes + 1 - size))
                if not part and not compressed and not inflate.eof:
                    return b"".join(parts), members > 0 and len(parts) == parts_before
                if part:
                    parts.append(part)
                    size += len(part)
        except zlib.error:
            return b"".join(parts), members > 0 and len(parts) == parts_before
        at -= len(inflate.unused_data)
        members += 1
    return b"".join(parts), True
