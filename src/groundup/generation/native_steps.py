"""Steps of generation, and likelihoods of trees of tokens, by C++: see decoding.cpp."""

import ctypes
from collections.abc import Callable
from ctypes import c_double, c_int, c_long, c_void_p
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup import kernels

if TYPE_CHECKING:
    from groundup.model.decoder import Decoder

MULTIPLE, MAX_CHANNELS, PANEL, INTERRUPTED = 16, 256, 16, 4  # as in the C++


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ("layers", "width", "heads", "key_heads", "channels", "inner")),
        *((name, c_long) for name in ("vocabulary", "threads", "panels")),
        ("eps", c_double),
        *((name, c_void_p) for name in ("embedding", "norm", "head")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("attention_norm", "q", "k", "v", "q_bias", "k_bias", "v_bias", "q_norm", "k_norm")),
        *((name, c_void_p) for name in ("o", "mlp_norm", "gate", "up", "down")),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [("rows", c_long), ("capacity", c_long), ("data", c_void_p)]


class _Tokens(ctypes.Structure):
    _fields_ = [
        ("count", c_long),
        ("logit_count", c_long),
        *((name, c_void_p) for name in ("ids", "rows", "positions", "logit_indices", "slots", "parents")),
    ]


class _Targets(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("ends", "ids", "logp", "likeliest")]


class Interrupted(Exception):
    """Another thread stopped a step: it has no result."""


class Steps:
    """Tokens through a dense decoder in float32 on a processor.

    Raises `kernels.Unavailable` for another, or for sizes that are no multiples of 16.
    """

    def __init__(self, model: "Decoder", panels: bool = False) -> None:
        """`panels`: reorder the matrices, which is faster for many tokens at once; for few it is not worth the reordering."""
        config, backbone = model.config, model.model
        tensors = list(model.parameters())
        if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 or not tensor.is_contiguous() for tensor in tensors):
            raise kernels.Unavailable("not in float32 on the processor")
        if getattr(config, "num_experts", 0):
            raise kernels.Unavailable("a mixture of experts")
        sizes = (config.hidden_size, config.head_dim // 2, config.intermediate_size)
        if any(size % MULTIPLE for size in sizes) or config.head_dim > MAX_CHANNELS:
            raise kernels.Unavailable(f"width, half of a head's channels and MLP {sizes}: not all multiples of {MULTIPLE}")
        self.library = kernels.float32_library()
        self.parameters = tensors  # kept alive while there are addresses of them
        laid_out = self._in_panels if panels else lambda tensor: tensor
        self.cache_shape = (config.num_hidden_layers, 2 * config.num_key_value_heads, config.head_dim)
        self.vocabulary = config.vocab_size
        self.model = _Model(
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
            config.head_dim, config.intermediate_size, config.vocab_size, kernels.threads(), panels, config.rms_norm_eps,
            backbone.embed_tokens.weight.data_ptr(), backbone.norm.weight.data_ptr(), laid_out(model.lm_head.weight).data_ptr(),
        )  # fmt: skip
        self.layers = (_Layer * config.num_hidden_layers)(*(_layer(layer, laid_out) for layer in backbone.layers))

    def _in_panels(self, matrix: Tensor) -> Tensor:
        """Panels of 16 outputs, transposed: (outputs / 16, inputs, 16), padded with zeros; see products.h."""
        filled = F.pad(matrix.detach(), (0, 0, 0, -len(matrix) % PANEL))
        self.parameters.append(filled.unflatten(0, (-1, PANEL)).mT.contiguous())
        return self.parameters[-1]

    def __call__(
        self,
        ids_N: Tensor,
        rows_N: Tensor,
        positions_N: Tensor,
        rope_cache: Tensor,
        cache: Tensor,
        wanted_M: Tensor | None = None,
        stop: c_int | None = None,
    ) -> Tensor:
        """Logits (M, vocabulary) after each of the tokens `wanted_M`, indices that ascend, or after all.

        Tokens of one row follow each other; `rope_cache` and `cache` are those of `generation.decoding`. If another thread
        sets `stop` to 1, this raises Interrupted; what it wrote into the cache must be written again.
        Raises IndexError for an id, row or position out of range, ValueError for tensors of other kinds or shapes.
        """
        wanted = torch.arange(len(ids_N)) if wanted_M is None else wanted_M
        self._check(rope_cache, cache, (ids_N, rows_N, positions_N), wanted)
        logits = torch.empty(len(wanted), self.vocabulary)
        if not len(wanted):
            return logits
        tensors = (ids_N, rows_N, positions_N, wanted, positions_N)
        tokens = _Tokens(len(ids_N), len(wanted), *(tensor.data_ptr() for tensor in tensors), None)
        self._run(tokens, rope_cache, cache, logits.data_ptr(), None, stop)
        return logits

    def likelihoods(
        self,
        ids_N: Tensor,
        positions_N: Tensor,
        slots_N: Tensor,
        parents_N: Tensor,
        rope_cache: Tensor,
        cache: Tensor,
        wanted_M: Tensor,
        context_A: Tensor,
        targets_A: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities (A,) of the targets, each after wanted token `context_A`, and the likeliest token (M,) after each.

        Tokens are a tree: `parents` has the index of the token before, -1 where that is the last one in the cache's only row
        before its position; `slots` are the indices at which the tokens are cached there. Wanted indices ascend.
        Raises IndexError for indices out of range, ValueError for tensors of other kinds or shapes.
        """
        numbers, rows_N = (ids_N, positions_N, slots_N, parents_N), torch.zeros_like(ids_N)
        self._check(rope_cache, cache, numbers, wanted_M)
        self._check(rope_cache, cache, (context_A, targets_A), wanted_M[:0])
        before = torch.arange(len(parents_N))
        depths = torch.where(parents_N < 0, positions_N, positions_N[parents_N.clamp(0, max(0, len(parents_N) - 1))] + 1)
        if ((parents_N < -1) | (parents_N >= before) | (positions_N != depths)).any():
            raise IndexError("a token's parent must be one before it, and its position the next one")
        if ((context_A < 0) | (context_A >= len(wanted_M)) | (targets_A < 0) | (targets_A >= self.vocabulary)).any():
            raise IndexError(f"contexts must be indices of wanted tokens, targets among the {self.vocabulary} tokens")
        order = context_A.argsort(stable=True)
        ends_M, sorted_A = context_A.bincount(minlength=len(wanted_M)).cumsum(0), targets_A[order]
        logp_A, likeliest_M = torch.empty(len(order)), torch.empty_like(wanted_M)
        targets = _Targets(*(tensor.data_ptr() for tensor in (ends_M, sorted_A, logp_A, likeliest_M)))
        tensors = (ids_N, rows_N, positions_N, wanted_M, slots_N, parents_N)
        tokens = _Tokens(len(ids_N), len(wanted_M), *(tensor.data_ptr() for tensor in tensors))
        self._run(tokens, rope_cache, cache, None, ctypes.byref(targets))
        return torch.empty_like(logp_A).index_copy_(0, order, logp_A), likeliest_M

    def _run(
        self, tokens: _Tokens, rope_cache: Tensor, cache: Tensor, logits: int | None, targets: object, stop: c_int | None = None
    ) -> None:
        cache_struct = _Cache(*cache.shape[2:4], cache.data_ptr())
        error = self.library.decode(
            ctypes.byref(self.model), self.layers, ctypes.byref(cache_struct), ctypes.byref(tokens), kernels.address(rope_cache),
            c_void_p(logits), targets, None if stop is None else ctypes.byref(stop),
        )  # fmt: skip
        if error == INTERRUPTED:
            raise Interrupted
        if error:
            raise IndexError((
                f"an id is not among the {self.vocabulary} tokens",
                "the cache has no such row, position or slot",
                f"{tokens.count:,} tokens at once are more than the kernels can count",
            )[error - 1])  # fmt: skip

    def _check(self, rope_cache: Tensor, cache: Tensor, tokens: tuple[Tensor, ...], wanted: Tensor) -> None:
        """Raises for numbers by which the C++ would read outside of the tensors."""
        for vector in (*tokens, wanted):
            if vector.dtype != torch.int64 or vector.dim() != 1 or not vector.is_contiguous() or vector.device.type != "cpu":
                raise ValueError("numbers of tokens must be vectors of int64 on the processor, without gaps")
        if len({len(vector) for vector in tokens}) > 1:
            raise ValueError("ids, rows, positions and other numbers of the same tokens must have one length")
        bounds = [-1, *wanted.tolist(), len(tokens[0])]
        if any(index >= next_index for index, next_index in pairwise(bounds)):
            raise IndexError("wanted must be indices of tokens, ascending")
        layers, heads, channels = self.cache_shape
        if cache.dim() != 5 or (*cache.shape[:2], cache.shape[4]) != (layers, heads, channels):
            raise ValueError(f"a cache of shape {tuple(cache.shape)} is not one of this model")
        if rope_cache.numel() * 2 < cache.shape[3] * channels or rope_cache.dtype != torch.complex64:
            raise ValueError("rope_cache must be complex64 and have the positions of the cache")
        if cache.dtype != torch.float32 or not cache.is_contiguous() or not rope_cache.is_contiguous():
            raise ValueError("cache and rope_cache must be without gaps, the cache float32")
        if cache.device.type != "cpu" or rope_cache.device.type != "cpu":
            raise ValueError("cache and rope_cache must be on the processor")


def _layer(layer: nn.Module, laid_out: Callable[[Tensor], Tensor]) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    tensors = (
        layer.input_layernorm.weight,
        *(laid_out(projection.weight) for projection in projections),
        *(projection.bias for projection in projections),
        *(getattr(norm, "weight", None) for norm in (attention.q_norm, attention.k_norm)),
        laid_out(attention.o_proj.weight),
        layer.post_attention_layernorm.weight,
        *(laid_out(projection.weight) for projection in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
    )
    return _Layer(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))
