"""The page of a vocabulary sweep."""

from pathlib import Path
from typing import Any

from groundup.core.files import write_text
from groundup.core.statistics import Z95
from groundup.report import figures
from groundup.report.tokenizer_page import render


def write(out: Path, found: dict[str, Any]) -> Path:
    """`out`/sweep.html of what `scaling.vocabulary_sweep.sweep` found."""
    curve = figures.curve(
        "sweep",
        [(row["vocabulary"], row["bits_per_byte"]["all"], Z95 * row["standard_error"]) for row in found["sizes"]],
        "tokens in the vocabulary",
        "bits per byte, held out",
        found["recommended"],
    )
    write_text(out / "sweep.html", render("vocabulary_sweep.html.jinja", {**found, "curve": curve}))
    return out / "sweep.html"
