"""Commands of post-training: each is a run of one step. Another kind of step needs only an entry in a table below."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from groundup.cli.options import LARGEST_SEED, DryRun, result

# Kinds that train on rows alone, and kinds that need rewards too.
FROM_ROWS = {
    "sft": "Fine-tune a model on conversations: it learns to write the answers, and their ends.",
    "reward": "Train a reward model on preferences, from the model that answers.",
    "dpo": "Direct preference optimisation: make the chosen answers likelier than the rejected ones.",
}
FROM_REWARDS = {
    "ppo": "Reinforce what a reward finds good in a model's own answers to prompts, against what a value function expects.",
    "grpo": "Reinforce a model's answers to prompts that a reward finds better than its other answers to the same prompt.",
}

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Its folder: config.json, *.safetensors, tokenizer.json.")]
Data = Annotated[
    list[Path],
    typer.Option(metavar="FILE", help="JSON, CSV, Parquet of TRL, OpenAI, Alpaca, ShareGPT, HH-RLHF; several times."),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="The run's folder; the model is written to DIR/<command>.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method, as in a recipe's section.")
]
HeldOut = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="Rows to measure on; if not given, a tenth of the prompts.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse what the checks before training find fault with.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of the order of the rows, and of sampling.")]


def _from_rows(kind: str) -> Callable[..., None]:
    def command(
        model: Model, data: Data, out: Out, settings: Overrides = None, held_out: HeldOut = None, strict: Strict = False,
        seed: Seed = 0, dry_run: DryRun = False,
    ) -> None:  # fmt: skip
        _run(kind, model, data, out, settings or [], held_out=held_out or [], strict=strict, seed=seed, dry_run=dry_run)

    return command


def _from_rewards(kind: str) -> Callable[..., None]:
    def command(
        model: Model, data: Data, out: Out,
        reward: Annotated[
            str, typer.Option(help="The folder of a reward model; arithmetic, length, count=WORD; or module:function.")
        ],
        settings: Overrides = None, held_out: HeldOut = None, strict: Strict = False, seed: Seed = 0, dry_run: DryRun = False,
    ) -> None:  # fmt: skip
        _run(
            kind, model, data, out, settings or [], held_out=held_out or [], strict=strict, more={"reward": reward}, seed=seed,
            dry_run=dry_run,
        )  # fmt: skip

    return command


def _run(*arguments: Any, **options: Any) -> None:
    from groundup.pipeline.one_step import run_one

    result(run_one(*arguments, **options))


def add_to(app: typer.Typer) -> None:
    for kinds, make in ((FROM_ROWS, _from_rows), (FROM_REWARDS, _from_rewards)):
        for kind, summary in kinds.items():
            app.command(kind, help=f"{summary} Run the same command again to resume.")(make(kind))
