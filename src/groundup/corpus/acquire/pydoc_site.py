"""The documentation of the running Python as a site: its own pydoc, served on loopback, the same on every machine."""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue

from groundup.core.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = "groundup-pydoc-"  # and eight characters: where pydoc shortens text depends on the length of its folder's path
YOUNG_SECONDS = 60.0  # an unlocked folder this young may be about to be locked
HOST = "http://pydoc.localhost"
START_SECONDS = 30.0
# Forms and source listings; how this Python was built; and modules that act when they are imported, as pydoc does: a
# browser, a window.
EXCLUDE = [
    "/getfile?", "/get?", "/search?", "/_sysconfigdata", "/antigravity.html", "/idlelib.idle.html",
    "/turtledemo.__main__.html",
]  # fmt: skip


def same_on_every_machine(body: bytes) -> bytes:
    """Take out of a pydoc page what differs between runs and machines: addresses, process ids, the install's path."""
    body = re.sub(rb"( at 0x| at&nbsp;0x|handle )[0-9a-f]{6,}", rb"\g<1>0", body)
    body = re.sub(rb"@test_\d+", b"@test_1", body)
    body = re.sub(rb"[^\s<>\"']*groundup-pydoc-\w+", b"/tmp", body)  # the server's own folder, listed in the index
    for path in (sysconfig.get_path("stdlib"), sys.prefix, sys.base_prefix):
        if path not in ("/usr", "/usr/local"):  # which the documentation itself speaks of
            body = body.replace(path.encode(), b"/python")
    return body


@contextmanager
def pydoc_server() -> Iterator[str]:
    """pydoc over the running Python's standard library, on a free port of loopback; yields its address."""
    # pydoc shows os.environ, so it gets an environment of its own; -S and -P keep installed packages out.
    command = [sys.executable, "-s", "-S", "-P", "-B", "-m", "pydoc", "-n", "127.0.0.1", "-p", "0"]
    _remove_stale_folders()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as empty, _locked(empty):
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
            command, env=environment, cwd=empty, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output: Queue[bytes] = Queue()

        def listen() -> None:  # as long as the server runs: a full pipe would stop it
            for line in server.stdout or ():
                output.put(line)
            output.put(b"")

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            yield _served_address(output)
        finally:
            server.kill()  # terminate() does not always end it
            server.wait()
            listener.join()
            for pipe in (server.stdin, server.stdout):
                if pipe:
                    pipe.close()


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold a lock on a folder, at most until this process ends, however it ends. No lock file: pydoc would show it."""
    descriptor = _lock(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: str) -> int | None:
    """The descriptor that holds the lock; None where another process holds it, the folder may not be opened, or the system has
    no such locks."""
    if fcntl is None:
        return None
    descriptor = None
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    if descriptor is not None:
        os.close(descriptor)
    return None


def _remove_stale_folders() -> None:
    """Remove the empty folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # of folders of other users, or that another process removes meanwhile
            if time.time() - folder.stat().st_mtime > YOUNG_SECONDS and (descriptor := _lock(str(folder))) is not None:
                try:
                    folder.rmdir()
                finally:
                    os.close(descriptor)


def _served_address(output: Queue[bytes]) -> str:
    received = b""
    while True:
        try:
            line = output.get(timeout=START_SECONDS)
        except Empty:
            line = b""
        ready = re.search(rb"ready at (http://\S+)", line)
        if ready:
            return ready[1].decode()
        received += line
        if not line:
            last = " ".join(received.decode(errors="replace").split())[-200:] or "no answer"
            raise UserError(f"pydoc: the documentation server did not start ({last}): use another Python or source")
