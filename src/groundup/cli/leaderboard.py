"""The command that makes a leaderboard's page."""

from pathlib import Path
from typing import Annotated

import typer

from groundup.cli.options import page, result


def leaderboard(
    board: Annotated[Path, typer.Argument(metavar="FILE", help="leaderboard.jsonl, as `evaluate --leaderboard` writes it.")],
    out: Annotated[Path, typer.Option(metavar="PAGE", callback=page, help="The HTML page to write.")] = Path("leaderboard.html"),
) -> None:
    """Make a page of a leaderboard: ranks with their ties, by task, of figures that can be compared."""
    from groundup.report.leaderboard_page import write

    result(write(board, out))
