"""What would end a later step, known before the expensive ones. Each check is named beside its step in `steps.py`.

A check is given the recipe and the folders of the step's inputs, reads what the steps before it made, and raises
UserError in the words of the step that would fail. What it does not find is not promised: ties in every comparison show
only when they are made.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.pipeline.recipe import Recipe


def base_continues(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """base.start_from has the tokenizer of tokenizer.folder, and is as long as base.context_length."""
    from groundup.core.files import read_object
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
        if recipe.base.context_length > most:
            raise UserError(
                f"base.context_length = {recipe.base.context_length}: the model in {folder} was trained on {most}; train on "
                "that and set base.long_context for more"
            )


def base_has_text(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """The training documents of the mixture fill a row. A token is at least a byte, so this refuses nothing that would."""
    sizes = dict.fromkeys(recipe.mixture.weights, 0)
    for row in _documents(inputs, "train", ["domain", "text"]):
        if not recipe.mixture.weights or row["domain"] in sizes:
            sizes[row["domain"]] = sizes.get(row["domain"], 0) + len(row["text"].encode()) + 1
    for domain, size in sizes.items():
        if not size:
            raise UserError(f"mixture.weights: no training document of domain {domain!r} is left; take more pages of it")
    available = sum(sizes.values()) * recipe.mixture.max_repeats
    if available <= recipe.base.context_length:
        raise UserError(
            f"base: the training documents, {sum(sizes.values()):,} bytes, do not fill one row of base.context_length = "
            f"{recipe.base.context_length} tokens; take more pages or a shorter context"
        )


def evaluation(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """Something is held out that the base model can be measured on."""
    from groundup.evaluation import multiple_choice, sentence_pairs

    settings = recipe.evaluation
    held_out = list(_documents(inputs, "held_out", ["url", "text"]))
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


def sft(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """There are questions to learn from, to prefer answers to, and to hold out. Raises what `questions.build` does."""
    _questions(recipe, inputs)


def sft_answers_fit(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """At least one answer to learn from is short enough, and one question of those asked later leaves room for an answer."""
    from groundup.generation.engine import room_in
    from groundup.posttraining.batches import prompt_of, row_of
    from groundup.tokenizer.load import for_run

    encoder, questions = for_run(inputs["tokenizer"], recipe.base.start_from), _questions(recipe, inputs)
    most = room_in(max(recipe.base.context_length, recipe.base.long_context), recipe.sft.max_answer_tokens)
    for side in ("held_out", "preference") if not recipe.base.start_from else ():  # whose context may be longer
        asked = [row["messages"][0]["content"] for row in questions[side]]
        if asked and all(len(prompt_of(encoder, question)) > most for question in asked):
            raise UserError(
                f"sft: none of {len(asked)} {side} questions has at most {most} tokens, as base.context_length leaves them "
                f"beside answers of sft.max_answer_tokens = {recipe.sft.max_answer_tokens}; raise the one or lower the other"
            )
    rows = questions["train"]
    for row in rows:
        ids, spoken = row_of(encoder, *(message["content"] for message in row["messages"]))
        if len(ids) <= recipe.base.context_length + 1 and sum(spoken) <= recipe.sft.max_answer_tokens:
            return
    raise UserError(
        f"sft: of {len(rows)} questions none has an answer of at most sft.max_answer_tokens = "
        f"{recipe.sft.max_answer_tokens} and fits base.context_length = {recipe.base.context_length} tokens; raise them"
    )


def _questions(recipe: Recipe, inputs: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    from groundup.data import docstring_questions

    rows = ((row["url"], row["text"]) for row in _documents(inputs, None, ["url", "text"]))
    return docstring_questions.build(rows, recipe.sft.max_objects, recipe.seed)


def _documents(inputs: dict[str, Path], split: str | None, columns: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(inputs["corpus"] / "documents.parquet") as file:
        for batch in file.iter_batches(256, columns=[*columns, "split"]):
            yield from (row for row in batch.to_pylist() if split is None or row["split"] == split)
