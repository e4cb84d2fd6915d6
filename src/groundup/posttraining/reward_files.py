"""What the setting `reward` names, and the files it is read from; known without torch and without running any code of a user."""

import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from groundup.core.errors import UserError
from groundup.core.plain_files import expanded
from groundup.core.text import shown

SHIPPED = ("arithmetic", "length")  # of `reward_functions.py`
COUNT = "count="  # and the word that is counted
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:function


def kind_of(name: str) -> str:
    """"program", "folder" or "function". Raises UserError where there is none of this name."""
    if name in SHIPPED or (name.startswith(COUNT) and name != COUNT):
        return "program"
    if expanded(name).is_dir():
        return "folder"
    if FUNCTION.fullmatch(name):
        return "function"
    raise UserError(
        f"reward {shown(name)}: no folder of this name; a program is {', '.join(SHIPPED)}, {COUNT}WORD or module:function"
    )


def files_of(name: str) -> list[Path]:
    """The folder of a reward model, or the file of a function's module, which is not imported."""
    kind = kind_of(name) if name else "program"
    if kind == "folder":
        return [expanded(name)]
    source = _source(name.partition(":")[0]) if kind == "function" else None
    return [source] if source else []


def _source(module: str) -> Path | None:
    search_paths, spec = [*sys.path, str(Path.cwd())], None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, search_paths)
        if spec is None:
            return None
        search_paths = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
