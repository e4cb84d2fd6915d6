"""The small version of the sources' part of benchmarks/corpus_fuzz.py: 60 broken WACZ, XML and PDF files."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import corpus_fuzz

pytest.importorskip("pypdfium2", reason="the extra pdf is not installed")


def test_broken_files_give_pages_or_one_line_and_leave_nothing_behind(capsys):
    trial = corpus_fuzz.Trial(time.process_time)
    corpus_fuzz.fuzz_sources(trial, 57)
    assert trial.count == 60 and not trial.failures, capsys.readouterr().out
