"""The content of a file as UTF-8, whatever it is wrapped in; and long texts, cut into documents.

A long text is cut where a reader would turn the page: before a heading, else after a blank line, else at a line end,
a space, or between two characters. Parts are at most 200,000 bytes, which hold at most 100,000 words, the most that the
rules for documents take; put together again they are the text.
"""

import codecs
import io
import lzma
import re
from collections.abc import Iterator
from typing import IO, BinaryIO

import pyarrow as pa

CHUNK = 1 << 20
PART_BYTES = 200_000
PACKING_MAGIC = (
    (rb"\x1f\x8b", "gzip"),
    (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "zstd"),  # or a frame to be skipped, as pzstd begins
    (rb"BZh\d(?:1AY&SY|\x17rE8P\x90)", "bz2"),
    (rb"\x04\x22\x4d\x18", "lz4"),
    (rb"\xfd7zXZ\x00", "xz"),
)
# Markdown, AsciiDoc and Org; TeX; a chapter by its word; a line underlined as reStructuredText and Setext do.
HEADING = re.compile(
    rb"^(?:#{1,6} |={1,5} |\*{1,3} |\\(?:part|chapter|(?:sub)*section)\b|(?:chapter|part|book)\s+[\divxlc]+\b"
    rb"|[^\s].{0,200}\r?\n(?:={3,}|-{3,}|~{3,}|\*{3,})\s*$)",
    re.MULTILINE | re.IGNORECASE,
)
BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")
LINE_END = re.compile(rb"\n")
SPACE = re.compile(rb"\s")


def packing_of(head: bytes) -> str:
    """gzip, zstd, bz2, lz4, xz, or "" for what is none of them."""
    return next((name for magic, name in PACKING_MAGIC if re.match(magic, head)), "")


def unpacked(file: BinaryIO, packing: str) -> IO[bytes]:
    """The content of an open file; its stream raises OSError, EOFError or pa.ArrowException where it is damaged."""
    if packing == "xz":
        return _Xz(lzma.LZMAFile(file))
    return io.BufferedReader(pa.input_stream(file, compression=packing)) if packing else file


def content(file: BinaryIO, packing: str, encoding: str, mark: int) -> IO[bytes]:
    """The content of an open file in UTF-8, without the byte-order mark of `mark` bytes."""
    stream = unpacked(file, packing)
    stream.read(mark)
    return stream if encoding == "utf-8" else io.BufferedReader(_Recoded(stream, encoding))


def parts(stream: IO[bytes]) -> Iterator[bytes]:
    """A text of UTF-8 (or another encoding that holds ASCII) as documents of at most 200,000 bytes; see above.

    What damage leaves is yielded before its error is raised on.
    """
    held, ended, damage = b"", False, None
    while True:
        while len(held) < 2 * PART_BYTES and not ended:
            try:
                chunk = stream.read(PART_BYTES)
            except (OSError, EOFError, pa.ArrowException) as error:
                chunk, damage = b"", error
            held, ended = held + chunk, not chunk
        if len(held) <= PART_BYTES:
            break
        # The last two parts are made alike, so that no crumb is left over.
        end = _cut(held, PART_BYTES if len(held) >= 3 * PART_BYTES // 2 else 2 * len(held) // 3)
        yield held[:end]
        held = held[end:]
    if held:
        yield held
    if damage:
        raise damage


def _cut(text: bytes, most: int) -> int:
    """Where a part ends: at a heading in the second half of `most` bytes, else at the last best place in it."""
    least = most // 2
    for pattern, before in ((HEADING, True), (BLANK_LINE, False), (LINE_END, False), (SPACE, False)):
        places = [found.start() if before else found.end() for found in pattern.finditer(text, least, most)]
        # `^` matches at `least` wherever that is; a heading begins a line.
        places = [place for place in places if not before or text[place - 1 : place] == b"\n"]
        if places:
            return places[-1]
    while most > least and text[most] & 0xC0 == 0x80:  # within a character of UTF-8
        most -= 1
    return most


class _Xz(io.BufferedReader):
    """lzma's error is of no kind of its own file errors; here it is one."""

    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(size)
        except lzma.LZMAError as error:
            raise OSError(str(error)) from None

    def readline(self, size: int | None = -1) -> bytes:
        try:
            return super().readline(size)
        except lzma.LZMAError as error:
            raise OSError(str(error)) from None


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
