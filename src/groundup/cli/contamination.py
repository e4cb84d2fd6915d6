"""The command that asks whether a test was trained on."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from groundup.cli.options import LARGEST_SEED, new_file, result
from groundup.core.text import printable


def contamination(
    model: Annotated[str, typer.Argument(help="A run, one of its stages, or a model's folder.")],
    task: Annotated[
        str, typer.Option("--task", metavar="NAME|FILE", help="A shipped task, a TOML file, or a file of examples.")
    ],
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder of a task's examples; or their file.")] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Texts to look for the examples in; several times. A run's own if not given."),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=10, max=10**6, help="Examples at the file's beginning whose order is tested.")
    ] = 1000,
    shards: Annotated[int, typer.Option(min=2, max=10_000, help="Parts of the file, each a value of the t test.")] = 50,
    permutations: Annotated[int, typer.Option(min=1, max=10_000, help="Shuffled orders of each part.")] = 30,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of the shuffling.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", callback=new_file, help="A JSON file of the report.")] = None,
) -> None:
    """Was a test trained on? Its order against shuffled ones, and its 13-grams in a corpus."""
    from groundup.evaluation import contamination as chapter

    report = chapter.contamination(
        model, task, data, corpus or [], seed=seed, examples=examples, shards=shards, permutations=permutations, out=out
    )
    print(printable(chapter.report_text(report)), file=sys.stderr)
    result(report)
