"""A pipeline with two trainings for torchrun: `python toy_pipeline.py FOLDER`. All other steps are made up here.

Each of them says in which process it works.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from toy_corpus import DOCUMENTS, tokenizer, write_tokens

from groundup.core import log
from groundup.corpus.config import PagesConfig, SourceConfig
from groundup.pipeline import step_kinds, steps
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.run import Step, StepContext
from groundup.training.config import PretrainingConfig


def nothing(context: StepContext) -> dict:
    print(f"{context.name} by {os.environ['RANK']} with {torch.get_num_threads()} threads", flush=True)
    return {}


def a_tokenizer(context: StepContext) -> dict:
    tokenizer().save(context.work)
    return nothing(context)


def toy_tokens(context: StepContext) -> dict:
    write_tokens(context.work, DOCUMENTS, tokenizer())
    return nothing(context)


def main() -> None:
    log.to_terminal()
    steps.STANDARD = (
        Step("corpus", (), nothing),
        Step("tokenizer", ("corpus",), a_tokenizer),
        Step("tokens", ("corpus", "tokenizer"), toy_tokens),
        Step("base", ("corpus", "tokenizer", "tokens"), step_kinds.base, ("base", "mixture")),
        Step("between", ("base",), nothing, ("base",)),
    )
    base = PretrainingConfig(depth=1, context_length=32, tokens=6 * 128, batch_tokens=128, micro_batch_tokens=64, shard=True)
    recipe = Recipe(name="toy", threads=2, pages=PagesConfig(sources=[SourceConfig(source="pydoc:", domain="code")]), base=base)
    other = recipe.model_copy(update={"base": base.model_copy(update={"depth": 2, "shard": False})})
    deeper = replace(steps.STANDARD[3], name="deeper", kind="base", recipe=other)
    steps.execute(recipe, Path(sys.argv[1]), (*steps.STANDARD, deeper))
    print("made", flush=True)


if __name__ == "__main__":
    main()
