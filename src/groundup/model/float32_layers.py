"""The dense decoder's layers in float32, forwards and backwards, by the C++ of `groundup.kernels`: in all kinds of training.

Rows may be of any lengths, and of one or several documents. Where gradients are asked for, what the backward pass needs is kept
once a layer; else one layer's is used for all.
"""

import ctypes
from ctypes import c_double, c_long, c_void_p
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from groundup import kernels
from groundup.kernels import workspace
from groundup.model.native_layers import PARAMETERS
from groundup.model.ragged import Rows

if TYPE_CHECKING:
    from groundup.model.decoder import Backbone, DecoderConfig

LINE = 16  # numbers: every size is a multiple of it
KEPT = ("x", "mixed", "attention", "middle", "gates", "log_sums")


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
            for name in (
                "rows", "tokens", "time", "width", "heads", "key_heads", "channels", "inner", "threads", "layers", "vocabulary",
                "asked",
            )
        ),
        ("eps", c_double),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in (*PARAMETERS, *(f"grad {name}" for name in PARAMETERS), *KEPT)]


class _Batch(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("embedding", "cos", "sin", "norm", *Rows._fields, "asked")]


def whole_rows(ids_BT: Tensor, documents_BT: Tensor | None) -> Rows:
    """Of one length each, as they stand."""
    B, T = ids_BT.shape
    documents = torch.zeros_like(ids_BT) if documents_BT is None else documents_BT
    positions, starts = torch.arange(T).repeat(B), T * torch.arange(B + 1)
    return Rows(*(one.flatten().to(torch.int32).contiguous() for one in (ids_BT, documents, positions, starts)))


def hidden_states(backbone: "Backbone", rows: Rows, asked_M: Tensor | None = None) -> Tensor:
    """Hidden states (M, width) in float32 of a backbone that `check` has accepted, of the tokens `asked_M`, which ascend, or of
    all; after the last layer's attention nothing is computed of others. See `Backbone`.

    Raises IndexError for an id or an asked token that is none, TypeError for rows that are not laid out as `Rows` says.
    """
    vocabulary = backbone.config.vocab_size
    rows.check()
    if asked_M is not None:
        if not len(asked_M) or int(asked_M[0]) < 0 or int(asked_M[-1]) >= len(rows.ids) or not bool((asked_M.diff() > 0).all()):
            raise IndexError(f"asked for must be some of the {len(rows.ids)} tokens, ascending")
        asked_M = None if len(asked_M) == len(rows.ids) else asked_M.to(torch.int32).contiguous()
    if not 0 <= int(rows.ids.min()) <= int(rows.ids.max()) < vocabulary:
        raise IndexError(f"an id is not among the {vocabulary} tokens")
    weights = [layer.get_submodule(name).weight for layer in backbone.layers for name in PARAMETERS]
    parameters = (backbone.embed_tokens.weight, backbone.norm.weight, *weights)
    if odd := {str(one.dtype) for one in parameters} - {"torch.float32"}:
        raise TypeError(f"parameters are {', '.join(odd)}: the kernels take float32")
    keep = torch.is_grad_enabled() and any(one.requires_grad for one in parameters)
    return _Backbone.apply(backbone, (rows, asked_M), keep, *parameters)


class _Pass:
    """One forward pass and its backward pass: shapes, memory and where things are in it."""

    def __init__(
        self, backbone: "Backbone", batch: Rows, asked: Tensor | None, keep: bool, parameters: tuple[Tensor, ...]
    ) -> None:
        config = backbone.config
        rows, tokens, time = len(batch.starts) - 1, len(batch.ids), int(batch.starts.diff().max())
        D, F, C = config.hidden_size, config.intermediate_size, config.head_dim
        H, K, L = config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers
        stride, line = tokens | 1, torch.get_num_threads()
        self.asked = tokens if asked is None else len(asked)
        self.shape = _Shape(rows, tokens, time, D, H, K, C, F, line, L, config.vocab_size, self.asked, config.rms_norm_eps)
        sizes = [stride * size for size in (D, (H + 2 * K) * C, H * C, D, 2 * F)] + [-(-tokens * H // LINE) * LINE]
        parts = [*[sum(sizes)] * (L if keep else 1), stride * D]
        self.memory = workspace.take(sum(parts), torch.float32)
        *layers, self.last = self.memory.numbers.split(parts)
        self.kept = [layer.split(sizes) for layer in (layers if keep else layers * L)]
        places = backbone.places(torch.arange(int(batch.positions.max()) + 1)[None])
        self.turns = tuple(x[0, 0, :, : C // 2].contiguous() for x in (places.cos, places.sin))
        self.parameters = tuple(one.detach().contiguous() for one in parameters)
        self.batch = (*batch, asked)
        embedding, norm, *_ = self.parameters
        given = (embedding, *self.turns, norm, *self.batch)
        self.places = _Batch(*(None if one is None else kernels.address(one) for one in given))

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


class _Backbone(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backbone: "Backbone", batch: tuple[Rows, Tensor | None], keep: bool, *parameters: Tensor
    ) -> Tensor:
        one = _Pass(backbone, *batch, keep, parameters)
        y_MD = torch.empty(one.asked, backbone.config.hidden_size)
        kernels.float32_library().float32_forward(
            ctypes.byref(one.shape), one.layers([]), ctypes.byref(one.places), *map(kernels.address, (one.last, y_MD))
        )
        if keep:
            ctx.one = one
        else:
            workspace.give(one.memory)
        return y_MD

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor | None, ...]:
        one, ctx.one = ctx.one, None
        grad_embedding, grad_norm, *gradients = (torch.empty_like(parameter) for parameter in one.parameters)
        grad_MD = grad_MD.contiguous()
        kernels.float32_library().float32_backward(
            ctypes.byref(one.shape), one.layers(gradients), ctypes.byref(one.places),
            *map(kernels.address, (one.last, grad_MD, grad_norm, grad_embedding)),
        )  # fmt: skip
        workspace.give(one.memory)
        return None, None, None, grad_embedding, grad_norm, *gradients
