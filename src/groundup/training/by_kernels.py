"""Post-training by native kernels in the device's number format, where the model and the processor have them."""

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
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@contextmanager
def by_kernels(models: Sequence[LanguageModel | RewardModel], runtime: Runtime) -> Iterator[None]:
    """Within it the models compute by kernels in the device's format, all of them or none; either way it is logged.

    Policy and reference use them together: by different kernels they would differ before anything is learned. Several
    processes use none: they shard parameters in a way that the kernels cannot read.
    """
    dtype, label = runtime.device.training_dtype, runtime.label
    cpu = next(models[0].parameters()).device.type == "cpu"
    if dtype not in NAMES or not cpu or runtime.processes.world > 1:
        yield
        return
    try:
        for model in models:
            model.use_kernels(kernels.BLOCK, dtype)  # tokens of a row: rows of other lengths are padded to blocks
        logger.info(f"{label}: trained by native kernels in {NAMES[dtype]} (groundup/kernels)")
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
    """Whether kernels train the model, so that the optimizer can use them too."""
    names = ("kernel_dtype", "loss_kernel_dtype")
    return any(getattr(module, name, None) is not None for module in model.modules() for name in names)
