"""Sources of this machine: files and folders of any kind that is known, Python's standard library and language reference.

The kind of a file is decided by its content first (`data/file_kinds.py`): a page, a text, rows, a web archive, a PDF, or the
dump of a wiki or of a Stack Exchange site.
"""

import ast
import hashlib
import io
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from groundup.core.errors import UserError
from groundup.core.plain_files import open_plain
from groundup.corpus.acquire import datasets
from groundup.corpus.acquire.pdf import PdfReader
from groundup.corpus.acquire.stack_exchange import StackExchangeDump
from groundup.corpus.acquire.wikipedia import WikiDump
from groundup.corpus.archive import wacz
from groundup.corpus.archive.warc import Losses, Page, read_pages
from groundup.corpus.urls import quoted, split_url
from groundup.data import file_kinds, streams
from groundup.data.file_kinds import Kind, kind_of
from groundup.data.readers import DAMAGE, MAX_TEXT_BYTES, Refused, texts

PAGES = (".html", ".htm", ".xhtml")
TEXT_TYPES = {  # others are text/html or text/plain
    ".md": "text/markdown", ".markdown": "text/markdown", ".py": "text/x-python", ".xhtml": "application/xhtml+xml",
}  # fmt: skip
PACKED = ("", ".gz", ".zst", ".lz4")
ARCHIVES = (".wacz", *(kind + packed for kind in (".warc", ".arc", ".wet") for packed in PACKED))
KNOWN = (*PAGES, *file_kinds.TEXTS, *file_kinds.ROWS, *ARCHIVES, ".pdf", ".xml")
PDF = b"%PDF-"
PROLOGUE = rb"<\?[^>]{0,500}>|<!--[^>]{0,500}-->|<!DOCTYPE[^\[>]{0,200}(?:\[[^\]]{0,2000}\]\s{0,9})?>"
DUMP = re.compile(rb"\s{0,99}(?:(?:" + PROLOGUE + rb")\s{0,99}){0,4}<(mediawiki|posts)[\s>]")


@dataclass
class Reading:
    """How a source is read: prefixes of paths to exclude, counts of what is passed over, and remarks for the user."""

    exclude: tuple[str, ...]
    refused: Refused = field(default_factory=Refused)
    remarks: list[str] = field(default_factory=list)

    def wants(self, path: str) -> bool:
        excluded = path.startswith(self.exclude)
        self.refused["excluded"] += excluded
        return not excluded

    def wanted(self, pages: Iterator[Page]) -> Iterator[Page]:
        for page in pages:
            parts = split_url(page.url)
            if self.wants((parts.path if parts else "") or "/"):
                yield page


@dataclass
class StandardLibrary:
    """Ordered by digest, so that the part that fits a limit is spread over all packages."""

    reading: Reading

    def pages(self) -> Iterator[Page]:
        root = Path(sysconfig.get_path("stdlib"))
        names = sorted(_python_files(root), key=lambda name: hashlib.blake2b(name.encode(), digest_size=16).digest())
        return Texts(root, "stdlib", names, self.reading).pages()


@dataclass
class Topics:
    """The language reference."""

    reading: Reading

    def pages(self) -> Iterator[Page]:
        from pydoc_data.topics import topics

        for name in sorted(topics):
            if self.reading.wants(f"/{name}"):
                yield Page(f"file:///topics/{quoted(name)}", "text/plain", topics[name].encode(), "utf-8")


@dataclass
class Files:
    """A file, or all files of known kinds in a folder, in the order of their names."""

    path: Path
    column: str
    reading: Reading

    def pages(self) -> Iterator[Page]:
        """Raises UserError when a file cannot be read; of a folder such files are named and counted."""
        with PdfReader() as pdf:
            if not self.path.is_dir():
                yield from self._file(self.path.parent, self.path.name, pdf)
                return
            names, skipped = file_kinds.files_of(self.path, KNOWN)
            refused, remarks = self.reading.refused, self.reading.remarks
            remarks += file_kinds.skipped_lines(skipped)
            for what, count in file_kinds.by_ending(skipped).items():
                refused[f"skipped {what}"] += count
            for name in names:
                try:
                    yield from self._file(self.path, name, pdf)
                except UserError as refusal:
                    refused.add("refused files", str(refusal))
                    if refused["refused files"] <= file_kinds.MAX_NAMED:
                        remarks.append(f"skipped {refusal}")
            if (more := refused["refused files"] - file_kinds.MAX_NAMED) > 0:
                remarks.append(f"skipped {more} more files that cannot be read")

    def _file(self, root: Path, name: str, pdf: PdfReader) -> Iterator[Page]:
        path, label, refused = root / name, quoted(root.resolve().name), self.reading.refused
        if file_kinds.has_ending(name, PAGES):
            yield from Texts(root, label, [name], self.reading).pages()
            return
        if name.lower().endswith(ARCHIVES):
            yield from self.reading.wanted(_archive(path, refused))
            return
        base_url = f"file:///{label}/{quoted(name)}"
        if _begins_with(path, PDF):
            if self.reading.wants(f"/{name}") and (text := pdf.text(path, refused)):
                bodies = streams.parts(io.BytesIO(text.encode("utf-8", "replace")))
                yield from _pages_of_parts(bodies, base_url, "text/plain", refused)
            return
        try:
            kind = kind_of(path)
        except UserError as refusal:
            if file_kinds.has_ending(name, KNOWN) or not path.is_file():
                raise
            yield from self.reading.wanted(_archive(path, refused, refusal))  # perhaps one of any name and any first bytes
            return
        dump = _dump_kind(path, kind) if kind.form in ("text", "values") else ""
        if dump:
            source = WikiDump if dump == "mediawiki" else StackExchangeDump
            yield from self.reading.wanted(source(path, kind, base_url, refused).pages())
        elif file_kinds.has_ending(name, (".xml",)):
            raise UserError(f"{path}: XML, but no dump of MediaWiki or Stack Exchange (Posts.xml): take the text out of it first")
        elif kind.form == "archive":
            yield from self.reading.wanted(_archive(path, refused))
        elif kind.form == "text":
            yield from Texts(root, label, [name], self.reading, kind).pages()
        else:
            yield from self.reading.wanted(datasets.read_rows(path, base_url, self.column, refused, kind))


def _begins_with(path: Path, magic: bytes) -> bool:
    with open_plain(path) as file:
        return file.read(len(magic)) == magic


def _dump_kind(path: Path, kind: Kind) -> str:
    """The root element of a dump: `mediawiki`, `posts`, or "" for what is no dump."""
    try:
        with open_plain(path) as file:
            root = DUMP.match(streams.content(file, kind.packing, kind.encoding, kind.mark).read(1 << 12))
    except DAMAGE:
        return ""
    return root[1].decode() if root else ""


def _python_files(root: Path) -> list[str]:
    outside = {"site-packages", "dist-packages", "__pycache__"}
    names = (file.relative_to(root) for file in root.rglob("*.py"))
    return [name.as_posix() for name in names if not outside.intersection(name.parts)]


@dataclass
class Texts:
    """Pages and texts under `root` as `file:///label/name`: the URL says what a page is, not whose machine it was on.

    The parts of a long text are `file:///label/name/0`, `/1` and so on. Pages and Python are never cut.
    """

    root: Path
    label: str
    names: list[str]
    reading: Reading
    kind: Kind | None = None

    def pages(self) -> Iterator[Page]:
        refused = self.reading.refused
        for name in self.names:
            if not self.reading.wants(f"/{name}"):
                continue
            url = f"file:///{self.label}/{quoted(name)}"
            lower = name.lower()
            plain = next((lower.removesuffix(end) for end in file_kinds.PACKED if lower.endswith(end)), lower)
            content_type = TEXT_TYPES.get(Path(plain).suffix, "text/html" if plain.endswith(PAGES) else "text/plain")
            path = self.root / name
            if self.kind and file_kinds.is_page(path, self.kind):
                content_type = "text/html"
            elif self.kind and content_type != "text/x-python":
                yield from _pages_of_parts(texts(path, refused, self.kind), url, content_type, refused)
                continue
            body = _unpacked(path, self.kind, refused)
            if body is None:
                continue
            if content_type == "text/x-python" and not _is_python(body):
                refused.add("not Python", str(path))  # tests of the parser, mostly
            else:
                yield Page(url, content_type, body)


def _pages_of_parts(bodies: Iterator[bytes], url: str, content_type: str, refused: Refused) -> Iterator[Page]:
    first, second = next(bodies, None), next(bodies, None)
    if first is None:
        refused.add("no text", url)
    elif second is None:
        yield Page(url, content_type, first, _charset(first))
    else:
        for number, body in enumerate(chain((first, second), bodies)):
            yield Page(f"{url}/{number}", content_type, body, _charset(body))


def _charset(body: bytes) -> str | None:
    try:
        body.decode()
    except UnicodeDecodeError:
        return None  # an old encoding, which is detected as that of a page is
    return "utf-8"


def _unpacked(path: Path, kind: Kind | None, refused: Refused) -> bytes | None:
    """The content of a file, unpacked; None where it is too large, damaged, or may not be read."""
    try:
        if kind is None:
            with open_plain(path) as file:
                kind = Kind("text", streams.packing_of(file.read(16)))
        with open_plain(path) as file:
            body = streams.read_all(streams.content(file, kind.packing, kind.encoding, kind.mark), MAX_TEXT_BYTES + 1)
    except DAMAGE:
        refused.add("damaged", str(path))
        return None
    except UserError as refusal:
        refused.add("unreadable", str(refusal))
        return None
    if len(body) > MAX_TEXT_BYTES:
        refused.add("size", str(path))
        return None
    return body


def _is_python(body: bytes) -> bool:
    """UTF-8 that parses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes and literals in other people's code
            ast.parse(body.decode("utf-8"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _archive(path: Path, refused: Refused, refusal: UserError | None = None) -> Iterator[Page]:
    losses = Losses()
    open_plain(path).close()
    zipped = wacz.is_wacz(path)
    try:
        yield from wacz.read_wacz(path, losses, refused) if zipped else read_pages(path, losses)
    except GeneratorExit:  # the source's limit is reached
        _add_losses(path, losses, refused)
        raise
    except UserError as error:  # of a zip file that is no .wacz, such as a .docx, the refusal says more
        raise refusal or error from None
    if not losses.records and refused and zipped:
        raise UserError(f"{path}: no WARC of it can be read ({refused}): give a .wacz as browsers write it, without a password")
    if not losses.records:
        give = "give *.warc.gz, *.wacz, *.arc, *.jsonl, *.parquet, or a folder of pages"
        raise refusal or UserError(f"{path}: not a web archive: {give}")
    _add_losses(path, losses, refused)


def _add_losses(path: Path, losses: Losses, refused: Refused) -> None:
    refused.add("truncated", str(path), losses.truncated)
    refused.add("damaged", str(path), losses.lost)
    refused.add("malformed URL", str(path), losses.malformed)
