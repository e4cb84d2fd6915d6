"""The content of a file as UTF-8, whatever its compression and encoding; and long texts, cut into documents.

A long text is cut where a reader would turn the page: before a heading, else after a blank line, else at a line end, a
space, or between two characters. Parts are at most 200,000 bytes, which hold at most 100,000 words, the most that the rules
for documents allow; concatenated they are the text.
"""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, BinaryIO

import pyarrow as pa

CHUNK = 1 << 20
PART_BYTES = 200_000
PACKING_MAGIC = (
    (rb"\x1f\x8b", "gzip"),
    (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "zstd"),  # or a skippable frame, as pzstd begins
    (rb"BZh\d(?:1AY&SY|\x17rE8P\x90)", "bz2"),
    (rb"\x04\x22\x4d\x18", "lz4"),
    (rb"\xfd7zXZ\x00", "xz"),
)
# Markdown, AsciiDoc and Org; TeX; lines such as "Chapter 1"; lines underlined as in reStructuredText and Setext.
HEADING = re.compile(
    rb"^(?:#{1,6} |={1,5} |\*{1,3} |\\(?:part|chapter|(?:sub)*section)\b|(?:chapter|part|book)\s+[\divxlc]+\b"
    rb"|[^\s].{0,200}\r?\n(?:={3,}|-{3,}|~{3,}|\*{3,})\s*$)",
    re.MULTILINE | re.IGNORECASE,
)
BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")
LINE_END = re.compile(rb"\n")
SPACE = re.compile(rb"\s")


def packing_of(head: bytes) -> str:
    """gzip, zstd, bz2, lz4, xz, or "" for none of them."""
    return next((name for magic, name in PACKING_MAGIC if re.match(magic, head)), "")


def unpacked(file: BinaryIO, packing: str) -> IO[bytes]:
    """The uncompressed content of an open file; its stream raises OSError, EOFError or pa.ArrowException at damage."""
    if packing == "gzip":
        return _UpToDamage(_Gzip(gzip.GzipFile(fileobj=file)))
    if packing in ("bz2", "xz"):
        return _UpToDamage(_Members(file, bz2.BZ2Decompressor if packing == "bz2" else lzma.LZMADecompressor))
    return io.BufferedReader(pa.input_stream(file, compression=packing)) if packing else file


def content(file: BinaryIO, packing: str, encoding: str, mark: int) -> IO[bytes]:
    """The content of an open file in UTF-8, without the byte-order mark of `mark` bytes."""
    stream = unpacked(file, packing)
    stream.read(mark)
    return stream if encoding == "utf-8" else io.BufferedReader(_Recoded(stream, encoding))


def read_all(stream: IO[bytes], limit: int) -> bytes:
    """All of the content, at most `limit` bytes; raises at damage, where a single `read` returns what comes before."""
    chunks: list[bytes] = []
    while limit and (chunk := stream.read(limit)):
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)


def parts(stream: IO[bytes]) -> Iterator[bytes]:
    """A text in UTF-8 (or another superset of ASCII) as documents of at most 200,000 bytes; see above.

    What comes before damage is yielded; then its error is raised.
    """
    buffer, ended, damage = b"", False, None
    while True:
        while len(buffer) < 2 * PART_BYTES and not ended:
            try:
                chunk = stream.read(PART_BYTES)
            except (OSError, EOFError, pa.ArrowException) as error:
                chunk, damage = b"", error
            buffer, ended = buffer + chunk, not chunk
        if len(buffer) <= PART_BYTES:
            break
        # The last two parts get about the same size, so that none is tiny.
        end = _cut(buffer, PART_BYTES if len(buffer) >= 3 * PART_BYTES // 2 else 2 * len(buffer) // 3)
        yield buffer[:end]
        buffer = buffer[end:]
    if buffer:
        yield buffer
    if damage:
        raise damage


def _cut(text: bytes, limit: int) -> int:
    """Where a part ends, in the second half of `limit` bytes: at the last heading, else at the last of the next best kind."""
    earliest = limit // 2
    for pattern, at_start in ((HEADING, True), (BLANK_LINE, False), (LINE_END, False), (SPACE, False)):
        positions = [match.start() if at_start else match.end() for match in pattern.finditer(text, earliest, limit)]
        # `^` matches at `earliest` even within a line; a heading begins a line.
        positions = [position for position in positions if not at_start or text[position - 1 : position] == b"\n"]
        if positions:
            return positions[-1]
    while limit > earliest and text[limit] & 0xC0 == 0x80:  # inside a character of UTF-8
        limit -= 1
    return limit


class _Members(io.RawIOBase):
    """bz2 or xz, one stream after another. The library's own files take all behind the first damaged one for padding."""

    def __init__(self, file: BinaryIO, opener: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> None:
        self.file, self.opener, self.decoder = file, opener, opener()
        self.begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        out = b""
        while not out:
            data = b""
            if self.decoder.eof:
                data = self.decoder.unused_data.lstrip(b"\0")
                self.decoder, self.begun = self.opener(), bool(data)
            elif self.decoder.needs_input:
                data = self.file.read(CHUNK) if self.begun else self.file.read(CHUNK).lstrip(b"\0")
                if not data and self.begun:
                    raise EOFError("cut off")
                if not data:
                    return 0
                self.begun = True
            try:
                out = self.decoder.decompress(data, len(buffer))
            except lzma.LZMAError as error:
                raise OSError(str(error)) from None
        buffer[: len(out)] = out
        return len(out)


class _Gzip(io.RawIOBase):
    """gzip, chunk by chunk, so that none is lost to damage behind it."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            out = self.file.read1(len(buffer))
        except zlib.error as error:
            raise OSError(str(error)) from None
        buffer[: len(out)] = out
        return len(out)


class _UpToDamage(io.BufferedReader):
    """Returns what comes before damage, and raises the error at the next read."""

    def read(self, size: int | None = -1) -> bytes:
        chunks, wanted = [], -1 if size is None or size < 0 else size
        while wanted:
            try:
                chunk = self.read1(min(wanted, CHUNK) if wanted > 0 else CHUNK)
            except (OSError, EOFError):
                if chunks:
                    break
                raise
            if not chunk:
                break
            chunks.append(chunk)
            wanted -= len(chunk) if wanted > 0 else 0
        return b"".join(chunks)


class _Recoded(io.RawIOBase):
    """UTF-16 or UTF-32 as UTF-8; what is not valid becomes U+FFFD."""

    def __init__(self, source: IO[bytes], encoding: str) -> None:
        self.source = source
        self.decoder = codecs.getincrementaldecoder(encoding)("replace")
        self.held = b""
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self.held and not self.ended:
            data = self.source.read(CHUNK)
            self.ended = not data
            self.held = self.decoder.decode(data, final=self.ended).encode("utf-8", "replace")
        size = min(len(buffer), len(self.held))
        buffer[:size], self.held = self.held[:size], self.held[size:]
        return size
