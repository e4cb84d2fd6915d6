"""Commands of tokenizers."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from groundup.cli.options import LARGEST_SEED, MOST_MB, MOST_TOKENS, Inputs, Workers, page, result
from groundup.core import outputs
from groundup.core.text import printable

tokenizer = typer.Typer(no_args_is_help=True, help="Train tokenizers, and see how they cut text.")


@tokenizer.command()
def train(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    kind: Annotated[
        Literal["bpe", "wordpiece", "characters", "bytes"], typer.Option(help="What to train.")
    ] = "bpe",
    vocabulary: Annotated[int, typer.Option(max=MOST_TOKENS, help="Tokens, special ones included.")] = 32_768,
    pattern: Annotated[
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
    """Train a tokenizer on documents. For bpe, counts of an earlier call are reused from OUT/counts."""
    from groundup.core.locks import alone
    from groundup.tokenizer.train import parse_weights, train_bpe, train_plain

    weights = parse_weights(weight or [])
    with alone(out):
        outputs.require_new(out / "tokenizer.json", out / "config.json")
        if kind != "bpe":
            results = train_plain(kind, inputs, out, vocabulary)
        else:
            results = train_bpe(inputs, out, vocabulary, pattern, weights, workers, memory_mb << 20)
    result(results)


@tokenizer.command()
def encode(
    folder: Annotated[Path, typer.Argument(help="The tokenizer's folder.")],
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Where to write: OUT.bin and OUT.idx, in the layout of Megatron-LM.")],
    split: Annotated[str | None, typer.Option(help="Only documents of this split, such as train or held_out.")] = None,
    workers: Workers = None,
) -> None:
    """Encode documents to token files, each after the end-of-text token. Run the same command again to resume."""
    from groundup.core.locks import alone
    from groundup.tokenizer.encode import encode_corpus

    with alone(out):
        if not out.with_name(f"{out.name}.parts").is_dir():  # the parts of an interrupted call
            outputs.require_new(Path(f"{out}.bin"), Path(f"{out}.idx"))
        results = encode_corpus(folder, inputs, out, split, workers)
    result(results)


@tokenizer.command()
def sweep(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="The folder to write: a model for each size, sweep.json, sweep.html.")],
    sizes: Annotated[str, typer.Option(help="Vocabularies, special tokens included.")] = "1024,2048,4096,8192,16384",
    depth: Annotated[int, typer.Option(min=1, max=126, help="Depth of the small model that every size trains.")] = 2,
    tokens: Annotated[
        int, typer.Option(min=1, max=10**15, help="What the smallest size trains on; the others get equal compute.")
    ] = 2_000_000,
    context_length: Annotated[int, typer.Option(min=16, max=MOST_TOKENS, help="Tokens that the model sees at once.")] = 256,
    pattern: Annotated[str, typer.Option(help="How text is cut first, as in train.")] = "qwen2",
    held_out_kb: Annotated[
        int, typer.Option(min=1, max=MOST_MB, help="Held-out text to compare on; the documents' own split, if any.")
    ] = 1000,
    text_mb: Annotated[int, typer.Option(min=1, max=MOST_MB, help="Random sample of the inputs to work with.")] = 256,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of the sample and of training.")] = 0,
    workers: Workers = None,
) -> None:
    """Compare sizes of vocabulary by bits per byte at equal compute. Run the same command again to resume."""
    from groundup.report import vocabulary_page
    from groundup.scaling.vocabulary_sweep import parse_sizes
    from groundup.scaling.vocabulary_sweep import sweep as measure

    results = measure(
        inputs, parse_sizes(sizes), out, depth=depth, tokens=tokens, context=context_length, pattern_name=pattern,
        held_out_kb=held_out_kb, text_mb=text_mb, seed=seed, workers=workers,
    )  # fmt: skip
    result({"out": str(out), **results, "page": str(vocabulary_page.write(out, results))})


@tokenizer.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder with tokenizer.json: ours, or any of Hugging Face.")],
    inputs: Annotated[list[Path], typer.Option("--on", help="Documents to measure on, as for train; several times.")],
    out: Annotated[Path, typer.Option(callback=page, help="The page to write.")] = Path("report.html"),
    typos: Annotated[Path | None, typer.Option(help="Lines typo->correction, as in codespell's dictionary.")] = None,
    model: Annotated[Path | None, typer.Option(help="A model's folder, to find tokens that it never learned.")] = None,
    text_mb: Annotated[int, typer.Option(min=1, max=MOST_MB, help="Random sample of the documents to measure on.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of the sample.")] = 0,
) -> None:
    """What a tokenizer does to words, numbers, code, typos and scripts, and its useless tokens, on one page."""
    from groundup.report.tokenizer_report import write_report

    result(write_report(folder, inputs, out, typos=typos, model=model, text_mb=text_mb, seed=seed))


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
    from groundup.encoder import pairs
    from groundup.tokenizer import load

    table, windows = pairs.show(load.load(folder), text, context, length, overlap)
    print(printable(table), file=sys.stderr)
    result(windows[0] if len(windows) == 1 else {"windows": windows})
