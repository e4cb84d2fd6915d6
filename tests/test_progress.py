import io
import sys

import pytest

from groundup.core import progress
from groundup.core.progress import Progress, duration


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (75, "1m15s"), (3599.6, "1h00m"), (7325, "2h02m")],
)
def test_duration(seconds, said):
    assert duration(seconds) == said


def test_silent_under_two_seconds(clock, capsys):
    with Progress("short", 100) as shown:
        for _ in range(100):
            clock.now += 0.0199
            shown.advance()
    assert capsys.readouterr() == ("", "")


def test_a_plain_line_now_and_then_and_one_at_the_end(clock, capsys):
    with Progress("base", 1000, "steps") as shown:
        for step in range(1, 1001):
            clock.now += 1 / 32  # exact in binary
            shown.advance(1, note=f"loss {1 / step:.3f}")
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err and "\x1b" not in err
    lines = err.splitlines()
    assert lines == [
        "base: 320/1,000 steps · 32.0/s · 21s left · loss 0.003",
        "base: 640/1,000 steps · 32.0/s · 11s left · loss 0.002",
        "base: 960/1,000 steps · 32.0/s · 1s left · loss 0.001",
        "base: 1,000/1,000 steps · 32.0/s · loss 0.001",
    ]


def test_rate_counts_only_what_was_done_since_resuming(clock, capsys):
    with Progress("base", 1000, "steps", done=900) as shown:
        clock.now += 20
        shown.advance(50)
    assert capsys.readouterr().err.splitlines()[0] == "base: 950/1,000 steps · 2.5/s · 20s left"


def test_total_unknown(clock, capsys):
    with Progress("crawl", unit="pages") as shown:
        clock.now += 10
        shown.advance(5000)
    assert capsys.readouterr().err.splitlines() == ["crawl: 5,000 pages · 500/s"] * 2


def test_exceptions_pass_through(clock):
    with pytest.raises(ValueError, match="through"), Progress("base", 10):
        raise ValueError("through")


def test_a_label_on_a_terminal_is_text_and_no_markup(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("groundup.core.progress.SILENT_UNTIL_SECONDS", 0.0)
    with Progress("web=a[/b] \x1b[2J[bold]", total=2) as progress:
        progress.shown = 0.0
        progress.advance(1, note="[/c]\x9b")
        assert progress.status.status.plain.startswith("web=a[/b] \\x1b[2J[bold]: 1/2")
        assert progress.status.status.plain.endswith("[/c]\\x9b")
