"""One page from one host: connections to public addresses only, limits on bytes and time, retries with back-off."""

import contextlib
import http.client
import math
import socket
import ssl
import threading
import time
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from urllib.parse import urlsplit, urlunsplit

from groundup import __version__
from groundup.corpus.addresses import is_public
from groundup.corpus.archive.content_type import HTML_TYPES, gives_text, kind_of_body, may_give_text, parse_content_type
from groundup.corpus.archive.http_message import undo_encodings
from groundup.corpus.archive.records import natural
from groundup.corpus.archive.warc import Page

AGENT = f"groundup/{__version__}"
PAGE_TYPES = (*HTML_TYPES, "text/plain")
MAX_PAGE_BYTES = 16 << 20
CONNECT_SECONDS = 15.0
REQUEST_SECONDS = 60.0  # from the connection to the last byte, however slowly they come
ATTEMPTS = 4
BACK_OFF_SECONDS = 1.0  # doubled with every further attempt
MAX_RETRY_AFTER_SECONDS = 120.0
BUSY = ("status 429", "status 503")
RETRIED = (*BUSY, "status 502", "status 504", "incomplete")
KEPT_HEADERS = ("Content-Type", "Content-Language", "Last-Modified")


@dataclass
class FetchResult:
    """A page, or why there is none: `outcome` is "page", "redirect", "status 404", "type", "size", "timeout", ..."""

    outcome: str
    page: Page | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)  # of KEPT_HEADERS
    location: str | None = None
    retry_after: float | None = None  # seconds


class Unreachable(Exception):
    """No connection: the host, the network or the address is at fault, not the page."""


class Client:
    """Fetches pages of one host, one at a time; connects to `origin` (scheme, host:port), if given, instead of the URL's."""

    def __init__(
        self, requests_per_second: float | None, allow_private: bool, origin: tuple[str, str] | None = None
    ) -> None:
        self.pause = 1 / requests_per_second if requests_per_second else 0.0
        self.allow_private = allow_private
        self.origin = origin
        self.next_request = 0.0

    def fetch(
        self,
        url: str,
        patient: bool = True,
        types: tuple[str, ...] | None = PAGE_TYPES,
        max_bytes: int = MAX_PAGE_BYTES,
    ) -> FetchResult:
        """Request a page, with retries where that may help. Raises Unreachable when the host is unreachable.

        Content of other than `types` (None: any) is not read; nor are more than `max_bytes`, as sent or once decoded.
        `patient`: whether to wait for a host that cannot be reached.
        """
        for attempt in range(1, ATTEMPTS + 1):
            time.sleep(max(0.0, self.next_request - time.monotonic()))
            self.next_request = time.monotonic() + self.pause
            wait = back_off(attempt, url)
            try:
                answer = self._request(url, types, max_bytes)
            except Unreachable:
                if attempt == ATTEMPTS or not patient:
                    raise
            else:
                if answer.retry_after is not None:
                    wait = answer.retry_after
                if attempt == ATTEMPTS or answer.outcome not in RETRIED or wait > MAX_RETRY_AFTER_SECONDS:
                    return answer
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _request(self, url: str, types: tuple[str, ...] | None, max_bytes: int) -> FetchResult:
        parts = urlsplit(url)
        scheme, netloc = self.origin or (parts.scheme, parts.netloc)
        address = urlsplit(f"{scheme}://{netloc}")
        host, port = address.hostname or "", address.port or {"http": 80, "https": 443}[scheme]
        try:
            connection = http.client.HTTPConnection(host, port)
        except http.client.HTTPException as error:  # a character that no host has
            raise Unreachable(error) from None
        sock = connect(host, port, scheme == "https", self.allow_private)
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
            headers = {"Host": netloc, "User-Agent": AGENT, "Accept": ", ".join(types or ("*/*",)), "Connection": "close"}
            connection.request("GET", urlunsplit(("", "", parts.path, parts.query, "")), headers=headers)
            answer = _read_response(url, connection.getresponse(), types, max_bytes)
        except TimeoutError:  # the socket's own clock, which may be a moment before ours
            answer = FetchResult("timeout")
        except (OSError, http.client.HTTPException, zlib.error):
            answer = FetchResult("incomplete")
        finally:
            timer.cancel()
            connection.close()
            sock.close()
        return FetchResult("timeout") if expired.is_set() else answer


def connect(host: str, port: int, tls: bool, allow_private: bool) -> socket.socket:
    """A connection to the first of the host's allowed addresses that accepts it.

    The environment's proxies are not used: the address that is checked must be the one that is connected to.
    """
    try:
        resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be looked up
        raise Unreachable(error) from None
    allowed = [entry for entry in resolved if allow_private or is_public(str(entry[4][0]))]
    if not allowed:
        raise Unreachable(f"{resolved[0][4][0]} is not a public address")
    failure: OSError | ValueError | None = None
    for family, kind, protocol, _, address in allowed:
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(CONNECT_SECONDS)
        try:
            sock.connect(address)
            if tls:
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
            sock.settimeout(REQUEST_SECONDS)
            return sock
        except (OSError, ValueError) as error:  # ValueError: a name that no certificate can have
            sock.close()
            failure = error
    raise Unreachable(failure)


def back_off(attempt: int, url: str) -> float:
    """Seconds to wait after a failed attempt (from 1), with a jitter that is the same on every run."""
    jitter = blake2b(f"{attempt} {url}".encode(), digest_size=2).digest()
    return BACK_OFF_SECONDS * 2 ** (attempt - 1) * (1 + int.from_bytes(jitter) / 2**17)


def _read_response(
    url: str, response: http.client.HTTPResponse, types: tuple[str, ...] | None, max_bytes: int
) -> FetchResult:
    status = response.status
    if status in (301, 302, 303, 307, 308) and (location := response.headers["Location"]):
        return FetchResult("redirect", location=_as_utf8(location))
    if status != 200:
        return FetchResult(f"status {status}", retry_after=retry_seconds(response.headers["Retry-After"]))
    stated_type, charset = parse_content_type(response.headers.get_all("Content-Type") or [])
    if types is not None and stated_type not in types and (gives_text(stated_type) or not may_give_text(stated_type)):
        return FetchResult("type")
    body = response.read(max_bytes + 1)
    if len(body) <= max_bytes:
        if response.length:  # the server promised more
            return FetchResult("incomplete")
        try:
            # Some servers send encodings that were not requested.
            body, complete = undo_encodings(body, ",".join(response.headers.get_all("Content-Encoding") or []), max_bytes)
        except ValueError:
            return FetchResult("encoding")
        if not complete and len(body) <= max_bytes:
            return FetchResult("incomplete")
    if len(body) > max_bytes:
        return FetchResult("size")
    content_type = kind_of_body(stated_type, "", body, charset)
    if types is not None and content_type not in types:
        return FetchResult("type")
    headers = [(name, value) for name in KEPT_HEADERS for value in response.headers.get_all(name) or []]
    return FetchResult("page", Page(url, content_type, body, charset), headers)


def _as_utf8(header: str) -> str:
    """A header as browsers read it: as UTF-8 where it is valid; the library reads its bytes as Latin-1."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def retry_seconds(retry_after: str | None) -> float | None:
    """The value of Retry-After, '120' or a date, as seconds from now."""
    if retry_after is None:
        return None
    try:
        if (digits := retry_after.strip()).isascii() and digits.isdigit():
            seconds = natural(digits)
            return math.inf if seconds is None else float(seconds)
        date = parsedate_to_datetime(retry_after)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp())
    except (ValueError, OverflowError):
        return None
