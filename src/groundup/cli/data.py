"""The commands of data that people bring."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from groundup.cli.options import result
from groundup.core.text import printable

data = typer.Typer(no_args_is_help=True, help="Conversations and preferences of your own: read, checked and converted.")


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


@data.command()
def show(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder whose tokenizer and chat template are used.")],
    files: Annotated[list[Path], typer.Option("--data", metavar="FILE", help="Conversations or preferences; several times.")],
    rows: Annotated[int, typer.Option(min=1, max=10_000, help="Rows to show of each file, from its beginning.")] = 3,
) -> None:
    """Show which tokens of your rows are trained: in colour, or as {+text+} where there is no terminal."""
    from groundup.posttraining.show import marked_rows, show

    marked, counts = show(model, files, rows)
    print(marked_rows(marked, sys.stderr.isatty() and "NO_COLOR" not in os.environ), file=sys.stderr)
    for reason, count in counts["left_out"].items():
        print(printable(f"left out, {count:,} of these rows: {reason}"), file=sys.stderr)
    result(counts)
