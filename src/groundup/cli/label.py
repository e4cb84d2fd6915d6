"""The commands of labelling."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from groundup.cli.options import LARGEST_SEED, MOST_TOKENS, finite, result
from groundup.core.errors import UserError
from groundup.core.text import printable

if TYPE_CHECKING:
    from groundup.labelling.store import Store

label = typer.Typer(no_args_is_help=True, help="Have people compare answers, and train on what they said.")

Project = Annotated[str, typer.Argument(metavar="PROJECT", help="A file of SQLite, or postgresql+psycopg://...")]
Out = Annotated[str, typer.Option("--out", metavar="PROJECT", help="The project to make, or to add to.")]
Guidelines = Annotated[Path | None, typer.Option(help="A text file, shown beside every pair.")]
Overlap = Annotated[int | None, typer.Option(min=1, max=1000, help="How many people judge each pair; 1 if not given.")]
GoldEvery = Annotated[
    int | None, typer.Option(min=2, max=10**6, help="One in so many pairs is one whose answer is known; 10 if not given.")
]
Order = Annotated[
    str | None, typer.Option(help="random (if not given), or disagreement: where reward models disagree comes first.")
]
Lease = Annotated[
    int | None, typer.Option("--lease-minutes", min=1, max=10**6, help="How long a shown pair is kept; 30 if not given.")
]
Cost = Annotated[
    float | None, typer.Option("--cost-per-hour", min=0, max=10**6, callback=finite, help="Of an annotator; 0 if not given.")
]


def _open(address: str, make: bool = False) -> "Store":
    try:
        import fastapi  # noqa: F401
        import sqlalchemy  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError("label needs further libraries: pip install 'groundup[label]'") from None
    from groundup.labelling.store import open_store

    return open_store(address, make)


def _made(
    address: str, guidelines: Path | None, overlap: int | None, gold_every: int | None, order: str | None, lease: int | None,
    cost: float | None,
) -> tuple["Store", dict[str, Any]]:  # fmt: skip
    """A project, made where there is none, and which of its settings change."""
    from groundup.data.whole_file import read_whole

    if order not in (None, "random", "disagreement"):
        raise UserError(f"--order {order}: give random or disagreement")
    changes = {
        "guidelines": guidelines and read_whole(guidelines), "overlap": overlap, "gold_every": gold_every, "order": order,
        "lease_minutes": lease, "cost_per_hour": cost,
    }  # fmt: skip
    return _open(address, make=True), changes


@label.command("make")
def make_pairs(
    model_a: Annotated[str, typer.Argument(help="A model's folder, or a run.")],
    model_b: Annotated[str, typer.Argument(help="Another, or the same: two answers by chance.")],
    prompts: Annotated[list[Path], typer.Option(help="Prompts, conversations or preferences; once for each file.")],
    out: Out,
    max_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=100.0, callback=finite, help="The models' own if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of the answers.")] = 0,
    guidelines: Guidelines = None,
    overlap: Overlap = None,
    gold_every: GoldEvery = None,
    order: Order = None,
    lease: Lease = None,
    cost: Cost = None,
) -> None:
    """Have two models answer each prompt: the pairs that people then label."""
    store, changes = _made(out, guidelines, overlap, gold_every, order, lease, cost)
    from groundup.labelling.generate_pairs import generate_pairs

    result({"out": store.shown} | generate_pairs(store, (model_a, model_b), prompts, max_tokens, temperature, seed, changes))


@label.command("import")
def bring(
    files: Annotated[list[Path], typer.Argument(help="Pairs (prompt, a, b), preferences of any format, or judgements.")],
    out: Out,
    gold: Annotated[bool, typer.Option("--gold", help="Preferences are known answers, to check annotators by.")] = False,
    disagreement: Annotated[str, typer.Option(help="The column that says how far two reward models disagree.")] = "disagreement",
    guidelines: Guidelines = None,
    overlap: Overlap = None,
    gold_every: GoldEvery = None,
    order: Order = None,
    lease: Lease = None,
    cost: Cost = None,
) -> None:
    """Add pairs of your own, and judgements that were made elsewhere, to a project."""
    store, changes = _made(out, guidelines, overlap, gold_every, order, lease, cost)
    from groundup.labelling.import_pairs import import_files

    result({"out": store.shown} | import_files(store, files, gold, disagreement, changes))


@label.command()
def invite(
    project: Project, names: Annotated[list[str], typer.Argument(help="Of annotators; a name given again gets a new token.")]
) -> None:
    """Give annotators tokens; from then on the page is for them alone."""
    store = _open(project)
    from groundup.labelling.label_server import invite as give

    result({"tokens": give(store, names)})


@label.command()
def serve(
    project: Project,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs invited annotators.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8001,
    name: Annotated[
        list[str] | None, typer.Option("--host-name", help="A name by which browsers call this machine; once for each.")
    ] = None,
) -> None:
    """Open the page to label on, until Ctrl-C."""
    store = _open(project)
    from groundup.labelling.label_server import serve as run

    result(run(store, host, port, name or []))


@label.command()
def export(project: Project, out: Annotated[Path, typer.Option(help="The folder to write.")]) -> None:
    """Write what people said as preferences to train on, and as a log of judgements."""
    store = _open(project)
    from groundup.labelling.results import export as write

    result(write(store, out))


@label.command()
def report(project: Project) -> None:
    """Agreement, bias, seconds and cost."""
    store = _open(project)
    from groundup.labelling.results import lines_of
    from groundup.labelling.results import report as figures

    summary = figures(store)
    print(printable("\n".join(lines_of(summary))), file=sys.stderr)
    result(summary)
