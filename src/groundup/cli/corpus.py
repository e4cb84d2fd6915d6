"""Commands of the corpus."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from groundup.cli.options import MOST_MB, DryRun, Settings, new_file, result
from groundup.core.errors import UserError
from groundup.core.text import printable

corpus = typer.Typer(help="Web pages in, clean and weighted documents out; or train and tune its classifiers.")


@corpus.callback(invoke_without_command=True)
def make_corpus(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="[DOMAIN=]SOURCE",
            help="WARC file, folder, site or another source; give it once for each.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to build the corpus in.")] = None,
    engine: Annotated[Literal["processes", "ray"], typer.Option(help="Where the pages are worked on.")] = "processes",
    address: Annotated[str, typer.Option(help="Address of the Ray cluster; local starts one on this machine.")] = "local",
    workers: Annotated[int, typer.Option(min=0, max=4096, help="Pages worked on at once, in shards; 0: one a core.")] = 0,
    memory_mb: Annotated[int, typer.Option(min=1, max=MOST_MB, help="Memory for finding near duplicates.")] = 256,
    against: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="An earlier corpus, whose documents are not taken again.")
    ] = None,
    benchmarks: Annotated[
        list[Path] | None,
        typer.Option("--benchmark", metavar="FILE", help="Drop what shares 13 words in a row with it."),
    ] = None,
    comments: Annotated[bool, typer.Option(help="Keep what readers wrote under a page.")] = False,
    settings: Settings = None,
    dry_run: DryRun = False,
) -> None:
    """Pages -> annotations -> documents, as in `groundup run`. Run the same command again to resume."""
    if context.invoked_subcommand:
        return
    from groundup.pipeline import recipe as recipes
    from groundup.pipeline.steps import CORPUS_STEPS, dry, run_to_corpus

    if not sources or out is None:
        raise UserError("groundup corpus: give --from SOURCE and --out DIR; --help says more")
    if engine == "processes" and address != "local":
        raise UserError(f"groundup corpus: --address {address} is for a Ray cluster; add --engine ray")
    content = {
        "name": out.resolve().name,
        "threads": workers,
        "memory_mb": memory_mb,
        "ray": address if engine == "ray" else None,
        "pages": {"sources": [recipes.source(text) for text in sources]},
        "annotations": {"against": [str(folder) for folder in against or []], "comments": comments},
        "corpus": {"benchmarks": [str(path) for path in benchmarks or []]},
    }
    loaded = recipes.resolve(content, settings or [], "groundup corpus")
    result(dry(loaded, out, CORPUS_STEPS) if dry_run else run_to_corpus(loaded, out))


Texts = "Files or folders: Parquet, JSONL or CSV with a column text (and url, host or group), or plain text."


@corpus.command()
def train_quality(
    positive: Annotated[list[Path], typer.Option(help=f"Writing to look for, e.g. what Wikipedia refers to. {Texts}")],
    negative: Annotated[list[Path], typer.Option(help="Writing as it is found, e.g. pages of the web.")],
    out: Annotated[Path, typer.Option(callback=new_file, help="The classifier's file.")] = Path("quality.npz"),
) -> None:
    """Train a quality classifier on sets of your own; its scores are shares of the negatives that score lower."""
    from groundup.corpus.classify import quality

    result(quality.train(positive, negative, out))


@corpus.command()
def train_toxicity(
    toxic: Annotated[list[Path], typer.Option(help=f"Texts that people labelled toxic. {Texts}")],
    harmless: Annotated[list[Path], typer.Option(help="Texts that they labelled harmless.")],
    out: Annotated[Path, typer.Option(callback=new_file, help="The classifier's file.")] = Path("toxicity.npz"),
) -> None:
    """Train a toxicity classifier; shows its scores on a held-out fifth, and those of a word list."""
    from groundup.corpus.classify import toxicity

    result(toxicity.train(toxic, harmless, out))


@corpus.command()
def train_domains(
    sets: Annotated[list[str], typer.Argument(metavar="NAME=PATH...", help=f"Examples of each class. {Texts}")],
    out: Annotated[Path, typer.Option(callback=new_file, help="The classifier's file.")] = Path("domains.npz"),
) -> None:
    """Train a classifier of domains, as code, books, news, forum; a name may come several times."""
    from groundup.corpus.classify import domains

    result(domains.train(domains.named_sets(sets), out))


@corpus.command()
def tune(
    folder: Annotated[Path, typer.Argument(help="Annotations: annotations-*.parquet, or a run folder.")],
    column: Annotated[list[str] | None, typer.Option(help="Only these columns.")] = None,
    samples: Annotated[int, typer.Option(min=0, max=1000, help="Texts shown on each side of a threshold.")] = 2,
) -> None:
    """Show what each threshold would keep, with texts just on either side of it; nothing is computed anew."""
    from groundup.corpus.select import thresholds as tuning

    table = tuning.tune(folder, column or [], samples)
    for row in table["thresholds"]:
        print(printable("\n".join(tuning.described(row))))
        del row["samples"]
    result(table)
