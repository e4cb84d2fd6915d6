"""Kinds of steps that no standard run has: `[[steps]]` of a recipe adds them.

Chapters are imported where they are used, as in `kinds.py`.
"""

from groundup.pipeline import preflight
from groundup.pipeline.artifacts import Results, model_of, pretrained_by_all, tokenizer_of, workers_of
from groundup.pipeline.run import Step, StepContext


def long_context(context: StepContext) -> Results:
    """Tokens and a decoder -> the same with a longer context."""
    from groundup.training.long_context import train_longer

    recipe = context.recipe
    return pretrained_by_all(context, recipe.long_context, lambda runtime: train_longer(
        model_of(context, "base"), tokenizer_of(context), context.inputs["tokens"], recipe.long_context, runtime,
        recipe.mixture,
    ))  # fmt: skip


def vocabulary_sweep(context: StepContext) -> Results:
    """Documents -> a small model for each size of vocabulary, and which size pays."""
    from groundup.report import vocabulary_page
    from groundup.scaling.vocabulary_sweep import sweep

    settings = context.recipe.vocabulary_sweep
    found = sweep(
        [context.inputs["corpus"] / "documents.parquet"], settings.sizes, context.work, depth=settings.depth,
        tokens=settings.tokens, context=settings.context_length, held_out_kb=settings.held_out_kb, text_mb=settings.text_mb,
        seed=context.recipe.seed, workers=workers_of(context), threads=context.recipe.threads,
    )  # fmt: skip
    vocabulary_page.write(context.work, found)
    context.log(f"a vocabulary of {found['recommended']:,}: {found['reason']}")
    return found


FURTHER = (
    Step("long_context", ("corpus", "tokenizer", "tokens", "base"), long_context, ("long_context", "mixture"),
          ahead=(("", preflight.long_context_is_for_decoders), ("tokens", preflight.long_context_has_text))),
    Step("vocabulary_sweep", ("corpus",), vocabulary_sweep),
)  # fmt: skip
