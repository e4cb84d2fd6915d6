import io
import logging
import re
import sys

import pytest

from groundup.core import progress
from groundup.core.progress import Progress, duration
from groundup.core.text import printable


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


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Puts a terminal of 120 columns in the place of stderr, which pytest itself replaces between fixture and test."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")

    def put():
        found = Terminal()
        monkeypatch.setattr(sys, "stderr", found)
        return found

    return put


def test_a_bar_on_a_terminal_is_as_long_as_what_is_done(clock, terminal):
    terminal = terminal()
    with Progress("base", 1000, "steps", done=500) as shown:
        for step in range(1, 251):
            clock.now += 1 / 32
            shown.advance(1, note=f"loss {step}")
        shown.bar.refresh()
        assert [task.percentage for task in shown.bar.tasks] == [74.6]  # of step 246, the last that was drawn
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert re.search(r"base ━{17}.* 746/1,000 steps · 32\.0/s · 8s left · loss 246", plain)
    assert plain.rstrip().endswith("base: 750/1,000 steps · 32.0/s · 8s left · loss 250")  # what stays when the bar is gone


def test_a_bar_that_knows_no_end_and_one_that_goes_beyond(clock, terminal):
    terminal = terminal()
    with Progress("crawl", unit="pages") as shown:
        clock.now += 10
        shown.advance(5000)
        assert shown.bar.tasks[0].total is None and shown.bar.tasks[0].fields["figures"] == "5,000 pages · 500/s"
    with Progress("crawl", 10, unit="pages") as shown:
        clock.now += 10
        shown.advance(25)
        assert shown.bar.tasks[0].percentage == 100 and shown.bar.tasks[0].fields["figures"].startswith("25/10 pages")


def test_no_bar_before_two_seconds_and_none_where_it_is_quiet(clock, terminal, monkeypatch):
    terminal = terminal()
    with Progress("short", 100) as shown:
        for _ in range(100):
            clock.now += 0.0199
            shown.advance()
    assert terminal.getvalue() == ""
    monkeypatch.setattr(progress.log, "terminal_level", lambda: logging.WARNING)
    with Progress("long", 100) as shown:
        clock.now += 60
        shown.advance(50)
    assert terminal.getvalue() == ""


def test_lines_of_others_stand_above_the_bar_and_stdout_stays_apart(clock, terminal, capsys):
    terminal = terminal()
    with Progress("base", 10, "steps", first="compiled") as shown:
        for _ in range(3):
            clock.now += 60
            shown.advance(1)
        print("a line of the log", file=sys.stderr)
        print("an answer")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "a line of the log\n" in plain and "base: compiled in 1m00s\n" in plain and "an answer" not in plain
    assert capsys.readouterr().out == "an answer\n"
    assert sys.stderr is terminal and "\x1b[?25h" in terminal.getvalue()  # the cursor is back


@pytest.mark.parametrize("label", ["web=a[/b] \x1b[2J[bold]", "x" * 500, "a\nb\rc", ":[link=x]"])
def test_a_label_on_a_terminal_is_text_and_no_markup(clock, terminal, label):
    terminal = terminal()
    with Progress(label, total=2) as shown:
        clock.now += 10
        shown.advance(1, note="[/c]\x9b")
        fields = shown.bar.tasks[0].fields
        shown.bar.refresh()
    line = " ".join(label.split())
    assert fields["label"] == printable(line if len(line) <= 40 else line[:37] + "...")
    assert fields["figures"].endswith("[/c]\\x9b") and "\x9b" not in terminal.getvalue() and "\x1b[2J" not in terminal.getvalue()


def test_what_the_first_count_does_besides_is_no_part_of_the_rate(clock, capsys):
    with Progress("base", 1000, "steps", done=100, first="compiled") as shown:
        clock.now += 60
        shown.advance(1, note="loss 9.0")
        for _ in range(20):
            clock.now += 1
            shown.advance(1, note="loss 8.0")
    assert capsys.readouterr().err.splitlines() == [
        "base: compiled in 1m00s",
        "base: 101/1,000 steps · loss 9.0",
        "base: 111/1,000 steps · 1.0/s · 14m49s left · loss 8.0",
        "base: 121/1,000 steps · 1.0/s · 14m39s left · loss 8.0",
        "base: 121/1,000 steps · 1.0/s · 14m39s left · loss 8.0",
    ]


def test_a_first_count_that_was_quick_is_not_told(clock, capsys):
    with Progress("base", 10, "steps", first="compiled") as shown:
        clock.now += 1.5
        shown.advance(1)
    assert capsys.readouterr().err == ""


def test_the_rate_is_that_of_the_last_minute(clock, capsys):
    with Progress("base", 100_000, "steps") as shown:
        for _ in range(100):
            clock.now += 10
            shown.advance(1)
        assert shown.rate == pytest.approx(0.1)
        for _ in range(7000):
            clock.now += 0.01
            shown.advance(1)
        assert shown.rate == pytest.approx(100, rel=0.02)
        assert len(shown.recent) < 150
    # At the end it is that of the whole.
    assert "6.6/s" in capsys.readouterr().err.splitlines()[-1]


def test_slow_counts_have_a_rate_too(clock):
    shown = Progress("base", 100, "steps", first="")
    for _ in range(30):
        clock.now += 90
        shown.advance(1)
    assert shown.rate == pytest.approx(1 / 90) and len(shown.recent) == progress.RATE_COUNTS + 1
