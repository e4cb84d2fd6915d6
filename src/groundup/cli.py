"""The verbs. Nothing but argument names and a call; the last line on stdout is one JSON object with the result."""

import errno
import json
import math
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from groundup import __version__
from groundup.cli_data import data
from groundup.core.text import json_printable, message, printable
from groundup.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Build a language model from the ground up: raw web pages in, a chat model out, every stage measured.",
)

corpus = typer.Typer(help="Web pages in, clean and weighted documents out; or train and tune what judges them.")
app.add_typer(corpus, name="corpus")
app.add_typer(data, name="data")

# Trouble of the machine rather than of the program.
MACHINE_TROUBLE = {
    errno.ENOSPC: "no space left; free some and run the same command again",
    errno.EDQUOT: "over the disk quota; free some space and run the same command again",
    errno.EFBIG: "file size limit reached; raise it and run the same command again",
    errno.EROFS: "read-only file system; choose another --run folder",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ENOTDIR: "not a folder",
    errno.EISDIR: "is a folder, not a file",
    errno.EEXIST: "is a file, not a folder",
    errno.EIO: "input/output error of the disk",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "a link that leads to itself",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n) and run the same command again",
}
# What numpy and Arrow say of a disk in place of the system's number.
NUMBER_OF_SYSTEM = re.compile(r"\[?errno:? (\d+)", re.IGNORECASE)
SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")

INTERRUPTED = 130

tokenizer = typer.Typer(no_args_is_help=True, help="Train tokenizers, and see how they cut text.")
app.add_typer(tokenizer, name="tokenizer")

# Bounds as in the recipe, for the same reasons.
MOST_TOKENS, LARGEST_SEED, MOST_MB = 2**20, 2**32 - 1, 10**9


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter("not a finite number")
    return value


RunFolder = Annotated[Path, typer.Argument(help="The run folder, as given to `groundup run --run`.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value of the recipe.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be made, and why.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"groundup {__version__}")
        raise typer.Exit


@app.callback()
def groundup(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="What to build, in TOML: recipes/laptop.toml is a commented example.")],
    folder: Annotated[Path | None, typer.Option("--run", help="Where to build it; runs/<recipe> if not given.")] = None,
    settings: Settings = None,
    dry_run: DryRun = False,
) -> None:
    """Walk the whole road: pages, corpus, tokenizer, base model, fine-tuning, preferences, report.

    What is done is not done again; a run that was killed continues where it was.
    """
    from groundup import recipe as recipes
    from groundup.stages import dry, walk

    loaded = recipes.load(recipe, settings)
    target = folder or Path("runs") / recipe.stem
    _result(dry(loaded, target) if dry_run else walk(loaded, target))


@app.command()
def chat(
    folder: RunFolder,
    stage: Annotated[str, typer.Option(help="Which model to talk to: base, sft, dpo or ppo.")] = "dpo",
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=100.0, callback=_finite,
            help="0 always takes the likeliest token; the model's generation_config.json says if not given.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Longest answer, in tokens.")] = 128,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="The same seed and words give the same answers.")] = 0,
) -> None:
    """Talk to a model of a finished run in the terminal; an empty line or Ctrl-D ends."""
    from groundup.serving.chat import talk

    _result(talk(folder, stage, temperature, max_tokens, seed))


@app.command()
def tensorboard(
    folder: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Where to write; tensorboard in the run folder if not given.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on while trainings are at work, until Ctrl-C.")] = False,
) -> None:
    """Write the metrics of a run's trainings for TensorBoard."""
    from groundup.report.tensorboard import export

    _result(export(folder, out or folder / "tensorboard", follow))


Inputs = Annotated[
    list[Path],
    typer.Argument(help="Parquet, JSON lines or text files, folders of them, a corpus folder, a run folder."),
]
Workers = Annotated[int | None, typer.Option(min=1, max=4096, help="Processes; the result is the same for any number.")]


@tokenizer.command()
def train(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    kind: Annotated[
        Literal["bpe", "wordpiece", "characters", "bytes"], typer.Option(help="What to train.")
    ] = "bpe",
    vocabulary: Annotated[int, typer.Option(max=MOST_TOKENS, help="Tokens, special ones included.")] = 32_768,
    rule: Annotated[
        str, typer.Option(help="How text is cut first: qwen2, threes, threes-from-right or indentation.")
    ] = "qwen2",
    weight: Annotated[
        list[str] | None, typer.Option(metavar="DOMAIN=SHARE", help="Share of a domain's text; without, as found.")
    ] = None,
    workers: Workers = None,
    memory_mb: Annotated[
        int, typer.Option(min=1, max=MOST_MB, help="For merging; rare pre-tokens beyond it are left out.")
    ] = 8192,
) -> None:
    """Train a tokenizer on documents. For bpe, what was counted before is found again in OUT/counts."""
    from groundup.tokenizer.train import parse_weights, train_bpe, train_plain

    if kind != "bpe":
        _result(train_plain(kind, inputs, out, vocabulary))
        return
    _result(train_bpe(inputs, out, vocabulary, rule, parse_weights(weight or []), workers, memory_mb << 20))


@tokenizer.command()
def encode(
    folder: Annotated[Path, typer.Argument(help="The tokenizer's folder.")],
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Where to write: OUT.bin and OUT.idx, in the layout of Megatron-LM.")],
    split: Annotated[str | None, typer.Option(help="Only documents of this split, such as train or held_out.")] = None,
    workers: Workers = None,
) -> None:
    """Encode documents to token files, each after the end-of-text token. A killed one continues."""
    from groundup.tokenizer.encode import encode_corpus

    _result(encode_corpus(folder, inputs, out, split, workers))


@tokenizer.command()
def sweep(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="The folder to write: a model for each size, sweep.json, sweep.html.")],
    sizes: Annotated[str, typer.Option(help="Vocabularies, special tokens included.")] = "1024,2048,4096,8192,16384",
    depth: Annotated[int, typer.Option(min=1, max=126, help="Of the small model that every size trains.")] = 2,
    tokens: Annotated[
        int, typer.Option(min=1, max=10**15, help="What the smallest size trains on; the others get equal compute.")
    ] = 2_000_000,
    context: Annotated[int, typer.Option(min=16, max=MOST_TOKENS, help="Tokens that the model sees at once.")] = 256,
    rule: Annotated[str, typer.Option(help="How text is cut first, as in train.")] = "qwen2",
    held_out_kb: Annotated[
        int, typer.Option(min=1, max=MOST_MB, help="Text to judge by; the documents' own split, if any.")
    ] = 1000,
    text_mb: Annotated[int, typer.Option(min=1, max=MOST_MB, help="Random sample of the inputs to work with.")] = 256,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the sample and of training.")] = 0,
    workers: Workers = None,
) -> None:
    """Which vocabulary? Sizes side by side, decided by bits per byte at equal compute. A killed one continues."""
    from groundup.tokenizer.sweep import parse_sizes
    from groundup.tokenizer.sweep import sweep as measure

    _result(
        measure(
            inputs, parse_sizes(sizes), out, depth=depth, tokens=tokens, context=context, rule_name=rule,
            held_out_kb=held_out_kb, text_mb=text_mb, seed=seed, workers=workers,
        )
    )  # fmt: skip


@tokenizer.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder with tokenizer.json: ours, or any of Hugging Face.")],
    inputs: Annotated[list[Path], typer.Option("--on", help="Documents to measure on, as for train; several times.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    typos: Annotated[Path | None, typer.Option(help="Lines typo->correction, as in codespell's dictionary.")] = None,
    model: Annotated[Path | None, typer.Option(help="A model's folder, to find tokens that it never learned.")] = None,
    text_mb: Annotated[int, typer.Option(min=1, max=MOST_MB, help="Random sample of the documents to measure on.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the sample.")] = 0,
) -> None:
    """What a tokenizer does to words, numbers, code, typos and scripts, and its useless tokens, on one page."""
    from groundup.tokenizer.report import write_report

    _result(write_report(folder, inputs, out, typos=typos, model=model, text_mb=text_mb, seed=seed))


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
    address: Annotated[str, typer.Option(help="Of the Ray cluster; local starts one on this machine.")] = "local",
    workers: Annotated[int, typer.Option(min=0, max=4096, help="Pages worked on at once, in shards; 0: one a core.")] = 0,
    memory_mb: Annotated[int, typer.Option(min=1, max=MOST_MB, help="Memory for finding near duplicates.")] = 1024,
    against: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="An earlier corpus, whose documents are not taken again.")
    ] = None,
    benchmarks: Annotated[
        list[Path] | None,
        typer.Option("--benchmark", metavar="FILE", help="Drop what shares 13 words in a row with it."),
    ] = None,
    settings: Settings = None,
    dry_run: DryRun = False,
) -> None:
    """Pages -> annotations -> documents, as in `groundup run`. The same command goes on where it was cut off."""
    if context.invoked_subcommand:
        return
    from groundup import recipe as recipes
    from groundup.stages import CORPUS_STAGES, dry, walk_to_corpus

    if not sources or out is None:
        raise UserError("groundup corpus: give --from SOURCE and --out DIR; --help says more")
    if engine == "processes" and address != "local":
        raise UserError(f"groundup corpus: --address {address} is of a Ray cluster; add --engine ray")
    content = {
        "name": out.resolve().name,
        "threads": workers,
        "memory_mb": memory_mb,
        "ray": address if engine == "ray" else None,
        "pages": {"sources": [recipes.source(text) for text in sources]},
        "annotations": {"against": [str(folder) for folder in against or []]},
        "corpus": {"benchmarks": [str(path) for path in benchmarks or []]},
    }
    loaded = recipes.resolve(content, settings or [], "groundup corpus")
    _result(dry(loaded, out, CORPUS_STAGES) if dry_run else walk_to_corpus(loaded, out))


Texts = "Files or folders: Parquet, JSONL or CSV with a column text (and url, host or group), or plain text."


@corpus.command()
def train_quality(
    positive: Annotated[list[Path], typer.Option(help=f"Writing to look for, e.g. what Wikipedia refers to. {Texts}")],
    negative: Annotated[list[Path], typer.Option(help="Writing as it is found, e.g. pages of the web.")],
    out: Annotated[Path, typer.Option(help="The classifier's file.")] = Path("quality.npz"),
) -> None:
    """Train a quality classifier on sets of your own; its scores are shares of the negatives that score lower."""
    from groundup.corpus import quality

    _result(quality.train(positive, negative, out))


@corpus.command()
def train_toxicity(
    toxic: Annotated[list[Path], typer.Option(help=f"Texts that people judged toxic. {Texts}")],
    harmless: Annotated[list[Path], typer.Option(help="Texts that they judged harmless.")],
    out: Annotated[Path, typer.Option(help="The classifier's file.")] = Path("toxicity.npz"),
) -> None:
    """Train a toxicity classifier; says what it reaches on a held-out fifth, and what a word list does."""
    from groundup.corpus import toxicity

    _result(toxicity.train(toxic, harmless, out))


@corpus.command()
def train_domains(
    sets: Annotated[list[str], typer.Argument(metavar="NAME=PATH...", help=f"Examples of each class. {Texts}")],
    out: Annotated[Path, typer.Option(help="The classifier's file.")] = Path("domains.npz"),
) -> None:
    """Train a classifier of domains, as code, books, news, forum; a name may come several times."""
    from groundup.corpus import domains

    _result(domains.train(domains.named_sets(sets), out))


@corpus.command()
def tune(
    folder: Annotated[Path, typer.Argument(help="Annotations: annotations-*.parquet, or a run folder.")],
    column: Annotated[list[str] | None, typer.Option(help="Only these columns.")] = None,
    samples: Annotated[int, typer.Option(min=0, max=1000, help="Texts shown on each side of a threshold.")] = 2,
) -> None:
    """Show what each threshold would keep, with texts just on either side of it; nothing is computed anew."""
    from groundup.corpus import tune as tuning

    _result(tuning.tune(folder, column or [], samples))


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    context: Annotated[Path, typer.Option("--context", help="The text file that holds the answer.")],
    model: Annotated[Path, typer.Option("--model", help="The folder of a trained reader.")],
) -> None:
    """Find the answer to a question in a text."""
    from groundup.answering.reader import ask as read

    _result(read(model, context, question))


@tokenizer.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A folder with tokenizer.json.")],
    text: Annotated[str, typer.Argument(help="What to cut; with a context, the question.")],
    context: Annotated[str | None, typer.Argument(help="The second text of a pair.")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, max=MOST_TOKENS, help="Tokens a window: pad to it, cut the context to it.")
    ] = None,
    overlap: Annotated[
        int, typer.Option(min=0, max=MOST_TOKENS, help="Tokens of context that a window shares with the next.")
    ] = 0,
) -> None:
    """Tokens and ids of a text; of a pair, [CLS] question [SEP] context [SEP] with segment ids and mask."""
    from groundup.tokenizer import load, pairs

    table, windows = pairs.show(load.load(folder), text, context, length, overlap)
    print(printable(table), file=sys.stderr)
    _result(windows[0] if len(windows) == 1 else {"windows": windows})


def _result(value: dict) -> None:
    if sys.stdout.isatty():
        print(flush=True)  # on a terminal the result stands apart from the talk before it
    print(json_printable(json.dumps(value, ensure_ascii=False)), flush=True)


def main() -> None:
    """Exit 0 on success; 2 with one line on stderr for what a person can mend; 130 when interrupted."""
    # Threads that spin while they wait make training several times slower where other programs work too, and those that
    # never spin a quarter slower where none do. A short spin is as good as the better one in both cases (docs/log.md).
    # Read when torch is imported; the results are the same bits.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Arrow's own allocator keeps what was freed; the system's gives it back.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer's own answer to Ctrl-C
            _stopped()
        raise
    except KeyboardInterrupt:
        _stopped()
    except (OSError, RecursionError, ValueError, MemoryError) as error:
        # What a user gives, or a machine lacks, ends in one of these where no chapter foresaw it; so may a bug.
        if sys.flags.dev_mode:
            raise
        _fail(_said_of(error))


def _said_of(error: Exception) -> str:
    """One line for an error that no chapter foresaw: what is wrong, and what to do."""
    if isinstance(error, MemoryError):
        return "no memory left; take fewer workers, smaller batches, or free some and run the same command again"
    text = " ".join(str(error).split())[:150]
    if not isinstance(error, OSError):
        text = "nested too deep" if isinstance(error, RecursionError) else text or type(error).__name__
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).stem}:{place.lineno}"
        return f"cannot use what it was given: {text} ({where}; python -X dev -m groundup shows more)"
    found = NUMBER_OF_SYSTEM.search(text)
    number = error.errno or (int(found[1]) if found else errno.ENOSPC if SHORT_WRITE.search(text) else 0)
    name = str(error.filename or "disk")
    name = name if len(name) <= 100 else f"{name[:50]}...{name[-47:]}"
    return f"{name}: {MACHINE_TROUBLE.get(number) or error.strerror or text or type(error).__name__}"


def _stopped() -> NoReturn:
    print("stopped; the same command continues from here", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # sys.exit would do, but for an interrupt that fell into an exec of a string, as dataclasses do while they are imported:
    # Python then ends itself by SIGINT, although it was caught.
    os._exit(INTERRUPTED)


def _fail(line: str) -> None:
    print(message(f"groundup: {line}"), file=sys.stderr)
    sys.exit(2)
