"""The command that evaluates models on tasks."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from groundup.cli.options import finite, result
from groundup.core.errors import UserError
from groundup.core.table import table
from groundup.core.text import printable


def evaluate(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Runs, stages, model folders; hf:FOLDER; http://HOST/v1#NAME.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME|FILE", help="A shipped task, or a TOML file; several times.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of the examples; or their file, if it is one.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="At most so many examples a task, spread evenly over its files.")
    ] = None,
    few_shot: Annotated[
        int | None, typer.Option(min=0, max=100, help="Examples before a question; the task says if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where records go, one for each example; a killed call resumes there.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Rows at once; changes time and memory, no answer.")] = 64,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also with slips, other case and spaces, contractions, options in another order.")
    ] = False,
    misspellings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Real slips, as codespell has them; if not given DIR/typos, or our own.")
    ] = None,
    efficiency: Annotated[bool, typer.Option("--efficiency", help="Also time, memory, operations and energy.")] = False,
    watts: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e9, callback=finite, help="That the machine draws, for --efficiency; 30 if not given."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Processes of one thread each; not given: this one with all threads.")
    ] = None,
    engine: Annotated[Literal["processes", "ray"], typer.Option(help="Where the workers are.")] = "processes",
    address: Annotated[str, typer.Option(help="Address of the Ray cluster; local starts one on this machine.")] = "local",
    leaderboard: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A leaderboard.jsonl to add a row to for each model and task.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Only show the shipped tasks.")] = False,
) -> None:
    """Evaluate models on benchmarks, under every scoring convention at once, with intervals."""
    from groundup.evaluation import evaluate as evaluation
    from groundup.evaluation.results_table import table as results_table
    from groundup.report.config import ReportConfig

    if show:
        shipped = evaluation.listing()
        rows = [(name, info["kind"], info["title"], ", ".join(info["files"])) for name, info in shipped["tasks"].items()]
        print(printable(table(("task", "kind", "title", "files in --data"), rows, left=(1, 2, 3))), file=sys.stderr)
        result(shipped)
        return
    if not models or not task:
        raise UserError("groundup evaluate: give MODEL and --task NAME or FILE; --list shows the shipped tasks")
    if misspellings and not robustness:
        raise UserError("groundup evaluate: --misspellings needs --robustness: give both")
    if watts is not None and not efficiency:
        raise UserError("groundup evaluate: --watts needs --efficiency: give both")
    machine = ReportConfig(**({} if watts is None else {"watts": watts})).model_dump()
    if engine == "processes" and address != "local":
        raise UserError(f"groundup evaluate: --address {address} is for a Ray cluster; add --engine ray")
    scores = evaluation.evaluate(
        models, task, data, limit=limit, few_shot=few_shot, out=out, batch_size=batch_size, workers=workers,
        ray=address if engine == "ray" else None, robust=robustness, misspellings=misspellings,
        machine=machine if efficiency else None, leaderboard=leaderboard,
    )  # fmt: skip
    print(printable(results_table(scores)), file=sys.stderr)
    result(scores)
