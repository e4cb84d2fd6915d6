"""The page of a vocabulary sweep."""

from pathlib import Path
from typing import Any

from groundup.core.files import write_text
from groundup.report import figures
from groundup.report.tokenizer_page import render


def write(out: Path, sweep: dict[str, Any]) -> Path:
    """Write `out`/sweep.html of the results of `scaling.vocabulary_sweep.sweep`; returns its path."""
    write_text(out / "sweep.html", render("vocabulary_sweep.html.jinja", {**sweep, "curve": figures.vocabulary(sweep)}))
    return out / "sweep.html"
