"""The dense decoder's layers in float32, forward and backward, by the C++ of `groundup.kernels`: in all kinds of training.

Rows may be of any lengths, and of one or several documents. Where gradients are needed, every layer has memory of its own for
what the backward pass reads; else all layers share one layer's.
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
ACTIVATIONS = ("x", "qkv", "attention", "mlp_input", "gates", "log_sum_exp")


def check(config: "DecoderConfig") -> None:
    """Raises kernels.Unavailable unless the kernels can compute the layers of a decoder of this shape."""
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
                "outputs",
            )
        ),
        ("eps", c_double),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in (*PARAMETERS, *(f"grad {name}" for name in PARAMETERS), *ACTIVATIONS)]


class _Batch(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("embedding", "cos", "sin", "norm", *Rows._fields, "output_indices")]


def whole_rows(ids_BT: Tensor, documents_BT: Tensor | None) -> Rows:
    """The rows of a batch, all of one length."""
    B, T = ids_BT.shape
    documents = torch.zeros_like(ids_BT) if documents_BT is None else documents_BT
    positions, starts = torch.arange(T).repeat(B), T * torch.arange(B + 1)
    return Rows(*(tensor.flatten().to(torch.int32).contiguous() for tensor in (ids_BT, documents, positions, starts)))


def hidden_states(backbone: "Backbone", rows: Rows, indices_M: Tensor | None = None) -> Tensor:
    """Hidden states (M, width) in float32 of a backbone that `check` has accepted, of the tokens `indices_M`, which ascend, or of
    all; after the last layer's attention nothing is computed for other tokens. See `Backbone`.

    Raises IndexError for an id or index out of range, TypeError for rows that are not laid out as `Rows` says.
    """
    vocabulary = backbone.config.vocab_size
    rows.check()
    if indices_M is not None:
        if (
            not len(indices_M) or int(indices_M[0]) < 0 or int(indices_M[-1]) >= len(rows.ids)
            or not bool((indices_M.diff() > 0).all())
        ):  # fmt: skip
            raise IndexError(f"indices must be of the {len(rows.ids)} tokens, one or more, ascending")
        indices_M = None if len(indices_M) == len(rows.ids) else indices_M.to(torch.int32).contiguous()
    if not 0 <= int(rows.ids.min()) <= int(rows.ids.max()) < vocabulary:
        raise IndexError(f"an id is not among the {vocabulary} tokens")
    weights = [layer.get_submodule(name).weight for layer in backbone.layers for name in PARAMETERS]
    parameters = (backbone.embed_tokens.weight, backbone.norm.weight, *weights)
    if odd := {str(parameter.dtype) for parameter in parameters} - {"torch.float32"}:
        raise TypeError(f"parameters are {', '.join(odd)}: the kernels take float32")
    save_activations = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
    return _Backbone.apply(backbone, (rows, indices_M), save_activations, *parameters)


class _Pass:
    """State of one forward pass and its backward pass: shapes, memory, and the tensors in it."""

    def __init__(
        self, backbone: "Backbone", batch: Rows, indices_M: Tensor | None, save_activations: bool, parameters: tuple[Tensor, ...]
    ) -> None:
        config = backbone.config
        rows, tokens, time = len(batch.starts) - 1, len(batch.ids), int(batch.starts.diff().max())
        D, F, C = config.hidden_size, config.intermediate_size, config.head_dim
        H, K, L = config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers
        stride, threads = tokens | 1, kernels.threads()
        self.outputs = tokens if indices_M is None else len(indices_M)
        self.shape = _Shape(rows, tokens, time, D, H, K, C, F, threads, L, config.vocab_size, self.outputs, config.rms_norm_eps)
        sizes = [stride * size for size in (D, (H + 2 * K) * C, H * C, D, 2 * F)] + [-(-tokens * H // LINE) * LINE]
        parts = [*[sum(sizes)] * (L if save_activations else 1), stride * D]
        self.memory = workspace.take(sum(parts), torch.float32)
        *layers, self.final_hidden = self.memory.numbers.split(parts)
        self.activations = [layer.split(sizes) for layer in (layers if save_activations else layers * L)]
        rotary = backbone.rotary_positions(torch.arange(int(batch.positions.max()) + 1)[None])
        self.cos_and_sin = tuple(x[0, 0, :, : C // 2].contiguous() for x in (rotary.cos, rotary.sin))
        self.parameters = tuple(tensor.detach().contiguous() for tensor in parameters)
        self.batch_tensors = (*batch, indices_M)
        embedding, norm, *_ = self.parameters
        tensors = (embedding, *self.cos_and_sin, norm, *self.batch_tensors)
        self.batch = _Batch(*(None if tensor is None else kernels.address(tensor) for tensor in tensors))

    def layers(self, gradients: list[Tensor]) -> ctypes.Array:
        count, weights = len(PARAMETERS), self.parameters[2:]
        return (_Layer * len(self.activations))(*(
            _Layer(*map(kernels.address, (
                *weights[index * count : (index + 1) * count],
                *(gradients or weights)[index * count : (index + 1) * count],
                *activations,
            )))
            for index, activations in enumerate(self.activations)
        ))  # fmt: skip


class _Backbone(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backbone: "Backbone", batch: tuple[Rows, Tensor | None], save_activations: bool, *parameters: Tensor
    ) -> Tensor:
        state = _Pass(backbone, *batch, save_activations, parameters)
        y_MD = torch.empty(state.outputs, backbone.config.hidden_size)
        kernels.float32_library().float32_forward(
            ctypes.byref(state.shape), state.layers([]), ctypes.byref(state.batch),
            *map(kernels.address, (state.final_hidden, y_MD)),
        )  # fmt: skip
        if save_activations:
            ctx.state = state
        else:
            workspace.give(state.memory)
        return y_MD

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor | None, ...]:
        state, ctx.state = ctx.state, None
        grad_embedding, grad_norm, *gradients = (torch.empty_like(parameter) for parameter in state.parameters)
        grad_MD = grad_MD.contiguous()
        kernels.float32_library().float32_backward(
            ctypes.byref(state.shape), state.layers(gradients), ctypes.byref(state.batch),
            *map(kernels.address, (state.final_hidden, grad_MD, grad_norm, grad_embedding)),
        )  # fmt: skip
        workspace.give(state.memory)
        return None, None, None, grad_embedding, grad_norm, *gradients
