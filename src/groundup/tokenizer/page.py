"""Data -> one HTML page that needs nothing else; tokens and texts are anybody's and are escaped by the template."""

from pathlib import Path
from typing import Any

from groundup.report.report import number, visible

_MARKS = {ord(" "): "␣", ord("\n"): "⏎", ord("\t"): "⇥"}  # where white space is the token


def render(template: str, found: dict[str, Any]) -> str:
    """A template of this folder, filled."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": lambda share, places=0: f"{share:.{places}%}".replace("%", "\u00a0%"),
        "decimals": lambda value, places=2: f"{value:,.{places}f}",
        "visible": visible,
        "marked": lambda text: text.translate(_MARKS),
    }
    return environment.get_template(template).render(found)
