"""What would end a later stage, known before the expensive ones: each check is named beside its stage, in `stages.py`.

A check is given the recipe and the run folder, reads what the stages before it made, and raises UserError in the words of
the stage that would fail. What it does not find is not promised: ties in every comparison show only when they are made.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundup.core.text import printable
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
        _say("evaluation goes without multiple choice: no documented Python source is held out to ask about (stdlib:)")


def own_data(recipe: Recipe, run: Path) -> None:
    """The user's own conversations, preferences and prompts can be read, each file has some, and what is dropped is said."""
    from groundup.posttraining import own_data as read

    if recipe.sft.data:
        read.conversations(recipe.sft.data, _say)
    for section, files in (("reward", recipe.reward.data), ("dpo", recipe.dpo.data)):
        if files:
            read.preferences(files, section, _say)
    if recipe.ppo.data:
        read.prompts(recipe.ppo.data, _say)


def sft(recipe: Recipe, run: Path) -> None:
    """There are questions to learn from, to prefer answers to, and to hold out, or nothing that would need them."""
    from groundup.posttraining.own_data import NoQuestions

    try:
        _questions(recipe, run)
    except NoQuestions as reason:
        for section in ("reward", "dpo", "ppo"):
            if getattr(recipe, section).data:
                raise UserError(f"{section}.data is given, but no model to train on it: {reason}") from None
        _say(f"sft, preferences, reward, dpo and ppo will be skipped: {reason}")


def own_pairs_fit(recipe: Recipe, run: Path) -> None:
    """At least one of the user's own preferences is short enough to learn from. Raises what `kept_pairs` does."""
    from groundup.posttraining import own_data as read
    from groundup.posttraining.rows import kept_pairs
    from groundup.tokenizer.load import for_run

    for section, files in (("reward", recipe.reward.data), ("dpo", recipe.dpo.data)):
        if files:
            encoder = for_run(run / "tokenizer", recipe.base.start_from)
            kept_pairs(encoder, read.preferences(files, section, lambda said: None)["train"], _context(recipe), section)


def sft_answers_fit(recipe: Recipe, run: Path) -> None:
    """At least one answer to learn from is short enough."""
    from groundup.posttraining.batches import asked_of, prompt_of
    from groundup.posttraining.own_data import NoQuestions
    from groundup.posttraining.rows import conversation, longest_answer
    from groundup.tokenizer.load import for_run

    encoder, context, most = for_run(run / "tokenizer", recipe.base.start_from), _context(recipe), recipe.sft.max_answer_tokens
    try:
        sides = _questions(recipe, run)
    except NoQuestions:
        return  # said after the corpus
    trained = (conversation(encoder, row) for row in sides["train"])
    if not any(len(row[0]) <= context + 1 and longest_answer(row) <= most for row in trained):
        raise UserError(
            f"sft: of {len(sides['train'])} questions none has an answer of at most sft.max_answer_tokens = {most} and fits "
            f"base.context = {context} tokens; raise them"
        )
    room = context - min(most, context // 2)
    if not any(len(prompt_of(encoder, asked_of(row))) <= room for row in sides["held_out"]):
        raise UserError(
            f"sft: of {len(sides['held_out'])} held-out questions none has at most {room} tokens; the rest of base.context = "
            f"{context} is for the answer; raise it"
        )


def _questions(recipe: Recipe, run: Path) -> dict[str, list[dict[str, Any]]]:
    from groundup.posttraining.own_data import rows_of_sft

    documents = ((row["url"], row["text"]) for row in _documents(run, None, ["url", "text"]))
    return rows_of_sft(documents, recipe.sft, recipe.seed, lambda said: None)


def _context(recipe: Recipe) -> int:
    """Tokens that the model of `base` will take."""
    return max(recipe.base.context, recipe.base.long_context)


def _say(text: str) -> None:
    print(f"  {printable(text)}", file=sys.stderr, flush=True)


def _documents(run: Path, split: str | None, columns: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(run / "corpus" / "documents.parquet") as file:
        for batch in file.iter_batches(256, columns=[*columns, "split"]):
            yield from (row for row in batch.to_pylist() if split is None or row["split"] == split)
