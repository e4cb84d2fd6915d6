"""The folder of a run whose user names none, runs/<recipe>: it belongs to one recipe, whose path is noted in it.

Recipes that `groundup init` writes are all called recipe.toml: the second would replace, step by step, what the first made.
Light: no torch, no pydantic.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from groundup.core.errors import UserError
from groundup.core.files import write_text
from groundup.core.text import shown
from groundup.pipeline.shipped_recipes import shipped

MARK = ".recipe"


@contextmanager
def default_folder(recipe: Path, writes: bool = True) -> Iterator[Path]:
    """The folder; if the run `writes`, it is noted as the recipe's once it exists.

    Raises UserError where it is that of another recipe, which still exists.
    """
    folder, name = Path("runs") / recipe.stem, _name(recipe)
    if (other := _noted(folder)) not in ("", name) and (other in shipped() or Path(other).is_file()):
        raise UserError(f"{folder}: is the run of the recipe {shown(other)}; give this one its own folder by --run, as --run "
                        f"runs/{recipe.absolute().parent.name}; --run {folder} would change that run")  # fmt: skip
    try:
        if writes:
            _note(folder, name)
        yield folder
    finally:
        if writes:
            _note(folder, name)


def _name(recipe: Path) -> str:
    """A shipped recipe's name, which is the same in every installation; else the file's path."""
    return str(recipe) if str(recipe) in shipped() and not recipe.is_file() else str(recipe.resolve())


def _noted(folder: Path) -> str:
    try:
        return (folder / MARK).read_text(encoding="utf-8", errors="surrogateescape").strip() if (folder / MARK).is_file() else ""
    except OSError:
        return ""


def _note(folder: Path, name: str) -> None:
    """Best effort: a run that is read-only, or on a full disk, is no worse without."""
    if folder.is_dir() and not int(os.environ.get("RANK", 0)) and _noted(folder) != name:
        with suppress(OSError, UnicodeError, UserError):
            write_text(folder / MARK, f"{name}\n")
