"""Data -> one HTML page that needs no other file. Tokens and texts are untrusted: the template escapes them."""

from pathlib import Path
from typing import Any

from groundup.core.text import visible
from groundup.report.report import templates

_MARKS = {ord(" "): "␣", ord("\n"): "⏎", ord("\t"): "⇥"}  # where white space is the token


def render(template: str, values: dict[str, Any]) -> str:
    """A template of this folder, filled."""
    environment = templates(Path(__file__).parent)
    environment.filters |= {
        "percent": lambda share, places=0: f"{share:.{places}%}".replace("%", "\u00a0%"),
        "decimals": lambda value, places=2: f"{value:,.{places}f}",
        "visible": visible,
        "marked": lambda text: text.translate(_MARKS),
    }
    return environment.get_template(template).render(values)
