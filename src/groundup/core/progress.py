"""Progress on stderr: on a terminal a bar with rate and remaining time, elsewhere a plain line now and then."""

import logging
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from groundup.core import log
from groundup.core.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_EVERY_SECONDS = 10.0
SILENT_UNTIL_SECONDS = 2.0
# The rate is that of the last minute, or of the last ten counts where a minute holds fewer: slow counts of long ago do not
# affect the remaining time.
RATE_SECONDS, RATE_COUNTS = 60.0, 10
LABEL = 40  # characters of a label before a bar


def duration(seconds: float) -> str:
    """75 -> '1m15s'."""
    total_seconds = round(seconds)
    if total_seconds < 60:
        return f"{total_seconds}s"
    if total_seconds < 3600:
        return f"{total_seconds // 60}m{total_seconds % 60:02d}s"
    return f"{total_seconds // 3600}h{total_seconds % 3600 // 60:02d}m"


class Progress:
    """Counts from `done` towards `total` (0 when unknown); shows nothing before two seconds have passed.

    with Progress("base", total=1200, unit="steps") as progress:
        progress.advance(1, note="loss 2.31")

    first: what the first count does besides, such as "compiled"; its time is printed apart and does not count for the rate.
    """

    def __init__(
        self, label: str, total: float = 0, unit: str = "items", done: float = 0, first: str | None = None
    ) -> None:
        self.label, self.total, self.unit, self.first = " ".join(label.split()), total, unit, first
        self.done = done
        self.note = ""
        self.start = self.shown = time.monotonic()
        self.begun = (self.start, done)  # time and count at which the overall rate begins
        self.recent = deque([self.begun])
        self.silent = (log.terminal_level() or 0) > logging.INFO
        self.bar = _bar() if sys.stderr.isatty() and not self.silent else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()
        if self.shown > self.start and not self.silent:
            now = time.monotonic()
            print(printable(self._line(self._rate(now, *self.begun))), file=sys.stderr, flush=True)

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        now = time.monotonic()
        self._count(now)
        every = 0.2 if self.bar else LINE_EVERY_SECONDS
        if self.silent or now - self.start < SILENT_UNTIL_SECONDS or now - self.shown < every:
            return
        self.shown = now
        if self.bar:
            self._draw(self.bar)
        else:
            print(printable(self._line(self.rate)), file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        """Recent counts per second; 0 before anything was counted."""
        return self._rate(self.recent[-1][0], *self.recent[0])

    def _rate(self, now: float, since: float, done: float) -> float:
        return (self.done - done) / max(now - since, 1e-9)

    def _count(self, now: float) -> None:
        if self.first is not None:
            if self.first and now - self.start >= SILENT_UNTIL_SECONDS:
                self._print(f"{self.label}: {self.first} in {duration(now - self.start)}")
            self.first, self.begun = None, (now, self.done)
            self.recent = deque([self.begun])
            return
        # Of many counts within a moment only the last is kept.
        if len(self.recent) > 1 and now - self.recent[-2][0] < RATE_SECONDS / 100:
            self.recent.pop()
        self.recent.append((now, self.done))
        while len(self.recent) > RATE_COUNTS + 1 and now - self.recent[1][0] >= RATE_SECONDS:
            self.recent.popleft()

    def _print(self, line: str) -> None:
        if self.bar:
            self.bar.console.print(printable(line), markup=False, highlight=False)
        else:
            print(printable(line), file=sys.stderr, flush=True)

    def _draw(self, bar: "Bar") -> None:
        """One bar, shown from the first call on; without a total it only pulses."""
        label = self.label if len(self.label) <= LABEL else f"{self.label[: LABEL - 3]}..."
        fields = {"label": printable(label), "figures": printable(self._figures(self.rate))}
        total = self.total or None
        if not bar.tasks:
            bar.add_task("", total=total, completed=self.done, **fields)
        bar.update(bar.task_ids[0], total=total, completed=min(self.done, total or self.done), **fields)
        bar.start()

    def _line(self, rate: float) -> str:
        return f"{self.label}: {self._figures(rate)}"

    def _figures(self, rate: float) -> str:
        count = f"{self.done:,.0f}/{self.total:,.0f}" if self.total else f"{self.done:,.0f}"
        parts = [f"{count} {self.unit}"]
        if rate > 0:
            parts.append(f"{rate:,.1f}/s" if rate < 100 else f"{rate:,.0f}/s")
            if self.done < self.total:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        return " · ".join([*parts, self.note] if self.note else parts)


def _bar() -> "Bar":
    """Label, bar and figures on one line of stderr, erased at the end. Labels and notes are text: `[/b]` is no markup."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.fields[label]}", markup=False), BarColumn(bar_width=24),
               TextColumn("{task.fields[figures]}", markup=False))  # fmt: skip
    # Output that stdout sends to a file must not appear on the terminal.
    return Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
