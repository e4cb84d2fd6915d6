"""Progress on stderr: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import sys
import time

from groundup.core.text import printable

LINE_EVERY_SECONDS = 10.0
SILENT_UNTIL_SECONDS = 2.0


def duration(seconds: float) -> str:
    """75 -> '1m15s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Counts from `done` towards `total` (0 when unknown); shows nothing before two seconds have passed.

    with Progress("base", total=1200, unit="steps") as progress:
        progress.advance(1, note="loss 2.31")
    """

    def __init__(self, label: str, total: float = 0, unit: str = "items", done: float = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.done_at_start = done
        self.note = ""
        self.start = self.shown = time.monotonic()
        self.status = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.text import Text

            self.status = Console(stderr=True).status(Text(printable(label)))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.status:
            self.status.stop()
        if self.shown > self.start:
            print(self._line(time.monotonic()), file=sys.stderr, flush=True)

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        now = time.monotonic()
        every = 0.2 if self.status else LINE_EVERY_SECONDS
        if now - self.start < SILENT_UNTIL_SECONDS or now - self.shown < every:
            return
        self.shown = now
        if self.status:
            from rich.text import Text  # plain text: `[/b]` in a name is no markup

            self.status.update(Text(self._line(now)))
            self.status.start()
        else:
            print(self._line(now), file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        rate = (self.done - self.done_at_start) / max(now - self.start, 1e-9)
        count = f"{self.done:,.0f}/{self.total:,.0f}" if self.total else f"{self.done:,.0f}"
        parts = [f"{self.label}: {count} {self.unit}", f"{rate:,.1f}/s" if rate < 100 else f"{rate:,.0f}/s"]
        if self.total and rate > 0 and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        return printable(" · ".join([*parts, self.note] if self.note else parts))
