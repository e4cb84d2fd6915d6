"""The dense decoder's layers in training, forwards and backwards, by the C++ of `groundup.kernels`."""

import ctypes
from ctypes import c_double, c_long, c_void_p
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from groundup import kernels

if TYPE_CHECKING:
    from groundup.model.decoder import Backbone, DecoderConfig


def check(config: "DecoderConfig", context: int) -> None:
    """Raises kernels.Unavailable unless the layers of a dense decoder of this shape can be."""
    sizes = {
        "width": config.hidden_size,
        "MLP": config.intermediate_size,
        "channels of a head": config.head_dim,
        "context": context,
    }
    if config.model_type != "qwen3":
        raise kernels.Unavailable(f"they know qwen3 only, not {config.model_type}")
    if odd := [f"{name} {size}" for name, size in sizes.items() if size % kernels.BLOCK]:
        raise kernels.Unavailable(f"{', '.join(odd)}: no multiple of {kernels.BLOCK}")
    if config.head_dim > kernels.MAX_CHANNELS:
        raise kernels.Unavailable(f"{config.head_dim} channels a head: more than {kernels.MAX_CHANNELS}")
    kernels.library()


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ["rows", "time", "width", "heads", "key_heads", "channels", "inner", "threads"]),
        ("eps", c_double),
    ]


# Of a layer, in the order of the C++ structure: its parameters, their packed forms, and what is kept for the backward pass.
PARAMETERS = (
    *("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"),
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
PACKED = ("mixed_t", "o_t", "gated_t", "down_t", "mixed_b", "o_b", "gated_b", "down_b")
KEPT = ("x", "qkv", "middle", "gates", "attention", "gated_right", "normed", "mlp_normed", "log_sums")


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in PARAMETERS),
        *((f"grad {name}", c_void_p) for name in PARAMETERS),
        *((name, c_void_p) for name in (*PACKED, *KEPT)),
    ]


class _Workspace:
    """What the C++ keeps between forward and backward pass for a batch of one shape: the fields that the names tell."""

    def __init__(self, backbone: "Backbone", rows: int, time: int) -> None:
        config = backbone.config
        D, F, C = config.hidden_size, config.intermediate_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        N, A, E = rows * time, H * C, (H + 2 * K) * C
        self.rows, self.time = rows, time
        self.shape = _Shape(rows, time, D, H, K, C, F, torch.get_num_threads(), config.rms_norm_eps)
        packed = [E * D, A * D, 2 * F * D, F * D] * 2
        spread = (-(-N // 128) | 1) * 128  # as in the C++
        kept = [N * D, N * E, N * D, 2 * N * F, *(spread * size for size in (A, F, D, D)), 2 * N * H]  # float32 counts twice
        # One piece of memory, which the system can give in large pages.
        sizes = [-(-size // 64) * 64 for size in (*packed, *kept)]
        memory = torch.empty(config.num_hidden_layers * sum(sizes) + N * D, dtype=torch.bfloat16)
        *layers, self.last = memory.split([*[sum(sizes)] * config.num_hidden_layers, N * D])
        self.layers = [layer.split(sizes) for layer in layers]
        places = backbone.places(torch.arange(time)[None])
        self.cos, self.sin = (x[0, 0, :, : C // 2].contiguous() for x in (places.cos, places.sin))


class NativeLayers:
    """A backbone that `check` has accepted."""

    def __init__(self, backbone: "Backbone") -> None:
        self.backbone = backbone
        layers = [layer.get_submodule(name).weight for layer in backbone.layers for name in PARAMETERS]
        self.parameters = (backbone.embed_tokens.weight, backbone.norm.weight, *layers)
        self.workspaces: list[_Workspace] = []  # kept, since memory that is given back must be cleared when it comes again

    def __call__(self, ids_BT: Tensor, documents_BT: Tensor | None) -> Tensor:
        """Hidden states (batch, time, width) in bfloat16; see `Backbone`. The time must be a multiple of 32.

        Raises IndexError for an id that is none.
        """
        vocabulary = self.backbone.config.vocab_size
        if not 0 <= int(ids_BT.min()) <= int(ids_BT.max()) < vocabulary:
            raise IndexError(f"an id is not among the {vocabulary} tokens")
        documents = torch.zeros_like(ids_BT) if documents_BT is None else documents_BT
        batch = tuple(x.to(torch.int32).contiguous() for x in (ids_BT, documents))
        return _Backbone.apply(self, batch, torch.is_grad_enabled(), *self.parameters)

    def workspace(self, rows: int, time: int) -> _Workspace:
        while self.workspaces:
            found = self.workspaces.pop()
            if (found.rows, found.time, found.shape.threads) == (rows, time, torch.get_num_threads()):
                return found
        return _Workspace(self.backbone, rows, time)


class _Backbone(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        native: NativeLayers,
        batch: tuple[Tensor, Tensor],
        backward_follows: bool,
        embedding: Tensor,
        norm_weight: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        workspace = native.workspace(*batch[0].shape)
        places = (batch[0], workspace.cos, workspace.sin, batch[1])
        gradients = [torch.empty_like(parameter) for parameter in parameters] if backward_follows else []
        layers = _layers(workspace, parameters, gradients)
        y_BTD = torch.empty(*batch[0].shape, len(norm_weight), dtype=torch.bfloat16)
        kernels.library().forward(
            ctypes.byref(workspace.shape), layers, c_long(len(layers)),
            *map(kernels.address, (embedding, *places, norm_weight, workspace.last, y_BTD)),
        )
        if gradients:
            ctx.kept = native, workspace, places, embedding, norm_weight, gradients, layers
        else:
            native.workspaces.append(workspace)
        return y_BTD

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        native, workspace, places, embedding, norm_weight, gradients, layers = ctx.kept
        ctx.kept = None
        grad_BTD = grad_BTD.contiguous()
        grad_embedding, grad_norm_weight = torch.empty_like(embedding), torch.empty_like(norm_weight)
        kernels.library().backward(
            ctypes.byref(workspace.shape),
            layers,
            c_long(len(layers)),
            *map(kernels.address, (*places, norm_weight, workspace.last, grad_BTD, grad_norm_weight, grad_embedding)),
            c_long(len(embedding)),
        )
        native.workspaces.append(workspace)
        return None, None, None, grad_embedding, grad_norm_weight, *gradients


def _layers(workspace: _Workspace, parameters: tuple[Tensor, ...], gradients: list[Tensor]) -> ctypes.Array:
    count = len(PARAMETERS)
    return (_Layer * len(workspace.layers))(*(
        _Layer(*map(kernels.address, (
            *parameters[index * count : (index + 1) * count],
            *(gradients or parameters)[index * count : (index + 1) * count],
            *own,
        )))
        for index, own in enumerate(workspace.layers)
    ))  # fmt: skip
