"""Where pages come from: every kind of source becomes one WARC file, so that all later steps see one kind of input.

`pydoc:` the documentation of the running Python, served by its own pydoc and crawled like any site
`stdlib:` the source code of its standard library       `topics:` its language reference
`https://site/` a site, crawled     `cc:CC-MAIN-2026-17` a crawl of Common Crawl     `hf:org/name` a data set of the hub
a path: a web archive (WARC, WACZ, ARC, WET), JSON lines, Parquet, a page or text, or a folder of such files
"""

import ast
import hashlib
import os
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from groundup.corpus import common_crawl, pydoc_site, rows, wacz
from groundup.corpus.content_type import gives_text, kind_of_body
from groundup.corpus.crawl import CrawlCount, crawl
from groundup.corpus.local import NO_SUCH
from groundup.corpus.urls import quoted, split_url
from groundup.corpus.warc import Losses, Page, WarcWriter, read_pages
from groundup.errors import UserError
from groundup.files import replacing
from groundup.progress import Progress
from groundup.recipe import Source

CONTENT_TYPES = {
    ".html": "text/html",
    ".htm": "text/html",
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".py": "text/x-python",
}
PACKED = ("", ".gz", ".zst", ".lz4")
ARCHIVES = (".wacz", *(kind + packed for kind in (".warc", ".arc", ".wet") for packed in PACKED))
KNOWN = (*CONTENT_TYPES, *rows.SUFFIXES, *ARCHIVES)


def collect(source: Source, folder: Path, name: str, requests_per_second: float, progress_label: str) -> dict[str, Any]:
    """Write `folder/<name>.warc.gz`; return {"pages", "bytes", "refused": {reason: count}}.

    A site's crawl that was cut off goes on from `folder/<name>.warc.gz.partial`, one of Common Crawl's pages from
    `.fetched`; other sources start anew.
    Raises UserError when the source is missing or holds no page within the limits of `source`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.warc.gz"
    fetched = target.with_name(target.name + ".fetched")
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
                    counts = _write(source, partial, fetched, progress)
                _require_pages(source, counts)
            fetched.unlink(missing_ok=True)
    return {"pages": counts.pages, "bytes": counts.bytes, "refused": counts.refused}


def _require_pages(source: Source, counts: CrawlCount) -> None:
    if not counts.pages:
        why = ", ".join(f"{reason}: {count}" for reason, count in counts.refused.items()) or "it is empty"
        raise UserError(f"{source.source}: gave no page ({why}): check the source and its exclude")


def _crawl(address: str, warc: Path, source: Source, progress: Progress, rate: float | None) -> CrawlCount:
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


def _write(source: Source, warc: Path, fetched: Path, progress: Progress) -> CrawlCount:
    """Record the pages of a source that is read, not crawled, up to its limits."""
    counts, refused = CrawlCount(), Counter[str]()
    exclude = tuple(source.exclude)

    def wanted(path: str) -> bool:
        refused["excluded"] += path.startswith(exclude)
        return not path.startswith(exclude)

    with WarcWriter(warc) as out, closing(_pages(source, fetched, wanted, refused)) as pages:
        for page in pages:
            if counts.pages >= source.max_pages or counts.bytes >= source.max_mb * 1e6:
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
    counts.refused = {reason: count for reason, count in sorted(refused.items()) if count}
    return counts


def _pages(
    source: Source, fetched: Path, wanted: Callable[[str], bool], refused: Counter[str]
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
            names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
            label = quoted(path.resolve().name)
            for name in sorted(names):
                yield from _file(path, label, name, source.text_column, wanted, refused)
        elif path.is_file():
            if not path.name.lower().endswith(KNOWN):
                yield from _archive(path, wanted, refused)  # whatever its name
            else:
                label = quoted(path.resolve().parent.name)
                yield from _file(path.parent, label, path.name, source.text_column, wanted, refused)
        else:
            raise UserError(NO_SUCH.format(source.source))


def _file(
    root: Path, label: str, name: str, column: str, wanted: Callable[[str], bool], refused: Counter[str]
) -> Iterator[Page]:
    """The pages of one file, by its name's ending; none of a file of another kind."""
    lower = name.lower()
    if Path(lower).suffix in CONTENT_TYPES:
        yield from _files(root, label, [name], wanted, refused)
    elif lower.endswith(rows.SUFFIXES):
        yield from _wanted(rows.read_rows(root / name, column, refused), wanted)
    elif lower.endswith(ARCHIVES):
        yield from _archive(root / name, wanted, refused)


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
    root: Path, label: str, names: list[str], wanted: Callable[[str], bool], refused: Counter[str]
) -> Iterator[Page]:
    """Files under `root` as `file:///label/name`: the URL says what a page is, not whose machine it was on."""
    for name in names:
        if not wanted(f"/{name}"):
            continue
        try:
            body = (root / name).read_bytes()
        except OSError:
            refused["unreadable"] += 1
            continue
        content_type = CONTENT_TYPES[Path(name).suffix.lower()]
        if content_type == "text/x-python" and not _is_python(body):
            refused["not Python"] += 1  # tests of the parser, mostly
        else:
            yield Page(f"file:///{label}/{quoted(name)}", content_type, body)


def _is_python(body: bytes) -> bool:
    """UTF-8 that parses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes and literals in other people's code
            ast.parse(body.decode("utf-8"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _archive(path: Path, wanted: Callable[[str], bool], refused: Counter[str]) -> Iterator[Page]:
    losses = Losses()
    zipped = wacz.is_wacz(path)
    yield from _wanted(wacz.read_wacz(path, losses, refused) if zipped else read_pages(path, losses), wanted)
    if not losses.records:
        raise UserError(f"{path}: not a web archive: give *.warc.gz, *.wacz, *.arc, *.jsonl, *.parquet, or a folder of pages")
    refused["truncated"] += losses.truncated
    refused["damaged"] += losses.lost
    refused["malformed URL"] += losses.malformed
