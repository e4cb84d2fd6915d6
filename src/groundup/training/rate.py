"""Tokens per second of training a model on this machine, from some real steps of the training loop on rows of the real files."""

import statistics
import time
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from groundup.core.device import Device
from groundup.data.config import MixtureConfig
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.config import PretrainingConfig
from groundup.training.pretraining import prepare, train_rows
from groundup.training.runtime import Runtime

SECONDS = 1.5  # of steps that are timed, and at least so many steps
FEWEST_STEPS, MOST_STEPS = 3, 100
# Times the peak learning rates: at the peak from the first step on weights run away, and steps are a tenth slower than later.
LR_MULTIPLIER = 0.01


class _Enough(Exception):
    """Ends a training that only measures."""


def tokens_per_second(
    tokenizer: Tokenizer, tokens: Path, settings: PretrainingConfig, mixture: MixtureConfig, device: Device, label: str
) -> float:
    """Of training `settings.depth` layers in steps of `settings.batch_tokens`; neither compiled nor saved.

    The median step counts: a busy host makes some of them several times slower. Raises UserError as `pretrain` does.
    """
    begun: list[float] = []

    def timed_lr(step: int) -> float:
        """The learning rate's multiplier, which the loop asks for once the step's gradients are computed; notes the time."""
        if step == len(begun):
            begun.append(time.perf_counter())
            steps = step - 1  # the first takes its memory anew
            if steps >= MOST_STEPS or (steps >= FEWEST_STEPS and begun[-1] - begun[1] > SECONDS):
                raise _Enough
        return LR_MULTIPLIER

    with TemporaryDirectory() as folder:
        runtime = Runtime(device, Path(folder), label, log=lambda text: None)
        setup = prepare(tokenizer, tokens, settings, runtime, mixture)
        batching = replace(setup.batching, steps=MOST_STEPS + 3)
        with suppress(_Enough):
            train_rows(
                setup.model, setup.data, setup.stream, batching, timed_lr, setup.lrs, setup.weight_decay, settings.balance,
                setup.phase_shares, runtime, observations=0,
            )  # fmt: skip
    return setup.batching.step_tokens / statistics.median(later - earlier for earlier, later in pairwise(begun[1:]))
