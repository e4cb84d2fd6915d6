"""Steps of generation by C++: see decoding.cpp."""

import ctypes
from ctypes import c_double, c_long, c_void_p
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from groundup import kernels

if TYPE_CHECKING:
    from groundup.model.decoder import Decoder

LANES, MAX_CHANNELS = 16, 256  # as in the C++


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


class Steps:
    """The steps of a dense decoder in float32 on a processor.

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
        if any(size % LANES for size in sizes) or config.head_dim > MAX_CHANNELS or config.vocab_size < LANES:
            raise kernels.Unavailable(f"width, half of a head's channels and MLP {sizes}: not all multiples of {LANES}")
        self.library = kernels.library()
        self.vocabulary = config.vocab_size
        self.model = _Model(
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
            config.head_dim, config.intermediate_size, config.vocab_size, torch.get_num_threads(), config.rms_norm_eps,
            *(tensor.data_ptr() for tensor in (backbone.embed_tokens.weight, backbone.norm.weight, model.lm_head.weight)),
        )  # fmt: skip
        self.layers = (_Layer * config.num_hidden_layers)(*map(_layer, backbone.layers))

    def __call__(self, tokens_BT: Tensor, positions_N: Tensor, rope_cache: Tensor, cache: Tensor) -> Tensor:
        """Logits (rows, T, vocabulary) of the cache's first rows; the others as `generation.decoding` keeps them.

        Raises IndexError for an id that is none.
        """
        logits = torch.empty(*tokens_BT.shape, self.vocabulary)
        tensors = (rope_cache, cache, tokens_BT.contiguous(), positions_N, logits)
        if not self.library.decode(
            ctypes.byref(self.model), self.layers, *map(c_long, (len(tokens_BT), *cache.shape[2:4], tokens_BT.shape[1])),
            *(c_void_p(tensor.data_ptr()) for tensor in tensors),
        ):  # fmt: skip
            raise IndexError(f"an id is not among the {self.vocabulary} tokens")
        return logits


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
