"""The convolutional language model: gated causal convolutions (Dauphin et al. 2017), dilated as WaveNet's.

A block is x += o_proj(a * sigmoid(b)), where a and b are two causal convolutions of rms_norm(x): linear maps of the tokens
0, d, 2d, ... (kernel - 1) d positions back. The dilation d grows by the kernel size from block to block (van den Oord et al.
2016: by 2 at a kernel of 2), so each block multiplies the receptive field and no position is seen twice; where d would pass
the context it begins again at 1.

Shape suffixes: B batch, T time, D width, S slots.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.base import LanguageModel, Linear
from groundup.model.decoder import RMSNorm
from groundup.model.origin import WithOrigin


@dataclass(frozen=True)
class ConvolutionConfig(WithOrigin):
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    kernel_size: int
    max_position_embeddings: int  # length of the rows that it is trained on; it has no positions
    rms_norm_eps: float = 1e-6
    model_type: str = "groundup_convolution"

    @property
    def dilations(self) -> list[int]:
        """Of every block: powers of the kernel size below the context, again and again."""
        powers = [1]
        while powers[-1] * self.kernel_size < self.max_position_embeddings:
            powers.append(powers[-1] * self.kernel_size)
        return [powers[block % len(powers)] for block in range(self.num_hidden_layers)]

    @property
    def receptive_field(self) -> int:
        """Tokens that a prediction depends on."""
        return 1 + (self.kernel_size - 1) * sum(self.dilations)

    def as_dict(self) -> dict[str, Any]:
        return self.sizes()


def shape_for(depth: int, vocabulary: int, context: int) -> tuple[ConvolutionConfig, list[str]]:
    """As many blocks as the decoder of this depth, each with about as many parameters."""
    kernel = 4
    width = 16 * round(64 * depth * math.sqrt(12 / (2 * kernel + 1)) / 16)
    config = ConvolutionConfig(vocabulary, width, depth, kernel, context)
    return config, [
        f"width {width} = 1.15 x 64 x depth in steps of 16: a block has 9 width^2 parameters, a decoder's 12 (64 depth)^2",
        f"kernels of {kernel}, dilations {config.dilations}: each token is predicted from {config.receptive_field}",
    ]


@dataclass
class InputCache:
    """The inputs of every block's convolution, with room for `length` tokens a row; rows fill up independently.

    `inputs[block]`: (batch, length, width). `filled`: (batch,) tokens so far.
    """

    inputs: list[Tensor]
    filled: Tensor

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self.inputs = [inputs[rows] for inputs in self.inputs]
        self.filled = self.filled[rows]


class Block(nn.Module):
    def __init__(self, config: ConvolutionConfig, dilation: int) -> None:
        super().__init__()
        self.distances = [tap * dilation for tap in range(config.kernel_size)]
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.in_proj = Linear(config.kernel_size * config.hidden_size, 2 * config.hidden_size)
        self.o_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BTD: Tensor, documents_BT: Tensor | None) -> Tensor:
        inputs_BTD, T = self.input_layernorm(x_BTD), x_BTD.shape[1]
        taps = []
        for distance in self.distances:
            tap_BTD = F.pad(inputs_BTD, (0, 0, distance, 0))[:, :T]
            if documents_BT is not None:
                # The padding before the row gets a document number that no token has.
                tap_BTD = tap_BTD * (_shifted(documents_BT, distance) == documents_BT)[..., None]
            taps.append(tap_BTD)
        return x_BTD + self._gated(taps)

    def forward_cached(self, x_BTD: Tensor, cached_BSD: Tensor, slots_BT: Tensor) -> Tensor:
        """`forward` of new tokens: their inputs go to `slots_BT` of the cache, and they see what is cached before them."""
        rows = torch.arange(len(x_BTD), device=x_BTD.device)[:, None]
        cached_BSD[rows, slots_BT] = self.input_layernorm(x_BTD).to(cached_BSD.dtype)
        taps = []
        for distance in self.distances:
            source_slots_BT = slots_BT - distance
            taps.append((cached_BSD[rows, source_slots_BT.clamp(min=0)] * (source_slots_BT >= 0)[..., None]).to(x_BTD.dtype))
        return x_BTD + self._gated(taps)

    def _gated(self, taps: list[Tensor]) -> Tensor:
        values, gates = self.in_proj(torch.cat(taps, dim=-1)).chunk(2, dim=-1)
        return self.o_proj(values * gates.sigmoid())


def _shifted(documents_BT: Tensor, distance: int) -> Tensor:
    impossible = documents_BT.min() - 1
    shifted_BT = impossible.expand_as(documents_BT).clone()
    shifted_BT[:, distance:] = documents_BT[:, : max(documents_BT.shape[1] - distance, 0)]
    return shifted_BT


class Backbone(nn.Module):
    """Token ids to hidden states."""

    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, dilation) for dilation in config.dilations)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        ids_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: InputCache | None = None,
        lengths_B: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Hidden states (batch, time, width) after the final norm; arguments as of the decoder's `Backbone`."""
        T = ids_BT.shape[1]
        x_BTD = self.embed_tokens(ids_BT).to(dtype)
        if cache is None:
            for block in self.layers:
                x_BTD = block(x_BTD, documents_BT)
        else:
            slots_BT = cache.filled[:, None] + torch.arange(T, device=ids_BT.device)
            for block, cached_BSD in zip(self.layers, cache.inputs, strict=True):
                x_BTD = block.forward_cached(x_BTD, cached_BSD, slots_BT)
            cache.filled = cache.filled + (T if lengths_B is None else lengths_B)
        return self.norm(x_BTD)


class Convolution(LanguageModel):
    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__(config, Backbone(config), config.hidden_size)

    def new_cache(self, batch: int, length: int, device: torch.device) -> InputCache:
        return InputCache(
            [torch.zeros(batch, length, self.config.hidden_size, device=device) for _ in self.model.layers],
            torch.zeros(batch, dtype=torch.long, device=device),
        )
