"""What every architecture is: a backbone, a head, and how its weights begin."""

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
    """What every architecture is: `.model(...)` gives hidden states, `.lm_head` logits, `.new_cache(...)` room to generate.

    `.config` has `vocab_size`, `hidden_size`, `max_position_embeddings` and `origin`.
    """

    def __init__(self, config: Any, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.config = config
        self.model = backbone
        self.lm_head = Linear(width, config.vocab_size)
        self.loss_by_kernels: torch.dtype | None = None

    @property
    def without_token(self) -> tuple[int, ...]:
        """Rows of the vocabulary that are never picked."""
        return self.config.origin.without_token

    @property
    def generation(self) -> Generation:
        """How its folder has it sampled."""
        return self.config.origin.generation

    def forward(self, ids_BT: Tensor, documents_BT: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Logits (batch, time, vocabulary) of the token that follows each given token."""
        return self.lm_head(self.model(ids_BT, documents_BT, dtype=dtype))

    def use_kernels(self, context: int, dtype: torch.dtype = torch.bfloat16) -> None:
        """Train in `dtype` by `kernels`, in bfloat16 with rows of `context` tokens: the loss, and of a dense decoder the layers.

        Raises `kernels.Unavailable`.
        """
        (float32 if dtype == torch.float32 else kernels).check_head(self.config.hidden_size)
        self.loss_by_kernels = dtype

    def drop_kernels(self) -> None:
        """And the memory that they keep."""
        self.loss_by_kernels = None

    def new_cache(self, batch: int, length: int, device: torch.device) -> Any:
        """Room for `length` tokens in each of `batch` empty rows, to be given to `.model` as `cache`.

        It has `filled` (batch,), tokens so far, and `select(rows)`, which keeps only these rows.
        """
        raise NotImplementedError


def initialise(model: nn.Module, seed: int) -> None:
    """Uniform matrices of variance 1/fan-in; output projections and the head zero, so every block starts as the identity.

    Zero-initialised projections are part of modded-nanogpt's records (22.3 -> 15.2 minutes) and of nanochat. Gains are
    one, biases zero.
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
