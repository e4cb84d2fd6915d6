"""The verbs. Nothing but argument names and a call; the last line on stdout is one JSON object with the result."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from groundup.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Build a language model from the ground up: raw web pages in, a chat model out, every stage measured.",
)

# Trouble of the machine rather than of the program; anything else keeps its traceback.
MACHINE_TROUBLE = {
    errno.ENOSPC: "no space left; free some and run the same command again",
    errno.EDQUOT: "over the disk quota; free some space and run the same command again",
    errno.EFBIG: "file size limit reached; raise it and run the same command again",
    errno.EROFS: "read-only file system; choose another --run folder",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ENOTDIR: "not a folder",
    errno.EEXIST: "is a file, not a folder",
    errno.EIO: "input/output error of the disk",
}

INTERRUPTED = 130

tokenizer = typer.Typer(no_args_is_help=True, help="Train tokenizers, and see how they cut text.")
app.add_typer(tokenizer, name="tokenizer")

RunFolder = Annotated[Path, typer.Argument(help="The run folder, as given to `groundup run --run`.")]


@app.callback()
def groundup() -> None:
    pass


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="What to build, in TOML: recipes/laptop.toml is a commented example.")],
    folder: Annotated[Path | None, typer.Option("--run", help="Where to build it; runs/<recipe> if not given.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value of the recipe.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be made, and why.")] = False,
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
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    seed: Annotated[int, typer.Option(help="The same seed and words give the same answers.")] = 0,
) -> None:
    """Talk to a model of a finished run in the terminal; an empty line or Ctrl-D ends."""
    from groundup.serving.chat import talk

    _result(talk(folder, stage, temperature, max_tokens, seed))


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
    length: Annotated[int | None, typer.Option(min=1, help="Tokens a window: pad to it, cut the context to it.")] = None,
    overlap: Annotated[int, typer.Option(min=0, help="Tokens of context that a window shares with the next.")] = 0,
) -> None:
    """Tokens and ids of a text; of a pair, [CLS] question [SEP] context [SEP] with segment ids and mask."""
    from groundup.tokenizer import load, pairs

    table, windows = pairs.show(load.load(folder), text, context, length, overlap)
    print(table, file=sys.stderr)
    _result(windows[0] if len(windows) == 1 else {"windows": windows})


def _result(value: dict) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def main() -> None:
    """Exit 0 on success; 2 with one line on stderr for what a person can mend; 130 when interrupted."""
    # Threads that spin while they wait make training several times slower where other programs work too (83 s
    # against 15 s); the results are the same bits. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
        sys.exit(INTERRUPTED)
    except OSError as error:
        trouble = MACHINE_TROUBLE.get(error.errno or 0)
        if trouble is None:
            raise
        _fail(f"{error.filename or 'disk'}: {trouble}")


def _stopped() -> None:
    print("stopped; the same command continues from here", file=sys.stderr)


def _fail(line: str) -> None:
    print(f"groundup: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)
