"""The content of a file as UTF-8, whatever it is wrapped in; and long texts, cut into documents.

A long text is cut where a reader would turn the page: before a heading, else after a blank line, else at a line end,
a space, or between two characters. Parts are at most 200,000 bytes, which hold at most 100,000 words, the most that the
rules for documents take; put together again they are the text.
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


def whole(stream: IO[bytes], most: int) -> bytes:
    """All of the content, `most` bytes of it at most; raises at damage, of which a single `read` gives what comes before."""
    pieces: list[bytes] = []
    while most and (piece := stream.read(most)):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


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
            fed = b""
            if self.decoder.eof:
                fed = self.decoder.unused_data.lstrip(b"\0")
                self.decoder, self.begun = self.opener(), bool(fed)
            elif self.decoder.needs_input:
                fed = self.file.read(CHUNK) if self.begun else self.file.read(CHUNK).lstrip(b"\0")
                if not fed and self.begun:
                    raise EOFError("cut off")
                if not fed:
                    return 0
                self.begun = True
            try:
                out = self.decoder.decompress(fed, len(buffer))
            except lzma.LZMAError as error:
                raise OSError(str(error)) from None
        buffer[: len(out)] = out
        return len(out)


class _Gzip(io.RawIOBase):
    """Piece by piece, so that none is lost to damage behind it."""

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
    """Gives what comes before a damage, and raises its error when more is asked for."""

    def read(self, size: int | None = -1) -> bytes:
        found, wanted = [], -1 if size is None or size < 0 else size
        while wanted:
            try:
                piece = self.read1(min(wanted, CHUNK) if wanted > 0 else CHUNK)
            except (OSError, EOFError):
                if found:
                    break
                raise
            if not piece:
                break
            found.append(piece)
            wanted -= len(piece) if wanted > 0 else 0
        return b"".join(found)


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
