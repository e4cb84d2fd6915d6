"""Decoding with a transformer: prompts read without padding, then a token a row at a time, in few and cheap operations.

A step of a small model is some hundred operations of microseconds, and matrices that stream through the processor. So
what every step needs is looked up once: the parameters themselves (not copied: they cannot go stale), the turns of all
positions, a place for every key and value. What is computed is what `Decoder` computes; it differs in rounding:

- tokens lie as columns, so a product is the matrix as it is stored times vectors: all matrices of 6 layers x 256 with
  one token take 0.46 ms on two cores, `F.linear` 0.67;
- a root mean square is `hypot(norm, sqrt(size x eps))`: three operations, where `rms_norm` is made of nine;
- a pair of channels turns as one complex number. Queries and keys keep the pairs together, which their products do not
  notice.

Shape suffixes: those of `decoder`, N tokens of whatever rows.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.decoder import Decoder, RMSNorm
from groundup.model.moe import MixtureOfExperts
from groundup.model.rotary import frequencies, sharpening

READ_AT_ONCE = 1024  # tokens, in whole prompts


class _Norm(NamedTuple):
    gain: Tensor  # the weight times sqrt(size), (size, 1); of heads (heads, size)
    offset: Tensor  # sqrt(size x eps)

    @staticmethod
    def of(norm: RMSNorm) -> "_Norm":
        size = norm.weight.numel()
        return _Norm(norm.weight[:, None] * math.sqrt(size), norm.weight.new_tensor(math.sqrt(size * norm.eps)))


class _Layer(NamedTuple):
    """What a step needs of a layer, without asking the modules again."""

    before_attention: _Norm
    projections: list[tuple[Tensor, Tensor | None]]  # query, key, value: matrix and bias
    heads: _Norm | None  # of query and key heads
    output: Tensor
    before_mlp: _Norm
    mlp: MixtureOfExperts | tuple[Tensor, Tensor, Tensor]  # gate, up, down


class Decoding:
    """Rows in the middle of being continued: `read` the prompts once, then `step` with the token that each row goes on with."""

    def __init__(self, model: Decoder, rows: int, length: int) -> None:
        """Room for `length` tokens in each row."""
        config = model.config
        self.embedding, self.head = model.model.embed_tokens.weight, model.lm_head.weight
        self.query_heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.channels = config.head_dim
        turning = frequencies(config.head_dim, config.rope_theta, config.rope_scaling, self.head.device)
        angles = torch.arange(length, device=self.head.device)[:, None] * turning
        self.turns = torch.polar(torch.full_like(angles, sharpening(config.rope_scaling)), angles)[:, None]
        self.layers = [self._layer(layer) for layer in model.model.layers]
        self.norm = _Norm.of(model.model.norm)
        # Keys and values of a token side by side, since they are written together.
        shape = (len(self.layers), rows, length, 2 * self.key_heads, self.channels)
        self._hold(torch.zeros(shape, device=self.head.device))

    def _hold(self, cache: Tensor) -> None:
        rows, length = cache.shape[1:3]
        self.cache, self.slots = cache, cache.flatten(1, 2).unbind()
        self.starts = torch.arange(0, rows * length, length, device=cache.device)  # each row's first slot

    def _layer(self, layer: nn.Module) -> _Layer:
        attention, mlp, heads = layer.self_attn, getattr(layer, layer.mlp_name), None
        if not isinstance(mlp, MixtureOfExperts):
            mlp = (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
        if isinstance(attention.q_norm, RMSNorm):
            q, k = _Norm.of(attention.q_norm), _Norm.of(attention.k_norm)
            gains = (q.gain.T.expand(self.query_heads, -1), k.gain.T.expand(self.key_heads, -1))
            heads = _Norm(torch.cat(gains), q.offset)
        return _Layer(
            _Norm.of(layer.input_layernorm),
            [(one.weight, one.bias) for one in (attention.q_proj, attention.k_proj, attention.v_proj)],
            heads,
            attention.o_proj.weight,
            _Norm.of(layer.post_attention_layernorm),
            mlp,
        )

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (rows, vocabulary) of the token after each prompt."""
        self.lengths = [len(prompt) for prompt in prompts]
        last: list[Tensor] = []
        start = 0
        while start < len(prompts):
            end = start + 1
            while end < len(prompts) and sum(self.lengths[start : end + 1]) <= READ_AT_ONCE:
                end += 1
            last.append(self._read(prompts[start:end], start))
            start = end
        self.filled = torch.tensor(self.lengths, device=self.head.device)
        return self._logits(torch.cat(last, dim=1))

    def _read(self, prompts: Sequence[Sequence[int]], first: int) -> Tensor:
        """Hidden states (width, prompts) of the last token of each, which are those of the rows from `first` on."""
        device, length = self.head.device, self.cache.shape[2]
        lengths = [len(prompt) for prompt in prompts]
        ids_N = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        positions_N = torch.cat([torch.arange(one, device=device) for one in lengths])
        starts_N = torch.tensor(
            [(first + row) * length for row, one in enumerate(lengths) for _ in range(one)], device=device
        )

        def attend(_: int, heads_NHC: Tensor) -> Tensor:
            split = (self.query_heads, self.key_heads, self.key_heads)
            found = []
            for heads in heads_NHC.split(lengths):
                q, k, v = (part.transpose(0, 1)[None] for part in heads.split(split, dim=1))
                grouped = self.query_heads != self.key_heads
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
                found.append(out[0].transpose(0, 1).flatten(1))
            return torch.cat(found)

        hidden_DN = self._layers(ids_N, positions_N, starts_N + positions_N, attend)
        return hidden_DN[:, torch.tensor(lengths, device=device).cumsum(0) - 1]

    def step(self, tokens_B: Tensor) -> Tensor:
        """Logits (rows, vocabulary) of the token that follows this one of each row."""
        rows, device = len(tokens_B), self.head.device
        positions_B, self.filled = self.filled, self.filled + 1
        self.lengths = [one + 1 for one in self.lengths]
        used = max(self.lengths)
        seen = None
        if min(self.lengths) < used:
            beyond = torch.arange(used, device=device) >= self.filled[:, None]
            seen = torch.zeros(rows, used, device=device).masked_fill_(beyond, -math.inf)[:, None, None]
        both = self.cache[:, :, :used].transpose(2, 3).split(self.key_heads, dim=2)
        keys, values = both[0].unbind(), both[1].unbind()
        # Query heads that share a key head are as good as queries at several times.
        shared = (rows, self.key_heads, self.query_heads // self.key_heads, self.channels)

        def attend(index: int, heads_BHC: Tensor) -> Tensor:
            q = heads_BHC[:, : self.query_heads].view(shared)
            return F.scaled_dot_product_attention(q, keys[index], values[index], attn_mask=seen).view(rows, -1)

        return self._logits(self._layers(tokens_B, positions_B, self.starts + positions_B, attend))

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self._hold(self.cache[:, rows])
        self.filled = self.filled[rows]
        self.lengths = [self.lengths[row] for row in rows.tolist()]

    def _layers(
        self, ids_N: Tensor, positions_N: Tensor, slots_N: Tensor, attend: Callable[[int, Tensor], Tensor]
    ) -> Tensor:
        """Hidden states (width, N) before the final norm. `attend(layer, heads_NHC)`: queries, keys, values -> (N, heads x C)."""
        N, H, K, C = len(ids_N), self.query_heads, self.key_heads, self.channels
        x_DN = F.embedding(ids_N, self.embedding).t().contiguous()
        turns_N1C = self.turns.index_select(0, positions_N)
        columns_MN, heads_NHC = x_DN.new_empty((H + 2 * K) * C, N), x_DN.new_empty(N, H + 2 * K, C)
        parts = columns_MN.split((H * C, K * C, K * C))
        as_rows, turned_NHC, kept_NHC = columns_MN.t().view(N, -1, C), heads_NHC[:, : H + K], heads_NHC[:, H:]
        first, second = turned_NHC.chunk(2, dim=-1)
        pairs_NHC = torch.view_as_complex(turned_NHC.unflatten(-1, (-1, 2)))
        for index, layer in enumerate(self.layers):
            h_DN = _normalised(x_DN, layer.before_attention, 0)
            for part, (matrix, bias) in zip(parts, layer.projections, strict=True):
                if bias is None:
                    torch.mm(matrix, h_DN, out=part)
                else:
                    torch.addmm(bias[:, None], matrix, h_DN, out=part)
            heads_NHC.copy_(as_rows)
            if layer.heads is not None:
                _normalised(turned_NHC, layer.heads, -1, out=turned_NHC)
            torch.mul(torch.complex(first, second), turns_N1C, out=pairs_NHC)
            self.slots[index].index_copy_(0, slots_N, kept_NHC)
            x_DN = torch.addmm(x_DN, layer.output, attend(index, heads_NHC).t(), out=x_DN)
            h_DN = _normalised(x_DN, layer.before_mlp, 0)
            if isinstance(layer.mlp, MixtureOfExperts):
                x_DN += layer.mlp(h_DN.t()).t()
            else:
                gate, up, down = layer.mlp
                inner = F.silu(torch.mm(gate, h_DN), inplace=True).mul_(torch.mm(up, h_DN))
                torch.addmm(x_DN, down, inner, out=x_DN)
        return x_DN

    def _logits(self, x_DN: Tensor) -> Tensor:
        return torch.mm(self.head, _normalised(x_DN, self.norm, 0)).t().contiguous()


def _normalised(x: Tensor, norm: _Norm, dim: int, out: Tensor | None = None) -> Tensor:
    size = torch.linalg.vector_norm(x, 2, dim, keepdim=True)
    size = torch.hypot(size, norm.offset, out=size)
    return torch.div(x, size, out=out).mul_(norm.gain)
