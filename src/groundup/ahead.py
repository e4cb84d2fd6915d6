"""What would end a later stage, known before the expensive ones: each check is named beside its stage, in `stages.py`.

A check is given the recipe and the run folder, reads what the stages before it made, and raises UserError in the words of
the stage that would fail. What it does not find is not promised: ties in every comparison show only when they are made.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundup.errors import UserError
from groundup.recipe import Recipe


def base_continues(recipe: Recipe, run: Path) -> None:
    """base.start_from has the tokenizer of tokenizer.folder, and is as long as base.context."""
    from groundup.files import read_object
    from groundup.model.description import FAMILIES, read_config
    from groundup.tokenizer.tokenizer import Tokenizer

    if not recipe.base.start_from:
        return
    folder = Path(recipe.base.start_from)
    own, given = Tokenizer.load(folder), Tokenizer.load(Path(recipe.tokenizer.folder))
    if not own.is_that_of(given):
        raise UserError(f"{folder}: its tokenizer is not the one of tokenizer.folder; set tokenizer.folder = {str(folder)!r}")
    description = read_object(folder / "config.json")
    if description.get("model_type") in FAMILIES:
        most = read_config(description, folder / "config.json").max_position_embeddings
        if recipe.base.context > most:
            raise UserError(
                f"base.context = {recipe.base.context}: the model in {folder} was trained on {most}; train on that and set "
                "base.long_context for more"
            )


def base_has_text(recipe: Recipe, run: Path) -> None:
    """The training documents of the mixture fill a row. A token is at least a byte, so this refuses nothing that would."""
    sizes = dict.fromkeys(recipe.mixture.weights, 0)
    for row in _documents(run, "train", ["domain", "text"]):
        if not recipe.mixture.weights or row["domain"] in sizes:
            sizes[row["domain"]] = sizes.get(row["domain"], 0) + len(row["text"].encode()) + 1
    for domain, size in sizes.items():
        if not size:
            raise UserError(f"mixture.weights: no training document of domain {domain!r} is left; take more pages of it")
    available = sum(sizes.values()) * recipe.mixture.max_repeats
    if available <= recipe.base.context:
        raise UserError(
            f"base: the training documents, {sum(sizes.values()):,} bytes, do not fill one row of base.context = "
            f"{recipe.base.context} tokens; take more pages or a shorter context"
        )


def evaluation(recipe: Recipe, run: Path) -> None:
    """Something is held out that the base model can be measured on."""
    from groundup.evaluation import multiple_choice, sentence_pairs

    settings = recipe.evaluation
    held_out = list(_documents(run, "held_out", ["url", "text"]))
    if not any(len(row["text"].encode()) <= settings.held_out_kb * 1000 for row in held_out):
        raise UserError(
            f"evaluation: none of {len(held_out)} held-out documents fits {settings.held_out_kb} kB; take more pages, or raise "
            "corpus.held_out or evaluation.held_out_kb"
        )
    if not sentence_pairs.from_documents((row["text"] for row in held_out), 1, recipe.seed):
        raise UserError(
            "evaluation: no plain sentence of 8 to 30 words is held out for its sentence pairs; take more pages of prose, or "
            "raise corpus.held_out"
        )
    if not multiple_choice.from_documents(((row["url"], row["text"]) for row in held_out), 1, recipe.seed):
        raise UserError(
            "evaluation: no documented Python source is held out to ask about; add a source with stdlib:, or raise "
            "corpus.held_out"
        )


def sft(recipe: Recipe, run: Path) -> None:
    """There are questions to learn from, to prefer answers to, and to hold out. Raises what `questions.build` does."""
    _questions(recipe, run)


def sft_answers_fit(recipe: Recipe, run: Path) -> None:
    """At least one answer to learn from is short enough."""
    from groundup.posttraining.batches import row_of
    from groundup.tokenizer.load import for_run

    encoder, rows = for_run(run / "tokenizer", recipe.base.start_from), _questions(recipe, run)["train"]
    for row in rows:
        ids, spoken = row_of(encoder, *(message["content"] for message in row["messages"]))
        if len(ids) <= recipe.base.context + 1 and sum(spoken) <= recipe.sft.max_answer_tokens:
            return
    raise UserError(
        f"sft: of {len(rows)} questions none has an answer of at most sft.max_answer_tokens = "
        f"{recipe.sft.max_answer_tokens} and fits base.context = {recipe.base.context} tokens; raise them"
    )


def _questions(recipe: Recipe, run: Path) -> dict[str, list[dict[str, Any]]]:
    from groundup.posttraining import questions

    rows = ((row["url"], row["text"]) for row in _documents(run, None, ["url", "text"]))
    return questions.build(rows, recipe.sft.max_objects, recipe.seed)


def _documents(run: Path, split: str | None, columns: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(run / "corpus" / "documents.parquet") as file:
        for batch in file.iter_batches(256, columns=[*columns, "split"]):
            yield from (row for row in batch.to_pylist() if split is None or row["split"] == split)
