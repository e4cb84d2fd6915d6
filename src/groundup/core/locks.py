"""One process at a time: two that write one folder would delete and mix each other's files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from groundup.core.errors import UserError


@contextmanager
def alone(out: Path, kept: Path | None = None) -> Iterator[None]:
    """While it lasts nobody else makes `out`. The lock is a file beside it, which is taken away after; or `kept`, which stays.

    Raises UserError where another process, or another thread, is at work there.
    """
    out = out.absolute()
    lock = kept or out.with_name(f".{out.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                if not kept:
                    lock.unlink(missing_ok=True)
    except Timeout:
        raise UserError(f"{out}: another groundup run is working there; wait for it") from None
