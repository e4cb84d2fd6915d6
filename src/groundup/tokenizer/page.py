"""Data -> one HTML page that needs nothing else; tokens and texts are anybody's and are escaped by the template."""

from pathlib import Path
from typing import Any

from groundup.report.report import number, visible


def render(template: str, found: dict[str, Any]) -> str:
    """A template of this folder filled with `found`, whose characters that cannot be seen are shown by their names."""
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
    }
    return environment.get_template(template).render(found)
