"""What every architecture shares: a backbone, a head, and how its weights begin."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundup import kernels
from groundup.kernels import float32
from groundup.model.generation import Generation


class Linear(nn.Linear):
    """Float32 parameters used in the format of the input, so bfloat16 training keeps float32 parameters."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class LanguageModel(nn.Module):
    """Any architecture: `.model(...)` gives hidden states, `.lm_head` logits, `.new_cache(...)` the state to generate from.

    `.config` has `vocab_size`, `hidden_size`, `max_position_embeddings` and `origin`.
    """

    def __init__(self, config: Any, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.config = config
        self.model = backbone
        self.lm_head = Linear(width, config.vocab_size)
        self.loss_kernel_dtype: torch.dtype | None = None

    @property
    def unused_ids(self) -> tuple[int, ...]:
        """Ids that no token of the tokenizer has: never sampled."""
        return self.config.origin.unused_ids

    @property
    def generation(self) -> Generation:
        """Sampling settings of the folder that it was loaded from."""
        return self.config.origin.generation

    def forward(self, ids_BT: Tensor, documents_BT: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Logits (batch, time, vocabulary) of the token that follows each given token."""
        return self.lm_head(self.model(ids_BT, documents_BT, dtype=dtype))

    def use_kernels(self, context: int, dtype: torch.dtype = torch.bfloat16) -> None:
        """Train in `dtype` by `kernels`: the loss, and of a dense decoder the layers. In bfloat16, rows have `context` tokens.

        Raises `kernels.Unavailable`.
        """
        (float32 if dtype == torch.float32 else kernels).check_head(self.config.hidden_size)
        self.loss_kernel_dtype = dtype

    def drop_kernels(self) -> None:
        """Train by PyTorch again, and free the kernels' memory."""
        self.loss_kernel_dtype = None

    def new_cache(self, batch: int, length: int, device: torch.device) -> Any:
        """A cache for `.model` of `batch` empty rows, each with room for `length` tokens.

        It has `filled` (batch,), tokens so far, and `select(rows)`, which keeps only these rows.
        """
        raise NotImplementedError


def initialise(model: nn.Module, seed: int) -> None:
    """Uniform matrices of variance 1/fan-in; output projections and the head zero, so every block starts as the identity.

    Zero-initialised projections are part of modded-nanogpt's records (22.3 -> 15.2 minutes) and of nanochat. Norm weights
    are one, biases zero.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if "bias" in name else 1.0)
            elif name.endswith("embed_tokens.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif name.endswith(("o_proj.weight", "down_proj.weight", "w2.weight", "lm_head.weight")):
                parameter.zero_()
            else:
                bound = math.sqrt(3 / parameter.shape[1])
                parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """All parameters, and those that are not embeddings: the two conventions of scaling laws."""
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = sum(p.numel() for name, p in model.named_parameters() if name.endswith("embed_tokens.weight"))
    return {"total": total, "without_embedding": total - embedding}
