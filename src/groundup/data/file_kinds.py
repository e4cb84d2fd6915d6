"""What kind a file is, by its content first and by its name where content is ambiguous; and which files of a folder are data.

A name can be wrong or missing (`x.jsonl` that is gzip, `part-0001`), so the first 64 kB decide on compression, encoding and
Parquet; the name's ending decides between JSON, CSV and text, which look alike.
"""

import codecs
import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import pyarrow as pa

import groundup.core.arrow  # noqa: F401 (for what it keeps away)
from groundup.core.errors import UserError
from groundup.core.plain_files import POINTER, open_plain
from groundup.data import streams
from groundup.data.plain_values import JSON

HEAD_BYTES = 1 << 16
MAX_NAMED = 10  # refused files of a folder that are logged one by one; all are counted
PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz", ".lz4")
ROWS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TEXTS = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".asciidoc", ".py")
NOT_DATA = re.compile(r"\.|_SUCCESS$|_(?:common_)?metadata$|_(?:committed|started)_|__MACOSX$|Thumbs\.db$|desktop\.ini$")
UNREADABLE_FOLDERS = "folders that are links or cannot be read"
MAGIC = (  # bytes that no text begins with, and what to do
    (rb"%PDF-\d", "a PDF: take the text out of it first"),
    (rb"PK\x03\x04|PK\x05\x06", "a zip archive (.zip, .docx, .xlsx, .epub): unpack it, or save it as text"),
    (rb"\x89PNG", "a PNG picture"),
    (rb"\xff\xd8\xff", "a JPEG picture"),
    (rb"GIF8[79]a", "a GIF picture"),
    (rb"\xd0\xcf\x11\xe0", "an old Office document: save it as text"),
    (rb"\{\\rtf\d", "RTF: save it as text"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a", "a 7z or RAR archive: unpack it"),
    (rb".{257}ustar", "a tar archive: unpack it"),
    (rb"SQLite format 3\0", "an SQLite database: export the table as CSV"),
    # Of streams, as `save_to_disk` of Hugging Face's datasets writes, a mark, the schema's length, and where that begins.
    (rb"ARROW1\0|FEA1|\xff{4}..[\0-\x7f]\0\x10\0\0\0", "an Arrow file (datasets, Feather): save it as Parquet"),
    # ORC's first stream follows its name: what it begins with depends on the columns.
    (rb"Obj\x01|ORC.{0,20}?[\x00-\x08]", "an Avro or ORC file: save it as Parquet"),
    # Those of Blink and Firefox begin with a line From.
    (rb"(?:[\w-]{1,40}:[^\n]{0,999}\n(?:[ \t][^\n]{0,999}\n){0,9}){0,9}(?i:content-type:\s*multipart/related)",
     "a page saved as MHTML, or a mail: save the page as HTML"),
    (rb"bplist00", "a property list, such as a web archive of Safari: save the page as its source"),
    (rb"\x7fELF", "a program"),
    (rb"\x93NUMPY", "a NumPy array"),
    (re.escape(POINTER), "a pointer of Git LFS: get the file itself, by `git lfs pull`"),
)
# Pipermail's archives are .txt of the same form: with that name they are read as they are.
MAILBOX = re.compile(rb"From [^\n]{1,300}\d\d:\d\d[^\n]{0,100}\n(?:>?[\w-]{1,40}:[^\n]{0,999}\n)")
HEADERS = re.compile(rb"(?:[\w-]{1,40}:[^\n]*\n(?:[ \t][^\n]*\n)*+)++(?=\r?\n)")  # of a mail, up to an empty line
ENCODED_MAIL = re.compile(
    rb"^(?:content-transfer-encoding:\s*(?:quoted-printable|base64)|content-type:\s*multipart/)", re.IGNORECASE | re.MULTILINE
)
MARKS = (  # the longest first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
STATED_DELIMITER = re.compile(r"\"?sep=([^\w\s\"]|\t)\"?[\r\n]+", re.IGNORECASE)  # a line of its own, for Excel
# The declaration of XHTML may precede it, and comments: a licence, or the address that a browser saved the page from.
PAGE = re.compile(
    rb"\s*(?:<\?xml\b[^>]{0,200}>\s*)?(?:<!--.{0,3000}?-->\s*){0,4}+<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL
)
ROW_START = re.compile(r'\s*\{\s*"(?:[^"\\\n]|\\.){1,200}"\s*:\s*["\[{\dtfn-]')  # of JSON
ARCHIVE = re.compile(rb"WARC/\d|filedesc:")
DAMAGED_LINES = 3
OTHER_ENCODING = "not UTF-8 but another encoding, perhaps Windows-1252 as Excel saves CSV: save the file as UTF-8"
DECRYPT = "save it without a key first"
NO_TEXT = "not text: bytes of another kind; give text, JSON, CSV or Parquet, plain or in gzip, zstd, bz2, xz or LZ4"
CONTROLS = bytes({*range(9), *range(14, 27), *range(28, 32), 127})  # none of them white space, form feed or ESC


class Kind(NamedTuple):
    """`form`: parquet, lines (JSON), values (JSON over several lines, or an array), csv, text or archive (WARC, ARC)."""

    form: str
    packing: str = ""  # gzip, zstd, bz2, lz4, xz
    encoding: str = "utf-8"  # of Python
    mark: int = 0  # bytes of the byte-order mark
    delimiter: str = ""  # of csv
    quoted: bool = True  # of csv: whether a quote may enclose a cell, or is a letter

    @property
    def sequential(self) -> bool:
        """Whether it can only be read from its start: compressed, or not in UTF-8."""
        return bool(self.packing) or self.encoding != "utf-8"


def kind_of(path: Path) -> Kind:
    """Raises UserError, in one line, for what is no plain file, or neither text nor Parquet; the message says what it is."""
    packing, head = _head(path)
    suffixes = [suffix.lower() for suffix in PurePath(path.name).suffixes]
    ending = next((suffix for suffix in reversed(suffixes) if suffix not in PACKED), "")
    if head.startswith(b"PAR1"):
        if packing:
            raise UserError(f"{path}: Parquet inside {packing}: unpack it first")
        return Kind("parquet")
    if head.startswith(b"PARE") and (ending == ".parquet" or _ends(path, b"PARE")):
        raise UserError(f"{path}: encrypted Parquet: {DECRYPT}")
    if ending == ".parquet" and not head.startswith(POINTER):
        raise UserError(f"{path}: not a Parquet file (it begins otherwise)")
    if ARCHIVE.match(head):
        return Kind("archive", packing)
    mark, encoding = next((entry for entry in MARKS if head.startswith(entry[0])), (b"", "utf-8"))
    if refusal := _refusal(head, encoding, len(mark)):
        raise UserError(f"{path}: {f'inside {packing} ' if packing else ''}{refusal}")
    if ending not in (".txt", ".text"):
        if MAILBOX.match(head):
            raise UserError(f"{path}: a mailbox, with heads and attachments: save its mails as text or HTML, or name it .txt")
        if (headers := HEADERS.match(head)) and ENCODED_MAIL.search(headers[0]):
            raise UserError(f"{path}: a mail, encoded or in parts, not its text: save it as text or HTML, or name it .txt")
    text = head[len(mark) :].decode(encoding, "replace")
    kind = _of_text(Kind("text", packing, encoding, len(mark)), text, ending, cut_off=len(head) >= HEAD_BYTES)
    if kind.form != "text" and encoding == "utf-8" and _is_of_another_encoding(head):
        raise UserError(f"{path}: {OTHER_ENCODING}")
    return kind


def _of_text(kind: Kind, text: str, ending: str, cut_off: bool) -> Kind:
    """`cut_off`: the text is the start of a file."""
    if ending in (".csv", ".tsv"):
        delimiter = "\t" if ending == ".tsv" else delimiter_of(text)
        quoted = delimiter != "\t" or _is_quoted(text, not cut_off)
        return kind._replace(form="csv", delimiter=delimiter, quoted=quoted)
    if ending in TEXTS:
        return kind
    return kind._replace(form=_json_form(text, ending, cut_off))


def _is_of_another_encoding(head: bytes) -> bool:
    """Whether rows are not UTF-8, as Excel's CSV: most lines that are not ASCII are damaged. A few bytes of a file are replaced
    instead, and U+FFFD itself is no damage."""
    lines = [line for line in head.replace("\ufffd".encode(), b"").split(b"\n")[:-1] if not line.isascii()]
    damaged = sum("\ufffd" in line.decode("utf-8", "replace") for line in lines)
    return damaged >= DAMAGED_LINES and 2 * damaged > len(lines)


def is_page(path: Path, kind: Kind) -> bool:
    """Whether a text is a page of HTML, whatever its name says."""
    try:
        with open_plain(path) as file:
            head = streams.content(file, kind.packing, kind.encoding, kind.mark).read(4096)
    except (OSError, EOFError, pa.ArrowException):
        return False
    return PAGE.match(head) is not None


def files_of(folder: Path, endings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files in and below a folder that have one of the endings (compressed or not), and those that have none of them.

    Names are relative to the folder, sorted, with `/`. Hidden files and what systems and programs leave behind (`.DS_Store`,
    `_SUCCESS`, `._x.parquet`) are in neither list. The second list also has pipes and devices and, with a `/` at the end,
    unreadable folders and links to folders, which are not followed: they may form a cycle.
    """
    taken: list[str] = []
    skipped: list[str] = []

    def note_unreadable(error: OSError) -> None:
        path = Path(error.filename)
        if path == folder:
            raise UserError(f"{folder}: cannot be read ({error.strerror})")
        skipped.append(f"{path.relative_to(folder).as_posix()}/")

    for root, folders, files in os.walk(folder, onerror=note_unreadable):
        folders[:] = [name for name in folders if not NOT_DATA.match(name)]
        root_path = Path(root)
        skipped += [
            f"{(root_path / name).relative_to(folder).as_posix()}/" for name in folders if (root_path / name).is_symlink()
        ]
        for path in (root_path / name for name in files if not NOT_DATA.match(name)):
            wanted = path.is_file() and has_ending(path.name, endings)
            (taken if wanted else skipped).append(path.relative_to(folder).as_posix())
    return sorted(taken), sorted(skipped)


def has_ending(name: str, endings: Sequence[str]) -> bool:
    name = name.lower()
    return any(name.removesuffix(packed).endswith(tuple(endings)) for packed in ("", *PACKED))


def by_ending(names: Sequence[str]) -> dict[str, int]:
    """How many names there are of each ending, the commonest first; beyond eight endings the rest together."""
    counts = Counter(map(_ending, names)).most_common()
    rest = sum(count for _, count in counts[8:])
    return dict(counts[:8]) | ({"of other endings": rest} if rest else {})


def skipped_lines(names: Sequence[str]) -> list[str]:
    """Messages: a line for each ending of skipped files, with the names of the first three."""
    lines = []
    for ending, count in by_ending(names).items():
        names_with_ending = [name for name in names if _ending(name) == ending]
        lines.append(f"skipped {count} {ending}: {', '.join(names_with_ending[:3])}{', ...' if count > 3 else ''}".rstrip(": "))
    return lines


def _ending(name: str) -> str:
    return UNREADABLE_FOLDERS if name.endswith("/") else PurePath(name).suffix.lower() or "without an ending"


def _head(path: Path) -> tuple[str, bytes]:
    """Compression of a file and the first bytes of its content; of a damaged file those that can be read."""
    try:
        with open_plain(path) as file:
            packing = streams.packing_of(file.read(16))
    except OSError as error:  # a broken disk, or a file of /proc
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    head = b""
    for read_size in (HEAD_BYTES, 1):
        try:
            with open_plain(path) as file, streams.unpacked(file, packing) as content:
                while len(head) < HEAD_BYTES and (chunk := content.read(read_size)):
                    head += chunk
            break
        except (OSError, EOFError, pa.ArrowException) as error:
            if "too much memory" in str(error):  # Arrow's decoder takes windows of 128 MB and no larger
                raise UserError(f"{path}: zstd of a window above 128 MB: unpack it, by zstd with a window of 31 bits") from None
            head = head if read_size == 1 else b""
    else:
        if not head:
            raise UserError(f"{path}: damaged {packing or 'file'}: get it again")
    return packing, head


def _ends(path: Path, magic: bytes) -> bool:
    with open_plain(path) as file:
        file.seek(-min(len(magic), file.seek(0, 2)), 2)
        return file.read() == magic


def _refusal(head: bytes, encoding: str, mark_bytes: int) -> str:
    """Why a head is not text, else ""."""
    for magic, what in MAGIC:
        if re.match(magic, head, re.DOTALL):
            return what
    if packing := streams.packing_of(head):
        return f"{packing} once more: unpack it first"
    if encoding == "utf-8":
        invalid = len(head) - len(head.translate(None, CONTROLS))
        # A few of them are damage in one row of a small file.
        return NO_TEXT if invalid * 64 > len(head) + 256 else ""
    text = head[mark_bytes:].decode(encoding, "replace")
    # Of random 16 bits every eighth are no character in use.
    invalid = sum(character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cn", "Co") for character in text)
    invalid -= sum(map(text.count, "\n\r\t\f"))
    return NO_TEXT if invalid * 16 > len(text) + 256 else ""


def delimiter_of(text: str) -> str:
    """Comma, semicolon or tab, whichever the header of a table has most of; or the one that its first line states."""
    if stated := STATED_DELIMITER.match(text):
        return stated[1]
    # A tab at the start is a column without a name, as pandas writes that of row numbers.
    header = re.split(r"[\r\n]", text.lstrip(" \r\n"), maxsplit=1)[0]
    return max(",;\t", key=re.sub(r'"[^"]*"', "", header).count)  # a quoted name may hold any of them


def _is_quoted(head: str, complete: bool) -> bool:
    """Whether quotes in a tab-separated table enclose cells. In many tables, as those of GLUE and Tatoeba, they are letters: no
    cell holds a tab or a line end, and one that begins with a quote would be joined with all rows up to the next quote."""
    lines = io.StringIO(head, newline="").readlines()
    reader, last_read_line = csv.reader(lines, delimiter="\t", strict=True), 0
    try:
        for _ in reader:
            last_read_line = reader.line_num
    except csv.Error as error:
        if complete or "unexpected end" not in str(error):
            return False
        rest = lines[last_read_line:-1]  # the last one is cut off
        return len(rest) < 2 or any(line.count("\t") != lines[0].count("\t") for line in rest)
    return True


def _json_form(text: str, ending: str, cut_off: bool) -> str:
    """`lines`, `values`, or `text` where neither content nor name indicates JSON. `cut_off`: the text is the start of a file."""
    first, newline, _ = text.lstrip().partition("\n")
    if first.startswith("{"):
        try:
            _, end = JSON.raw_decode(first)
            if (rest := first[end:].strip()) in ("", ","):
                return "lines"
            if rest.startswith("{"):  # one after another without line ends, as Amazon's Firehose writes
                return "values"
        except (ValueError, RecursionError):
            pass
    if re.match(r"\s*\[\s*[{\]]", text) or (ending in ROWS and newline and re.match(r"\s*\{\s*\n", text)):
        return "values"
    if re.match(r'\s*\{\s*\n\s*"(?:[^"\\\n]|\\.)*"\s*:', text):  # a notebook, or an export of a browser
        return "values"
    long_row = cut_off and not newline and ROW_START.match(text)
    return {".jsonl": "lines", ".ndjson": "lines", ".json": "values"}.get(ending, "lines" if long_row else "text")
