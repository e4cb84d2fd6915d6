"""A run, of whichever steps -> one HTML page that needs no other file, and beside it the recipe that makes the run again.

A section of the page is a module and a template in `sections/`, which holds its words; `report.html.jinja` puts them
together. Text from pages and models is anybody's: it is escaped by the templates, shown as text and never as a link,
and characters that cannot be seen, or that turn others around, are shown by their names.
"""

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.core import toml
from groundup.core.errors import UserError
from groundup.core.files import write_text
from groundup.core.seals import read_manifest
from groundup.core.text import visible
from groundup.report import formats
from groundup.report.run_results import RunResults
from groundup.report.sections import SECTIONS
from groundup.report.sections.origin import RECIPE

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
REFERENCE = re.compile(r"""(\bid="|url\(#|href="#)""")


def write(path: Path, recipe: dict[str, Any], inputs: dict[str, Path]) -> None:
    """Write the report of the finished stages in `inputs` (name -> folder, in the order of the run) to `path`.

    Raises UserError when there is no stage, or an artifact is missing or damaged.
    """
    if not inputs:
        raise UserError(f"{path}: no finished stage to report of; `groundup run` makes them")
    write_text(path, render(gather(RunResults(recipe, inputs, path.parent))))
    write_text(path.with_name(RECIPE), toml.dumps(recipe))


def gather(run: RunResults) -> dict[str, Any]:
    """Everything that the page shows, as plain data; figures are SVG elements."""
    skipped = {name: results["skipped"] for name, results in run.results.items() if "skipped" in results}
    folders = {name: folder for name, folder in run.folders.items() if name not in skipped}
    kinds = {step["name"]: step["kind"] for step in run.recipe.get("steps", ()) if step["name"] in folders}  # of added steps
    standard = replace(run, folders={name: folder for name, folder in folders.items() if name not in kinds})
    sections = {}
    for section in SECTIONS:
        if not section.STAGES or any(stage in standard.folders for stage in section.STAGES):
            sections[_template(section)] = _section(section, standard)
    added = {}
    for name, kind in kinds.items():
        if section := next((module for module in SECTIONS if kind in module.STAGES), None):
            added[name] = f"{_template(section)}-{name}"
            sections[added[name]] = _section_of_added_step(section, run, name, kind, folders)
    seconds = {name: time for name, time in run.seconds.items() if name not in skipped}
    return {
        "name": visible(run.recipe["name"]), "seconds": seconds, "skipped": skipped, "sections": sections, "added": added,
    }  # fmt: skip


def _template(section: Any) -> str:
    return section.__name__.rpartition(".")[2]


def _section(section: Any, run: RunResults) -> dict[str, Any]:
    try:
        return {"title": section.TITLE, "template": _template(section), **section.gather(run)}
    except KeyError as error:
        stage = next((stage for stage in section.STAGES if stage in run.folders), "")
        raise UserError(
            f"report: {run.folders.get(stage, '')} has no {error}, so another version of groundup made it; delete "
            "that folder to have it made again"
        ) from None


def _section_of_added_step(section: Any, run: RunResults, name: str, kind: str, folders: dict[str, Path]) -> dict[str, Any]:
    """The section of a step that the recipe adds: the section of its kind, with the step's results, settings and inputs."""
    key = read_manifest(folders[name])["key"]
    by_digest = {read_manifest(folder)["digest"]: folder for folder in folders.values()}
    inputs = {need: by_digest[digest] for need, digest in key.get("inputs", {}).items() if digest in by_digest}
    settings = key.get("recipe", {}).get(kind, run.recipe[kind])
    step_run = replace(run, folders={**inputs, kind: folders[name]}, recipe={**run.recipe, kind: settings})
    content = _section(section, step_run)
    return content | {
        "title": f"{content['title']}: {name}",
        "compared": [{**line, "question": f"{name}: {line['question']}"} for line in content.get("compared", [])],
        "facts": [(f"{name}: {what}", value) for what, value in content.get("facts", [])],
    }


def templates(folder: Path) -> "Environment":
    """The page templates of a folder: every value that they show is escaped, and a missing one raises."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = formats.number
    return environment


def render(page: dict[str, Any]) -> str:
    """What `gather` found -> HTML."""
    from markupsafe import Markup

    environment = templates(HERE)
    environment.filters |= {
        "duration": formats.seconds,
        "percent": formats.percent,
        "decimals": formats.decimals,
        "bounds": formats.bounds,
        "interval": formats.interval,
        "marked": lambda text: text.translate({ord(" "): "·", ord("\n"): "⏎", ord("\t"): "⇥"}),
    }
    environment.globals["against"] = formats.against
    script = (HERE / "report.js").read_text(encoding="utf-8")
    parts = {
        name: Markup(environment.get_template(f"sections/{section['template']}.html.jinja").render(section))
        for name, section in page["sections"].items()
    }
    for name, section in page["added"].items():  # the drawings of two steps of a kind have the same ids
        parts[section] = Markup(REFERENCE.sub(rf"\1{name}-", parts[section]))
    return environment.get_template("report.html.jinja").render(
        **page,
        parts=parts,
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # Only the page's own script may run: a script in foreign text has another digest.
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
