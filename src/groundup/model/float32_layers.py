"""The dense decoder's layers in float32, forwards and backwards, by the C++ of `groundup.kernels`: in all kinds of training.

Rows may be of any length, and of one or several documents. Where gradients are asked for, what the backward pass needs is kept
once a layer; else one layer's is used for all.
"""

import ctypes
from ctypes import c_double, c_long, c_void_p
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from groundup import kernels
from groundup.model.native_layers import PARAMETERS

if TYPE_CHECKING:
    from groundup.model.decoder import Backbone, DecoderConfig

LINE = 16  # numbers: every size is a multiple of it
KEPT = ("x", "mixed", "attention", "middle", "gates", "log_sums")
_free: list[Tensor] = []  # memory of passes that are over: what is given back must be cleared when it comes again


def check(config: "DecoderConfig") -> None:
    """Raises kernels.Unavailable unless the layers of a decoder of this shape can be."""
    sizes = {"width": config.hidden_size, "MLP": config.intermediate_size, "channels of a head": config.head_dim}
    if config.model_type != "qwen3":
        raise kernels.Unavailable(f"they know qwen3 only, not {config.model_type}")
    if odd := [f"{name} {size}" for name, size in sizes.items() if size % LINE]:
        raise kernels.Unavailable(f"{', '.join(odd)}: no multiple of {LINE}")
    if config.head_dim > kernels.MAX_CHANNELS:
        raise kernels.Unavailable(f"{config.head_dim} channels a head: more than {kernels.MAX_CHANNELS}")
    kernels.float32_library()


class _Shape(ctypes.Structure):
    _fields_ = [
        *(
            (name, c_long)
            for name in ("rows", "time", "width", "heads", "key_heads", "channels", "inner", "threads", "layers", "vocabulary")
        ),
        ("eps", c_double),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in (*PARAMETERS, *(f"grad {name}" for name in PARAMETERS), *KEPT)]


class _Batch(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("embedding", "cos", "sin", "norm", "ids", "documents")]


def hidden_states(backbone: "Backbone", ids_BT: Tensor, documents_BT: Tensor | None) -> Tensor:
    """Hidden states (batch, time, width) in float32 of a backbone that `check` has accepted; see `Backbone`.

    Raises IndexError for an id that is none.
    """
    vocabulary = backbone.config.vocab_size
    if not 0 <= int(ids_BT.min()) <= int(ids_BT.max()) < vocabulary:
        raise IndexError(f"an id is not among the {vocabulary} tokens")
    documents = torch.zeros_like(ids_BT) if documents_BT is None else documents_BT
    batch = tuple(x.to(torch.int32).contiguous() for x in (ids_BT, documents))
    weights = [layer.get_submodule(name).weight for layer in backbone.layers for name in PARAMETERS]
    parameters = (backbone.embed_tokens.weight, backbone.norm.weight, *weights)
    if odd := {str(one.dtype) for one in parameters} - {"torch.float32"}:
        raise TypeError(f"parameters are {', '.join(odd)}: the kernels take float32")
    keep = torch.is_grad_enabled() and any(one.requires_grad for one in parameters)
    return _Backbone.apply(backbone, batch, keep, *parameters)


class _Pass:
    """One forward pass and its backward pass: shapes, memory and where things are in it."""

    def __init__(self, backbone: "Backbone", batch: tuple[Tensor, Tensor], keep: bool, parameters: tuple[Tensor, ...]) -> None:
        config = backbone.config
        rows, time = batch[0].shape
        D, F, C = config.hidden_size, config.intermediate_size, config.head_dim
        H, K, L = config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers
        stride, line = rows * time | 1, torch.get_num_threads()
        self.shape = _Shape(rows, time, D, H, K, C, F, line, L, config.vocab_size, config.rms_norm_eps)
        sizes = [stride * size for size in (D, (H + 2 * K) * C, H * C, D, 2 * F)] + [-(-rows * time * H // LINE) * LINE]
        self.memory = _memory((L if keep else 1) * sum(sizes) + stride * D + LINE)
        start = -self.memory.data_ptr() % 64 // 4  # lines as the cache has them
        *layers, self.last = self.memory[start : start + (L if keep else 1) * sum(sizes) + stride * D].split(
            [*[sum(sizes)] * (L if keep else 1), stride * D]
        )
        self.kept = [layer.split(sizes) for layer in (layers if keep else layers * L)]
        places = backbone.places(torch.arange(time)[None])
        self.turns = tuple(x[0, 0, :, : C // 2].contiguous() for x in (places.cos, places.sin))
        self.parameters = tuple(one.detach().contiguous() for one in parameters)
        self.batch = batch
        embedding, norm, *_ = self.parameters
        self.places = _Batch(*map(kernels.address, (embedding, *self.turns, norm, *batch)))

    def layers(self, gradients: list[Tensor]) -> ctypes.Array:
        count, weights = len(PARAMETERS), self.parameters[2:]
        return (_Layer * len(self.kept))(*(
            _Layer(*map(kernels.address, (
                *weights[index * count : (index + 1) * count],
                *(gradients or weights)[index * count : (index + 1) * count],
                *kept,
            )))
            for index, kept in enumerate(self.kept)
        ))  # fmt: skip


def release() -> None:
    """Give back the memory that is kept for the next pass."""
    _free.clear()


def _memory(size: int) -> Tensor:
    fitting = [one for one in _free if len(one) >= size]
    if not fitting:
        _free.clear()
        return torch.empty(size)
    found = min(fitting, key=len)
    _free[:] = [one for one in _free if one is not found]
    return found


class _Backbone(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backbone: "Backbone", batch: tuple[Tensor, Tensor], keep: bool, *parameters: Tensor
    ) -> Tensor:
        one = _Pass(backbone, batch, keep, parameters)
        y_BTD = torch.empty(*batch[0].shape, backbone.config.hidden_size)
        kernels.float32_library().float32_forward(
            ctypes.byref(one.shape), one.layers([]), ctypes.byref(one.places), *map(kernels.address, (one.last, y_BTD))
        )
        if keep:
            ctx.one = one
        else:
            _free.append(one.memory)
        return y_BTD

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        one, ctx.one = ctx.one, None
        grad_embedding, grad_norm, *gradients = (torch.empty_like(parameter) for parameter in one.parameters)
        grad_BTD = grad_BTD.contiguous()
        kernels.float32_library().float32_backward(
            ctypes.byref(one.shape), one.layers(gradients), ctypes.byref(one.places),
            *map(kernels.address, (one.last, grad_BTD, grad_norm, grad_embedding)),
        )  # fmt: skip
        _free.append(one.memory)
        return None, None, None, grad_embedding, grad_norm, *gradients
