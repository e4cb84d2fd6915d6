"""Steps of generation by C++: see decoding.cpp."""

import ctypes
from ctypes import c_double, c_long, c_void_p
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from groundup import kernels

if TYPE_CHECKING:
    from groundup.model.decoder import Decoder

MULTIPLE, MAX_CHANNELS = 16, 256  # as in the C++


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ("layers", "width", "heads", "key_heads", "channels", "inner")),
        *((name, c_long) for name in ("vocabulary", "threads")),
        ("eps", c_double),
        *((name, c_void_p) for name in ("embedding", "norm", "head")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("attention_norm", "q", "k", "v", "q_bias", "k_bias", "v_bias", "q_norm", "k_norm")),
        *((name, c_void_p) for name in ("o", "mlp_norm", "gate", "up", "down")),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [("rows", c_long), ("room", c_long), ("at", c_void_p)]


class _Tokens(ctypes.Structure):
    _fields_ = [
        ("count", c_long),
        ("wanted_count", c_long),
        *((name, c_void_p) for name in ("ids", "rows", "positions", "wanted")),
    ]


class Steps:
    """Tokens through a dense decoder in float32 on a processor.

    Raises `kernels.Unavailable` for another, or for sizes that are no multiples of 16.
    """

    def __init__(self, model: "Decoder") -> None:
        config, backbone = model.config, model.model
        tensors = list(model.parameters())
        if any(one.device.type != "cpu" or one.dtype != torch.float32 or not one.is_contiguous() for one in tensors):
            raise kernels.Unavailable("not in float32 on the processor")
        if getattr(config, "num_experts", 0):
            raise kernels.Unavailable("a mixture of experts")
        sizes = (config.hidden_size, config.head_dim // 2, config.intermediate_size)
        if any(size % MULTIPLE for size in sizes) or config.head_dim > MAX_CHANNELS:
            raise kernels.Unavailable(f"width, half of a head's channels and MLP {sizes}: not all multiples of {MULTIPLE}")
        self.library = kernels.float32_library()
        self.parameters = tensors  # which must not go while there are addresses of them
        self.cache_shape = (config.num_hidden_layers, 2 * config.num_key_value_heads, config.head_dim)
        self.vocabulary = config.vocab_size
        self.model = _Model(
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
            config.head_dim, config.intermediate_size, config.vocab_size, torch.get_num_threads(), config.rms_norm_eps,
            *(tensor.data_ptr() for tensor in (backbone.embed_tokens.weight, backbone.norm.weight, model.lm_head.weight)),
        )  # fmt: skip
        self.layers = (_Layer * config.num_hidden_layers)(*map(_layer, backbone.layers))

    def __call__(
        self,
        ids_N: Tensor,
        rows_N: Tensor,
        positions_N: Tensor,
        rope_cache: Tensor,
        cache: Tensor,
        wanted_M: Tensor | None = None,
    ) -> Tensor:
        """Logits (M, vocabulary) of the token after each of those wanted, ascending, or after all.

        Tokens of one row follow each other; `rope_cache` and `cache` as `generation.decoding` keeps them.
        Raises IndexError for an id, row or position that is none, ValueError for tensors of other kinds or shapes.
        """
        wanted = torch.arange(len(ids_N)) if wanted_M is None else wanted_M
        self._check(rope_cache, cache, (ids_N, rows_N, positions_N), wanted)
        logits = torch.empty(len(wanted), self.vocabulary)
        if not len(wanted):
            return logits
        tensors = (ids_N, rows_N, positions_N, wanted)
        tokens = _Tokens(len(ids_N), len(wanted), *(one.data_ptr() for one in tensors))
        there = _Cache(*cache.shape[2:4], cache.data_ptr())
        wrong = self.library.decode(
            ctypes.byref(self.model), self.layers, ctypes.byref(there), ctypes.byref(tokens),
            *map(kernels.address, (rope_cache, logits)),
        )  # fmt: skip
        if wrong:
            raise IndexError((
                f"an id is not among the {self.vocabulary} tokens",
                "the cache has no such row or position",
                f"{len(ids_N):,} tokens at once are more than the kernels can count",
            )[wrong - 1])  # fmt: skip
        return logits

    def _check(self, rope_cache: Tensor, cache: Tensor, tokens: tuple[Tensor, ...], wanted: Tensor) -> None:
        """The C++ reads what the numbers say: wrong ones must not get there."""
        for one in (*tokens, wanted):
            if one.dtype != torch.int64 or one.dim() != 1 or not one.is_contiguous() or one.device.type != "cpu":
                raise ValueError("ids, rows, positions and wanted must be vectors of int64 on the processor, without gaps")
        if len({len(one) for one in tokens}) > 1:
            raise ValueError("ids, rows and positions must be as many")
        ascending = [-1, *wanted.tolist(), len(tokens[0])]
        if any(one >= other for one, other in pairwise(ascending)):
            raise IndexError("wanted must be numbers of tokens, ascending")
        layers, heads, channels = self.cache_shape
        if cache.dim() != 5 or (*cache.shape[:2], cache.shape[4]) != (layers, heads, channels):
            raise ValueError(f"a cache of shape {tuple(cache.shape)} is not one of this model")
        if rope_cache.numel() * 2 < cache.shape[3] * channels or rope_cache.dtype != torch.complex64:
            raise ValueError("the turns are not those of the cache's positions")
        if cache.dtype != torch.float32 or not cache.is_contiguous() or not rope_cache.is_contiguous():
            raise ValueError("cache and turns must be float32 without gaps")
        if cache.device.type != "cpu" or rope_cache.device.type != "cpu":
            raise ValueError("cache and turns must be on the processor")


def _layer(layer: nn.Module) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    tensors = (
        layer.input_layernorm.weight,
        *(projection.weight for projection in projections),
        *(projection.bias for projection in projections),
        *(getattr(norm, "weight", None) for norm in (attention.q_norm, attention.k_norm)),
        attention.o_proj.weight,
        layer.post_attention_layernorm.weight,
        *(projection.weight for projection in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
    )
    return _Layer(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))
