"""The recipes that come with the package, and the commented one that `groundup init` writes for a user's own pages.

Light: no torch, no pydantic.
"""

import json
import re
import shlex
from pathlib import Path
from string import Template
from typing import Any

import groundup
from groundup.core.errors import UserError
from groundup.core.plain_files import expanded

FOLDER = Path(groundup.__file__).with_name("recipes")
NOT_A_PATH = re.compile(r"[a-z]+:")  # pydoc:, cc:, hf:, https: and their like


def shipped() -> dict[str, Path]:
    """Name -> file of each recipe in the package."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def find(recipe: Path) -> Path:
    """The file of a recipe that is given as a path, or by the name of a shipped one. A file of that name comes first."""
    return recipe if recipe.is_file() else shipped().get(str(recipe), recipe)


def init(folder: Path, pages: list[str], languages: list[str]) -> dict[str, Any]:
    """Write FOLDER/recipe.toml for sources of pages; without any, for those that the user will put into FOLDER/pages.

    Returns the paths written and the command to run next. Raises UserError where there is a recipe already, or no such
    source, and where a path cannot be written in TOML.
    """
    target = folder / "recipe.toml"
    if target.exists():
        raise UserError(f"{target}: there already; delete it, or give another folder")
    for language in languages:
        if not re.fullmatch(r"[a-z]{2,3}", language):
            raise UserError(f"--language {language[:40]}: expected a code of two or three letters, as en or de")
    sources = "\n".join(map(_source, pages or [str(folder / "pages")], [not pages] * max(1, len(pages))))
    folder.mkdir(parents=True, exist_ok=True)
    if not pages:
        (folder / "pages").mkdir(exist_ok=True)
    template = Template((FOLDER / "own.toml.template").read_text(encoding="utf-8"))
    name = _quoted(folder.resolve().name)
    target.write_text(template.substitute(name=name, sources=sources, languages=json.dumps(languages)), encoding="utf-8")
    command = f"groundup run {shlex.quote(str(target))} --run {shlex.quote(str(folder / 'run'))} --dry-run"
    return {"recipe": str(target), "pages": pages or [str(folder / "pages")], "next": command}


def _source(text: str, will_be_made: bool) -> str:
    """The block of one source; a path is written from the root, so that the recipe can be run from anywhere."""
    if not NOT_A_PATH.match(text):
        path = expanded(text)
        if not (will_be_made or path.exists()):
            raise UserError(f"--pages {text[:200]}: no such file or folder")
        text = str(path.resolve())
    domain = re.sub(r"[^a-z0-9_-]+", "-", Path(text).name.partition(".")[0].lower()).strip("-") or "pages"
    return f'[[pages.sources]]\nsource = {_quoted(text)}\ndomain = "{domain[:40]}"\n'


def _quoted(text: str) -> str:
    """A TOML string. Raises UserError for a name that is not Unicode, which no TOML file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text[:100]!r}: not a name in UTF-8, which a recipe cannot hold; rename it") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
