"""Decoding with a transformer: prompts are read without padding, then a few tokens per row and step, in few and cheap operations.

With `groundup.kernels`, a step of a dense decoder is one call of them. Without, it is some hundred operations of microseconds,
and matrices that stream through the processor. So what every step needs is looked up once: the parameters themselves (not
copied: they cannot go stale), the rotations of all positions, a slot for every key and value. The result is that of `Decoder`
but for rounding:

- up to 8 tokens lie as rows, which keeps a pass over a few nearly as short as one over one: all matrices of 6 layers x
  256 take 0.45 ms on two cores for one token, 0.5 for 3, 0.8 for 8 (as columns 0.45, 1.1, 1.0). The wide products of
  more tokens come out as columns: 16 take 1.0 ms, as rows 1.3;
- the keys or values of one head and row are contiguous, and attention reads them once for all query heads that share them;
- a root mean square is `hypot(norm, sqrt(size x eps))`: three operations, where `rms_norm` is made of nine;
- a pair of channels is rotated as one complex number. Queries and keys keep the pairs together, which does not change their
  products.

Shape suffixes: those of `decoder`, N tokens of any rows.
"""

import logging
import math
from collections.abc import Callable, Sequence
from ctypes import c_int
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.generation.native_steps import Interrupted, Steps
from groundup.kernels import Unavailable
from groundup.model.decoder import Decoder, RMSNorm
from groundup.model.moe import MixtureOfExperts
from groundup.model.rotary import attention_scale, rope_frequencies

logger = logging.getLogger(__name__)
PREFILL_TOKENS = 1024  # tokens of prompts that are read at once, in whole prompts
MAX_TOKENS_AS_ROWS = 8  # tokens whose wide products are laid out as rows


class _Norm(NamedTuple):
    scaled_weight: Tensor  # the weight times sqrt(size), (size,); of heads (heads, size)
    offset: Tensor  # sqrt(size x eps)

    @staticmethod
    def of(norm: RMSNorm) -> "_Norm":
        size = norm.weight.numel()
        return _Norm(norm.weight * math.sqrt(size), norm.weight.new_tensor(math.sqrt(size * norm.eps)))


class _Layer(NamedTuple):
    """What a step needs of a layer, looked up once. Matrices as (inputs, outputs)."""

    before_attention: _Norm
    projections: list[tuple[Tensor, Tensor | None]]  # query, key, value: matrix and bias
    heads: _Norm | None  # of query and key heads
    output: Tensor
    before_mlp: _Norm
    mlp: MixtureOfExperts | tuple[Tensor, Tensor, Tensor]  # gate, up, down


def cache_bytes(model: Decoder) -> int:
    """Bytes of the keys and values of one token in all layers, in float32."""
    config = model.config
    return config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 4


class Decoding:
    """The state of rows that are being continued: `prefill` the prompts once, then `decode` the tokens that continue each row.

    `rollback` removes rejected tokens. A server fills rows one after the other: `extend` and `move`.
    """

    def __init__(self, model: Decoder, rows: int, length: int) -> None:
        """Reserve `length` tokens for each row."""
        config = model.config
        self.embedding, self.head = model.model.embed_tokens.weight, model.lm_head.weight.t()
        self.query_heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.channels = config.head_dim
        frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling, self.head.device)
        angles = torch.arange(length, device=self.head.device)[:, None] * frequencies
        self.rope_cache = torch.polar(torch.full_like(angles, attention_scale(config.rope_scaling)), angles)[:, None]
        self.layers = [self._layer(layer) for layer in model.model.layers]
        self.norm = _Norm.of(model.model.norm)
        # Key heads, then value heads, so that one operation writes both.
        shape = (len(self.layers), 2 * self.key_heads, rows, length, self.channels)
        self.cache = torch.zeros(shape, device=self.head.device)
        self.lengths = [0] * rows
        self._model = model
        self.disabled = ""

    @cached_property
    def steps(self) -> Steps | None:
        """The kernels' steps, compiled at the first call; None where there are none, and `disabled` says why."""
        try:
            return Steps(self._model)
        except Unavailable as error:
            self.disabled = f"native kernels disabled: {error}; using PyTorch"
            logger.debug(self.disabled)
            return None

    def _layer(self, layer: nn.Module) -> _Layer:
        attention, mlp, heads = layer.self_attn, getattr(layer, layer.mlp_name), None
        if not isinstance(mlp, MixtureOfExperts):
            mlp = (mlp.gate_proj.weight.t(), mlp.up_proj.weight.t(), mlp.down_proj.weight.t())
        if isinstance(attention.q_norm, RMSNorm):
            q, k = _Norm.of(attention.q_norm), _Norm.of(attention.k_norm)
            scaled_weights = (q.scaled_weight.expand(self.query_heads, -1), k.scaled_weight.expand(self.key_heads, -1))
            heads = _Norm(torch.cat(scaled_weights), q.offset)
        return _Layer(
            _Norm.of(layer.input_layernorm),
            [(projection.weight.t(), projection.bias) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)],
            heads,
            attention.o_proj.weight.t(),
            _Norm.of(layer.post_attention_layernorm),
            mlp,
        )

    def prefill(self, prompts: Sequence[Sequence[int]], first: int = 0) -> Tensor:
        """Logits (prompts, vocabulary) of the token after each prompt; the prompts fill the rows from `first` on."""
        logits: list[Tensor] = []
        start = 0
        while start < len(prompts):
            end = start + 1
            while end < len(prompts) and sum(map(len, prompts[start : end + 1])) <= PREFILL_TOKENS:
                end += 1
            logits.append(self._prefill_part(prompts[start:end], first + start))
            start = end
        return torch.cat(logits)

    def _prefill_part(self, prompts: Sequence[Sequence[int]], first: int) -> Tensor:
        """`prefill` of some prompts in one pass."""
        lengths = [len(prompt) for prompt in prompts]
        rows_N, positions_N = self._next_positions(first, lengths)
        ids_N = torch.tensor([token for prompt in prompts for token in prompt], device=self.head.device)
        last_tokens = torch.tensor(lengths, device=self.head.device).cumsum(0) - 1
        if self.steps:
            return self.steps(ids_N, rows_N, positions_N, self.rope_cache, self.cache, last_tokens)
        split = (self.query_heads, self.key_heads, self.key_heads)
        shares_keys = self.query_heads != self.key_heads

        def attend(index: int, heads_NHC: Tensor) -> Tensor:
            outputs = []
            for heads in heads_NHC.split(lengths):
                q, k, v = (part.transpose(0, 1)[None] for part in heads.split(split, dim=1))
                if index == len(self.layers) - 1:  # only the last token is needed
                    out = F.scaled_dot_product_attention(q[:, :, -1:], k, v, enable_gqa=shares_keys)
                else:
                    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shares_keys)
                outputs.append(out[0].transpose(0, 1).flatten(1))
            return torch.cat(outputs)

        return self._logits(self._layers(ids_N, positions_N, self._slots(rows_N, positions_N), attend, last_tokens))

    def _next_positions(self, first: int, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Rows and positions of the next `counts` tokens of each row from `first` on.

        Drafts beyond the end of a row all go to its last position, which nothing needs: a row's last token is never read.
        """
        length, rows, positions = self.cache.shape[3], [], []
        for row, count in enumerate(counts, first):
            start, self.lengths[row] = self.lengths[row], self.lengths[row] + count
            rows += [row] * count
            positions += [min(position, length - 1) for position in range(start, start + count)]
        return torch.tensor(rows, device=self.head.device), torch.tensor(positions, device=self.head.device)

    def _slots(self, rows_N: Tensor, positions_N: Tensor) -> Tensor:
        """The index of each token in the cache's rows, one after the other."""
        return rows_N * self.cache.shape[3] + positions_N

    def extend(self, row: int, tokens: Sequence[int], all_tokens: bool = False) -> Tensor:
        """Append tokens, a part of a long prompt, to one row; logits (1, vocabulary) after the last of them.

        With `all_tokens` the logits after each of them (tokens, vocabulary).
        """
        start, count, H, K = self.lengths[row], len(tokens), self.query_heads, self.key_heads
        rows_N, positions_N = self._next_positions(row, [count])
        ids_N = torch.tensor(tokens, device=self.head.device)
        outputs = None if all_tokens else torch.tensor([count - 1], device=self.head.device)
        if self.steps:
            return self.steps(ids_N, rows_N, positions_N, self.rope_cache, self.cache, outputs)
        cached = self.cache[:, :, row, : start + count].split(K, dim=1)
        visible_NS = torch.arange(start + count, device=self.head.device) <= positions_N[:, None]

        def attend(index: int, heads_NHC: Tensor) -> Tensor:
            q, (k, v) = heads_NHC[:, :H].transpose(0, 1)[None], (part[index][None] for part in cached)
            queries_and_mask = (q[:, :, -1:], None) if outputs is not None and index == len(self.layers) - 1 else (q, visible_NS)
            out = F.scaled_dot_product_attention(queries_and_mask[0], k, v, attn_mask=queries_and_mask[1], enable_gqa=H != K)
            return out[0].transpose(0, 1).flatten(1)

        return self._logits(self._layers(ids_N, positions_N, self._slots(rows_N, positions_N), attend, outputs))

    def move(self, row: int, to: int) -> None:
        """Copy a row to another one."""
        used, self.lengths[to] = self.lengths[row], self.lengths[row]
        self.cache[:, :, to, :used] = self.cache[:, :, row, :used]

    def decode(self, tokens_BT: Tensor, stop: c_int | None = None) -> Tensor:
        """Append T tokens to each of the first rows; logits (rows, T, vocabulary) after each of them.

        If another thread sets `stop` to 1 before the kernels are done, this raises Interrupted, and nothing is appended.
        """
        B, T = tokens_BT.shape
        device = self.head.device
        rows_N, positions_N = self._next_positions(0, [T] * B)
        if self.steps:
            try:
                logits_NV = self.steps(tokens_BT.flatten(), rows_N, positions_N, self.rope_cache, self.cache, stop=stop)
            except Interrupted:
                self.rollback([T] * B)
                raise
            return logits_NV.view(B, T, -1)
        used = min(max(self.lengths[:B]), self.cache.shape[3])
        mask = None
        if T > 1 or min(self.lengths[:B]) < used:
            future_NS = torch.arange(used, device=device) > positions_N[:, None]
            mask = torch.zeros(B * T, used, device=device).masked_fill_(future_NS, -math.inf).view(B, 1, T, used)
        keys_and_values = self.cache[:, :, :B, :used].transpose(1, 2).split(self.key_heads, dim=2)
        keys, values = keys_and_values[0].unbind(), keys_and_values[1].unbind()
        H, K, C = self.query_heads, self.key_heads, self.channels

        def attend(index: int, heads_NHC: Tensor) -> Tensor:
            if T == 1:  # query heads that share a key head are passed as queries at several times, so that it is read once
                q = heads_NHC[:, :H].view(B, K, H // K, C)
                return F.scaled_dot_product_attention(q, keys[index], values[index], attn_mask=mask).view(B, -1)
            q = heads_NHC[:, :H].view(B, T, H, C).transpose(1, 2)
            out = F.scaled_dot_product_attention(q, keys[index], values[index], attn_mask=mask, enable_gqa=H != K)
            return out.transpose(1, 2).reshape(B * T, -1)

        slots_N = self._slots(rows_N, positions_N)
        return self._logits(self._layers(tokens_BT.flatten(), positions_N, slots_N, attend)).unflatten(0, (B, T))

    def rollback(self, tokens: Sequence[int]) -> None:
        """Remove the last `tokens[row]` tokens of each of the first rows: decoding resumes before them."""
        self.lengths[: len(tokens)] = [length - count for length, count in zip(self.lengths, tokens, strict=False)]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        self.cache = self.cache[:, :, rows]
        self.lengths = [self.lengths[row] for row in rows]

    def _layers(
        self,
        ids_N: Tensor,
        positions_N: Tensor,
        slots_N: Tensor,
        attend: Callable[[int, Tensor], Tensor],
        outputs: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (N, width) before the final norm, or only those of the tokens `outputs`.

        `attend(layer, heads_NHC)`: queries, keys, values -> (N, heads x C); in the last layer only for the tokens `outputs`.
        """
        N, H, K, C = len(ids_N), self.query_heads, self.key_heads, self.channels
        x_ND = F.embedding(ids_N, self.embedding)
        rope_cache_N1C = self.rope_cache.index_select(0, positions_N)
        heads_NHC = x_ND.new_empty(N, H + 2 * K, C)
        parts = heads_NHC.view(N, -1).split((H * C, K * C, K * C), dim=1)
        rotated_NHC, new_keys_values_KNC = heads_NHC[:, : H + K], heads_NHC[:, H:].transpose(0, 1)
        first, second = rotated_NHC.chunk(2, dim=-1)
        slots_KSC = self.cache.flatten(2, 3).unbind()
        pairs_NHC = torch.view_as_complex(rotated_NHC.unflatten(-1, (-1, 2)))
        for index, layer in enumerate(self.layers):
            h_ND = normalised(x_ND, layer.before_attention)
            for part, (matrix, bias) in zip(parts, layer.projections, strict=True):
                if bias is None:
                    torch.mm(h_ND, matrix, out=part)
                else:
                    torch.addmm(bias, h_ND, matrix, out=part)
            if layer.heads is not None:
                normalised(rotated_NHC, layer.heads, out=rotated_NHC)
            torch.mul(torch.complex(first, second), rope_cache_N1C, out=pairs_NHC)
            slots_KSC[index].index_copy_(1, slots_N, new_keys_values_KNC)
            if outputs is not None and index == len(self.layers) - 1:
                x_ND = x_ND[outputs]
            torch.addmm(x_ND, attend(index, heads_NHC), layer.output, out=x_ND)
            h_ND = normalised(x_ND, layer.before_mlp)
            if isinstance(layer.mlp, MixtureOfExperts):
                x_ND += layer.mlp(h_ND)
            else:
                gate, up, down = layer.mlp
                inner = F.silu(_wide_product(h_ND, gate), inplace=True).mul_(_wide_product(h_ND, up))
                torch.addmm(x_ND, inner, down, out=x_ND)
        return x_ND

    def _logits(self, x_ND: Tensor) -> Tensor:
        return _wide_product(normalised(x_ND, self.norm), self.head)


def normalised(x: Tensor, norm: _Norm, out: Tensor | None = None) -> Tensor:
    size = torch.linalg.vector_norm(x, 2, -1, keepdim=True)
    size = torch.hypot(size, norm.offset, out=size)
    return torch.div(x, size, out=out).mul_(norm.scaled_weight)


def _wide_product(x_ND: Tensor, matrix: Tensor) -> Tensor:
    """A product with more outputs than inputs, in the faster layout: many tokens as columns."""
    if len(x_ND) <= MAX_TOKENS_AS_ROWS:
        return torch.mm(x_ND, matrix)
    return torch.mm(matrix.t(), x_ND.t()).t()
