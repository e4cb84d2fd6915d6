"""The page of a vocabulary sweep."""

from pathlib import Path
from typing import Any

from groundup.core.files import write_text
from groundup.report import figures
from groundup.report.tokenizer_page import render


def write(out: Path, found: dict[str, Any]) -> Path:
    """`out`/sweep.html of what `scaling.vocabulary_sweep.sweep` found."""
    write_text(out / "sweep.html", render("vocabulary_sweep.html.jinja", {**found, "curve": figures.vocabulary(found)}))
    return out / "sweep.html"
