"""Log records: where they go, and that chapters print nothing."""

import ast
import logging
import os
from pathlib import Path

import pytest

import groundup
from groundup.core import log
from groundup.core.errors import UserError
from groundup.core.progress import Progress

SOURCES = Path(groundup.__file__).parent
PRINTING = ("cli/", "pipeline/", "core/progress.py", "core/log.py")
logger = logging.getLogger("groundup.tests")


@pytest.fixture
def terminal():
    yield log.to_terminal
    log.to_terminal()


def test_no_chapter_prints():
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).as_posix()
        if not name.startswith(PRINTING):
            calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            found += [f"{name}:{node.lineno}" for node in calls if getattr(node.func, "id", "") == "print"]
    assert found == []


def test_a_record_is_a_line_that_cannot_command_the_terminal(capsys):
    logger.info("a\x1b[2J of 5 %s\u202e")
    assert capsys.readouterr().err == "  a\\x1b[2J of 5 %s\\u202e\n"


def test_quiet_shows_warnings_and_no_progress(terminal, capsys, monkeypatch):
    terminal(logging.WARNING)
    monkeypatch.setattr("groundup.core.progress.SILENT_UNTIL_SECONDS", -1.0)
    monkeypatch.setattr("groundup.core.progress.LINE_EVERY_SECONDS", -1.0)
    logger.info("a detail")
    logger.warning("a warning")
    with Progress("work", 2) as progress:
        progress.advance(1)
    assert capsys.readouterr().err == "  a warning\n"


def test_a_file_has_every_record_with_its_time(tmp_path):
    with log.to_file(tmp_path / "log.txt"):
        logger.info("one")
        logger.debug("half \ud800 of a pair")
    logger.info("later")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == ["one", "half \\ud800 of a pair"]
    assert all(" groundup.tests" in line for line in lines)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_log_is_a_plain_file(tmp_path, make):
    make(tmp_path / "log.txt")
    with pytest.raises(UserError, match=r"log\.txt: not a plain file"), log.to_file(tmp_path / "log.txt"):
        logger.info("would wait for a reader of the pipe")
