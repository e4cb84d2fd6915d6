"""How fast this machine trains a model: the seconds of some real steps of the training loop, on rows of the real files."""

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
from groundup.training.pretraining import prepared, train_rows
from groundup.training.runtime import Runtime

SECONDS = 1.5  # of steps that are timed, and at least so many steps
FEWEST_STEPS, MOST_STEPS = 3, 100
SMALL = 0.01  # of the peak rates: at these from the first step on weights run away, and steps are a tenth slower than later


class _Enough(Exception):
    """Ends a training that was for measuring alone."""


def tokens_per_second(
    tokenizer: Tokenizer, tokens: Path, settings: PretrainingConfig, mixture: MixtureConfig, device: Device, label: str
) -> float:
    """Of training `settings.depth` layers in steps of `settings.batch_tokens`; neither compiled nor saved.

    The median step counts: a busy host makes some of them several times slower. Raises UserError as `pretrain` does.
    """
    begun: list[float] = []

    def timed(step: int) -> float:
        """The rate of a step, which the loop asks for when its gradients are there."""
        if step == len(begun):
            begun.append(time.perf_counter())
            steps = step - 1  # the first takes its memory anew
            if steps >= MOST_STEPS or (steps >= FEWEST_STEPS and begun[-1] - begun[1] > SECONDS):
                raise _Enough
        return SMALL

    with TemporaryDirectory() as folder:
        runtime = Runtime(device, Path(folder), label, log=lambda text: None)
        one = prepared(tokenizer, tokens, settings, runtime, mixture)
        lengths = replace(one.lengths, steps=MOST_STEPS + 3)
        with suppress(_Enough):
            train_rows(
                one.model, one.data, one.stream, lengths, timed, one.lrs, one.weight_decay, settings.balance, one.realised,
                runtime, observations=0,
            )  # fmt: skip
    return one.lengths.step_tokens / statistics.median(later - earlier for earlier, later in pairwise(begun[1:]))
