"""Web archives as browsers write them (WACZ 1.1.1): a zip file with WARCs under archive/, a list of pages and an index.

The WARCs are read inside the zip file, one after another; nothing is written under a name that it gives. Usually they are stored
without compression, as they are compressed themselves. One that is deflated goes through an unnamed temporary file, since
reading a WARC needs seeking.
"""

import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from groundup.core.errors import UserError
from groundup.corpus.archive.compression import CHUNK, Slice
from groundup.corpus.archive.records import Losses
from groundup.corpus.archive.warc import Page, pages_of
from groundup.data.readers import Refused

START = b"PK\3\4"
WARC = re.compile(r"\.w?arc(\.gz|\.zst)?$", re.IGNORECASE)
MAX_FILES = 100_000  # of a zip file: its list of files is read whole
MAX_LIST_BYTES = 64 << 20
# A deflated WARC may have this many times its size in the zip file: text takes a tenth to a fifth, not a fiftieth.
MAX_RATIO = 50
ENCRYPTED = 1  # of a member's flags
END = struct.Struct("<4s4xHHII")  # of the list of files: mark, files on this disk and in all, bytes, offset
ZIP64_LOCATOR, ZIP64_END = struct.Struct("<4s4xQ"), struct.Struct("<4s28xQQ")


def is_wacz(path: Path) -> bool:
    """Whether the file begins as a zip file does."""
    with path.open("rb") as file:
        return file.read(len(START)) == START


def read_wacz(path: Path, losses: Losses, refused: Refused) -> Iterator[Page]:
    """The pages of all WARCs of the file, in its order. A WARC that cannot be read is counted and named in `refused`.

    Raises UserError when the file is no zip file, is damaged, lists too many files, or has no WARC in or below a folder archive.
    """
    with path.open("rb") as file:
        try:
            _check_list(path, file)
            with zipfile.ZipFile(file) as archive:
                members = [info for info in archive.infolist() if _is_warc(info.filename)]
        except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, struct.error) as error:
            why = " ".join(str(error).split())[:80]
            raise UserError(f"{path}: not a sound zip file ({why}): give a .wacz as browsers write it") from None
        if not members:
            raise UserError(f"{path}: a zip file without WARCs under archive/: give a .wacz as browsers write it")
        budget = path.stat().st_size  # the stored sizes together cannot exceed the file
        for info in members:
            budget -= info.compress_size
            with tempfile.TemporaryFile() as inflated:
                warc = _open_member(file, info, inflated) if budget >= 0 else None
                if warc is None:
                    refused.add("encrypted" if info.flag_bits & ENCRYPTED else "damaged", f"{path}: {info.filename}")
                else:
                    yield from pages_of(warc, re.split(r"[/\\]", info.filename)[-1], losses)


def _is_warc(name: str) -> bool:
    """Whether a member is a WARC in or below archive/, which is itself in a folder where a .wacz was zipped again."""
    *folders, last = name.lower().replace("\\", "/").removeprefix("./").split("/")
    leads_elsewhere = {"", "..", "__macosx"}.intersection(folders)
    return "archive" in folders and not leads_elsewhere and last[:1] != "." and WARC.search(last) is not None


def _open_member(file: BinaryIO, info: zipfile.ZipInfo, inflated: BinaryIO) -> BinaryIO | None:
    """The WARC as a seekable file; None if it is encrypted, of another compression, damaged or a bomb."""
    if not 0 <= info.header_offset < 1 << 62:  # as zipfile computes it where the list states a wrong offset of its own
        return None
    file.seek(info.header_offset)
    head = file.read(30)
    if info.flag_bits & ENCRYPTED or len(head) < 30 or not head.startswith(START):
        return None
    name, extra = struct.unpack("<HH", head[26:])
    start = info.header_offset + 30 + name + extra
    stored = Slice(file, start, start + info.compress_size)
    if info.compress_type == zipfile.ZIP_STORED:
        return stored
    if info.compress_type != zipfile.ZIP_DEFLATED:
        return None
    inflate, size, max_size = zlib.decompressobj(-zlib.MAX_WBITS), 0, MAX_RATIO * info.compress_size
    try:
        while not inflate.eof and size <= max_size:
            compressed = inflate.unconsumed_tail or stored.read(CHUNK)
            part = inflate.decompress(compressed, CHUNK)
            if not compressed and not part:
                break  # it ends early: what came before is read
            size += inflated.write(part)
    except zlib.error:
        pass
    return inflated if 0 < size <= max_size else None


def _check_list(path: Path, file: BinaryIO) -> None:
    """Raises UserError when the zip file lists more files than an archive can have, before the list is read."""
    size = file.seek(0, 2)
    start = max(0, size - (1 << 16) - END.size)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - END.size + 4))
    if at < 0:
        raise zipfile.BadZipFile("its list of files is missing: cut off?")
    _, _, files, length, _ = END.unpack_from(tail, at)
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\6\7":  # larger numbers are in a record of their own
        file.seek(ZIP64_LOCATOR.unpack_from(tail, at - 20)[1])
        _, files, length = ZIP64_END.unpack(file.read(ZIP64_END.size))
    file.seek(0)
    if files > MAX_FILES or length > MAX_LIST_BYTES:
        raise UserError(f"{path}: lists {files:,} files in {length:,} bytes; of a web archive {MAX_FILES:,} are read")
