"""A pipeline of four stages for torchrun: `python toy_pipeline.py FOLDER`. All but base are made up here."""

import sys
from pathlib import Path

from toy_corpus import DOCUMENTS, tokenizer, write_tokens

from groundup.core import log
from groundup.corpus.config import PagesConfig, SourceConfig
from groundup.pipeline import kinds, steps
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.run import Step, StepContext
from groundup.training.config import PretrainingConfig


def nothing(context: StepContext) -> dict:
    return {}


def a_tokenizer(context: StepContext) -> dict:
    tokenizer().save(context.work)
    return {}


def toy_tokens(context: StepContext) -> dict:
    write_tokens(context.work, DOCUMENTS, tokenizer())
    return {}


def main() -> None:
    log.to_terminal()
    steps.STANDARD = (
        Step("corpus", (), nothing),
        Step("tokenizer", ("corpus",), a_tokenizer),
        Step("tokens", ("corpus", "tokenizer"), toy_tokens),
        Step("base", ("corpus", "tokenizer", "tokens"), kinds.base, ("base", "mixture")),
    )
    base = PretrainingConfig(depth=1, context_length=32, tokens=6 * 128, batch_tokens=128, micro_batch_tokens=64, shard=True)
    recipe = Recipe(name="toy", threads=1, pages=PagesConfig(sources=[SourceConfig(source="pydoc:", domain="code")]), base=base)
    steps.execute(recipe, Path(sys.argv[1]), steps.STANDARD)
    print("made", flush=True)


if __name__ == "__main__":
    main()
