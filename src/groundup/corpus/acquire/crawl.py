"""A polite crawler for one host: breadth first, robots.txt obeyed, one request at a time, into a WARC file.

The WARC is the crawl's whole state. Every URL that was requested leaves one record: a response where it gave a page,
otherwise metadata that says why not, or what a sitemap lists. An interrupted crawl reads the records back, in order, and
resumes as if it had never stopped. Nothing is requested twice but robots.txt, whose rules may have changed, and what
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
from groundup.corpus.archive.records import Losses, Record, natural, read_records
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
    """Pages that a crawl fetched, the bytes of their bodies, and how many URLs gave no page, by reason."""

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

    Stops before the next request once `max_bytes` of page bodies or `max_pages` are reached. `exclude` holds prefixes of
    path and query. `record_as` ("http://docs.localhost") takes the place of scheme and host in every URL recorded.
    `rewrite` is applied to each page body before it is recorded. `only_listed`: `start` is a sitemap or an index of
    sitemaps, and only what it lists is fetched. Addresses that are not public are refused unless
    `allow_private`. Raises UserError when the host cannot be reached, or is too busy to answer; the pages already
    fetched stay in `warc`.
    """
    first = canonical(start)
    if first is None:
        raise UserError(f"{start}: not an http or https address")
    origin = split_url(first)
    assert origin  # canonical
    if record_as:
        first = canonical(urljoin(record_as, path_and_query(first))) or first
    client = Client(requests_per_second, allow_private, (origin.scheme, origin.netloc) if record_as else None)
    try:
        rules = _rules_of(client, first)
    except Unreachable as error:
        raise UserError(f"{start}: cannot be reached ({error}): check the network or the address") from None
    if rules.delay and requests_per_second:
        client.pause = max(client.pause, min(rules.delay, MAX_CRAWL_DELAY))
        if rules.delay > MAX_CRAWL_DELAY:
            message = f"  {start:.150}: robots.txt asks for {rules.delay:.6g} seconds between two requests"
            logger.warning(f"{message}; {MAX_CRAWL_DELAY:.0f} are kept")

    frontier = _Frontier(first, exclude, rules, only_listed)
    if warc.exists():
        size, complete = warc.stat().st_size, complete_prefix(warc)
        if complete < size:
            message = f"  {warc}: damaged, or cut off, after {complete:,} bytes; the rest is fetched again"
            logger.info(message)
            os.truncate(warc, complete)
        frontier.replay(warc)
    if progress:
        progress.done = progress.done_at_start = frontier.count.pages
    with WarcWriter(warc, append=True) as out:
        while frontier.count.pages < max_pages and frontier.count.bytes < max_bytes:
            url = frontier.next_url()
            if url is None:
                break
            try:
                fetched = _fetch(client, url, url in frontier.sitemaps)
            except Unreachable as error:
                raise UserError(f"{url}: cannot be reached any more ({error}): run the same command again to resume") from None
            if fetched.answer.outcome in BUSY and frontier.postpone(url):
                continue
            target = canonical(fetched.answer.location, url) if fetched.answer.location else None
            if url == first and target and host_of(target) != frontier.home:
                raise UserError(f"{start}: redirects to {target}, which is another host: give that address")
            page = fetched.answer.page
            if page:
                if rewrite:
                    page.body = rewrite(page.body)
                out.response(url, 200, fetched.answer.headers, page.body)
            else:
                out.metadata(url, fetched.fields(target))
            frontier.settle(url, fetched)
            if progress:
                progress.advance(int(page is not None), note=f"{frontier.count.bytes / 1e6:.1f} MB")
    frontier.count.refused = dict(sorted(frontier.refused.items()))
    return frontier.count


@dataclass
class _Fetched:
    """The answer to the request for a URL, and, of a sitemap, the URLs of pages and of sitemaps that it lists."""

    answer: FetchResult
    page_urls: list[str] = field(default_factory=list)
    sitemap_urls: list[str] = field(default_factory=list)
    elsewhere: int = 0  # listed URLs of other hosts, which are not fetched

    def fields(self, target: str | None) -> list[tuple[str, str]]:
        """The fields of a metadata record. `target`: the canonical URL that a redirect leads to; a record would change the
        white space of one as it was sent."""
        location = [("location", target)] if target else []
        listed = [("outlink", url) for url in self.page_urls] + [("sitemap", url) for url in self.sitemap_urls]
        elsewhere = [("elsewhere", str(self.elsewhere))] if self.elsewhere else []
        return [("outcome", self.answer.outcome), *location, *elsewhere, *listed]

    @staticmethod
    def from_record(record: Record, name: str) -> "_Fetched":
        page = page_of(record, name, Losses())
        if page:
            return _Fetched(FetchResult("page", page))
        fields: dict[str, list[str]] = {}
        for line in record.block.decode("utf-8", "replace").splitlines():
            key, _, value = line.partition(": ")
            fields.setdefault(key, []).append(value)
        answer = FetchResult(fields.get("outcome", ["unknown"])[0], location=fields.get("location", [None])[0])
        elsewhere = natural(fields.get("elsewhere", ["0"])[0]) or 0
        return _Fetched(answer, fields.get("outlink", []), fields.get("sitemap", []), elsewhere)


def _fetch(client: Client, url: str, sitemap: bool) -> _Fetched:
    if not sitemap:
        return _Fetched(client.fetch(url))
    answer = client.fetch(url, types=None, max_bytes=MAX_SITEMAP_BYTES)
    if not answer.page:
        return _Fetched(answer)
    is_index, listed = parse_sitemap(answer.page.body)
    links_found = dict.fromkeys(link for link in (canonical(listed_url, url) for listed_url in listed) if link)
    own = [link for link in links_found if host_of(link) == host_of(url)]
    urls = [link for link in own if len(link) <= MAX_URL_LENGTH]
    return _Fetched(FetchResult("sitemap"), *(([], urls) if is_index else (urls, [])), len(links_found) - len(own))


class _Frontier:
    """The crawl frontier: URLs that are known, done and next. Depends on the records settled so far and on nothing else."""

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
        self.hops: dict[str, int] = {}  # by URL: redirects that led to it
        self.sitemaps: dict[str, int] = {}  # by URL of a sitemap to read: levels of indexes that may follow
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
        """Put a URL that was answered "busy" at the end, once. Raises UserError at the fifth such answer in a row."""
        self.busy += 1
        if self.busy >= MAX_BUSY:
            raise UserError(f"{url}: the server is too busy: run the same command later to resume")
        if url in self.postponed:
            return False
        self.postponed.add(url)
        self.queue.append(url)
        return True

    def settle(self, url: str, fetched: _Fetched) -> None:
        self.done.add(url)
        self.seen.add(url)
        page, outcome = fetched.answer.page, fetched.answer.outcome
        if outcome not in BUSY:
            self.busy = 0
        if page:
            self.count.pages += 1
            self.count.bytes += len(page.body)
            for link in () if self.only_listed else links(page):
                self._add(link)
            return
        if fetched.elsewhere:
            self.refused["another host"] += fetched.elsewhere
        for link in fetched.page_urls:
            self._add(link)
        levels = self.sitemaps.get(url, 0)
        for link in fetched.sitemap_urls:
            if levels:
                self._add_sitemap(link, levels - 1)
            else:
                self.refused["nested sitemap"] += 1
        if outcome != "sitemap":
            self.refused[outcome] += 1
        location = fetched.answer.location
        target = canonical(location, url) if location else None
        hops = self.hops.get(url, 0) + 1
        if target and hops <= MAX_REDIRECTS and self._is_new(target):
            self.hops[target] = hops
            if url in self.sitemaps:
                self.sitemaps[target] = levels
            self.queue.appendleft(target)

    def replay(self, warc: Path) -> None:
        for record in read_records(warc, Losses()):
            self.settle(record.url, _Fetched.from_record(record, warc.name))

    def _add(self, url: str) -> bool:
        new = self._is_new(url)
        if new:
            self.queue.append(url)
        return new

    def _add_sitemap(self, url: str | None, levels: int) -> None:
        if url and self._add(url):
            self.sitemaps[url] = levels

    def _is_new(self, url: str) -> bool:
        """Whether to fetch a URL. True at most once for each URL, and a refusal is counted once."""
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


def _rules_of(client: Client, first: str) -> RobotsRules:
    """The host's rules by RFC 9309: all is allowed when the file is missing, nothing when the server fails. Redirects lead to
    other hosts too (2.3.1.2), but for the server of this machine's documentation."""
    url = canonical("/robots.txt", first)
    for _ in range(MAX_REDIRECTS + 1):
        try:
            answer = client.fetch(url or "", patient=False, types=None)  # object stores serve every file as bytes, this too
        except Unreachable:
            if host_of(url or "") == host_of(first):
                raise
            return NOTHING_ALLOWED
        url = canonical(answer.location, url) if answer.location else None
        if url is None or (client.origin and host_of(url) != host_of(first)):
            break
    if answer.page:
        return parse_robots(decode(answer.page), AGENT.partition("/")[0])
    if answer.outcome.startswith(("status 5", "status 429", "timeout", "incomplete")):
        return NOTHING_ALLOWED
    return RobotsRules()


# Parsing the tree would be exact and thirty times slower; a link that this finds in a comment costs one request.
_VALUE = r"""("[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)"""
HREF = re.compile(rf"<(a|area|base)\b[^<>]*?\shref\s*=\s*{_VALUE}", re.IGNORECASE)
# The first page of many a documentation is one of these two, and has no other link.
FRAME = re.compile(rf"<frame\b[^<>]*?\ssrc\s*=\s*{_VALUE}", re.IGNORECASE)
REFRESH = re.compile(
    r"""<meta\b(?=[^<>]*?\brefresh\b)[^<>]*?\scontent\s*=\s*["']?\s{0,9}[\d.]*\s{0,9}[;,]?\s{0,9}url\s{0,9}=\s{0,9}["']?([^"'\s<>]+)""",
    re.IGNORECASE,
)


def links(page: Page) -> list[str]:
    """Canonical URLs that an HTML page links to, in order, each once."""
    if page.content_type not in HTML_TYPES:
        return []
    text = decode(page)
    base, found = None, []
    for tag, quoted in HREF.findall(text):
        if tag.lower() != "base":
            found.append(quoted)
        elif base is None:  # the first one counts
            base = canonical(unescaped(quoted.strip("\"'")), page.url)
    found += FRAME.findall(text) + REFRESH.findall(text)
    hrefs = dict.fromkeys(unescaped(quoted.strip("\"'")).partition("#")[0] for quoted in found)
    urls = (canonical(link, base or page.url) for link in hrefs if link)
    return [link for link in dict.fromkeys(urls) if link]
