"""One process at a time per output: two that write one folder would delete and mix each other's files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from groundup.core.errors import UserError


@contextmanager
def alone(out: Path, lock_file: Path | None = None) -> Iterator[None]:
    """Within it nobody else makes `out`. The lock is a file next to it, deleted at the end; or `lock_file`, which stays.

    Raises UserError where another process, or another thread, is making `out`.
    """
    out = out.absolute()
    path = lock_file or out.with_name(f".{out.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            try:
                yield
            finally:
                if not lock_file:
                    path.unlink(missing_ok=True)
    except Timeout:
        raise UserError(f"{out}: another groundup run is working there; wait for it") from None
