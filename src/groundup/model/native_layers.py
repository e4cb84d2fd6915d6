"""The dense decoder's layers in bfloat16, forward and backward, by the C++ of `groundup.kernels`: in all kinds of training.

A batch has rows of one length. Rows of unequal length, as post-training has, are packed into such.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_long, c_void_p
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from groundup import kernels
from groundup.kernels import workspace
from groundup.model.ragged import Rows, pack_rows

if TYPE_CHECKING:
    from groundup.model.decoder import Backbone, DecoderConfig


def check(config: "DecoderConfig", context: int = kernels.BLOCK) -> None:
    """Raises kernels.Unavailable unless the kernels can compute the layers of a decoder of this shape.

    context: tokens of a row, where rows have one length and are not given as `Rows`.
    """
    sizes = {
        "width": config.hidden_size,
        "MLP": config.moe_intermediate_size if config.num_experts else config.intermediate_size,
        "channels of a head": config.head_dim,
        "context": context,
    }
    if config.model_type not in ("qwen3", "qwen3_moe"):
        raise kernels.Unavailable(f"they know qwen3 only, not {config.model_type}")
    if odd := [f"{name} {size}" for name, size in sizes.items() if size % kernels.BLOCK]:
        raise kernels.Unavailable(f"{', '.join(odd)}: no multiple of {kernels.BLOCK}")
    if config.head_dim > kernels.MAX_CHANNELS:
        raise kernels.Unavailable(f"{config.head_dim} channels a head: more than {kernels.MAX_CHANNELS}")
    kernels.library()


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ("rows", "time", "width", "heads", "key_heads", "channels", "inner", "threads")),
        ("position_stride", c_long),
        ("eps", c_double),
    ]


class _Positions(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("cos", "sin", "documents", "prefixes")]


# Of a layer, in the order of the C++ structure: its parameters, their packed forms, and what is saved for the backward pass.
PARAMETERS = (
    *("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"),
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
ATTENTION = tuple(name for name in PARAMETERS if name == "input_layernorm" or "self_attn" in name)
PACKED = ("qkv_t", "o_t", "gate_up_t", "down_t", "qkv_b", "o_b", "gate_up_b", "down_b")
X_INDEX = len(PACKED)  # index of the layer's input in PACKED and ACTIVATIONS together
ACTIVATIONS = ("x", "qkv", "mlp_input", "gates", "attention", "gated_right", "normed", "mlp_normed", "log_sum_exp")


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in PARAMETERS),
        *((f"grad {name}", c_void_p) for name in PARAMETERS),
        *((name, c_void_p) for name in (*PACKED, *ACTIVATIONS)),
    ]


def by_rows(backbone: "Backbone", ids_BT: Tensor, documents_BT: Tensor | None) -> Tensor:
    """Hidden states (batch, time, width) in bfloat16; see `Backbone`. The time must be a multiple of 32.

    Raises IndexError for an id out of range.
    """
    documents = torch.zeros_like(ids_BT) if documents_BT is None else documents_BT
    return _hidden_states(backbone, ids_BT, documents, documents, torch.arange(ids_BT.shape[1])[None])


def hidden_states(backbone: "Backbone", rows: Rows, indices_M: Tensor) -> Tensor:
    """Hidden states (M, width) in bfloat16 of a backbone that `check` has accepted, of the tokens `indices_M`.

    Raises IndexError for an id out of range, TypeError for rows that are not laid out as `Rows` says.
    """
    rows.check()
    ids, documents, prefixes, positions, packed_index_N = pack_rows(rows, kernels.BLOCK)
    hidden = _hidden_states(backbone, ids, documents, prefixes, positions)
    return hidden.flatten(0, 1).index_select(0, packed_index_N[indices_M])


def mixture_by_rows(backbone: "Backbone", ids_BT: Tensor, documents_BT: Tensor | None) -> Tensor:
    """`by_rows` for a mixture: PyTorch computes what is between attention and the experts' products."""
    documents = torch.zeros_like(ids_BT) if documents_BT is None else documents_BT
    batch = (ids_BT, documents, documents, torch.arange(ids_BT.shape[1])[None])
    x_BTD = backbone.embed_tokens(ids_BT).bfloat16()
    for layer in backbone.layers:
        weights = [layer.get_submodule(name).weight for name in ATTENTION]
        save_activations = torch.is_grad_enabled() and (x_BTD.requires_grad or any(weight.requires_grad for weight in weights))
        x_BTD = _Attention.apply(backbone, batch, save_activations, x_BTD, *weights)
        x_BTD = x_BTD + layer.mlp(layer.post_attention_layernorm(x_BTD))
    return backbone.norm(x_BTD)


def _hidden_states(
    backbone: "Backbone", ids_BT: Tensor, documents_BT: Tensor, prefixes_BT: Tensor, positions_BT: Tensor
) -> Tensor:
    """`positions_BT`: (1, time) if all rows have the same positions."""
    vocabulary = backbone.config.vocab_size
    if not 0 <= int(ids_BT.min()) <= int(ids_BT.max()) < vocabulary:
        raise IndexError(f"an id is not among the {vocabulary} tokens")
    weights = [layer.get_submodule(name).weight for layer in backbone.layers for name in PARAMETERS]
    parameters = (backbone.embed_tokens.weight, backbone.norm.weight, *weights)
    save_activations = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
    batch = (ids_BT, documents_BT, prefixes_BT, positions_BT)
    return _Backbone.apply(backbone, batch, save_activations, *parameters)


class _Pass:
    """State of one forward pass and its backward pass: shapes, memory, and the tensors in it, in the order of `_Layer`."""

    def __init__(
        self, backbone: "Backbone", batch: tuple[Tensor, ...], parameters: tuple[Tensor, ...], layers: int, inner: int
    ) -> None:
        config = backbone.config
        if odd := {str(parameter.dtype) for parameter in parameters} - {"torch.float32"}:
            raise TypeError(f"parameters are {', '.join(odd)}: the kernels take float32")
        ids, documents, prefixes, positions = batch
        (rows, time), L = ids.shape, layers
        D, F, C = config.hidden_size, inner, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        N, A, E = rows * time, H * C, (H + 2 * K) * C
        position_stride = time * C // 2 if len(positions) > 1 else 0
        self.shape = _Shape(rows, time, D, H, K, C, F, kernels.threads(), position_stride, config.rms_norm_eps)
        packed_sizes = [E * D, A * D, 2 * F * D, F * D] * 2
        spread = (-(-N // 128) | 1) * 128  # as in the C++
        # The last is in float32, which counts twice.
        activation_sizes = [N * D, N * E, N * D, 2 * N * F, *(spread * size for size in (A, F, D, D)), 2 * N * H]
        # One allocation, which the system can give in large pages.
        sizes = [-(-size // 64) * 64 for size in (*packed_sizes, *activation_sizes)]
        parts = [*[sum(sizes)] * L, N * D]
        self.memory = workspace.take(sum(parts), torch.bfloat16)
        *layer_memory, self.final_hidden = self.memory.numbers.split(parts)
        self.layer_tensors = [layer.split(sizes) for layer in layer_memory]
        rotary = backbone.rotary_positions(positions)
        cos_and_sin = [x[:, 0, :, : C // 2].contiguous() for x in (rotary.cos, rotary.sin)]
        self.ids, *documents_and_prefixes = (x.to(torch.int32).contiguous() for x in (ids, documents, prefixes))
        self.position_tensors = (*cos_and_sin, *documents_and_prefixes)
        self.positions = _Positions(*map(kernels.address, self.position_tensors))
        self.parameters = tuple(parameter.detach().contiguous() for parameter in parameters)

    def layers(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> ctypes.Array:
        count = len(PARAMETERS)
        return (_Layer * len(self.layer_tensors))(*(
            _Layer(*map(kernels.address, (
                *weights[index * count : (index + 1) * count],
                *(gradients or weights)[index * count : (index + 1) * count],
                *tensors,
            )))
            for index, tensors in enumerate(self.layer_tensors)
        ))  # fmt: skip

    def of_layer(self, attention: Sequence[Tensor]) -> list[Tensor]:
        """Tensors for all `PARAMETERS`: those of attention, and for the others one that is not read."""
        by_name = dict(zip(ATTENTION, attention, strict=True))
        return [by_name.get(name, self.final_hidden) for name in PARAMETERS]


class _Backbone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backbone: "Backbone", batch: tuple[Tensor, ...], save_activations: bool, *parameters: Tensor) -> Tensor:
        config = backbone.config
        state = _Pass(backbone, batch, parameters, config.num_hidden_layers, config.intermediate_size)
        embedding, norm_weight, *weights = state.parameters
        y_BTD = torch.empty(*state.ids.shape, len(norm_weight), dtype=torch.bfloat16)
        layers = state.layers(weights, [])
        kernels.library().forward(
            ctypes.byref(state.shape), layers, c_long(len(layers)), *map(kernels.address, (embedding, state.ids)),
            ctypes.byref(state.positions), *map(kernels.address, (norm_weight, state.final_hidden, y_BTD)),
        )  # fmt: skip
        if save_activations:
            ctx.state = state
        else:
            workspace.give(state.memory)
        return y_BTD

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        state, ctx.state = ctx.state, None
        grad_embedding, grad_norm_weight, *gradients = (torch.empty_like(parameter) for parameter in state.parameters)
        grad_BTD, layers = grad_BTD.contiguous(), state.layers(state.parameters[2:], gradients)
        kernels.library().backward(
            ctypes.byref(state.shape), layers, c_long(len(layers)), kernels.address(state.ids), ctypes.byref(state.positions),
            *map(kernels.address, (state.parameters[1], state.final_hidden, grad_BTD, grad_norm_weight, grad_embedding)),
            c_long(len(grad_embedding)),
        )  # fmt: skip
        workspace.give(state.memory)
        return None, None, None, grad_embedding, grad_norm_weight, *gradients


class _Attention(torch.autograd.Function):
    """x + attention(norm(x)) of one layer, (batch, time, width)."""

    @staticmethod
    def forward(
        ctx: Any, backbone: "Backbone", batch: tuple[Tensor, ...], save_activations: bool, x_BTD: Tensor, *parameters: Tensor
    ) -> Tensor:
        state = _Pass(backbone, batch, parameters, 1, 0)
        state.layer_tensors[0][X_INDEX].copy_(x_BTD.flatten())
        y_BTD = torch.empty_like(x_BTD, memory_format=torch.contiguous_format)
        layers = state.layers(state.of_layer(state.parameters), [])
        kernels.library().attention_forward(
            ctypes.byref(state.shape), layers, ctypes.byref(state.positions), kernels.address(y_BTD)
        )
        if save_activations:
            ctx.state = state
        else:
            workspace.give(state.memory)
        return y_BTD

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        state, ctx.state = ctx.state, None
        gradients = [torch.empty_like(parameter) for parameter in state.parameters]
        layers = state.layers(state.of_layer(state.parameters), state.of_layer(gradients))
        grad_BTD = grad_BTD.clone(memory_format=torch.contiguous_format)  # overwritten with the gradient of x
        kernels.library().attention_backward(
            ctypes.byref(state.shape), layers, ctypes.byref(state.positions), kernels.address(grad_BTD)
        )
        workspace.give(state.memory)
        return None, None, None, grad_BTD, *gradients
