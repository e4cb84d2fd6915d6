"""The commands. Nothing but argument names and a call; the last line on stdout is one JSON object with the result."""

import errno
import logging
import os
import re
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from groundup import __version__
from groundup.cli import posttraining
from groundup.cli.contamination import contamination
from groundup.cli.corpus import corpus
from groundup.cli.data import data
from groundup.cli.evaluate import evaluate
from groundup.cli.export import export
from groundup.cli.label import label
from groundup.cli.leaderboard import leaderboard
from groundup.cli.options import LARGEST_SEED, MOST_TOKENS, DryRun, RunFolder, Settings, finite, result
from groundup.cli.scale import scale
from groundup.cli.self_instruct import self_instruct
from groundup.cli.serve import serve
from groundup.cli.tokenizer import tokenizer
from groundup.core import log
from groundup.core.errors import UserError
from groundup.core.garbage import collect_seldom
from groundup.core.text import message, printable

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes as long to import as all else that help needs
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Build a language model from the ground up: raw web pages in, a chat model out, every stage measured.",
)

# Errors of the machine rather than of the program.
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
# How numpy and Arrow report a disk's error, in place of the system's number.
ERRNO_IN_TEXT = re.compile(r"\[?errno:? (\d+)", re.IGNORECASE)
SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")

INTERRUPTED = 130
RENAMED_OPTIONS = {"--rule": "--pattern", "--context": "--context-length"}  # where a command has no option of the old name
# What click raises for arguments that it cannot take; releases of typer keep it in different places.
BadArguments = typer.BadParameter.__mro__[2]


def _version(wanted: bool) -> None:
    if wanted:
        print(printable(f"groundup {__version__}"))
        raise typer.Exit


@app.callback()
def groundup(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and end.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings, no progress.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Details too.")] = False,
) -> None:
    log.to_terminal(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="What to build, in TOML; or laptop or tiny, which come with groundup.")],
    folder: Annotated[Path | None, typer.Option("--run", help="Where to build it; runs/<recipe> if not given.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            callback=finite, help="For the whole run on this machine; base.depth and base.tokens then follow from them."
        ),
    ] = None,
    settings: Settings = None,
    dry_run: DryRun = False,
) -> None:
    """Run the whole pipeline: pages, corpus, tokenizer, base model, fine-tuning, preferences, report.

    What is done is not done again; run the same command again to resume.
    """
    from groundup.pipeline import recipe as recipes
    from groundup.pipeline.default_folder import default_folder
    from groundup.pipeline.steps import dry, steps_of
    from groundup.pipeline.steps import run as run_all

    if minutes is not None and minutes < 1:
        raise typer.BadParameter(f"--minutes {minutes:g}: must be 1 or more")
    loaded = recipes.load(recipe, settings, minutes)
    with nullcontext(folder) if folder else default_folder(recipe, not dry_run) as target:
        result(dry(loaded, target, steps_of(loaded)) if dry_run else run_all(loaded, target))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write recipe.toml; made where there is none.")] = Path(),
    pages: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Your file, folder or site; once for each. If not given: DIR/pages."),
    ] = None,
    languages: Annotated[
        list[str] | None, typer.Option("--language", help="Of your pages, by its code, as de; once for each; en if not given.")
    ] = None,
) -> None:
    """Write a commented recipe for your own pages, and say which command is next."""
    from groundup.pipeline import shipped_recipes

    written = shipped_recipes.init(folder, pages or [], languages or ["en"])
    first = "" if pages else f"; put your files into {written['pages'][0]}"
    print(printable(f"wrote {written['recipe']}{first}; next: {written['next']}"), file=sys.stderr)
    result(written)


@app.command()
def chat(
    folder: Annotated[
        Path, typer.Argument(help="A run folder, or a model's: config.json, safetensors, tokenizer.json.")
    ],
    stage: Annotated[
        str | None, typer.Option(help="Which model of a run: base, sft, dpo (if not given), ppo, or an added step by name.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=100.0, callback=finite,
            help="0 always takes the likeliest token; the model's generation_config.json says if not given.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Longest answer, in tokens.")] = 128,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="The same seed and words give the same answers.")] = 0,
) -> None:
    """Talk to a model in the terminal, a run's or any that is loaded here; an empty line or Ctrl-D ends."""
    from groundup.cli.talk import talk

    result(talk(folder, stage, temperature, max_tokens, seed))


@app.command()
def tensorboard(
    folder: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Where to write; tensorboard in the run folder if not given.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Keep writing while trainings are at work, until Ctrl-C.")] = False,
) -> None:
    """Write the metrics of a run's trainings for TensorBoard."""
    from groundup.report.tensorboard import export

    result(export(folder, out or folder / "tensorboard", follow))


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    context: Annotated[Path, typer.Option("--context", help="The text file that holds the answer.")],
    model: Annotated[
        Path | None, typer.Option("--model", help="The folder of a reader; `groundup train-reader` makes one.")
    ] = None,
) -> None:
    """Find the answer to a question in a text."""
    from groundup.encoder.question_answering import ask as read

    result(read(model, context, question))


@app.command()
def train_reader(
    questions: Annotated[list[Path], typer.Argument(help="Questions about texts: JSON files in SQuAD's format.")],
    out: Annotated[Path, typer.Option(help="The folder to write; `groundup ask --model` reads it.")],
    texts: Annotated[
        list[Path] | None,
        typer.Option("--practice", metavar="TEXTS", help="Files, or a run folder: questions are made of it to practise on."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The folder of a WordPiece tokenizer; without, one is trained on the questions.")
    ] = None,
    vocabulary: Annotated[int, typer.Option(min=8, max=MOST_TOKENS, help="Of a tokenizer that is trained.")] = 8_000,
    depth: Annotated[int, typer.Option(min=1, max=126, help="Layers.")] = 2,
    length: Annotated[int, typer.Option(min=32, max=MOST_TOKENS, help="Tokens that are read at once.")] = 320,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Windows per step.")] = 32,
    steps: Annotated[int, typer.Option(min=1, max=10**9, help="Training steps on the questions.")] = 500,
    practice_steps: Annotated[int, typer.Option(min=1, max=10**9, help="Training steps before these, with --practice.")] = 1500,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of the weights and of the order.")] = 0,
) -> None:
    """Train the model of `groundup ask`, on questions about texts. Run the same command again to resume."""
    from groundup.encoder.question_answering import ReaderSettings
    from groundup.encoder.train_reader import train_reader as train

    settings = ReaderSettings(depth, length, batch, practice_steps if texts else 0, steps)
    result(train(questions, out, texts or [], tokenizer, vocabulary, settings, seed))


# After those above, so that help begins with the commands that most people want first.
app.command()(evaluate)
posttraining.add_to(app)
app.command()(self_instruct)
app.command()(serve)
app.command()(export)
app.command()(contamination)
app.command()(leaderboard)
app.add_typer(corpus, name="corpus")
app.add_typer(tokenizer, name="tokenizer")
app.add_typer(data, name="data")
app.add_typer(scale, name="scale")
app.add_typer(label, name="label")


def main() -> None:
    """Exit 0 on success; 2 with one line on stderr for what a person can mend; 130 when interrupted."""
    # Threads that spin while they wait make training several times slower where other programs work too; threads that never
    # spin make it a quarter slower where none do. A short spin is as good as the better choice in both cases (docs/log.md).
    # OpenMP reads this when torch is imported; the results are the same bits.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Arrow's allocator takes a page when it is used, not many at once, and gives it back a millisecond after: a tokenizer's
    # training holds 45 MB less than with the system's allocator.
    os.environ.setdefault("MIMALLOC_ARENA_EAGER_COMMIT", "0")
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "1")
    # Arrow imports its client of S3 where it has one: 4 MB. groundup reads no S3.
    sys.modules.setdefault("pyarrow._s3fs", None)  # type: ignore[arg-type]
    collect_seldom()
    try:
        code = app(prog_name="groundup", standalone_mode=False)
        if code == INTERRUPTED:  # typer's code for Ctrl-C
            _exit_interrupted()
        sys.exit(code)
    except UserError as error:
        _fail(str(error))
    except BadArguments as error:
        _fail(_argument_error_line(error))
    except (KeyboardInterrupt, typer.Abort):
        _exit_interrupted()
    except (OSError, RecursionError, ValueError, MemoryError) as error:
        # Bad input and a machine's limits end in one of these where no chapter foresaw them; so may a bug.
        if sys.flags.dev_mode:
            raise
        _fail(_error_line(error))
    except Exception:  # a bug: its traceback may hold foreign text
        print(printable(traceback.format_exc()), file=sys.stderr, flush=True)
        sys.exit(1)


def _argument_error_line(error: Exception) -> str:
    context, text = getattr(error, "ctx", None), error.format_message().strip().rstrip(".")
    command = context.command_path if context else "groundup"
    subcommand = command.removeprefix("groundup").strip()
    if (name := getattr(error, "option_name", None)) in RENAMED_OPTIONS:
        text = f"{name} is called {RENAMED_OPTIONS[name]} now"
    if "unexpected extra argument" in text and (repeatable := _repeatable_options(context)):
        text += f"; {repeatable} takes one value: give it again for each"
    if "\n" in text and text.startswith("Usage"):  # without arguments the text is the help
        print(printable(text))
        sys.exit(2)
    return f"{subcommand + ': ' if subcommand else ''}{text}; `{command} -h` says more"


def _repeatable_options(context: typer.Context | None) -> str:
    """The options of the call that may be repeated: `--data a --data b` here is `--data a b` in other programs."""
    if context is None:
        return ""
    given = [
        parameter
        for parameter in context.command.params
        if getattr(parameter, "multiple", False) and context.params.get(parameter.name)
    ]
    return ", ".join(parameter.opts[0] for parameter in given)


def _error_line(error: Exception) -> str:
    """One line for an error that no chapter foresaw: what is wrong, and what to do."""
    if isinstance(error, MemoryError):
        return "no memory left; take fewer workers, smaller batches, or free some and run the same command again"
    text = " ".join(str(error).split())[:150]
    if not isinstance(error, OSError):
        text = "nested too deep" if isinstance(error, RecursionError) else text or type(error).__name__
        frame = traceback.extract_tb(error.__traceback__)[-1]
        position = f"{Path(frame.filename).stem}:{frame.lineno}"
        return f"cannot use what it was given: {text} ({position}; python -X dev -m groundup shows more)"
    match = ERRNO_IN_TEXT.search(text)
    number = error.errno or (int(match[1]) if match else errno.ENOSPC if SHORT_WRITE.search(text) else 0)
    name = str(error.filename or "disk")
    name = name if len(name) <= 100 else f"{name[:50]}...{name[-47:]}"
    return f"{name}: {MACHINE_TROUBLE.get(number) or error.strerror or text or type(error).__name__}"


def _exit_interrupted() -> NoReturn:
    print("stopped; run the same command again to resume", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # Not sys.exit: where the interrupt came during an exec of a string, as of dataclasses while they are imported, Python ends
    # itself by SIGINT, although it was caught.
    os._exit(INTERRUPTED)


def _fail(line: str) -> None:
    print(message(f"groundup: {line}"), file=sys.stderr)
    sys.exit(2)
