"""A run, as far as it went -> one HTML page that needs nothing else, and the recipe that makes it again beside it.

A section of the page is a module and a template in `sections/`, which holds its words; `report.html.jinja` puts them
together. Text from pages and models is anybody's: it is escaped by the templates, shown as text and never as a link,
and characters that cannot be seen, or that turn others around, are shown by their names.
"""

import base64
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.core import toml
from groundup.core.errors import UserError
from groundup.core.files import write_text
from groundup.core.text import visible
from groundup.report import words
from groundup.report.made import Made
from groundup.report.sections import SECTIONS
from groundup.report.sections.origin import RECIPE

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


def write(path: Path, recipe: dict[str, Any], inputs: dict[str, Path]) -> None:
    """Write the report of the finished stages in `inputs` (name -> folder, in the order of the run) to `path`.

    Raises UserError when there is no stage, or an artifact is missing or damaged.
    """
    if not inputs:
        raise UserError(f"{path}: no finished stage to report of; `groundup run` makes them")
    write_text(path, render(gather(Made(recipe, inputs, path.parent))))
    write_text(path.with_name(RECIPE), toml.dumps(recipe))


def gather(made: Made) -> dict[str, Any]:
    """Everything that the page shows, as plain data; figures are SVG elements."""
    skipped = {name: results["skipped"] for name, results in made.results.items() if "skipped" in results}
    made = replace(made, folders={name: folder for name, folder in made.folders.items() if name not in skipped})
    sections = {}
    for section in SECTIONS:
        if not section.STAGES or any(stage in made.folders for stage in section.STAGES):
            name = section.__name__.rpartition(".")[2]
            try:
                sections[name] = {"title": section.TITLE, **section.gather(made)}
            except KeyError as error:
                stage = next((stage for stage in section.STAGES if stage in made.folders), "")
                raise UserError(
                    f"report: {made.folders.get(stage, '')} has no {error}, so another version of groundup made it; delete "
                    "that folder to have it made again"
                ) from None
    return {"name": visible(made.recipe["name"]), "seconds": made.seconds, "skipped": skipped, "sections": sections}


def templates(folder: Path) -> "Environment":
    """The page templates of a folder: everything that is put into them is escaped, and nothing may be missing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = words.number
    return environment


def render(found: dict[str, Any]) -> str:
    """What `gather` found -> HTML."""
    from markupsafe import Markup

    environment = templates(HERE)
    environment.filters |= {
        "duration": words.seconds,
        "percent": words.percent,
        "decimals": words.decimals,
        "interval": words.interval,
        "marked": lambda text: text.translate({ord(" "): "·", ord("\n"): "⏎", ord("\t"): "⇥"}),
    }
    environment.globals["against"] = words.against
    script = (HERE / "report.js").read_text(encoding="utf-8")
    parts = {
        name: Markup(environment.get_template(f"sections/{name}.html.jinja").render(section))
        for name, section in found["sections"].items()
    }
    return environment.get_template("report.html.jinja").render(
        **found,
        parts=parts,
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # The page's own script alone may run: whatever came in with foreign text has another digest.
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
