"""Parts of large remote files, at most ten at a time, each kept on disk from the moment it is whole.

The log is append-only: one line that says what was asked, then the bytes. A download that was killed, even by kill -9,
opens it again, drops an entry that was being written, and asks for nothing that it holds. A server that is busy (429,
5xx) is asked again after a pause that doubles, for all connections together; one that forbids (403) is not.
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
from groundup.corpus.acquire.fetch import AGENT, Unreachable, back_off, seconds_of
from groundup.corpus.archive.records import natural

logger = logging.getLogger(__name__)

CONNECTIONS = 10  # with more, data.commoncrawl.org answers 403, for hours
ATTEMPTS = 8
REQUEST_SECONDS = 60.0  # then a new request continues after the bytes that came
IDLE_SECONDS = 20.0
MAX_WAIT_SECONDS = 120.0
BLOCK = 1 << 20  # what a `RangeFile` asks for at a time
CHUNK = 1 << 16
MAX_WHOLE_BYTES = 256 << 20  # of a file that is asked for without saying how much

Range = tuple[str, int, int | None]  # path, first byte, number of bytes (None: to the end)


@dataclass
class _Entry:
    position: int  # of the bytes in the log
    length: int
    total: int  # bytes of the remote file, 0 if not said
    head: bytes  # all of the line before it but the checksum
    crc: int  # of the head and the bytes


class Again(Exception):
    """The request failed in a way that may pass; `wait` is what the server asks for, in seconds."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class Missing(UserError):
    """There is no such file: the end of what only it was for, not of the other ranges."""


class Ranges:
    """Byte ranges of the files under `base`, through the log.

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
        self.failure: UserError | None = None  # for good: ends all that is still to come
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
        size, whole = self.log.seek(0, io.SEEK_END), 0
        self.log.seek(0)
        while line := self.log.readline(8192):
            try:
                head, _, crc = line.removesuffix(b"\n").rpartition(b" ")
                path, start, asked, length, total = head.decode().split(" ")
                entry = _Entry(self.log.tell(), int(length), int(total), head, int(crc))
                wanted = int(asked) if int(asked) >= 0 else None
            except ValueError:
                break
            if entry.position + entry.length > size:
                break
            self.entries[path, int(start), wanted] = entry
            whole = self.log.seek(entry.position + entry.length)
        self.log.truncate(whole)

    def get(self, wanted: Range) -> bytes:
        """The bytes, fewer only where the file ends. Raises UserError when the server refuses them for good."""
        return self.submit(wanted).result()

    def total(self, path: str, start: int, length: int | None) -> int:
        """Size of the file, known once the range was had."""
        entry = self.entries[path, start, length]
        return entry.total or entry.length

    def submit(self, wanted: Range) -> "Future[bytes]":
        return self.pool.submit(self._had, wanted)

    def in_order(self, wanted: Iterable[Range]) -> Iterator[bytes]:
        """The ranges one after another, those that follow being fetched meanwhile; b"" where there is no such file."""
        waiting: deque[Future[bytes]] = deque()
        for one in wanted:
            waiting.append(self.submit(one))
            if len(waiting) > 2 * self.connections:
                yield _there(waiting.popleft())
        while waiting:
            yield _there(waiting.popleft())

    def _had(self, wanted: Range) -> bytes:
        with self.lock:
            entry = self.entries.get(wanted)
            if entry:
                self.log.seek(entry.position)
                content = self.log.read(entry.length)
                if zlib.crc32(content, zlib.crc32(entry.head)) == entry.crc:
                    return content
                logger.warning(f"{self.log.name}: {wanted[0]} is damaged: fetched again")
        content, total = self._download(wanted)
        path, start, asked = wanted
        head = f"{path} {start} {-1 if asked is None else asked} {len(content)} {total}".encode()
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
                total = self._ask(path, start, length, received)
                return bytes(received), total
            except Missing:
                raise
            except UserError as error:
                raise self._give_up(error) from None
            except (Again, Unreachable, OSError, http.client.HTTPException) as error:
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

    def _ask(self, path: str, start: int, length: int | None, received: bytearray) -> int:
        """Add to `received` what is missing of the range; returns the size of the file, 0 if not said."""
        deadline = time.monotonic() + REQUEST_SECONDS
        first = start + len(received)
        last = "" if length is None else str(start + length - 1)
        connection = self._connection()
        headers = {"User-Agent": AGENT, "Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
        connection.request("GET", urlsplit(self.base).path + path, headers=headers)
        response = connection.getresponse()
        if response.status == 403:
            raise UserError(
                f"{self.base}{path}: 403 Forbidden: too much was asked of the server; wait some hours, then run again to resume"
            )
        if response.status in (429, 500, 502, 503, 504):
            raise Again(f"status {response.status}", seconds_of(response.headers["Retry-After"]))
        if response.status == 416:  # there is nothing so far into the file
            response.read(CHUNK)
            return first
        if response.status == 200 and first == 0 and length is None:
            total = 0
        elif response.status == 206:
            given, _, whole = (response.headers["Content-Range"] or "").removeprefix("bytes ").partition("/")
            if given.partition("-")[0] != str(first):
                raise Again(f"asked from byte {first}, given {given or 'no range'}")
            total = natural(whole) or 0
        elif response.status == 200:
            raise Again("the server gives no parts of files")
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
                raise Again("too slow")
            if self.stopped.is_set():
                raise Unreachable("stopped")
        if len(received) < end and (length is not None or total or response.length):
            raise Again(f"{len(received)} of {end} bytes came, {promised} were promised")
        if response.length or response.will_close:  # more than was asked for, or nothing further
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
            # Who asks for this address is the user, not a page, so it may be a private one.
            connection.sock = fetch.connect(host, port, tls, allow_private=True)
            connection.sock.settimeout(IDLE_SECONDS)
            connection.auto_open = 0  # a lost connection is told, and made anew here
            self.local.connection = connection
            self.open.append(connection)
        return connection

    def _hang_up(self) -> None:
        connection, self.local.connection = getattr(self.local, "connection", None), None
        if connection:
            self.open.remove(connection)
            with suppress(OSError):
                connection.close()


def _there(content: "Future[bytes]") -> bytes:
    try:
        return content.result()
    except Missing:
        return b""


class RangeFile(io.RawIOBase):
    """A remote file to read and to seek in; the blocks ahead are fetched while one is read."""

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
