"""Checks before the expensive steps of what would end a later one. `step_kinds.py` names the checks of each step.

A check takes the recipe and the folders of the step's inputs, reads what the steps before it made, and raises UserError
in the words of the step that would fail. A run can pass all checks and still end later: that all comparisons are ties, for
example, is known only when they are made.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.seals import MANIFEST
from groundup.pipeline.recipe import Recipe

logger = logging.getLogger(__name__)
# Of folders that a step reads: the columns of documents.parquet, by the name of the input, and files of others.
TABLES = {
    "corpus": ("id", "url", "text", "domain", "kind", "split", "best"),
    "tokens": ("split", "domain", "best", "tokens"),
}
FILES = {
    "annotations": ("annotations-*.parquet",), "preferences": ("train.jsonl", "held_out.jsonl"),
    "reward": ("config.json", "*.safetensors"),
}  # fmt: skip
LONGEST_CONTEXT = 2**20  # tokens, of any model


def folders_hold_inputs(needs: list[str], recipe: Recipe, inputs: dict[str, Path]) -> None:
    """The inputs `needs`, folders from outside of the run, hold what the step reads."""
    from groundup.generation.open_folder import model_folder, single_model
    from groundup.pipeline.artifacts import was_skipped
    from groundup.tokenizer.load import of_model

    for need in sorted(needs, key=lambda need: need == "tokenizer"):  # after the model, which often comes with it
        folder = inputs[need]
        if was_skipped(folder):
            continue
        if need in TABLES:
            _require_table(folder, need)
        elif need in ("base", "sft"):
            single_model(folder)
        elif need == "model":
            model_folder(folder)
        elif need == "tokenizer":
            of_model(folder)
        elif missing := next((name for name in FILES.get(need, ()) if not any(folder.glob(name))), ""):
            raise UserError(f"{folder}: no {missing}, as the step {need} of a run writes it{_within(folder, need)}")


def _require_table(folder: Path, need: str) -> None:
    """Raises UserError unless the folder has the table of documents that a step `need` writes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "documents.parquet"
    other = {"corpus": "; your own documents go into [[pages.sources]]"}.get(need, "")
    advice = _within(folder, need) or f"; give a folder that the step {need} of a run wrote{other}"
    if not path.is_file():
        raise UserError(f"{folder}: no documents.parquet in it{advice}"[:300])
    try:
        columns = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not Parquet ({' '.join(str(error).split())[:80]}){advice}"[:300]) from None
    if missing := [name for name in TABLES[need] if name not in columns]:
        raise UserError(f"{path}: no column {missing[0]!r}{advice}"[:300])


def _within(folder: Path, need: str) -> str:
    """Where the folder is that of a whole run: which of its folders to give."""
    return f"; give {folder / need}" if (folder / need / MANIFEST).is_file() else ""


def languages(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """Each language of the recipe can be recognised."""
    from groundup.corpus import languages

    languages.require_known(recipe.annotations.languages)


def benchmarks(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """The files of benchmarks whose examples no document may hold can be read to their ends."""
    from groundup.corpus.dedup.decontamination import read_benchmarks

    if recipe.corpus.benchmarks:
        read_benchmarks([Path(name) for name in recipe.corpus.benchmarks])


def base_continues(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """base.start_from has the tokenizer of tokenizer.folder, and takes base.context_length tokens."""
    from groundup.core.files import read_object
    from groundup.model.description import FAMILIES, read_config
    from groundup.tokenizer.load import of_model

    if not recipe.base.start_from:
        return
    folder = Path(recipe.base.start_from)
    model_tokenizer, run_tokenizer = of_model(folder), of_model(Path(recipe.tokenizer.folder))
    if not model_tokenizer.is_that_of(run_tokenizer):
        raise UserError(f"{folder}: its tokenizer is not the one of tokenizer.folder; set tokenizer.folder = {str(folder)!r}")
    description = read_object(folder / "config.json")
    if description.get("model_type") in FAMILIES:
        max_length = read_config(description, folder / "config.json").max_position_embeddings
        if recipe.base.context_length > max_length:
            raise UserError(
                f"base.context_length = {recipe.base.context_length}: the model in {folder} was trained on {max_length}; "
                "train on that and add a step of kind long_context for more"
            )


def models_have_steps_tokenizer(models: list[str], recipe: Recipe, inputs: dict[str, Path]) -> None:
    """The tokenizers of the inputs `models`, folders from outside of the run, give the ids of the step's tokenizer.

    Chat templates and other files of their folders may differ: SFT writes a template where there was none.
    """
    from groundup.tokenizer.load import of_model

    given = of_model(inputs["tokenizer"])
    for need in models:
        own = of_model(inputs[need])
        if (own.as_json(), own.special_tokens) != (given.as_json(), given.special_tokens):
            raise UserError(f"{inputs[need]}: its tokenizer is not the one in {inputs['tokenizer']}; give the model's own")


def base_has_text(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """The training documents of the mixture fill a row, by their bytes: a token has at least one, so no good run is refused."""
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


def long_context_is_for_decoders(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """The base model that the recipe makes is a decoder, and shorter."""
    settings, base = recipe.long_context, recipe.base
    if inputs["base"].name != "base" or base.start_from or (inputs["base"] / "config.json").is_file():
        return  # the step itself checks the model
    if base.architecture not in ("dense", "experts"):
        raise UserError(f"long_context: for dense decoders and mixtures of experts, not {base.architecture}")
    if 0 < settings.context_length <= base.context_length:
        shorter = f"base.context_length = {base.context_length}"
        raise UserError(f"long_context.context_length = {settings.context_length} is no longer than {shorter}")


def long_context_has_text(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """Some training documents are longer than the context of the base model, where that is known."""
    import pyarrow.parquet as pq

    from groundup.training.long_context import long_documents

    if (context := _context_length(recipe, inputs)) < LONGEST_CONTEXT:
        table = pq.read_table(inputs["tokens"] / "documents.parquet").to_pylist()
        long_documents([row for row in table if row["split"] == "train"], recipe.mixture, context)


def evaluation(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """There is a held-out document that the base model can be measured on."""
    from groundup.evaluation import multiple_choice, sentence_pairs

    settings = recipe.evaluation
    held_out = list(_documents(inputs, "held_out", ["url", "text"]))
    if not any(len(row["text"].encode()) <= settings.held_out_kb * 1000 for row in held_out):
        raise UserError(
            f"evaluation: none of {len(held_out)} held-out documents fits {settings.held_out_kb} kB; take more pages, or raise "
            "corpus.held_out or evaluation.held_out_kb"
        )
    if not sentence_pairs.from_documents((row["text"] for row in held_out), 1, recipe.seed):
        logger.info("evaluation leaves out sentence pairs: no plain sentence of 8 to 30 words is held out")
    if not multiple_choice.from_documents(((row["url"], row["text"]) for row in held_out), 1, recipe.seed):
        logger.info("evaluation leaves out multiple choice: no documented Python source is held out to ask about (stdlib:)")


def sft_data(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """The user's own conversations can be read, and each path has some; what is dropped is logged."""
    from groundup.posttraining import user_data

    if recipe.sft.data:
        user_data.conversations(recipe.sft.data, logger.info, recipe.sft.held_out, recipe.sft.strict)


def reward_data(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """As `sft_data`, of preferences."""
    from groundup.posttraining import user_data

    if recipe.reward.data:
        user_data.preferences(recipe.reward.data, "reward", logger.info, recipe.reward.held_out, recipe.reward.strict)


def dpo_data(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """As `sft_data`, of preferences."""
    from groundup.posttraining import user_data

    if recipe.dpo.data:
        user_data.preferences(recipe.dpo.data, "dpo", logger.info, recipe.dpo.held_out, recipe.dpo.strict)


def ppo_data(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """As `sft_data`, of prompts."""
    _prompts("ppo", recipe.ppo.data, recipe.ppo.held_out, recipe.ppo.strict)


def grpo_data(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """As `ppo_data`."""
    _prompts("grpo", recipe.grpo.data, recipe.grpo.held_out, recipe.grpo.strict)


def _prompts(section: str, files: list[str], held_out: list[str], strict: bool) -> None:
    from groundup.posttraining import user_data

    if files:
        user_data.prompts(files, section, logger.info, held_out, strict)


def sft(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """There are questions to train on, to compare answers to, and to hold out, or no step that needs them."""
    from groundup.posttraining.user_data import NoQuestions

    try:
        _questions(recipe, inputs)
    except NoQuestions as reason:
        for section in ("reward", "dpo", "ppo"):
            if getattr(recipe, section).data:
                raise UserError(f"{section}.data is given, but no model to train on it: {reason}") from None
        logger.info(f"sft and what comes after it will be skipped: {reason}")


def reward_pairs_fit(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """At least one of the user's own preferences is short enough to train on. Raises what `usable_pairs` does."""
    _pairs_fit("reward", recipe.reward.data, recipe, inputs)


def dpo_pairs_fit(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """As `reward_pairs_fit`."""
    _pairs_fit("dpo", recipe.dpo.data, recipe, inputs)


def _pairs_fit(section: str, files: list[str], recipe: Recipe, inputs: dict[str, Path]) -> None:
    from groundup.posttraining import user_data
    from groundup.posttraining.tokenize_rows import usable_pairs
    from groundup.tokenizer.load import for_run

    if files:
        tokenizer = for_run(inputs["tokenizer"], recipe.continued)
        usable_pairs(tokenizer, user_data.preferences(files, section, _silent)["train"], _context_length(recipe, inputs), section)


def sft_answers_fit(recipe: Recipe, inputs: dict[str, Path]) -> None:
    """At least one answer to train on is short enough, and at least one question of each later use leaves room for an answer."""
    from groundup.generation.engine import room_in
    from groundup.posttraining.batches import prompt_of, question_of
    from groundup.posttraining.tokenize_rows import conversation, longest_answer, usable_rows
    from groundup.posttraining.user_data import NoQuestions
    from groundup.tokenizer.load import for_run

    try:
        sides = _questions(recipe, inputs)
    except NoQuestions:
        return  # logged after the corpus
    tokenizer = for_run(inputs["tokenizer"], recipe.continued)
    context, longest = _context_length(recipe, inputs), recipe.sft.max_answer_tokens
    prompt_room, model_given = room_in(context, longest), "base" in recipe.given
    limit = "the model's context" if model_given else "base.context_length"
    mend = "lower that, or give shorter questions" if model_given else "raise the one or lower the other"
    for side in ("held_out", "preference") if not recipe.base.start_from else ():  # whose context may be longer
        refused = Counter[str]()
        prompts = (
            usable_rows([row], lambda row: prompt_of(tokenizer, question_of(row)), lambda ids: None, refused)
            for row in sides[side]
        )
        if sides[side] and not any(len(ids) <= prompt_room for usable in prompts for ids in usable):
            _require_asked(f"sft: none of {len(sides[side])} {side} questions", refused, len(sides[side]))
            raise UserError(
                f"sft: none of {len(sides[side])} {side} questions has at most {prompt_room} tokens, as {limit} leaves them "
                f"beside answers of sft.max_answer_tokens = {longest}; {_or_refused(mend, refused)}"[:300]
            )
    refused = Counter[str]()
    trained = (usable_rows([row], lambda row: conversation(tokenizer, row), lambda row: None, refused) for row in sides["train"])
    if not any(len(row[0]) <= context + 1 and longest_answer(row) <= longest for usable in trained for row in usable):
        _require_asked(f"sft: none of {len(sides['train'])} questions", refused, len(sides["train"]))
        mend = "raise the one, or give shorter rows" if model_given else "raise them"
        raise UserError(
            f"sft: of {len(sides['train'])} questions none has an answer of at most sft.max_answer_tokens = {longest} and fits "
            f"{limit} = {context} tokens; {_or_refused(mend, refused)}"[:300]
        )


def _require_asked(none: str, refused: Counter[str], count: int) -> None:
    """Raises UserError with the reasons alone where all are refused, whatever their length."""
    from groundup.posttraining.tokenize_rows import top_reasons

    if refused.total() == count:
        raise UserError(f"{none} can be used: {top_reasons(refused)}"[:300])


def _or_refused(mend: str, refused: Counter[str]) -> str:
    from groundup.posttraining.tokenize_rows import top_reasons

    return f"refused: {top_reasons(refused)}" if refused else mend


def _questions(recipe: Recipe, inputs: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    from groundup.posttraining.user_data import rows_of_sft

    def documents() -> Iterator[tuple[str, str]]:
        return ((row["url"], row["text"]) for row in _documents(inputs, None, ["url", "text"]))

    return rows_of_sft(documents, recipe.sft, recipe.seed, _silent)


def _context_length(recipe: Recipe, inputs: dict[str, Path]) -> int:
    """Tokens that the model takes at once, the given one or that which the recipe makes."""
    from groundup.core.files import read_object

    for name in ("base", "sft"):
        if name in inputs and (inputs[name] / "config.json").is_file():
            max_positions = read_object(inputs[name] / "config.json").get("max_position_embeddings")
            if isinstance(max_positions, int) and not isinstance(max_positions, bool):
                return max_positions
    # The context of a base model with settings of its own is not known yet.
    return recipe.base.context_length if inputs.get("base", Path("base")).name == "base" else LONGEST_CONTEXT


def _silent(text: str) -> None:
    """In place of a log, for what was logged already."""


def _documents(inputs: dict[str, Path], split: str | None, columns: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(inputs["corpus"] / "documents.parquet") as file:
        for batch in file.iter_batches(256, columns=[*columns, "split"]):
            yield from (row for row in batch.to_pylist() if split is None or row["split"] == split)
