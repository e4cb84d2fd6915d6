"""Commands of scaling laws."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from groundup.cli.options import LARGEST_SEED, MOST_TOKENS, finite, new_file, page, result
from groundup.core.text import printable

scale = typer.Typer(no_args_is_help=True, help="Scaling laws: fit runs, predict others, choose a mixture, count the cost.")

LARGEST = 1e40
Table = Annotated[
    Path, typer.Argument(metavar="FILE", help="A CSV of runs: parameters, tokens, loss, and where known flop and batch.")
]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of resampling.")]
Draws = Annotated[int, typer.Option(min=20, max=10_000, help="Resamplings of the runs, for the intervals.")]


@scale.command()
def fit(runs: Table, draws: Draws = 200, seed: Seed = 0) -> None:
    """The law of a ladder's runs, with intervals: three approaches, ways of counting, sensitivity, largest runs held out."""
    from groundup.scaling.run_table import read
    from groundup.scaling.study import study

    result(study(read(runs), draws, seed))


@scale.command()
def predict(
    runs: Table,
    parameters: Annotated[
        float | None, typer.Option(min=1, max=LARGEST, callback=finite, help="Parameters of the model.")
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(min=1, max=LARGEST, callback=finite, help="Tokens that it is trained on.")
    ] = None,
    flop: Annotated[
        float | None, typer.Option(min=1, max=LARGEST, callback=finite, help="FLOP of its training; alone, for the best size.")
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
    from groundup.scaling.run_table import read

    table = read(runs)
    fitted = laws.fit(table, draws, seed)
    fitted.log_outliers(table)
    prediction = study.predict(fitted, table, parameters, tokens, flop)
    if answered:
        prediction["answering"] = study.with_intervals(fitted, prediction["loss"]["value"], answered)
    result(prediction)


@scale.command()
def mixture(
    runs: Annotated[Path, typer.Argument(metavar="FILE", help="A CSV of runs: weight_DOMAIN, ..., loss_TARGET, ...")],
    target: Annotated[
        list[str] | None, typer.Option(metavar="TARGET", help="Text whose loss is minimised; several times. All if not given.")
    ] = None,
    available: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN=TOKENS", help="What each domain has: the natural mix; the table's mean if not given."),
    ] = None,
    tokens: Annotated[float | None, typer.Option(min=1, max=LARGEST, callback=finite, help="Tokens of the training.")] = None,
    max_repeats: Annotated[
        float, typer.Option(min=0.01, max=1000, callback=finite, help="Times that a domain is read, at most.")
    ] = 4.0,
    pull: Annotated[
        float, typer.Option(min=0, max=1000, callback=finite, help="To the natural mix, in nats of loss for a nat of divergence.")
    ] = 0.02,
    out: Annotated[Path, typer.Option(callback=new_file, help="Where to write [mixture] for a recipe.")] = Path("mixture.toml"),
    seed: Seed = 0,
) -> None:
    """Weights of the domains from a swarm of small runs, with the gain that the law predicts."""
    from groundup.scaling import mixture_laws

    sizes = mixture_laws.parse_available(available or [])
    proposal = mixture_laws.propose(mixture_laws.read(runs), target or [], sizes, tokens, max_repeats, pull, seed)
    mixture_laws.write(out, proposal, max_repeats)
    result({"out": str(out), **proposal})


@scale.command()
def bill(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder: what it cost.")] = None,
    flop: Annotated[float | None, typer.Option(min=1, max=LARGEST, callback=finite, help="Of a planned training.")] = None,
    llama3: Annotated[bool, typer.Option("--llama3", help="Llama 3 405B, line by line, as published.")] = False,
    gpu: Annotated[str, typer.Option(help="v100, a100, h100, h200, b200, mi300x, rtx4090 or tpuv4.")] = "h100",
    gpus: Annotated[int, typer.Option(min=1, max=10**7, help="How many.")] = 8,
    utilisation: Annotated[
        float, typer.Option(min=0.001, max=1, callback=finite, help="Share of their peak that training gets.")
    ] = 0.4,
    price: Annotated[
        float | None, typer.Option(min=0, max=1e6, callback=finite, help="Dollars per hour of a GPU or of RUN's machine.")
    ] = None,
    watts: Annotated[float, typer.Option(min=0, max=1e6, callback=finite, help="Of RUN's machine at work.")] = 30.0,
    grams: Annotated[float, typer.Option(min=0, max=1e5, callback=finite, help="CO2e per kWh of the power grid.")] = 400.0,
    overhead: Annotated[
        float, typer.Option(min=1, max=10, callback=finite, help="Energy of the data centre per energy of the GPUs (PUE).")
    ] = 1.1,
    staff: Annotated[float, typer.Option(min=0, max=1e6, callback=finite, help="People.")] = 0.0,
    salary: Annotated[float, typer.Option(min=0, max=1e9, callback=finite, help="Dollars per year of each.")] = 500_000.0,
    years: Annotated[float, typer.Option(min=0, max=100, callback=finite, help="Years that the staff works.")] = 1.0,
) -> None:
    """GPU hours, dollars, staff, energy and carbon of a training, with each assumption, and the laws about its size."""
    from groundup.scaling import training_cost

    if sum((run is not None, flop is not None, llama3)) != 1:
        raise typer.BadParameter("give one of a run folder, --flop and --llama3")
    if llama3:
        sheet = training_cost.llama3()
    elif run is not None:
        sheet = training_cost.of_run(run, watts, 0.1 if price is None else price, grams)
    else:
        assert flop is not None
        sheet = training_cost.bill(flop, gpu, gpus, utilisation, price, grams, overhead, staff, salary, years)
    print(printable(training_cost.shown(sheet)), file=sys.stderr)
    result(sheet)


@scale.command()
def report(
    runs: Table,
    mixtures: Annotated[Path | None, typer.Option(metavar="FILE", help="A CSV of mixtures, as for mixture.")] = None,
    flop: Annotated[
        float | None, typer.Option(min=1, max=LARGEST, callback=finite, help="Of a planned training: its size, loss and bill.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="GPU of the bill, as for bill.")] = "h100",
    gpus: Annotated[int, typer.Option(min=1, max=10**7, help="How many.")] = 8,
    out: Annotated[Path, typer.Option(metavar="PAGE", callback=page, help="The page to write.")] = Path("scaling.html"),
    draws: Draws = 200,
    seed: Seed = 0,
) -> None:
    """One page: the law with its errors and intervals, the largest runs held out, the plan, the mixture, the bill."""
    from groundup.report import scaling_page

    result(scaling_page.write(out, runs, mixtures, flop, gpu, gpus, draws, seed))


@scale.command()
def compare(
    ladders: Annotated[list[str], typer.Argument(metavar="NAME=LADDER", help="Folders that `scale run` wrote.")],
    out: Annotated[Path, typer.Option(metavar="SVG", callback=page, help="The figure to write.")] = Path("architectures.svg"),
) -> None:
    """Architectures on one axis: how fast each one's loss falls, and its loss by position in the context."""
    from groundup.core.files import write_text
    from groundup.report import figures
    from groundup.scaling import architecture_comparison

    pairs = [ladder.partition("=") for ladder in ladders]
    folders = {name: Path(folder) for name, _, folder in pairs if name.replace("-", "").isalnum() and folder}
    if len(folders) < len(pairs):
        raise typer.BadParameter("give each ladder once as NAME=LADDER, such as lstm=ladders/lstm")
    compared = architecture_comparison.compare(folders)
    write_text(out, figures.as_file(figures.architectures("architectures", compared)))
    result(
        {"figure": str(out), **{name: {k: v for k, v in ladder.items() if k != "points"} for name, ladder in compared.items()}}
    )


@scale.command()
def plan(
    minutes: Annotated[float | None, typer.Option(min=0, max=1e7, callback=finite, help="Of training on this machine.")] = None,
    flop: Annotated[float | None, typer.Option(min=1, max=LARGEST, callback=finite, help="In place of minutes.")] = None,
    dollars: Annotated[
        float | None, typer.Option(min=0.001, max=1e9, callback=finite, help="In place of minutes, of a rented --gpu.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="GPU that --dollars rent, as for bill.")] = "h100",
    vocabulary: Annotated[int, typer.Option(min=8, max=MOST_TOKENS, help="Vocabulary of the tokenizer.")] = 4096,
    context_length: Annotated[int, typer.Option(min=16, max=MOST_TOKENS, help="Tokens that a model sees at once.")] = 256,
    architecture: Annotated[
        Literal["dense", "experts", "lstm", "convolution", "patches"], typer.Option(help="Of all runs.")
    ] = "dense",
    out: Annotated[Path, typer.Option(metavar="PLAN", callback=new_file, help="A file to write, and edit.")] = Path("plan.json"),
    seed: Seed = 0,
) -> None:
    """A ladder of sizes and lengths for a budget of minutes, operations or dollars, off the best sizes on both sides."""
    from groundup.core.files import write_json
    from groundup.scaling import ladder

    if sum(budget is not None for budget in (minutes, flop, dollars)) != 1:
        raise typer.BadParameter("give one of --minutes, --flop and --dollars")
    rate: ladder.Throughput | None = None
    if dollars is not None:
        rate, price = ladder.rented_throughput(gpu)
        flop = rate.flop_per_second * 3600 * dollars / price
    planned = ladder.plan(minutes, flop, vocabulary, context_length, architecture, seed, rate)
    write_json(out, planned)
    result({"plan": str(out), **planned})


@scale.command()
def run(
    planned: Annotated[Path, typer.Argument(metavar="PLAN", help="As plan writes it.")],
    tokens: Annotated[Path, typer.Option(help="Token files with their held-out text: the folder tokens of a run.")],
    tokenizer: Annotated[Path, typer.Option(help="Their tokenizer: the folder tokenizer of the run.")],
    out: Annotated[Path, typer.Option(help="The folder to write: ledger.jsonl, runs.csv.")] = Path("ladder"),
    threads: Annotated[
        int, typer.Option(min=0, max=4096, envvar="OMP_NUM_THREADS", help="Threads for training; 0: one per core.")
    ] = 0,
) -> None:
    """Do the runs of a plan. Run the same command again to resume; finished runs are not done again."""
    from groundup.scaling import ladder
    from groundup.tokenizer.load import load

    result(ladder.run(planned, tokens, load(tokenizer), out, threads))
