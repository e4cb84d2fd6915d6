"""Verbs of scaling laws."""

from pathlib import Path
from typing import Annotated

import typer

from groundup.cli.options import LARGEST_SEED, finite, result

scale = typer.Typer(no_args_is_help=True, help="Scaling laws: fit runs, predict others, choose a mixture, count the cost.")

LARGEST = 1e40
Table = Annotated[
    Path, typer.Argument(metavar="FILE", help="A CSV of runs: parameters, tokens, loss, and where known flop and batch.")
]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the resampled runs.")]
Draws = Annotated[int, typer.Option(min=20, max=10_000, help="Resamplings of the runs, for the intervals.")]


@scale.command()
def fit(runs: Table, draws: Draws = 200, seed: Seed = 0) -> None:
    """The law of a ladder's runs, with intervals: three approaches, ways of counting, sensitivity, largest runs held out."""
    from groundup.scaling.study import of_file

    _, found = of_file(runs, draws, seed)
    result(found)


@scale.command()
def predict(
    runs: Table,
    parameters: Annotated[float | None, typer.Option(min=1, max=LARGEST, callback=finite, help="Of the model.")] = None,
    tokens: Annotated[float | None, typer.Option(min=1, max=LARGEST, callback=finite, help="That it reads.")] = None,
    flop: Annotated[
        float | None, typer.Option(min=1, max=LARGEST, callback=finite, help="Of training; alone, for the best size.")
    ] = None,
    answered: Annotated[
        float | None,
        typer.Option(min=1, max=LARGEST, callback=finite, help="Tokens to answer in its life: the size that is then cheapest."),
    ] = None,
    draws: Draws = 200,
    seed: Seed = 0,
) -> None:
    """The loss of one more run, or the best size for a budget of operations, with intervals."""
    from groundup.scaling import laws, study
    from groundup.scaling.runs import read

    table = read(runs)
    fitted = laws.fit(table, draws, seed)
    told = study.predict(fitted, table, parameters, tokens, flop)
    if answered:
        told["answering"] = study.with_intervals(fitted, told["loss"]["value"], answered)
    result(told)


@scale.command()
def mixture(
    runs: Annotated[Path, typer.Argument(metavar="FILE", help="A CSV of runs: weight_DOMAIN, ..., loss_TARGET, ...")],
    target: Annotated[
        list[str] | None, typer.Option(metavar="TARGET", help="Whose loss to make small; several times. All, if not given.")
    ] = None,
    available: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN=TOKENS", help="What each domain has: the natural mix; the table's mean if not given."),
    ] = None,
    tokens: Annotated[float | None, typer.Option(min=1, max=LARGEST, callback=finite, help="Of the training.")] = None,
    max_repeats: Annotated[float, typer.Option(min=0.01, max=1000, callback=finite, help="Of a domain, at most.")] = 4.0,
    pull: Annotated[
        float, typer.Option(min=0, max=1000, callback=finite, help="To the natural mix, in nats of loss for a nat of divergence.")
    ] = 0.02,
    out: Annotated[Path, typer.Option(help="Where to write [mixture] for a recipe.")] = Path("mixture.toml"),
    seed: Seed = 0,
) -> None:
    """Weights of the domains from a swarm of small runs, with the gain that the law predicts."""
    from groundup.scaling import mixture_laws

    sizes = mixture_laws.parse_available(available or [])
    found = mixture_laws.propose(mixture_laws.read(runs), target or [], sizes, tokens, max_repeats, pull, seed)
    mixture_laws.write(out, found, max_repeats)
    result({"out": str(out), **found})
