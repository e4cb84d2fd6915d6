"""Arguments and options of several commands, and how each ends: the last line on stdout is one JSON object."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from groundup.core import outputs
from groundup.core.text import json_printable

# Bounds as in the recipe, for the same reasons.
MOST_TOKENS, LARGEST_SEED, MOST_MB = 2**20, 2**32 - 1, 10**9


def finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter("not a finite number")
    return value


def new_file(path: Path | None) -> Path | None:
    """Callback of an option: a file to write. Raises UserError where one exists."""
    if path is not None:
        outputs.require_new(path)
    return path


def page(path: Path) -> Path:
    """Callback of an option: a page or figure to write, over an older one. Raises UserError where any other file exists."""
    outputs.require_page(path)
    return path


RunFolder = Annotated[Path, typer.Argument(help="The run folder, as given to `groundup run --run`.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value of the recipe.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be made, why, and how large it is.")]
Inputs = Annotated[
    list[Path],
    typer.Argument(help="Parquet, JSON lines or text files, folders of them, a corpus folder, a run folder."),
]
Workers = Annotated[int | None, typer.Option(min=1, max=4096, help="Processes; the result is the same for any number.")]


def result(value: dict[str, Any]) -> None:
    """Print the result. An undefined figure, such as a share of nothing, is null: NaN is not JSON."""
    if sys.stdout.isatty():
        print(flush=True)  # on a terminal an empty line separates the result from the log
    print(json_printable(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
