"""A polite crawler for one host: breadth first, robots.txt obeyed, one request at a time, into a WARC file.

The WARC is the crawl's whole state. Every URL that was asked for leaves one record: a response where it gave a page,
otherwise metadata that says why not. A crawl that was cut off reads them back, in order, and goes on as if it had
never stopped; nothing is asked for twice but robots.txt, whose rules may have changed.
"""

import contextlib
import html
import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
import urllib.robotparser
import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from groundup import __version__
from groundup.corpus.extract import HTML_TYPES, decode
from groundup.corpus.warc import (
    Losses,
    Page,
    WarcWriter,
    complete_prefix,
    page_of,
    parse_content_type,
    read_records,
)
from groundup.errors import UserError
from groundup.progress import Progress

AGENT = f"groundup/{__version__}"
PAGE_TYPES = (*HTML_TYPES, "text/plain")
MAX_PAGE_BYTES = 16 << 20
CONNECT_SECONDS = 15.0
REQUEST_SECONDS = 60.0  # from the connection to the last byte, however slowly they drip
ATTEMPTS = 4
BACK_OFF_SECONDS = 1.0  # doubled with every further attempt
MAX_RETRY_AFTER_SECONDS = 120.0
AGAIN = ("status 429", "status 502", "status 503", "status 504", "incomplete")
KEPT_HEADERS = ("Content-Type", "Content-Language", "Last-Modified")
MAX_URL_LENGTH = 2000  # longer ones come from traps that add to themselves
MAX_REDIRECTS = 5


@dataclass
class Answer:
    """A page, or why there is none: `outcome` is "page", "redirect", "status 404", "type", "size", "timeout", ..."""

    outcome: str
    page: Page | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)  # that say something of the page
    location: str | None = None
    retry_after: float | None = None  # seconds


class Unreachable(Exception):
    """No connection: the host, the network or the address is at fault, not the page."""


class Client:
    """Asks one host for pages, one at a time; `origin` (scheme, host:port) is connected to in place of that in URLs."""

    def __init__(
        self, requests_per_second: float | None, allow_private: bool, origin: tuple[str, str] | None = None
    ) -> None:
        self.pause = 1 / requests_per_second if requests_per_second else 0.0
        self.allow_private = allow_private
        self.origin = origin
        self.next_request = 0.0

    def fetch(self, url: str, patient: bool = True) -> Answer:
        """Ask for a page, again where that may help. Raises Unreachable when the host is.

        An impatient fetch does not wait for a host that cannot be reached.
        """
        for attempt in range(1, ATTEMPTS + 1):
            time.sleep(max(0.0, self.next_request - time.monotonic()))
            self.next_request = time.monotonic() + self.pause
            wait = BACK_OFF_SECONDS * 2 ** (attempt - 1)
            try:
                answer = self._once(url)
            except Unreachable:
                if attempt == ATTEMPTS or not patient:
                    raise
            else:
                if answer.retry_after is not None:
                    wait = answer.retry_after
                if attempt == ATTEMPTS or answer.outcome not in AGAIN or wait > MAX_RETRY_AFTER_SECONDS:
                    return answer
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, url: str) -> Answer:
        parts = urlsplit(url)
        scheme, netloc = self.origin or (parts.scheme, parts.netloc)
        address = urlsplit(f"{scheme}://{netloc}")
        host, port = address.hostname or "", address.port or {"http": 80, "https": 443}[scheme]
        connection = http.client.HTTPConnection(host, port)
        sock = self._connect(host, port, tls=scheme == "https")
        connection.sock = sock
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the reader up; closing would not

        timer = threading.Timer(REQUEST_SECONDS, expire)
        timer.daemon = True
        timer.start()
        try:
            headers = {"Host": netloc, "User-Agent": AGENT, "Accept": ", ".join(PAGE_TYPES), "Connection": "close"}
            connection.request("GET", urlunsplit(("", "", parts.path, parts.query, "")), headers=headers)
            answer = _read(url, connection.getresponse())
        except (OSError, http.client.HTTPException, zlib.error):
            answer = Answer("incomplete")
        finally:
            timer.cancel()
            connection.close()
            sock.close()
        return Answer("timeout") if expired.is_set() else answer

    def _connect(self, host: str, port: int, tls: bool) -> socket.socket:
        """A connection to the first address that takes it, of those that may be connected to.

        The environment's proxies are not used: the address that is checked must be the one that is connected to.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Unreachable(error) from None
        allowed = [entry for entry in found if self.allow_private or _is_public(str(entry[4][0]))]
        if not allowed:
            raise Unreachable(f"{found[0][4][0]} is not a public address")
        failure: OSError | None = None
        for family, kind, protocol, _, address in allowed:
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(CONNECT_SECONDS)
            try:
                sock.connect(address)
                if tls:
                    sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
                sock.settimeout(REQUEST_SECONDS)
                return sock
            except OSError as error:
                sock.close()
                failure = error
        raise Unreachable(failure)


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.split("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_global


def _read(url: str, response: http.client.HTTPResponse) -> Answer:
    status = response.status
    if status in (301, 302, 303, 307, 308) and response.headers["Location"]:
        return Answer("redirect", location=response.headers["Location"])
    if status != 200:
        return Answer(f"status {status}", retry_after=_seconds(response.headers["Retry-After"]))
    content_type, charset = parse_content_type(response.headers["Content-Type"] or "")
    if content_type not in PAGE_TYPES:
        return Answer("type")
    body = response.read(MAX_PAGE_BYTES + 1)
    if len(body) <= MAX_PAGE_BYTES and response.length:  # the server promised more
        return Answer("incomplete")
    encoding = (response.headers["Content-Encoding"] or "identity").strip().lower()
    if encoding in ("gzip", "x-gzip", "deflate"):  # not asked for, but sent by some
        body = zlib.decompressobj(wbits=47 if "gzip" in encoding else 15).decompress(body, MAX_PAGE_BYTES + 1)
    elif encoding != "identity":
        return Answer("encoding")
    if len(body) > MAX_PAGE_BYTES:
        return Answer("size")
    headers = [(name, response.headers[name]) for name in KEPT_HEADERS if response.headers[name]]
    return Answer("page", Page(url, content_type, body, charset), headers)


def _seconds(retry_after: str | None) -> float | None:
    """'120', or a date, as seconds from now."""
    if retry_after is None:
        return None
    try:
        if retry_after.strip().isdigit():
            return float(retry_after)
        date = parsedate_to_datetime(retry_after)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp())
    except ValueError:
        return None


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
) -> CrawlCount:
    """Fetch the pages of one host from `start` on, and append them to `warc`, going on from what it already holds.

    Stops before the next request once `max_bytes` of page bodies or `max_pages` are there. `exclude` holds prefixes of
    path and query. `record_as` ("http://docs.localhost") takes the place of scheme and host in every URL recorded.
    `rewrite` is applied to each page body before it is recorded. Addresses that are not public are refused unless
    `allow_private`. Raises UserError when the host cannot be reached; the pages already fetched stay in `warc`.
    """
    first = canonical(start)
    if first is None:
        raise UserError(f"{start}: not an http or https address")
    reach = urlsplit(first)
    if record_as:
        first = canonical(urljoin(record_as, urlunsplit(("", "", reach.path, reach.query, "")))) or first
    client = Client(requests_per_second, allow_private, (reach.scheme, reach.netloc) if record_as else None)
    try:
        rules = _robots(client, first)
    except Unreachable as error:
        raise UserError(f"{start}: cannot be reached ({error}): check the network or the address") from None
    delay = rules.crawl_delay(AGENT)
    if delay and requests_per_second:
        client.pause = max(client.pause, float(delay))

    visit = _Visit(first, exclude, rules)
    if warc.exists():
        os.truncate(warc, complete_prefix(warc))
        visit.replay(warc)
    if progress:
        progress.done = progress.done_at_start = visit.count.pages
    with WarcWriter(warc, append=True) as out:
        while visit.count.pages < max_pages and visit.count.bytes < max_bytes:
            url = visit.next_url()
            if url is None:
                break
            try:
                answer = client.fetch(url)
            except Unreachable as error:
                raise UserError(f"{url}: cannot be reached any more ({error}): run again to go on from here") from None
            target = canonical(answer.location, url) if answer.location else None
            if url == first and target and _host(target) != visit.home:
                raise UserError(f"{start}: redirects to {target}, which is another host: give that address")
            if answer.page:
                if rewrite:
                    answer.page.body = rewrite(answer.page.body)
                out.response(url, 200, answer.headers, answer.page.body)
            else:
                location = [("location", answer.location)] if answer.location else []
                out.metadata(url, [("outcome", answer.outcome), *location])
            visit.settle(url, answer.page, answer.outcome, answer.location)
            if progress:
                progress.advance(int(answer.page is not None), note=f"{visit.count.bytes / 1e6:.1f} MB")
    visit.count.refused = dict(sorted(visit.refused.items()))
    return visit.count


class _Visit:
    """What is known, and what is next. Depends on the records settled so far and on nothing else."""

    def __init__(self, first: str, exclude: list[str], rules: urllib.robotparser.RobotFileParser) -> None:
        self.home = _host(first)
        self.exclude = tuple(exclude)
        self.rules = rules
        self.count = CrawlCount()
        self.refused: Counter[str] = Counter()
        self.queue: deque[str] = deque()
        self.seen: set[str] = set()
        self.done: set[str] = set()
        self.hops: dict[str, int] = {}  # redirects that led to a URL
        if self._is_new(first):
            self.queue.append(first)

    def next_url(self) -> str | None:
        while self.queue:
            url = self.queue.popleft()
            if url not in self.done:
                return url
        return None

    def settle(self, url: str, page: Page | None, outcome: str, location: str | None) -> None:
        self.done.add(url)
        self.seen.add(url)
        if page:
            self.count.pages += 1
            self.count.bytes += len(page.body)
            for link in links(page):
                if self._is_new(link):
                    self.queue.append(link)
            return
        self.refused[outcome] += 1
        target = canonical(location, url) if location else None
        hops = self.hops.get(url, 0) + 1
        if target and hops <= MAX_REDIRECTS and self._is_new(target):
            self.hops[target] = hops
            self.queue.appendleft(target)

    def replay(self, warc: Path) -> None:
        losses = Losses()
        for record in read_records(warc, losses):
            page = page_of(record, warc.name, losses)
            fields = {} if page else dict(line.split(": ", 1) for line in record.block.decode().splitlines() if ": " in line)
            self.settle(record.url, page, fields.get("outcome", "unknown"), fields.get("location"))

    def _is_new(self, url: str) -> bool:
        """Whether to fetch it; a URL is asked about once, so that each refusal counts once."""
        if url in self.seen or _host(url) != self.home:
            return False
        self.seen.add(url)
        parts = urlsplit(url)
        if len(url) > MAX_URL_LENGTH:
            self.refused["long URL"] += 1
        elif urlunsplit(("", "", parts.path, parts.query, "")).startswith(self.exclude):
            self.refused["excluded"] += 1
        elif not self.rules.can_fetch(AGENT, url):
            self.refused["robots.txt"] += 1
        else:
            return True
        return False


def _robots(client: Client, first: str) -> urllib.robotparser.RobotFileParser:
    """The host's rules as RFC 9309 has it: none when the file is missing, none of the host when its server fails."""
    rules = urllib.robotparser.RobotFileParser()
    url = canonical("/robots.txt", first)
    for _ in range(MAX_REDIRECTS + 1):
        answer = client.fetch(url or "", patient=False)
        url = canonical(answer.location, url) if answer.location else None
        if url is None or _host(url) != _host(first):
            break
    if answer.page:
        rules.parse(decode(answer.page).splitlines())
    elif answer.outcome.startswith(("status 5", "status 429", "timeout", "incomplete")):
        rules.disallow_all = True
    else:
        rules.allow_all = True
    return rules


def canonical(link: str, base: str | None = None) -> str | None:
    """One spelling a URL: no fragment, no default port, no dot segments, host in lower case, escapes in upper.

    The query is kept as it is: its order can matter to the server. None for what is not http or https.
    """
    try:
        parts = urlsplit(urljoin(base, link.strip()) if base else link.strip())
        host, port = parts.hostname, parts.port
        if parts.scheme not in ("http", "https") or not host:
            return None
        host = host if ":" in host or host.isascii() else host.encode("idna").decode()
    except (ValueError, UnicodeError):
        return None
    host = f"[{host}]" if ":" in host else host
    if port and port != {"http": 80, "https": 443}[parts.scheme]:
        host = f"{host}:{port}"
    path: list[str] = []
    segments = parts.path.split("/")[1:] or [""]
    for segment in segments:
        if segment == "..":
            del path[-1:]
        elif segment != ".":
            path.append(segment)
    if segments[-1] in (".", ".."):
        path.append("")
    return urlunsplit((parts.scheme, host, "/" + _escape("/".join(path)), _escape(parts.query), ""))


def _escape(text: str) -> str:
    escaped = quote(text, safe="/%:@!$&'()*+,;=~?[]", errors="replace")
    return re.sub("%[0-9a-f]{2}", lambda match: match[0].upper(), escaped, flags=re.IGNORECASE)


def _host(url: str) -> str:
    """Host and port; http and https at their usual ports are one site."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 'usual'}"


# A tree would be exact and thirty times slower; what this finds in a comment costs one request.
HREF = re.compile(r"""<(a|area|base)\b[^<>]*?\shref\s*=\s*("[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)""", re.IGNORECASE)


def links(page: Page) -> list[str]:
    """Canonical URLs that an HTML page links to, in order, each once."""
    if page.content_type not in HTML_TYPES:
        return []
    base, found = page.url, {}
    for tag, quoted in HREF.findall(decode(page)):
        link = html.unescape(quoted.strip("\"'"))
        if tag.lower() == "base":
            base = canonical(link, page.url) or base
        else:
            found[link.partition("#")[0]] = None
    whole = (canonical(link, base) for link in found if link)
    return [link for link in dict.fromkeys(whole) if link]
