"""What a file is, told by its content first and by its name where content leaves it open; and which files of a folder are data.

A name can lie and be absent (`x.jsonl` that is gzip, `part-0001`), so the first 64 kB decide on compression, encoding and
Parquet; the name's ending decides between JSON, CSV and text, which look alike.
"""

import codecs
import csv
import io
import json
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

HEAD_BYTES = 1 << 16
MOST_NAMED = 10  # refused files of a folder that are said one by one; all are counted
PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz", ".lz4")
ROWS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TEXTS = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".asciidoc", ".py")
NO_DATA = re.compile(r"\.|_SUCCESS$|_(?:common_)?metadata$|_(?:committed|started)_|__MACOSX$|Thumbs\.db$|desktop\.ini$")
CLOSED = "folders that are links or cannot be read"
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
    (rb"Obj\x01|ORC[\x00-\x08]", "an Avro or ORC file: save it as Parquet"),
    # Blink and Firefox begin with a line From.
    (rb"(?:[\w-]{1,40}:[^\n]{0,999}\n(?:[ \t][^\n]{0,999}\n){0,9}){0,9}(?i:content-type:\s*multipart/related)",
     "a page saved as MHTML, or a mail: save the page as HTML"),
    (rb"bplist00", "a property list, such as a web archive of Safari: save the page as its source"),
    (rb"\x7fELF", "a program"),
    (rb"\x93NUMPY", "a NumPy array"),
    (re.escape(POINTER), "a pointer of Git LFS: get the file itself, by `git lfs pull`"),
)
# Pipermail's archives are .txt of the same form: who names them so wants them read as they are.
MAILBOX = re.compile(rb"From [^\n]{1,300}\d\d:\d\d[^\n]{0,100}\n(?:>?[\w-]{1,40}:[^\n]{0,999}\n)")
MARKS = (  # the longest first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
STATED_DELIMITER = re.compile(r"\"?sep=([^\w\s\"]|\t)\"?[\r\n]+", re.IGNORECASE)  # a line of its own, for Excel
# Before it may stand the declaration of XHTML, and comments: of a licence, or where a browser saved the page from.
PAGE = re.compile(
    rb"\s*(?:<\?xml\b[^>]{0,200}>\s*)?(?:<!--.{0,3000}?-->\s*){0,4}+<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL
)
ARCHIVE = re.compile(rb"WARC/\d|filedesc:")
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
    def whole(self) -> bool:
        """Whether it has to be read from its start: compressed, or not in UTF-8."""
        return bool(self.packing) or self.encoding != "utf-8"


def kind_of(path: Path) -> Kind:
    """Raises UserError, in one line, for what is no plain file, and for what is neither text nor Parquet, saying what it is."""
    packing, head = _head(path)
    names = [suffix.lower() for suffix in PurePath(path.name).suffixes]
    ending = next((suffix for suffix in reversed(names) if suffix not in PACKED), "")
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
    mark, encoding = next((found for found in MARKS if head.startswith(found[0])), (b"", "utf-8"))
    if what := _refusal(head, encoding, len(mark)):
        raise UserError(f"{path}: {f'inside {packing} ' if packing else ''}{what}")
    if MAILBOX.match(head) and ending not in (".txt", ".text"):
        raise UserError(f"{path}: a mailbox, with heads and attachments: save its mails as text or HTML, or name it .txt")
    text = head[len(mark) :].decode(encoding, "replace")
    kind = Kind("text", packing, encoding, len(mark))
    if ending in (".csv", ".tsv"):
        delimiter = "\t" if ending == ".tsv" else delimiter_of(text)
        quoted = delimiter != "\t" or _is_quoted(text, len(head) < HEAD_BYTES)
        return kind._replace(form="csv", delimiter=delimiter, quoted=quoted)
    if ending in TEXTS:
        return kind
    return kind._replace(form=_json_form(text, ending))


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

    Names relative to the folder, sorted, with `/`. Hidden files and what systems and programs leave behind (`.DS_Store`,
    `_SUCCESS`, `._x.parquet`) are in neither; pipes and devices are among those without, and so, with a `/` at the end,
    are folders that may not be read, and links to folders, which are not followed: they may lead round in a circle.
    """
    taken: list[str] = []
    skipped: list[str] = []

    def closed(error: OSError) -> None:
        path = Path(error.filename)
        if path == folder:
            raise UserError(f"{folder}: cannot be read ({error.strerror})")
        skipped.append(f"{path.relative_to(folder).as_posix()}/")

    for root, folders, files in os.walk(folder, onerror=closed):
        folders[:] = [name for name in folders if not NO_DATA.match(name)]
        here = Path(root)
        skipped += [f"{(here / name).relative_to(folder).as_posix()}/" for name in folders if (here / name).is_symlink()]
        for path in (here / name for name in files if not NO_DATA.match(name)):
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
    """For people: one line for each ending of files that are passed over, with the names of the first three."""
    lines = []
    for ending, count in by_ending(names).items():
        those = [name for name in names if _ending(name) == ending]
        lines.append(f"skipped {count} {ending}: {', '.join(those[:3])}{', ...' if count > 3 else ''}".rstrip(": "))
    return lines


def _ending(name: str) -> str:
    return CLOSED if name.endswith("/") else PurePath(name).suffix.lower() or "without an ending"


def _head(path: Path) -> tuple[str, bytes]:
    """How a file is compressed, and how its content begins: of a damaged file as far as it can be read."""
    try:
        with open_plain(path) as file:
            packing = streams.packing_of(file.read(16))
    except OSError as error:  # a broken disk, or a file of /proc
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    head = b""
    for at_once in (HEAD_BYTES, 1):
        try:
            with open_plain(path) as file, streams.unpacked(file, packing) as content:
                while len(head) < HEAD_BYTES and (more := content.read(at_once)):
                    head += more
            break
        except (OSError, EOFError, pa.ArrowException) as error:
            if "too much memory" in str(error):  # Arrow's decoder takes windows of 128 MB and no larger
                raise UserError(f"{path}: zstd of a window above 128 MB: unpack it, by zstd with a window of 31 bits") from None
            head = head if at_once == 1 else b""
    else:
        if not head:
            raise UserError(f"{path}: damaged {packing or 'file'}: get it again")
    return packing, head


def _ends(path: Path, magic: bytes) -> bool:
    with open_plain(path) as file:
        file.seek(-min(len(magic), file.seek(0, 2)), 2)
        return file.read() == magic


def _refusal(head: bytes, encoding: str, mark: int) -> str:
    """What a head is that is no text, else ""."""
    for magic, what in MAGIC:
        if re.match(magic, head, re.DOTALL):
            return what
    if packing := streams.packing_of(head):
        return f"{packing} once more: unpack it first"
    if encoding == "utf-8":
        wrong = len(head) - len(head.translate(None, CONTROLS))
        # A few of them are damage of one row in a small file.
        return NO_TEXT if wrong * 64 > len(head) + 256 else ""
    text = head[mark:].decode(encoding, "replace")
    # Of random bytes every eighth 16 bits are no character that anybody writes.
    wrong = sum(character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cn", "Co") for character in text)
    wrong -= sum(map(text.count, "\n\r\t\f"))
    return NO_TEXT if wrong * 16 > len(text) + 256 else ""


def delimiter_of(text: str) -> str:
    """Comma, semicolon or tab: what the head of a table has most of; or as its first line says."""
    if stated := STATED_DELIMITER.match(text):
        return stated[1]
    header = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0]
    return max(",;\t", key=re.sub(r'"[^"]*"', "", header).count)  # a name in quotes may hold any


def _is_quoted(head: str, whole: bool) -> bool:
    """Whether quotes in a table cut at tabs enclose cells. In many, as those of GLUE and Tatoeba, they are letters: no cell
    holds a tab or a line end, and one that begins with a quote would be joined with all rows up to the next quote."""
    lines = io.StringIO(head, newline="").readlines()
    reader, begun = csv.reader(lines, delimiter="\t", strict=True), 0
    try:
        for _ in reader:
            begun = reader.line_num
    except csv.Error as error:
        if whole or "unexpected end" not in str(error):
            return False
        behind = lines[begun:-1]  # the last one is cut off
        return len(behind) < 2 or any(line.count("\t") != lines[0].count("\t") for line in behind)
    return True


def _json_form(text: str, ending: str) -> str:
    """`lines`, `values`, or `text` where neither content nor name speaks of JSON."""
    first, newline, _ = text.lstrip().partition("\n")
    if first.startswith("{"):
        try:
            _, end = json.JSONDecoder().raw_decode(first)
            if not (behind := first[end:].strip()):
                return "lines"
            if behind.startswith("{"):  # one after another without line ends, as Amazon's Firehose writes
                return "values"
        except (ValueError, RecursionError):
            pass
    if re.match(r"\s*\[\s*[{\]]", text) or (ending in ROWS and newline and re.match(r"\s*\{\s*\n", text)):
        return "values"
    if re.match(r'\s*\{\s*\n\s*"(?:[^"\\\n]|\\.)*"\s*:', text):  # a notebook, what a browser exports
        return "values"
    return {".jsonl": "lines", ".ndjson": "lines", ".json": "values"}.get(ending, "text")
