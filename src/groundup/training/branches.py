"""Several lengths from one run at a constant rate: each branches off it before its own decay (Hu et al. 2024, MiniCPM).

The trunk warms up and stays at the peak rate; a length of S steps is the trunk's state at the step where its decay begins,
trained on over the last `decay_fraction` of S. It is the same run, to the last bit, as one by itself of the same batch,
warm-up and order of rows: only the decays are paid for each length, the stable part once.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from groundup.data.config import MixtureConfig
from groundup.model.base import LanguageModel
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training import checkpoint
from groundup.training.config import PretrainingConfig
from groundup.training.loop import METRICS
from groundup.training.pretraining import cut, prepared, train_rows, warm_up
from groundup.training.runtime import Runtime
from groundup.training.schedule import warmup_stable_decay


def branch(
    tokenizer: Tokenizer, tokens: Path, settings: PretrainingConfig, runtime: Runtime, longest: int, trunk: Path, warmup: int = 0
) -> tuple[LanguageModel, dict[str, Any]]:
    """The model of `settings.tokens` tokens, of a trunk whose longest branch reads `longest`; both with their batch given.

    warmup: steps over which the rate rises, that of the longest if 0. trunk: the folder of the constant-rate run, trained on from
    where it is; `runtime.folder`: of the branch. Either may have been cut off. Raises UserError as `pretrain` does.
    """
    whole = settings.model_copy(update={"tokens": longest, "anneal_data_fraction": 0.0})
    # A ladder has many runs, and what follows from their settings stands in its plan.
    branch_runtime, trunk_runtime = (replace(runtime, folder=at, log=lambda text: None) for at in (runtime.folder, trunk))

    def trained(at: Runtime, steps: int, lr: Callable[[int], float]) -> tuple[LanguageModel, dict[str, Any]]:
        one = prepared(tokenizer, tokens, whole, at, MixtureConfig())
        return train_rows(
            one.model, one.data, one.stream, replace(one.lengths, steps=steps), lr, one.lrs, one.weight_decay,
            settings.balance, one.realised, at, observations=0,
        )  # fmt: skip

    at_most = prepared(tokenizer, tokens, whole, trunk_runtime, MixtureConfig()).lengths.steps
    steps = min(at_most, cut(settings, settings.context_length, settings.tokens).steps)
    warmup, decay = warmup or warm_up(at_most), round(settings.decay_fraction * steps)
    stable = steps - decay
    if stable and not branch_runtime.training.exists():
        if (checkpoint.latest(trunk_runtime.training) or 0) > stable:  # a shorter branch after a longer one: from the beginning
            shutil.rmtree(trunk)
        trained(trunk_runtime, stable, lambda step: min(1.0, (step + 1) / warmup))
        checkpoint.copy(trunk_runtime.training, stable, branch_runtime.training, [METRICS])
    return trained(branch_runtime, steps, lambda step: warmup_stable_decay(step, steps, warmup, decay))


def share_of_work(lengths: Sequence[float], decay_fraction: float) -> list[float]:
    """What each length, in rising order, costs as a branch of one trunk, as a share of the run by itself."""
    shares, before = [], 0.0
    for length in lengths:
        shares.append(decay_fraction + (1 - decay_fraction) * (length - before) / length)
        before = length
    return shares
