"""Compressed members: a web archive is a chain of gzip members, zstd frames or LZ4 frames, usually one per record.

What may be damaged is read in *runs*: the content of one member that begins a record, and of those after it that do not
(in an archive compressed in blocks, or as one stream). A run is the unit of recovery. Where a member is broken, the next
run starts at the next member that begins a record, found by its magic number and by inflating its first bytes, as no
library does; the bytes passed over are reported. gzip: RFC 1952; zstd: RFC 8878; LZ4: its frame format 1.6.
"""

import io
import re
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from fastwarc.stream_io import GzipReader, Lz4Reader, ZstdReader

CHUNK = 1 << 16
MAX_AT_ONCE = 1 << 20
PEEK = 4096  # inflated bytes that show whether a record begins: an ARC header holds a whole URL
GZIP_MAGIC = b"\x1f\x8b\x08"
GZIP_FLAGS = b"\x00\x04\x08\x0c"  # the flags of archives, an extra field or a name: any others are chance
MAX_HEADER = 2 * PEEK
MAX_BLOCK = {b"\x28\xb5\x2f\xfd": 1 << 17, b"\x04\x22\x4d\x18": 1 << 22}  # bytes, by the magic number
MAX_KNOWN_ENDS = 1 << 20  # blocks of frames that are remembered, see `_frame_end`
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LZ4_MAGIC = b"\x04\x22\x4d\x18"
SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # a frame without content, in zstd and LZ4 files
ZSTD_DICTIONARY = b"\x5d\x2a\x4d\x18"  # the skippable frame that a .warc.zst may begin with

WARC_START = rb"WARC/\d\.\d+[ \t]*\r{0,2}\n(?i:WARC-|Content-)[A-Za-z-]+[ \t]*:"
ARC_START = rb"[a-z][a-z0-9+.-]{1,20}:[^\r\n]{0,4000} \d{1,3}(?:\.\d{1,3}){3} \d{8,20} [^\r\n]{1,200}\r{0,2}\n"
RECORD_START = re.compile(rb"\s*(?:WARC/|" + ARC_START + rb")")


class Member(Protocol):
    """One member being inflated; `end` is the offset after it once `finished`."""

    finished: bool
    end: int

    def reached(self) -> int:
        """The offset on disk up to which it was read."""

    def read(self, size: int = CHUNK) -> bytes:
        """The next inflated bytes, `size` or so; b"" at the end. Raises OSError or zlib.error at damage."""


class GzipMember:
    """A gzip member. Nearly all are small and end at the next magic number: FastWARC inflates those at once, several times as
    fast as zlib. The others, and broken ones, are inflated step by step."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file, self.position, self.end, self.finished = file, start, start, False
        self.inflate: zlib._Decompress | None = None

    def read(self, size: int = CHUNK) -> bytes:
        if self.inflate is None:
            if size >= CHUNK and (content := self._read_small()):
                return content
            self.inflate = zlib.decompressobj(wbits=31)
        while not self.finished:
            compressed = self.inflate.unconsumed_tail
            if not compressed:
                self.file.seek(self.position)
                if size < CHUNK and self.position - self.end > MAX_HEADER:
                    raise OSError("a header without end")  # whatever looks like a member is peeked at, so a peek is bounded
                compressed = self.file.read(size)  # a peek needs no more on disk than it wants inflated
                self.position += len(compressed)
            out = self.inflate.decompress(compressed, size)
            if self.inflate.eof:
                self.finished, self.end = True, self.position - len(self.inflate.unused_data)
            if out:
                return out
            if not compressed and not self.finished:
                raise OSError("cut off")
        return b""

    def _read_small(self) -> bytes | None:
        """All of the content, where the member is small and sound; None otherwise."""
        self.file.seek(self.position)
        member, end = b"", -1
        while end < 0 and len(member) < MAX_AT_ONCE:
            more = self.file.read(CHUNK if member else PEEK)  # little at first: most of a chunk is beyond the smallest members
            searched = max(len(member) - len(GZIP_MAGIC) + 1, len(GZIP_MAGIC))
            member += more
            end = member.find(GZIP_MAGIC, searched) if more else len(member)
        size = int.from_bytes(member[max(end - 4, 0) : max(end, 0)], "little")
        if end < 18 or size > 16 * MAX_AT_ONCE:
            return None
        reader = GzipReader(io.BytesIO(member[:end]))
        try:
            content = reader.read(size)
            # A member ends with the size of its content; garbage after it does not.
            if len(content) != size or reader.read(1):
                return None
        except OSError:
            return None
        self.end = self.position = self.position + end
        self.finished = True
        return content

    def reached(self) -> int:
        return self.position - len(self.inflate.unconsumed_tail if self.inflate else b"")


class Frame:
    """A zstd or LZ4 frame. Its headers tell its end, so a reader gets only the bytes of this frame."""

    def __init__(self, file: BinaryIO, start: int, ends: dict[int, int], dictionary: bytes | None = None) -> None:
        self.end, self.finished = start, False
        file.seek(start)
        magic = file.read(4)
        self.complete, self.end = _frame_end(file, magic, start, ends)
        inner = Slice(file, start, self.end)
        self.reader: Lz4Reader | ZstdReader | None = None
        if magic == LZ4_MAGIC:
            self.reader = Lz4Reader(inner)
        elif not SKIPPABLE.match(magic):
            self.reader = ZstdReader(inner, dictionary=dictionary) if dictionary else ZstdReader(inner)

    def read(self, size: int = CHUNK) -> bytes:
        out = self.reader.read(size) if self.reader and not self.finished else b""
        if not out:
            if not self.complete:
                raise OSError("cut off")
            self.finished = True
        return out

    def reached(self) -> int:
        return self.end


class Slice(io.RawIOBase):
    """Bytes `start` to `end` of a file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        super().__init__()
        self.file, self.start, self.position, self.end = file, start, start, end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = (self.start, self.position, self.end)[whence] + offset
        return self.tell()

    def tell(self) -> int:
        return self.position - self.start

    def read(self, size: int = -1) -> bytes:
        remaining = max(self.end - self.position, 0)
        self.file.seek(self.position)
        out = self.file.read(remaining if size < 0 else min(size, remaining))
        self.position += len(out)
        return out


def _frame_end(file: BinaryIO, magic: bytes, start: int, ends: dict[int, int]) -> tuple[bool, int]:
    """Whether the frame at `start` is complete, and where it ends.

    `ends` remembers, for blocks of the file, where the last block of their frame ends. So the blocks of a frame are not
    visited again for every offset in it that looks like a frame.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(start + 4)
    if SKIPPABLE.match(magic):
        at = start + 8 + int.from_bytes(file.read(4), "little")
        return at <= size, min(at, size)
    at, block_checksum, frame_checksum = _parse_frame_header(magic, file.read(2), start)
    new_keys: list[int] = []
    steps, last = 0, False
    while at < size and not last:
        block_key = at << 1 | (block_checksum > 0)
        if (end := ends.get(block_key)) is not None:
            at = end
            break
        if steps % 16 == 0:
            new_keys.append(block_key)
        steps += 1
        file.seek(at)
        _, length, last = _parse_block_header(magic, file.read(4))
        at += length + (0 if last else block_checksum)
    if len(ends) > MAX_KNOWN_ENDS:
        ends.clear()
    ends.update(dict.fromkeys(new_keys, at))
    at += frame_checksum
    return at <= size, min(at, size)


def _parse_frame_header(magic: bytes, start: bytes, at: int) -> tuple[int, int, int]:
    """The offset of the first block of the frame at `at`; the bytes of checksum after each block, and after the last."""
    flags = int.from_bytes(start[:1], "little")
    if magic == LZ4_MAGIC:
        return at + 7 + 8 * (flags >> 3 & 1) + 4 * (flags & 1), 4 * (flags >> 4 & 1), 4 * (flags >> 2 & 1)
    if magic == ZSTD_MAGIC:
        single, content_size = flags >> 5 & 1, flags >> 6
        return at + 5 + (not single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[content_size], 0, 4 * (flags >> 2 & 1)
    raise OSError("no frame")


def _parse_block_header(magic: bytes, header: bytes) -> tuple[int, int, bool]:
    """Kind (0 stored, 1 one byte repeated, 2 compressed), length with its header, and whether it is the last."""
    if magic == LZ4_MAGIC:
        block = int.from_bytes(header, "little")
        return 0 if block >> 31 else 2, 4 + (block & 0x7FFFFFFF), not block
    block = int.from_bytes(header[:3], "little")
    kind = block >> 1 & 3
    return kind, 3 + (1 if kind == 1 else block >> 3), bool(block & 1)


class InflatedRun:
    """Inflated bytes from `start` on, up to the next member that begins a record. Plain files are one run.

    `damaged` when it ended early; `end` is where the next run starts, or how far the sound members reach.
    """

    def __init__(
        self,
        file: BinaryIO,
        start: int,
        opener: Callable[[int], Member] | None,
        peeked: tuple[Member, bytes] | None = None,
    ) -> None:
        self.file, self.opener = file, opener
        self.peeked = peeked  # the next member and its content, where the peek at its beginning read all of it
        self.end = start
        self.damaged = self.finished = False
        self.position = 0  # in the inflated bytes
        self.marks = [(0, start)]  # (inflated position, offset on disk) of each member so far
        self.member: Member | None = None

    def read(self) -> bytes:
        """The next bytes, b"" at the end."""
        while not self.finished:
            try:
                if self.opener is None:
                    self.file.seek(self.position)
                    out = self.file.read(CHUNK)
                    self.end += len(out)
                    self.finished = not out
                elif self.peeked:
                    (self.member, out), self.peeked = self.peeked, None
                else:
                    self.member = self.member or self.opener(self.end)
                    out = self.member.read()
            except (OSError, zlib.error):
                self.damaged = self.finished = True
                break
            self.position += len(out)
            if self.member and self.member.finished:
                self._next_member(self.member.end)
            if out:
                return out
        return b""

    def _next_member(self, end: int) -> None:
        assert self.opener
        self.end, self.member = end, None
        content, member = _first_bytes(self.opener, end)
        self.peeked = (member, content) if content is not None and member and member.finished else None
        # An unreadable member is a run of its own, which is then reported as damaged.
        if content is None or RECORD_START.match(content):
            self.finished = True
        else:
            self.marks.append((self.position, end))

    def abandon(self) -> None:
        """Give up the rest of the current member."""
        self.damaged = self.finished = True

    def on_disk(self, start: int, end: int) -> tuple[int, int]:
        """The offsets on disk of the members that hold these inflated bytes; in a plain file, of the bytes themselves."""
        if self.opener is None:
            return start, end
        first = bisect_right(self.marks, (start, 1 << 62)) - 1
        after = bisect_right(self.marks, (max(end - 1, start), 1 << 62))
        return self.marks[first][1], self.marks[after][1] if after < len(self.marks) else self._reached()

    def _reached(self) -> int:
        """The end of the member that was read last; the offset reached in it while it is being read or is broken."""
        return self.member.reached() if self.member else self.end


def _first_bytes(opener: Callable[[int], Member], start: int) -> tuple[bytes | None, Member | None]:
    """The first inflated bytes of the member at `start`, and the member; None and None where there is no readable one.

    They are all its bytes where the member is `finished`.
    """
    content = b""
    member: Member | None = None
    try:
        member = opener(start)
        while len(content) < PEEK and (out := member.read(PEEK)):
            content += out
    except (OSError, zlib.error):
        return (content, member) if content else (None, None)
    return content, member


def runs(file: BinaryIO, report_lost: Callable[[int, int], None]) -> Iterator[InflatedRun]:
    """The runs of a seekable file in order, each read to its end by the caller or here.

    `report_lost(start, end)` is called for each broken member, with the offsets on disk that were passed over.
    """
    size = file.seek(0, io.SEEK_END)
    magic, opener = _magic_and_opener(file, size)
    if opener is None:
        yield InflatedRun(file, 0, None)
        return
    start = 0
    peeked: tuple[Member, bytes] | None = None
    while start < size:
        run = InflatedRun(file, start, opener, peeked)
        yield run
        while run.read():  # what the caller did not read
            pass
        if run.damaged:
            following = _next_record(file, magic, opener, max(run.end, start + 1), size)
            report_lost(run.end, following)
            start, peeked = following, None
        else:
            start, peeked = run.end, run.peeked


def _magic_and_opener(file: BinaryIO, size: int) -> tuple[bytes, Callable[[int], Member] | None]:
    """The magic number and the opener of members; no opener for a plain file."""
    file.seek(0)
    start = file.read(PEEK)
    zstd_dictionary = _zstd_dictionary(file) if start.startswith(ZSTD_DICTIONARY) else None
    ends: dict[int, int] = {}
    codecs: dict[bytes, Callable[[int], Member]] = {
        GZIP_MAGIC: lambda offset: GzipMember(file, offset),
        ZSTD_MAGIC: lambda offset: Frame(file, offset, ends, zstd_dictionary),
        LZ4_MAGIC: lambda offset: Frame(file, offset, ends),
    }
    if SKIPPABLE.match(start):
        magic = ZSTD_MAGIC if start.startswith(ZSTD_DICTIONARY) else _after_skippable(file)
        return magic, codecs.get(magic)
    for magic, opener in codecs.items():
        if start.startswith(magic):
            return magic, opener
    if not RECORD_START.match(start):
        # It may be a compressed archive whose beginning is damaged.
        for magic, opener in codecs.items():
            if _next_record(file, magic, opener, 0, size) < size:
                return magic, opener
    return b"", None


def _after_skippable(file: BinaryIO) -> bytes:
    start, magic = 0, b""
    while SKIPPABLE.match(magic := _read_at(file, start, 4)):
        start = _frame_end(file, magic, start, {})[1]
    return magic


def _zstd_dictionary(file: BinaryIO) -> bytes:
    content = _read_at(file, 8, _frame_end(file, ZSTD_DICTIONARY, 0, {})[1] - 8)
    if not content.startswith(ZSTD_MAGIC):
        return content
    try:
        return ZstdReader(io.BytesIO(content)).read(MAX_AT_ONCE)
    except OSError:
        return b""


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(max(size, 0))


def _next_record(file: BinaryIO, magic: bytes, opener: Callable[[int], Member], start: int, size: int) -> int:
    """Offset of the first member at or after `start` whose content begins a record; `size` if none."""
    while start < size:
        window = _read_at(file, start, CHUNK + MAX_HEADER + 64)
        candidate = window.find(magic, 0, CHUNK + len(magic) - 1)
        while candidate >= 0:
            if _may_begin(magic, window, candidate) and RECORD_START.match(_first_bytes(opener, start + candidate)[0] or b""):
                return start + candidate
            candidate = window.find(magic, candidate + 1, CHUNK + len(magic) - 1)
        start += CHUNK
    return size


def _may_begin(magic: bytes, window: bytes, at: int) -> bool:
    """Whether what looks like a member could hold a record, by its first bytes: opening it costs more."""
    if magic == GZIP_MAGIC:
        flags, block = window[at + 3 : at + 4], at + 10
        if flags not in GZIP_FLAGS:
            return False
        if flags in b"\x04\x0c":
            block += 2 + int.from_bytes(window[block : block + 2], "little")
        if flags in b"\x08\x0c" and block < len(window):
            block = window.find(b"\0", block, at + MAX_HEADER) + 1
        kind, sizes = window[block : block + 1], window[block + 1 : block + 5]
        if block <= at or (kind and kind[0] & 6 == 6):  # RFC 1951: this type of block is reserved
            return False
        # A stored block has its length twice, the second time with all bits inverted.
        stored = len(sizes) == 4 and kind[0] & 6 == 0
        return not stored or int.from_bytes(sizes[:2], "little") ^ int.from_bytes(sizes[2:], "little") == 0xFFFF
    flags = window[at + 4 : at + 5] or b"\0"
    if flags[0] & 8 if magic == ZSTD_MAGIC else flags[0] >> 6 != 1:  # reserved; the version
        return False
    block, _, _ = _parse_frame_header(magic, flags, at)
    header = window[block : block + 4]
    if len(header) < 4:
        return True
    kind, length, _ = _parse_block_header(magic, header)
    if kind == 3 or length - 4 > MAX_BLOCK[magic]:
        return False
    content = window[block + 3 + (magic == LZ4_MAGIC) :][:1]  # of a stored block
    return kind == 2 or length <= 4 - (magic == ZSTD_MAGIC) or content.isspace() or content.isalpha()


