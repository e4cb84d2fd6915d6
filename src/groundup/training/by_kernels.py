"""Post-training in float32 by kernels of our own, where there are any for the model and the processor.

In bfloat16 nothing is done: those kernels take rows of one length only.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from groundup import kernels
from groundup.model.base import LanguageModel
from groundup.model.decoder import RewardModel
from groundup.training.runtime import Runtime

logger = logging.getLogger(__name__)


@contextmanager
def by_kernels(models: Sequence[LanguageModel | RewardModel], runtime: Runtime) -> Iterator[None]:
    """Within it, what the models compute in float32 goes by kernels, all of them or none; said either way.

    Policy and reference together: by different kernels they would differ before anything is learned. Of several processes
    none: they share parameters out in a way that the kernels cannot read.
    """
    dtype, label = runtime.device.training_dtype, runtime.label
    cpu = next(models[0].parameters()).device.type == "cpu"
    if dtype != torch.float32 or not cpu or runtime.processes.world > 1:
        yield
        return
    try:
        for model in models:
            model.use_kernels(model.config.max_position_embeddings, dtype)
        logger.info(f"{label}: trained by native kernels in float32 (groundup/kernels)")
    except kernels.Unavailable as error:
        logger.info(f"{label}: native kernels disabled: {error}; using PyTorch")
        for model in models:
            model.drop_kernels()
    try:
        yield
    finally:
        for model in models:
            model.drop_kernels()


def in_use(model: nn.Module) -> bool:
    """Whether kernels in float32 train it, so that the optimizer can be theirs too."""
    return any(
        getattr(one, "by_float32_kernels", False) or getattr(one, "loss_by_kernels", None) == torch.float32
        for one in model.modules()
    )
