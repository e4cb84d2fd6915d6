"""Parts of large remote files, at most ten at a time, each kept on disk from the moment it is whole.

The log is append-only: one line that states the range, then the bytes. A download that was killed, even by kill -9,
opens it again, drops an entry that was being written, and requests nothing that it holds. Requests to a busy server (429,
5xx) are repeated after a pause that doubles, for all connections together; those that it forbids (403) are not.
"""

import http.client
import io
import logging
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from groundup.core.errors import UserError
from groundup.corpus.acquire import fetch
from groundup.corpus.acquire.fetch import AGENT, Unreachable, back_off, retry_seconds
from groundup.corpus.archive.records import natural

logger = logging.getLogger(__name__)

CONNECTIONS = 10  # with more, data.commoncrawl.org answers 403, for hours
ATTEMPTS = 8
REQUEST_SECONDS = 60.0  # then a new request continues after the bytes that came
IDLE_SECONDS = 20.0
MAX_WAIT_SECONDS = 120.0
BLOCK = 1 << 20  # bytes that a `RangeFile` requests at a time
CHUNK = 1 << 16
MAX_WHOLE_BYTES = 256 << 20  # of a file that is requested whole

Range = tuple[str, int, int | None]  # path, first byte, number of bytes (None: to the end)


@dataclass
class _Entry:
    position: int  # of the bytes in the log
    length: int
    total: int  # bytes of the remote file, 0 if unknown
    head: bytes  # the line before the bytes, without its checksum
    crc: int  # of the head and the bytes


class Retryable(Exception):
    """A request failed in a way that may pass; `wait`: the seconds that the server asks to wait."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class Missing(UserError):
    """There is no such file. The other ranges can still be downloaded."""


class Ranges:
    """Byte ranges of the files under `base`, from the log or the server.

    with Ranges("https://data.commoncrawl.org/", Path("a.fetched")) as ranges:
        listing = ranges.get(("crawl-data/CC-MAIN-2026-17/warc.paths.gz", 0, None))
    """

    def __init__(self, base: str, log: Path, connections: int = CONNECTIONS) -> None:
        self.base = base if base.endswith("/") else base + "/"
        self.connections = min(connections, CONNECTIONS)
        self.entries: dict[Range, _Entry] = {}
        self.log = log.open("a+b")
        self._read_log()
        self.pool = ThreadPoolExecutor(self.connections)
        self.local = threading.local()
        self.lock = threading.Lock()
        self.not_before = 0.0
        self.stopped = threading.Event()
        self.failure: UserError | None = None  # permanent: ends all requests to come
        self.open: list[http.client.HTTPConnection] = []

    def __enter__(self) -> "Ranges":
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for connection in list(self.open):
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)  # wakes its reader up
        self.pool.shutdown(cancel_futures=True)
        self.log.close()

    def _read_log(self) -> None:
        size, complete = self.log.seek(0, io.SEEK_END), 0
        self.log.seek(0)
        while line := self.log.readline(8192):
            try:
                head, _, crc = line.removesuffix(b"\n").rpartition(b" ")
                path, start, length, kept_length, total = head.decode().split(" ")
                entry = _Entry(self.log.tell(), int(kept_length), int(total), head, int(crc))
                asked_length = int(length) if int(length) >= 0 else None
            except ValueError:
                break
            if entry.position + entry.length > size:
                break
            self.entries[path, int(start), asked_length] = entry
            complete = self.log.seek(entry.position + entry.length)
        self.log.truncate(complete)

    def get(self, wanted: Range) -> bytes:
        """The bytes, fewer only where the file ends. Raises UserError when the server refuses them permanently."""
        return self.submit(wanted).result()

    def total(self, path: str, start: int, length: int | None) -> int:
        """Size of the file, known once the range was fetched."""
        entry = self.entries[path, start, length]
        return entry.total or entry.length

    def submit(self, wanted: Range) -> "Future[bytes]":
        return self.pool.submit(self._from_log_or_server, wanted)

    def in_order(self, wanted: Iterable[Range]) -> Iterator[bytes]:
        """The ranges one after another, the next ones being fetched meanwhile; b"" where there is no such file."""
        waiting: deque[Future[bytes]] = deque()
        for byte_range in wanted:
            waiting.append(self.submit(byte_range))
            if len(waiting) > 2 * self.connections:
                yield _content_or_empty(waiting.popleft())
        while waiting:
            yield _content_or_empty(waiting.popleft())

    def _from_log_or_server(self, wanted: Range) -> bytes:
        with self.lock:
            entry = self.entries.get(wanted)
            if entry:
                self.log.seek(entry.position)
                content = self.log.read(entry.length)
                if zlib.crc32(content, zlib.crc32(entry.head)) == entry.crc:
                    return content
                logger.warning(f"{self.log.name}: {wanted[0]} is damaged: fetched again")
        content, total = self._download(wanted)
        path, start, length = wanted
        head = f"{path} {start} {-1 if length is None else length} {len(content)} {total}".encode()
        crc = zlib.crc32(content, zlib.crc32(head))
        line = b"%b %d\n" % (head, crc)
        with self.lock:
            position = self.log.seek(0, io.SEEK_END)
            self.log.write(line + content)
            self.log.flush()
            self.entries[wanted] = _Entry(position + len(line), len(content), total, head, crc)
        return content

    def _download(self, wanted: Range) -> tuple[bytes, int]:
        path, start, length = wanted
        received = bytearray()
        for attempt in range(1, ATTEMPTS + 1):
            while (wait := self.not_before - time.monotonic()) > 0 and not self.stopped.wait(wait):
                pass
            if self.stopped.is_set():
                raise self.failure or Unreachable("stopped")
            try:
                total = self._request(path, start, length, received)
                return bytes(received), total
            except Missing:
                raise
            except UserError as error:
                raise self._give_up(error) from None
            except (Retryable, Unreachable, OSError, http.client.HTTPException) as error:
                self._hang_up()
                why = " ".join(str(error).split()) or type(error).__name__
                wait = getattr(error, "wait", None)
            pause = back_off(attempt, f"{path} {start}") if wait is None else wait
            if attempt == ATTEMPTS or pause > MAX_WAIT_SECONDS:
                break
            with self.lock:
                self.not_before = max(self.not_before, time.monotonic() + pause)
        raise self._give_up(UserError(f"{self.base}{path}: cannot be downloaded ({why}): run the same command later to resume"))

    def _give_up(self, error: UserError) -> UserError:
        with self.lock:
            self.failure = self.failure or error
        self.stopped.set()
        return self.failure

    def _request(self, path: str, start: int, length: int | None, received: bytearray) -> int:
        """Add to `received` what is missing of the range; returns the size of the file, 0 if unknown."""
        deadline = time.monotonic() + REQUEST_SECONDS
        first = start + len(received)
        last = "" if length is None else str(start + length - 1)
        connection = self._connection()
        headers = {"User-Agent": AGENT, "Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
        connection.request("GET", urlsplit(self.base).path + path, headers=headers)
        response = connection.getresponse()
        if response.status == 403:
            raise UserError(
                f"{self.base}{path}: 403 Forbidden: too many requests; wait some hours, then run the same command again to resume"
            )
        if response.status in (429, 500, 502, 503, 504):
            raise Retryable(f"status {response.status}", retry_seconds(response.headers["Retry-After"]))
        if response.status == 416:  # there is nothing so far into the file
            response.read(CHUNK)
            return first
        if response.status == 200 and first == 0 and length is None:
            total = 0
        elif response.status == 206:
            content_range, _, size = (response.headers["Content-Range"] or "").removeprefix("bytes ").partition("/")
            if content_range.partition("-")[0] != str(first):
                raise Retryable(f"requested from byte {first}, got {content_range or 'no range'}")
            total = natural(size) or 0
        elif response.status == 200:
            raise Retryable("the server does not serve ranges")
        elif response.status in (404, 410):
            response.read(CHUNK)
            if not response.isclosed():
                self._hang_up()
            raise Missing(f"{self.base}{path}: status {response.status}: check the name of the crawl")
        else:
            raise UserError(f"{self.base}{path}: status {response.status}: check the name of the crawl")
        promised = response.length
        end = length if length is not None else MAX_WHOLE_BYTES
        end = min(end, total - start) if total else end
        while len(received) < end and (part := response.read1(min(CHUNK, end - len(received)))):
            received += part
            if time.monotonic() > deadline and len(received) < end:
                raise Retryable("too slow")
            if self.stopped.is_set():
                raise Unreachable("stopped")
        if len(received) < end and (length is not None or total or response.length):
            raise Retryable(f"{len(received)} of {end} bytes came, {promised} were promised")
        if response.length or response.will_close:  # more than was requested, or the last answer of this connection
            self._hang_up()
        response.close()  # so that the connection takes another request
        return total

    def _connection(self) -> http.client.HTTPConnection:
        connection = getattr(self.local, "connection", None)
        if connection is None:
            address = urlsplit(self.base)
            tls = address.scheme == "https"
            host, port = address.hostname or "", address.port or (443 if tls else 80)
            connection = http.client.HTTPConnection(host, port)
            # The user gave this address, not a page, so it may be a private one.
            connection.sock = fetch.connect(host, port, tls, allow_private=True)
            connection.sock.settimeout(IDLE_SECONDS)
            connection.auto_open = 0  # a lost connection raises, and is opened again here
            self.local.connection = connection
            self.open.append(connection)
        return connection

    def _hang_up(self) -> None:
        connection, self.local.connection = getattr(self.local, "connection", None), None
        if connection:
            self.open.remove(connection)
            with suppress(OSError):
                connection.close()


def _content_or_empty(content: "Future[bytes]") -> bytes:
    try:
        return content.result()
    except Missing:
        return b""


class RangeFile(io.RawIOBase):
    """A remote file to read and seek in; the blocks ahead are fetched while one is read."""

    def __init__(self, ranges: Ranges, path: str) -> None:
        super().__init__()
        self.ranges, self.path = ranges, path
        self.position = 0
        self.blocks: dict[int, Future[bytes]] = {}
        self._block(0)
        self.size = ranges.total(path, 0, BLOCK)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = (0, self.position, self.size if whence == io.SEEK_END else 0)[whence] + offset
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        number, offset = divmod(self.position, BLOCK)
        if self.position >= self.size:
            return 0
        part = self._block(number)[offset : offset + len(buffer)]
        for ahead in range(number + 1, min(number + self.ranges.connections, -(-self.size // BLOCK))):
            self._future(ahead)
        for behind in [known for known in self.blocks if known < number - 1]:
            del self.blocks[behind]
        buffer[: len(part)] = part
        self.position += len(part)
        return len(part)

    def _future(self, number: int) -> "Future[bytes]":
        if number not in self.blocks:
            self.blocks[number] = self.ranges.submit((self.path, number * BLOCK, BLOCK))
        return self.blocks[number]

    def _block(self, number: int) -> bytes:
        return self._future(number).result()
