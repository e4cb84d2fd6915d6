"""Several lengths from one run at a constant learning rate: each branches off before its decay (Hu et al. 2024, MiniCPM).

The trunk warms up and stays at the peak learning rate. A branch of S steps starts from the trunk's state at the step where its
decay begins, and trains on over the last `decay_fraction` of S. It gives the same bits as a run by itself of the same batch,
warm-up and order of rows: each length costs its decay only, and the stable part is trained once.
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
from groundup.training.pretraining import batching_of, prepare, train_rows, warmup_steps
from groundup.training.runtime import Runtime
from groundup.training.schedule import warmup_stable_decay


def branch(
    tokenizer: Tokenizer, tokens: Path, settings: PretrainingConfig, runtime: Runtime, longest: int, trunk: Path, warmup: int = 0
) -> tuple[LanguageModel, dict[str, Any]]:
    """The model of `settings.tokens` tokens, of a trunk whose longest branch reads `longest`; both with their batch given.

    warmup: steps over which the learning rate rises; 0: those of the longest branch. trunk: the folder of the run at a constant
    learning rate, which is resumed; `runtime.folder`: of the branch, resumed too. Raises UserError as `pretrain` does.
    """
    trunk_settings = settings.model_copy(update={"tokens": longest, "anneal_data_fraction": 0.0})
    # A ladder has many runs; its plan has the decisions that follow from their settings.
    branch_runtime, trunk_runtime = (replace(runtime, folder=path, log=lambda text: None) for path in (runtime.folder, trunk))

    def trained(one_runtime: Runtime, steps: int, lr_multiplier: Callable[[int], float]) -> tuple[LanguageModel, dict[str, Any]]:
        setup = prepare(tokenizer, tokens, trunk_settings, one_runtime, MixtureConfig())
        return train_rows(
            setup.model, setup.data, setup.stream, replace(setup.batching, steps=steps), lr_multiplier, setup.lrs,
            setup.weight_decay, settings.balance, setup.phase_shares, one_runtime, observations=0,
        )  # fmt: skip

    max_steps = prepare(tokenizer, tokens, trunk_settings, trunk_runtime, MixtureConfig()).batching.steps
    steps = min(max_steps, batching_of(settings, settings.context_length, settings.tokens).steps)
    warmup, decay = warmup or warmup_steps(max_steps), round(settings.decay_fraction * steps)
    stable = steps - decay
    if stable and not branch_runtime.training.exists():
        if (checkpoint.latest(trunk_runtime.training) or 0) > stable:  # a shorter branch after a longer one: from the beginning
            shutil.rmtree(trunk)
        trained(trunk_runtime, stable, lambda step: min(1.0, (step + 1) / warmup))
        checkpoint.copy(trunk_runtime.training, stable, branch_runtime.training, [METRICS])
    return trained(branch_runtime, steps, lambda step: warmup_stable_decay(step, steps, warmup, decay))


def share_of_work(lengths: Sequence[float], decay_fraction: float) -> list[float]:
    """The cost of each length, in rising order, as a branch of one trunk, as a share of a run by itself."""
    shares, before = [], 0.0
    for length in lengths:
        shares.append(decay_fraction + (1 - decay_fraction) * (length - before) / length)
        before = length
    return shares
