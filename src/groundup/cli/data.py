"""The verbs of data that people bring."""

from pathlib import Path
from typing import Annotated

import typer

from groundup.cli.options import result

data = typer.Typer(no_args_is_help=True, help="Conversations and preferences of your own: read, checked and converted.")


@data.callback()
def _group() -> None:
    """Without it a single verb would have no name."""


@data.command()
def convert(
    files: Annotated[
        list[Path], typer.Argument(help="JSON, CSV or Parquet in the format of TRL, OpenAI, Alpaca, ShareGPT or HH-RLHF.")
    ],
    out: Annotated[Path, typer.Option("--to", help="The file of JSON lines to write, in the format of TRL.")],
) -> None:
    """Write conversations or preferences as TRL's JSON lines; says the formats found, and counts what is left out."""
    from groundup.data.convert import convert as write

    result(write(files, out))
