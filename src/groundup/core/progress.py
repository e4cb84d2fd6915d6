"""Progress on stderr: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import logging
import sys
import time
from collections import deque

from groundup.core import log
from groundup.core.text import printable

LINE_EVERY_SECONDS = 10.0
SILENT_UNTIL_SECONDS = 2.0
# The rate is that of the last minute, of the last ten counts where a minute holds fewer: what was slow long ago is no
# part of the time left.
RATE_SECONDS, RATE_COUNTS = 60.0, 10


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

    first: what the first count does besides, such as "compiled"; its time is told alone and is no part of the rate.
    """

    def __init__(
        self, label: str, total: float = 0, unit: str = "items", done: float = 0, first: str | None = None
    ) -> None:
        self.label, self.total, self.unit, self.first = label, total, unit, first
        self.done = done
        self.note = ""
        self.start = self.shown = time.monotonic()
        self.begun = (self.start, done)  # when the rate's time begins, and what was done by then
        self.recent = deque([self.begun])
        self.status = None
        self.silent = (log.shown() or 0) > logging.INFO
        if sys.stderr.isatty() and not self.silent:
            from rich.console import Console
            from rich.text import Text

            self.status = Console(stderr=True).status(Text(printable(label)))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.status:
            self.status.stop()
        if self.shown > self.start and not self.silent:
            now = time.monotonic()
            print(printable(self._line(self._rate(now, *self.begun))), file=sys.stderr, flush=True)

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        now = time.monotonic()
        self._count(now)
        every = 0.2 if self.status else LINE_EVERY_SECONDS
        if self.silent or now - self.start < SILENT_UNTIL_SECONDS or now - self.shown < every:
            return
        self.shown = now
        if self.status:
            from rich.text import Text  # plain text: `[/b]` in a name is no markup

            self.status.update(Text(printable(self._line(self.rate))))
            self.status.start()
        else:
            print(printable(self._line(self.rate)), file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        """Counts per second lately; 0 where nothing was counted that can be timed."""
        return self._rate(self.recent[-1][0], *self.recent[0])

    def _rate(self, now: float, since: float, done: float) -> float:
        return (self.done - done) / max(now - since, 1e-9)

    def _count(self, now: float) -> None:
        if self.first is not None:
            if self.first and now - self.start >= SILENT_UNTIL_SECONDS:
                self._say(f"{self.label}: {self.first} in {duration(now - self.start)}")
            self.first, self.begun = None, (now, self.done)
            self.recent = deque([self.begun])
            return
        # Of many counts in a moment the last stands for all.
        if len(self.recent) > 1 and now - self.recent[-2][0] < RATE_SECONDS / 100:
            self.recent.pop()
        self.recent.append((now, self.done))
        while len(self.recent) > RATE_COUNTS + 1 and now - self.recent[1][0] >= RATE_SECONDS:
            self.recent.popleft()

    def _say(self, line: str) -> None:
        if self.status:
            self.status.console.print(printable(line), markup=False, highlight=False)
        else:
            print(printable(line), file=sys.stderr, flush=True)

    def _line(self, rate: float) -> str:
        count = f"{self.done:,.0f}/{self.total:,.0f}" if self.total else f"{self.done:,.0f}"
        parts = [f"{self.label}: {count} {self.unit}"]
        if rate > 0:
            parts.append(f"{rate:,.1f}/s" if rate < 100 else f"{rate:,.0f}/s")
            if self.done < self.total:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        return " · ".join([*parts, self.note] if self.note else parts)
