"""A polite crawler for one host: breadth first, robots.txt obeyed, one request at a time, into a WARC file.

The WARC is the crawl's whole state. Every URL that was asked for leaves one record: a response where it gave a page,
otherwise metadata that says why not, or what a sitemap lists. A crawl that was cut off reads them back, in order, and
resumes as if it had never stopped; nothing is asked for twice but robots.txt, whose rules may have changed, and what
the server was too busy to answer.
"""

import logging
import os
import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin

from groundup.core.errors import UserError
from groundup.core.progress import Progress
from groundup.corpus.acquire.fetch import AGENT, BUSY, Client, FetchResult, Unreachable
from groundup.corpus.acquire.robots import MAX_SITEMAP_BYTES, NOTHING_ALLOWED, RobotsRules, parse_robots, parse_sitemap
from groundup.corpus.archive.content_type import HTML_TYPES
from groundup.corpus.archive.records import Losses, Record, read_records
from groundup.corpus.archive.warc import Page, WarcWriter, complete_prefix, page_of
from groundup.corpus.extract.page_text import decode
from groundup.corpus.urls import MAX_URL_LENGTH, TRAP, canonical, host_of, path_and_query, split_url, unescaped

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 5
INDEX_LEVELS = 3  # of sitemaps; the standard has one, and real sites have more
MAX_URLS = 1_000_000  # what a trap can make us remember
MAX_CRAWL_DELAY = 60.0  # seconds, so 1,440 pages a day; a site that asks for eleven days would hold the run
MAX_BUSY = 5  # URLs in a row that a server is too busy to answer; then it wants to be left alone


@dataclass
class CrawlCount:
    """What a crawl brought: pages and bytes of their bodies, and how many URLs gave no page, by reason."""

    pages: int = 0
    bytes: int = 0
    refused: dict[str, int] = field(default_factory=dict)


def crawl(
    start: str,
    warc: Path,
    *,
    record_as: str | None = None,
    max_bytes: int,
    max_pages: int,
    exclude: list[str],
    requests_per_second: float | None,
    allow_private: bool = False,
    progress: Progress | None = None,
    rewrite: Callable[[bytes], bytes] | None = None,
    only_listed: bool = False,
) -> CrawlCount:
    """Fetch the pages of one host from `start` on, and append them to `warc`, resuming from what it already holds.

    Stops before the next request once `max_bytes` of page bodies or `max_pages` are there. `exclude` holds prefixes of
    path and query. `record_as` ("http://docs.localhost") takes the place of scheme and host in every URL recorded.
    `rewrite` is applied to each page body before it is recorded. `only_listed`: `start` is a sitemap or an index of
    sitemaps, and only what it lists is fetched. Addresses that are not public are refused unless
    `allow_private`. Raises UserError when the host cannot be reached, or is too busy to answer; the pages already
    fetched stay in `warc`.
    """
    first = canonical(start)
    if first is None:
        raise UserError(f"{start}: not an http or https address")
    reach = split_url(first)
    assert reach  # canonical
    if record_as:
        first = canonical(urljoin(record_as, path_and_query(first))) or first
    client = Client(requests_per_second, allow_private, (reach.scheme, reach.netloc) if record_as else None)
    try:
        rules = _robots(client, first)
    except Unreachable as error:
        raise UserError(f"{start}: cannot be reached ({error}): check the network or the address") from None
    if rules.delay and requests_per_second:
        client.pause = max(client.pause, min(rules.delay, MAX_CRAWL_DELAY))
        if rules.delay > MAX_CRAWL_DELAY:
            asked = f"  {start:.150}: robots.txt asks for {rules.delay:.6g} seconds between two requests"
            logger.warning(f"{asked}; {MAX_CRAWL_DELAY:.0f} are kept")

    visit = _Visit(first, exclude, rules, only_listed)
    if warc.exists():
        size, whole = warc.stat().st_size, complete_prefix(warc)
        if whole < size:
            said = f"  {warc}: damaged, or cut off, after {whole:,} bytes; the rest is fetched again"
            logger.info(said)
            os.truncate(warc, whole)
        visit.replay(warc)
    if progress:
        progress.done = progress.done_at_start = visit.count.pages
    with WarcWriter(warc, append=True) as out:
        while visit.count.pages < max_pages and visit.count.bytes < max_bytes:
            url = visit.next_url()
            if url is None:
                break
            try:
                found = _ask(client, url, url in visit.sitemaps)
            except Unreachable as error:
                raise UserError(f"{url}: cannot be reached any more ({error}): run the same command again to resume") from None
            if found.answer.outcome in BUSY and visit.postpone(url):
                continue
            target = canonical(found.answer.location, url) if found.answer.location else None
            if url == first and target and host_of(target) != visit.home:
                raise UserError(f"{start}: redirects to {target}, which is another host: give that address")
            page = found.answer.page
            if page:
                if rewrite:
                    page.body = rewrite(page.body)
                out.response(url, 200, found.answer.headers, page.body)
            else:
                out.metadata(url, found.fields(target))
            visit.settle(url, found)
            if progress:
                progress.advance(int(page is not None), note=f"{visit.count.bytes / 1e6:.1f} MB")
    visit.count.refused = dict(sorted(visit.refused.items()))
    return visit.count


@dataclass
class _Found:
    """What asking for a URL gave: an answer; of a sitemap, the addresses of pages and of sitemaps that it lists."""

    answer: FetchResult
    pages: list[str] = field(default_factory=list)
    sitemaps: list[str] = field(default_factory=list)

    def fields(self, target: str | None) -> list[tuple[str, str]]:
        """`target`: where a redirect leads, canonical: of an address as it was sent, a record would keep other white space."""
        location = [("location", target)] if target else []
        listed = [("outlink", url) for url in self.pages] + [("sitemap", url) for url in self.sitemaps]
        return [("outcome", self.answer.outcome), *location, *listed]

    @staticmethod
    def recorded(record: Record, name: str) -> "_Found":
        page = page_of(record, name, Losses())
        if page:
            return _Found(FetchResult("page", page))
        found: dict[str, list[str]] = {}
        for line in record.block.decode("utf-8", "replace").splitlines():
            key, _, value = line.partition(": ")
            found.setdefault(key, []).append(value)
        answer = FetchResult(found.get("outcome", ["unknown"])[0], location=found.get("location", [None])[0])
        return _Found(answer, found.get("outlink", []), found.get("sitemap", []))


def _ask(client: Client, url: str, sitemap: bool) -> _Found:
    if not sitemap:
        return _Found(client.fetch(url))
    answer = client.fetch(url, types=None, max_bytes=MAX_SITEMAP_BYTES)
    if not answer.page:
        return _Found(answer)
    is_index, listed = parse_sitemap(answer.page.body)
    own = [link for link in (canonical(found, url) for found in listed) if link and host_of(link) == host_of(url)]
    own = [link for link in dict.fromkeys(own) if len(link) <= MAX_URL_LENGTH]
    return _Found(FetchResult("sitemap"), *(([], own) if is_index else (own, [])))


class _Visit:
    """What is known, and what is next. Depends on the records settled so far and on nothing else."""

    def __init__(self, first: str, exclude: list[str], rules: RobotsRules, only_listed: bool) -> None:
        self.home = host_of(first)
        self.only_listed = only_listed
        self.exclude = tuple(exclude)
        self.rules = rules
        self.count = CrawlCount()
        self.refused: Counter[str] = Counter()
        self.queue: deque[str] = deque()
        self.seen: set[str] = set()
        self.done: set[str] = set()
        self.hops: dict[str, int] = {}  # redirects that led to a URL
        self.sitemaps: dict[str, int] = {}  # those to be read, and how many levels of indexes may follow
        self.postponed: set[str] = set()
        self.busy = 0
        if only_listed:
            self._add_sitemap(first, INDEX_LEVELS)
            return
        self._add(first)
        for link in rules.sitemaps:
            self._add_sitemap(canonical(link, first), INDEX_LEVELS)

    def next_url(self) -> str | None:
        while self.queue:
            url = self.queue.popleft()
            if url not in self.done:
                return url
        return None

    def postpone(self, url: str) -> bool:
        """Put a URL that got "busy" for an answer at the end, once. Raises UserError at the fifth such answer in a row."""
        self.busy += 1
        if self.busy >= MAX_BUSY:
            raise UserError(f"{url}: the server is too busy: run the same command later to resume")
        if url in self.postponed:
            return False
        self.postponed.add(url)
        self.queue.append(url)
        return True

    def settle(self, url: str, found: _Found) -> None:
        self.done.add(url)
        self.seen.add(url)
        page, outcome = found.answer.page, found.answer.outcome
        if outcome not in BUSY:
            self.busy = 0
        if page:
            self.count.pages += 1
            self.count.bytes += len(page.body)
            for link in () if self.only_listed else links(page):
                self._add(link)
            return
        for link in found.pages:
            self._add(link)
        levels = self.sitemaps.get(url, 0)
        for link in found.sitemaps:
            if levels:
                self._add_sitemap(link, levels - 1)
            else:
                self.refused["nested sitemap"] += 1
        if outcome != "sitemap":
            self.refused[outcome] += 1
        location = found.answer.location
        target = canonical(location, url) if location else None
        hops = self.hops.get(url, 0) + 1
        if target and hops <= MAX_REDIRECTS and self._is_new(target):
            self.hops[target] = hops
            if url in self.sitemaps:
                self.sitemaps[target] = levels
            self.queue.appendleft(target)

    def replay(self, warc: Path) -> None:
        for record in read_records(warc, Losses()):
            self.settle(record.url, _Found.recorded(record, warc.name))

    def _add(self, url: str) -> bool:
        new = self._is_new(url)
        if new:
            self.queue.append(url)
        return new

    def _add_sitemap(self, url: str | None, levels: int) -> None:
        if url and self._add(url):
            self.sitemaps[url] = levels

    def _is_new(self, url: str) -> bool:
        """Whether to fetch it; a URL is asked about once, so that each refusal counts once."""
        if url in self.seen or host_of(url) != self.home:
            return False
        if len(self.seen) >= MAX_URLS:
            self.refused["too many URLs"] += 1
            return False
        self.seen.add(url)
        path = path_and_query(url)
        if len(url) > MAX_URL_LENGTH:
            self.refused["long URL"] += 1
        elif TRAP.search(path):
            self.refused["trap"] += 1
        elif path.startswith(self.exclude):
            self.refused["excluded"] += 1
        elif not self.rules.allows(path):
            self.refused["robots.txt"] += 1
        else:
            return True
        return False


def _robots(client: Client, first: str) -> RobotsRules:
    """The host's rules as RFC 9309 has it: none when the file is missing, none of the host when its server fails."""
    url = canonical("/robots.txt", first)
    for _ in range(MAX_REDIRECTS + 1):
        answer = client.fetch(url or "", patient=False, types=None)  # stores of files serve all as bytes, this too
        url = canonical(answer.location, url) if answer.location else None
        if url is None or host_of(url) != host_of(first):
            break
    if answer.page:
        return parse_robots(decode(answer.page), AGENT.partition("/")[0])
    if answer.outcome.startswith(("status 5", "status 429", "timeout", "incomplete")):
        return NOTHING_ALLOWED
    return RobotsRules()


# A tree would be exact and thirty times slower; what this finds in a comment costs one request.
HREF = re.compile(r"""<(a|area|base)\b[^<>]*?\shref\s*=\s*("[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)""", re.IGNORECASE)


def links(page: Page) -> list[str]:
    """Canonical URLs that an HTML page links to, in order, each once."""
    if page.content_type not in HTML_TYPES:
        return []
    base, found = page.url, {}
    for tag, quoted in HREF.findall(decode(page)):
        link = unescaped(quoted.strip("\"'"))
        if tag.lower() == "base":
            base = canonical(link, page.url) or base
        else:
            found[link.partition("#")[0]] = None
    whole = (canonical(link, base) for link in found if link)
    return [link for link in dict.fromkeys(whole) if link]
