"""A small text file as a whole: a list of words, a context to ask about, a set of questions."""

from pathlib import Path

from groundup.core.errors import UserError
from groundup.core.plain_files import open_plain
from groundup.data import streams
from groundup.data.file_kinds import kind_of
from groundup.data.readers import DAMAGE, MAX_TEXT_BYTES


def read_whole(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 with a byte-order mark; plain or compressed.

    Raises UserError when it is missing, no plain file, not text, damaged, not valid UTF-8, or over 64 MB.
    """
    kind = kind_of(path)
    if kind.form in ("parquet", "archive"):
        raise UserError(f"{path}: {kind.form}, where a text is wanted")
    try:
        with open_plain(path) as file:
            content = streams.read_all(streams.content(file, kind.packing, kind.encoding, kind.mark), MAX_TEXT_BYTES + 1)
    except DAMAGE:
        raise UserError(f"{path}: damaged {kind.packing}: get it again") from None
    if len(content) > MAX_TEXT_BYTES:
        raise UserError(f"{path}: more than {MAX_TEXT_BYTES >> 20} MB of text: give a part of it")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start + kind.mark}); save it as UTF-8") from None
