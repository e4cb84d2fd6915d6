"""Where pages come from: every kind of source becomes one WARC file, so that all later steps see one kind of input.

`pydoc:` the documentation of the running Python, served by its own pydoc and crawled like any site
`stdlib:` the source code of its standard library       `topics:` its language reference
`https://site/` a site, crawled     `sitemap:https://site/sitemap.xml` the pages that a sitemap lists
`cc:CC-MAIN-2026-17` a crawl of Common Crawl     `hf:org/name` a data set of the hub
`oai:https://host/oai` descriptions of a repository's documents
a path: a web archive (WARC, WACZ, ARC, WET), rows (JSON, CSV, Parquet), a page, text or PDF, the dump of a wiki or of a Stack
Exchange site, or a folder of such files
"""

import logging
import os
import re
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from groundup.core.errors import UserError
from groundup.core.files import replacing
from groundup.core.plain_files import expanded, seen_from
from groundup.core.progress import Progress
from groundup.corpus.acquire import pydoc_site
from groundup.corpus.acquire.common_crawl import CommonCrawl
from groundup.corpus.acquire.crawl import CrawlCount, crawl
from groundup.corpus.acquire.datasets import HubDataset
from groundup.corpus.acquire.local import CRAWLED, NO_SUCH, SITEMAP
from groundup.corpus.acquire.local_files import Files, Reading, StandardLibrary, Topics
from groundup.corpus.acquire.oai import PREFIX as OAI
from groundup.corpus.acquire.oai import Repository
from groundup.corpus.archive.content_type import gives_text, kind_of_body
from groundup.corpus.archive.warc import Page, WarcWriter
from groundup.corpus.config import SourceConfig
from groundup.data.file_kinds import UNREADABLE_FOLDERS
from groundup.data.readers import Refused

logger = logging.getLogger(__name__)

# Records that programs write beside pages: answers of name servers, wget's and wpull's logs, the text of a page that
# Browsertrix saves again. Records of other names may be somebody's documents.
NOTES = re.compile(r"(?:dns|whois|metadata|filedesc):|urn:(?:text(?:final)?|pageinfo|x-wpull):", re.IGNORECASE)
NO_ROWS = {
    "not a JSON object": 'give rows as objects, such as {"text": "..."}',
    "more cells than columns": "name every column in the first line, and quote cells with a comma, semicolon or tab",
}


class Source(Protocol):
    """A source that is read, not crawled: a crawl writes its archive itself, and resumes from it."""

    def pages(self) -> Generator[Page, None, None]:
        """The pages, in an order that is the same each time. Raises UserError when the source cannot be read at all."""


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
        if source.source.startswith(CRAWLED):
            partial = target.with_name(target.name + ".partial")
            counts = _crawl(source.source.removeprefix(SITEMAP) or SITEMAP, partial, source, progress, requests_per_second)
            _require_pages(source, counts)
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.replace(target)
        else:
            with replacing(target) as partial:
                partial.unlink(missing_ok=True)
                if source.source == "pydoc:":
                    # A new server can give other pages than the interrupted one, so this never resumes.
                    with pydoc_site.pydoc_server() as address:
                        counts = _crawl(address, partial, source, progress, None)
                else:
                    counts = _write(source, partial, fetched, progress, remarks, requests_per_second)
                _require_pages(source, counts)
            fetched.unlink(missing_ok=True)
    for remark in remarks:
        logger.info(f"{remark}")
    return {"pages": counts.pages, "bytes": counts.bytes, "refused": counts.refused}


def _require_pages(source: SourceConfig, counts: CrawlCount) -> None:
    if not counts.pages:
        why = ", ".join(f"{reason}: {count}" for reason, count in counts.refused.items()) or "nothing in it is a page"
        raise UserError(f"{source.source}: gave no page ({why}): {_advice(counts.refused)}")


def _advice(refused: Mapping[str, int]) -> str:
    """What to do about a source of which nothing was read."""
    reasons = [reason for reason, count in refused.items() if count]
    if reasons == [f"skipped {UNREADABLE_FOLDERS}"]:
        return "give each folder that a link leads to as a source of its own"
    if reasons and all(reason.startswith("skipped ") for reason in reasons):
        return "save texts as .txt, .md, .html, .jsonl, .csv, .parquet or .pdf; a file of another name is read if named itself"
    advice = next((what for reason, what in NO_ROWS.items() if reason in reasons), "check the source")
    return f"{advice} and its exclude" if "excluded" in reasons else advice


def _crawl(address: str, warc: Path, source: SourceConfig, progress: Progress, requests_per_second: float | None) -> CrawlCount:
    local = source.source == "pydoc:"
    return crawl(
        address,
        warc,
        record_as=pydoc_site.HOST if local else None,
        max_bytes=round(source.max_mb * 1e6),
        max_pages=source.max_pages,
        exclude=[*source.exclude, *(pydoc_site.EXCLUDE if local else [])],
        requests_per_second=requests_per_second,
        allow_private=local,
        progress=progress,
        rewrite=pydoc_site.same_on_every_machine if local else None,
        only_listed=source.source.startswith(SITEMAP),
    )


def _write(
    source: SourceConfig, warc: Path, fetched: Path, progress: Progress, remarks: list[str], requests_per_second: float
) -> CrawlCount:
    """Record the pages of a source that is read, not crawled, up to its limits; `remarks` gets lines for the user.

    Raises UserError when there is no page, with the first thing that was refused.
    """
    counts, reading = CrawlCount(), Reading(tuple(source.exclude), remarks=remarks)
    refused = reading.refused
    with WarcWriter(warc) as out, closing(_pages(source, fetched, reading, requests_per_second)) as pages:
        for page in pages:
            if counts.pages >= source.max_pages or counts.bytes >= source.max_mb * 1e6:
                reached = "max_pages" if counts.pages >= source.max_pages else "max_mb"
                remarks.append(f"{source.source}: has more, but {reached} = {getattr(source, reached):,} is reached")
                break
            if NOTES.match(page.url):
                refused["note of a program"] += 1
                continue
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
        raise UserError(f"{source.source}: gave no page ({refused}): {_advice(refused)}")
    counts.refused = {reason: count for reason, count in sorted(refused.items()) if count}
    # `Files` reports the files that it passes over in a folder itself, by name.
    already_reported = ("skipped ", "excluded", "refused files")
    unreported = Refused({reason: count for reason, count in counts.refused.items() if not reason.startswith(already_reported)})
    if unreported:
        unreported.first = refused.first if any(f": {reason}" in refused.first for reason in unreported) else ""
        remarks.append(f"{source.source}: {unreported.total():,} passed over ({unreported})")
    return counts


def _pages(
    source: SourceConfig, fetched: Path, reading: Reading, requests_per_second: float
) -> Generator[Page, None, None]:
    name, refused = source.source, reading.refused
    if name == "stdlib:":
        yield from StandardLibrary(reading).pages()
    elif name == "topics:":
        yield from Topics(reading).pages()
    elif name.startswith(("cc:", "hf:", OAI)):
        remote: Source
        if name.startswith("cc:"):
            remote = CommonCrawl(name, fetched, refused, source.host, source.language, source.mime)
        elif name.startswith("hf:"):
            remote = HubDataset(name, source.text_column, refused)
        else:
            remote = Repository(name, refused, requests_per_second)
        with closing(remote.pages()) as pages:
            yield from reading.wanted(pages)
    else:
        path = expanded(name)
        if not path.exists():
            raise UserError(NO_SUCH.format(name, seen_from(path)))
        yield from Files(path, source.text_column, reading).pages()
