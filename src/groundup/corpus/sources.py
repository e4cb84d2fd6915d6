"""Where pages come from: every kind of source becomes one WARC file, so that all later steps see one kind of input.

`pydoc:` the documentation of the running Python, served by its own pydoc and crawled like any site
`stdlib:` the source code of its standard library       `topics:` its language reference
`https://site/` a site                                  a path: a WARC file, or a folder of pages
"""

import ast
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from urllib.parse import quote, urlsplit

from groundup.corpus.crawl import CrawlCount, crawl
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
PYDOC_HOST = "http://pydoc.localhost"
PYDOC_START_SECONDS = 30.0
# Forms and source listings; and modules that act when they are imported, as pydoc does: a browser, a window.
PYDOC_EXCLUDE = [
    "/getfile?",
    "/get?",
    "/search?",
    "/antigravity.html",
    "/idlelib.idle.html",
    "/turtledemo.__main__.html",
]


def collect(source: Source, folder: Path, name: str, requests_per_second: float, progress_label: str) -> dict[str, Any]:
    """Write `folder/<name>.warc.gz`; return {"pages", "bytes", "refused": {reason: count}}.

    A site's crawl that was cut off goes on from `folder/<name>.warc.gz.partial`; other sources start anew.
    Raises UserError when the source is missing or holds no page within the limits of `source`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.warc.gz"
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
                    with _pydoc_server() as address:
                        counts = _crawl(address, partial, source, progress, None)
                else:
                    counts = _write(source, partial, progress)
                _require_pages(source, counts)
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
        record_as=PYDOC_HOST if local else None,
        max_bytes=round(source.max_mb * 1e6),
        max_pages=source.max_pages,
        exclude=[*source.exclude, *(PYDOC_EXCLUDE if local else [])],
        requests_per_second=rate,
        allow_private=local,
        progress=progress,
        rewrite=_same_on_every_machine if local else None,
    )


def _same_on_every_machine(body: bytes) -> bytes:
    """Take out of a pydoc page what differs between runs and machines: addresses, process ids, the install's path."""
    body = re.sub(rb"( at 0x| at&nbsp;0x|handle )[0-9a-f]{6,}", rb"\g<1>0", body)
    body = re.sub(rb"@test_\d+", b"@test_1", body)
    body = re.sub(rb"[^\s<>\"']*groundup-pydoc-\w+", b"/tmp", body)  # the server's own folder, listed in the index
    for path in (sysconfig.get_path("stdlib"), sys.prefix, sys.base_prefix):
        if path not in ("/usr", "/usr/local"):  # which the documentation itself speaks of
            body = body.replace(path.encode(), b"/python")
    return body


@contextmanager
def _pydoc_server() -> Iterator[str]:
    """pydoc over the running Python's standard library, on a free port of loopback; yields its address."""
    # pydoc shows os.environ, so it gets an environment of its own; -S and -P keep installed packages out.
    command = [sys.executable, "-s", "-S", "-P", "-B", "-m", "pydoc", "-n", "127.0.0.1", "-p", "0"]
    with tempfile.TemporaryDirectory(prefix="groundup-pydoc-") as empty:
        environment = {
            "PATH": os.defpath,
            "HOME": "/nonexistent",
            "LANG": "C.UTF-8",
            "COLUMNS": "80",
            "BROWSER": "true",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if "SYSTEMROOT" in os.environ:  # without it Windows opens no socket
            environment["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
        # The server ends when its standard input does, so that stays open.
        server = subprocess.Popen(
            command,
            env=environment,
            cwd=empty,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said: Queue[bytes] = Queue()

        def listen() -> None:  # for as long as it runs: a full pipe would stop it
            for line in server.stdout or ():
                said.put(line)
            said.put(b"")

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            yield _address(said)
        finally:
            server.kill()  # it does not always end when asked to
            server.wait()
            listener.join()
            for pipe in (server.stdin, server.stdout):
                if pipe:
                    pipe.close()


def _address(said: Queue[bytes]) -> str:
    heard = b""
    while True:
        try:
            line = said.get(timeout=PYDOC_START_SECONDS)
        except Empty:
            line = b""
        ready = re.search(rb"ready at (http://\S+)", line)
        if ready:
            return ready[1].decode()
        heard += line
        if not line:
            last = " ".join(heard.decode(errors="replace").split())[-200:] or "no answer"
            raise UserError(f"pydoc: the documentation server did not start ({last}): use another Python or source")


def _write(source: Source, warc: Path, progress: Progress) -> CrawlCount:
    """Record the pages of a source on this machine, up to its limits."""
    counts, refused = CrawlCount(), Counter[str]()
    exclude = tuple(source.exclude)

    def wanted(path: str) -> bool:
        refused["excluded"] += path.startswith(exclude)
        return not path.startswith(exclude)

    with WarcWriter(warc) as out:
        for page in _pages(source.source, wanted, refused):
            if counts.pages >= source.max_pages or counts.bytes >= source.max_mb * 1e6:
                break
            charset = f"; charset={page.charset}" if page.charset else ""
            out.resource(page.url, page.content_type + charset, page.body)
            counts.pages += 1
            counts.bytes += len(page.body)
            progress.advance(1)
    counts.refused = {reason: count for reason, count in sorted(refused.items()) if count}
    return counts


def _pages(source: str, wanted: Callable[[str], bool], refused: Counter[str]) -> Iterator[Page]:
    if source == "stdlib:":
        root = Path(sysconfig.get_path("stdlib"))
        # Ordered by digest, so that whatever part of it fits the limit is spread over all packages.
        yield from _files(root, "stdlib", sorted(_python_files(root), key=_digest), wanted, refused)
    elif source == "topics:":
        from pydoc_data.topics import topics

        for name in sorted(topics):
            if wanted(f"/{name}"):
                yield Page(f"file:///topics/{quote(name)}", "text/plain", topics[name].encode(), "utf-8")
    else:
        path = Path(source).expanduser()
        if path.is_dir():
            names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
            kept = sorted(name for name in names if Path(name).suffix.lower() in CONTENT_TYPES)
            yield from _files(path, quote(path.resolve().name), kept, wanted, refused)
        elif path.is_file():
            yield from _warc(path, wanted, refused)
        else:
            raise UserError(f"{source}: no such source: give pydoc:, stdlib:, topics:, an https address, or a path")


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
            yield Page(f"file:///{label}/{quote(name)}", content_type, body)


def _is_python(body: bytes) -> bool:
    """UTF-8 that parses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes and literals in other people's code
            ast.parse(body.decode("utf-8"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _warc(path: Path, wanted: Callable[[str], bool], refused: Counter[str]) -> Iterator[Page]:
    losses = Losses()
    yield from (page for page in read_pages(path, losses) if wanted(urlsplit(page.url).path or "/"))
    if not losses.records and not losses.lost:
        raise UserError(f"{path}: not a WARC file: give *.warc, *.warc.gz, or a folder of pages")
    refused["truncated"] += losses.truncated
    refused["damaged"] += losses.lost
