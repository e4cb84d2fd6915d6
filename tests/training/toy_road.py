"""A road of four stages for torchrun: `python toy_road.py FOLDER`. All but base are made up here."""

import sys
from pathlib import Path

from toy_corpus import DOCUMENTS, tokenizer, write_tokens

from groundup.corpus.config import PagesConfig, SourceConfig
from groundup.pipeline import stages
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.run import Context, Stage
from groundup.training.config import PretrainingConfig


def nothing(context: Context) -> dict:
    return {}


def a_tokenizer(context: Context) -> dict:
    tokenizer().save(context.work)
    return {}


def toy_tokens(context: Context) -> dict:
    write_tokens(context.work, DOCUMENTS, tokenizer())
    return {}


def main() -> None:
    stages.STAGES = (
        Stage("corpus", (), nothing),
        Stage("tokenizer", ("corpus",), a_tokenizer),
        Stage("tokens", ("corpus", "tokenizer"), toy_tokens),
        Stage("base", ("corpus", "tokenizer", "tokens"), stages.base, ("base", "mixture")),
    )
    base = PretrainingConfig(depth=1, context=32, tokens=6 * 128, batch_tokens=128, micro_batch_tokens=64, shard=True)
    recipe = Recipe(name="toy", threads=1, pages=PagesConfig(sources=[SourceConfig(source="pydoc:", domain="code")]), base=base)
    stages.execute(recipe, Path(sys.argv[1]))
    print("made", flush=True)


if __name__ == "__main__":
    main()
