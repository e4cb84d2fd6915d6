"""Where pages come from: every kind of source becomes one WARC file, so that all later steps see one kind of input.

`pydoc:` the documentation of the running Python, served by its own pydoc and crawled like any site
`stdlib:` the source code of its standard library       `topics:` its language reference
`https://site/` a site, crawled     `cc:CC-MAIN-2026-17` a crawl of Common Crawl     `hf:org/name` a data set of the hub
a path: a web archive (WARC, WACZ, ARC, WET), rows (JSON, CSV, Parquet), a page or text, or a folder of such files
"""

import ast
import hashlib
import logging
import os
import sysconfig
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.files import replacing
from groundup.core.plain_files import open_plain
from groundup.core.progress import Progress
from groundup.corpus.acquire import common_crawl, pydoc_site, rows
from groundup.corpus.acquire.crawl import CrawlCount, crawl
from groundup.corpus.acquire.local import NO_SUCH
from groundup.corpus.archive import wacz
from groundup.corpus.archive.content_type import gives_text, kind_of_body
from groundup.corpus.archive.warc import Losses, Page, WarcWriter, read_pages
from groundup.corpus.config import SourceConfig
from groundup.corpus.urls import quoted, split_url
from groundup.data import kinds, streams
from groundup.data.kinds import Kind, kind_of
from groundup.data.rows import DAMAGE, MAX_TEXT_BYTES, Refused, texts

logger = logging.getLogger(__name__)

PAGES = (".html", ".htm", ".xhtml")
TEXT_TYPES = {".md": "text/markdown", ".markdown": "text/markdown", ".py": "text/x-python"}  # others are text/plain
PACKED = ("", ".gz", ".zst", ".lz4")
ARCHIVES = (".wacz", *(kind + packed for kind in (".warc", ".arc", ".wet") for packed in PACKED))
KNOWN = (*PAGES, *kinds.TEXTS, *kinds.ROWS, *ARCHIVES)


def collect(source: SourceConfig, folder: Path, name: str, requests_per_second: float, progress_label: str) -> dict[str, Any]:
    """Write `folder/<name>.warc.gz`; return {"pages", "bytes", "refused": {reason: count}}.

    An interrupted crawl of a site resumes from `folder/<name>.warc.gz.partial`, one of Common Crawl's pages from
    `.fetched`; other sources start anew.
    Raises UserError when the source is missing or holds no page within the limits of `source`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.warc.gz"
    fetched = target.with_name(target.name + ".fetched")
    remarks: list[str] = []
    with Progress(progress_label, unit="pages") as progress:
        if source.source.startswith(("http://", "https://")):
            partial = target.with_name(target.name + ".partial")
            counts = _crawl(source.source, partial, source, progress, requests_per_second)
            _require_pages(source, counts)
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.replace(target)
        else:
            with replacing(target) as partial:
                partial.unlink(missing_ok=True)
                if source.source == "pydoc:":
                    # A new server can give other pages than the one that was cut off, so this never resumes.
                    with pydoc_site.pydoc_server() as address:
                        counts = _crawl(address, partial, source, progress, None)
                else:
                    counts = _write(source, partial, fetched, progress, remarks)
                _require_pages(source, counts)
            fetched.unlink(missing_ok=True)
    for remark in remarks:
        logger.info(f"{remark}")
    return {"pages": counts.pages, "bytes": counts.bytes, "refused": counts.refused}


def _require_pages(source: SourceConfig, counts: CrawlCount) -> None:
    if not counts.pages:
        why = ", ".join(f"{reason}: {count}" for reason, count in counts.refused.items()) or "it is empty"
        raise UserError(f"{source.source}: gave no page ({why}): check the source and its exclude")


def _crawl(address: str, warc: Path, source: SourceConfig, progress: Progress, rate: float | None) -> CrawlCount:
    local = source.source == "pydoc:"
    return crawl(
        address,
        warc,
        record_as=pydoc_site.HOST if local else None,
        max_bytes=round(source.max_mb * 1e6),
        max_pages=source.max_pages,
        exclude=[*source.exclude, *(pydoc_site.EXCLUDE if local else [])],
        requests_per_second=rate,
        allow_private=local,
        progress=progress,
        rewrite=pydoc_site.same_on_every_machine if local else None,
    )


def _write(source: SourceConfig, warc: Path, fetched: Path, progress: Progress, remarks: list[str]) -> CrawlCount:
    """Record the pages of a source that is read, not crawled, up to its limits; `remarks` says what else to know.

    Raises UserError when there is none, with the first thing that was refused.
    """
    counts, refused = CrawlCount(), Refused()
    exclude = tuple(source.exclude)

    def wanted(path: str) -> bool:
        refused["excluded"] += path.startswith(exclude)
        return not path.startswith(exclude)

    with WarcWriter(warc) as out, closing(_pages(source, fetched, wanted, refused, remarks)) as pages:
        for page in pages:
            if counts.pages >= source.max_pages or counts.bytes >= source.max_mb * 1e6:
                reached = "max_pages" if counts.pages >= source.max_pages else "max_mb"
                remarks.append(f"{source.source}: has more, but {reached} = {getattr(source, reached):,} is reached")
                break
            content_type = kind_of_body(page.content_type, "", page.body, page.charset)
            if not gives_text(content_type):
                refused["type"] += 1
                continue
            charset = f"; charset={page.charset}" if page.charset else ""
            out.resource(page.url, content_type + charset, page.body)
            counts.pages += 1
            counts.bytes += len(page.body)
            progress.advance(1)
    if not counts.pages and refused.first:
        raise UserError(f"{source.source}: gave no page ({refused}): check the source and its exclude")
    counts.refused = {reason: count for reason, count in sorted(refused.items()) if count}
    # Files that a folder's reading passes over are remarked there, by name.
    told = ("skipped ", "excluded", "refused files")
    more = Refused({reason: count for reason, count in counts.refused.items() if not reason.startswith(told)})
    if more:
        more.first = refused.first if refused.first.endswith(tuple(more)) else ""
        remarks.append(f"{source.source}: {more.total():,} passed over ({more})")
    return counts


def _pages(
    source: SourceConfig, fetched: Path, wanted: Callable[[str], bool], refused: Refused, remarks: list[str]
) -> Generator[Page, None, None]:
    if source.source == "stdlib:":
        root = Path(sysconfig.get_path("stdlib"))
        # Ordered by digest, so that whatever part of it fits the limit is spread over all packages.
        yield from _files(root, "stdlib", sorted(_python_files(root), key=_digest), wanted, refused)
    elif source.source == "topics:":
        from pydoc_data.topics import topics

        for name in sorted(topics):
            if wanted(f"/{name}"):
                yield Page(f"file:///topics/{quoted(name)}", "text/plain", topics[name].encode(), "utf-8")
    elif source.source.startswith("cc:"):
        found = common_crawl.pages(
            source.source, fetched, refused, host=source.host, language=source.language, mime=source.mime
        )
        with closing(found):
            yield from _wanted(found, wanted)
    elif source.source.startswith("hf:"):
        yield from _wanted(rows.read_hub(source.source, source.text_column, refused), wanted)
    else:
        path = Path(source.source).expanduser()
        if path.is_dir():
            yield from _folder(path, source.text_column, wanted, refused, remarks)
        elif path.exists():
            yield from _file(path.parent, _label(path.parent), path.name, source.text_column, wanted, refused)
        else:
            raise UserError(NO_SUCH.format(source.source))


def _folder(
    folder: Path, column: str, wanted: Callable[[str], bool], refused: Refused, remarks: list[str]
) -> Iterator[Page]:
    """The pages of all files of a folder, in the order of their names; those that cannot be read are named and counted."""
    names, skipped = kinds.files_of(folder, KNOWN)
    remarks += kinds.skipped_lines(skipped)
    for what, count in kinds.by_ending(skipped).items():
        refused.add(f"skipped {what}", str(folder), count)
    for name in names:
        try:
            yield from _file(folder, _label(folder), name, column, wanted, refused)
        except UserError as refusal:
            refused.add("refused files", str(refusal))
            if refused["refused files"] <= kinds.MOST_NAMED:
                remarks.append(f"skipped {refusal}")
    if (more := refused["refused files"] - kinds.MOST_NAMED) > 0:
        remarks.append(f"skipped {more} more files that cannot be read")


def _label(folder: Path) -> str:
    return quoted(folder.resolve().name)


def _file(
    root: Path, label: str, name: str, column: str, wanted: Callable[[str], bool], refused: Refused
) -> Iterator[Page]:
    """The pages of one file. Raises UserError when it cannot be read."""
    path = root / name
    if kinds.has_ending(name, PAGES):
        yield from _files(root, label, [name], wanted, refused)
        return
    if name.lower().endswith(ARCHIVES):
        yield from _archive(path, wanted, refused)
        return
    try:
        kind = kind_of(path)
    except UserError as refusal:
        if kinds.has_ending(name, KNOWN) or not path.is_file():
            raise
        yield from _archive(path, wanted, refused, refusal)  # whatever its name, and however it begins
        return
    if kind.form == "archive":
        yield from _archive(path, wanted, refused)
    elif kind.form == "text":
        yield from _files(root, label, [name], wanted, refused, kind)
    else:
        yield from _wanted(rows.read_rows(path, column, refused, kind), wanted)


def _wanted(pages: Iterator[Page], wanted: Callable[[str], bool]) -> Iterator[Page]:
    for page in pages:
        parts = split_url(page.url)
        if wanted((parts.path if parts else "") or "/"):
            yield page


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _python_files(root: Path) -> list[str]:
    outside = {"site-packages", "dist-packages", "__pycache__"}
    names = (file.relative_to(root) for file in root.rglob("*.py"))
    return [name.as_posix() for name in names if not outside.intersection(name.parts)]


def _files(
    root: Path, label: str, names: list[str], wanted: Callable[[str], bool], refused: Refused, kind: Kind | None = None
) -> Iterator[Page]:
    """Files under `root` as `file:///label/name`: the URL says what a page is, not whose machine it was on.

    The parts of a long text are `file:///label/name/0`, `/1` and so on. Pages and Python are never cut.
    """
    for name in names:
        if not wanted(f"/{name}"):
            continue
        url = f"file:///{label}/{quoted(name)}"
        plain = next((name.lower().removesuffix(end) for end in kinds.PACKED if name.lower().endswith(end)), name.lower())
        content_type = TEXT_TYPES.get(Path(plain).suffix, "text/html" if plain.endswith(PAGES) else "text/plain")
        if kind and content_type != "text/x-python":
            yield from _parts(texts(root / name, refused, kind), url, content_type, refused)
            continue
        body = _whole(root / name, kind, refused)
        if body is None:
            continue
        if content_type == "text/x-python" and not _is_python(body):
            refused.add("not Python", str(root / name))  # tests of the parser, mostly
        else:
            yield Page(url, content_type, body)


def _parts(bodies: Iterator[bytes], url: str, content_type: str, refused: Refused) -> Iterator[Page]:
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
        return None  # an old encoding, which is found as that of a page is
    return "utf-8"


def _whole(path: Path, kind: Kind | None, refused: Refused) -> bytes | None:
    """All of a file, unpacked; None where it is too large, damaged, or may not be read."""
    try:
        if kind is None:
            with open_plain(path) as file:
                kind = Kind("text", streams.packing_of(file.read(16)))
        with open_plain(path) as file:
            body = streams.content(file, kind.packing, kind.encoding, kind.mark).read(MAX_TEXT_BYTES + 1)
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


def _archive(
    path: Path, wanted: Callable[[str], bool], refused: Refused, refusal: UserError | None = None
) -> Iterator[Page]:
    losses = Losses()
    open_plain(path).close()
    zipped = wacz.is_wacz(path)
    yield from _wanted(wacz.read_wacz(path, losses, refused) if zipped else read_pages(path, losses), wanted)
    if not losses.records:
        give = "give *.warc.gz, *.wacz, *.arc, *.jsonl, *.parquet, or a folder of pages"
        raise refusal or UserError(f"{path}: not a web archive: {give}")
    refused.add("truncated", str(path), losses.truncated)
    refused.add("damaged", str(path), losses.lost)
    refused.add("malformed URL", str(path), losses.malformed)
