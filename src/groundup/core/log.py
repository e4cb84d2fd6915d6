"""Where log records go: to the terminal, and into the log file of a run. Chapters log by `logging.getLogger(__name__)`."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from groundup.core.errors import UserError
from groundup.core.text import printable

ROOT = logging.getLogger("groundup")


class _Terminal(logging.Handler):
    """Lines on stderr, without control characters: they hold foreign names and addresses."""

    def emit(self, record: logging.LogRecord) -> None:
        indent = getattr(record, "indent", "  ")
        print(printable(f"{indent}{record.getMessage()}"), file=sys.stderr, flush=True)


def to_terminal(level: int = logging.INFO) -> None:
    """Show records from `level` on; without it a program that imports groundup sees only warnings. May be called again."""
    if not any(isinstance(handler, _Terminal) for handler in ROOT.handlers):
        ROOT.addHandler(_Terminal())
        ROOT.propagate = False
    ROOT.setLevel(logging.DEBUG)
    for handler in ROOT.handlers:
        if isinstance(handler, _Terminal):
            handler.setLevel(level)


def terminal_level() -> int | None:
    """The level from which on the terminal shows records; None where it shows none. Worker processes take their parent's."""
    return next((handler.level for handler in ROOT.handlers if isinstance(handler, _Terminal)), None)


@contextmanager
def to_file(path: Path) -> Iterator[None]:
    """Within it, every record is appended to `path` too, with its time. Raises UserError where that is no plain file."""
    if path.exists() and not path.is_file():  # opening a pipe would wait
        raise UserError(f"{path}: not a plain file; move it away")
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ROOT.addHandler(handler)
    try:
        yield
    finally:
        ROOT.removeHandler(handler)
        handler.close()
