"""The dense decoder's steps in C++, compiled at first use and kept: of training here, of generation in `decoding`.

The loss and the optimizers are for every architecture.

For processors with AVX-512 for bfloat16; where there is AMX, training goes by tiles. PyTorch's products reach less than
half of what tiles can do, and between them its step waits for memory. Here a row of the batch goes through a whole layer in
the cache of one core; results are the same to the bit for any number of threads, and about as near to float32's as PyTorch's
own in bfloat16 (tests/test_kernels.py).
"""

import ctypes
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from ctypes import c_double, c_float, c_long, c_void_p
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from groundup.core.text import printable
from groundup.device import has_bfloat16_vectors, has_tiles

if TYPE_CHECKING:
    from groundup.model.decoder import Backbone, DecoderConfig

HEADER, SOURCES = Path(__file__).with_name("blocks.h"), sorted(Path(__file__).parent.glob("*.cpp"))
VECTORS, TILES = ("fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16"), ("amx-tile", "amx-bf16")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
BLOCK, MAX_CHANNELS = 32, 256  # as in the C++


class Unavailable(Exception):
    """Why there are no kernels, to be told."""


def library() -> ctypes.CDLL:
    """The compiled kernels. Raises Unavailable where processor, compiler or system do not allow them."""
    found = library_or_reason()
    if isinstance(found, str):
        raise Unavailable(found)
    return found


@cache
def library_or_reason() -> ctypes.CDLL | str:
    """The compiled kernels, or why there are none: asked for once, as a compiler may take long to say no."""
    if not has_bfloat16_vectors():
        return "the processor has no AVX-512 for bfloat16"
    flags = [*FLAGS, *(f"-m{name}" for name in (*VECTORS, *(TILES if has_tiles() else ())))]
    compiler = os.environ.get("CXX") or "g++"
    try:
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "groundup"
    except RuntimeError:  # a container's user may be in no list of users
        return "the user has no home folder to keep compiled kernels in: set XDG_CACHE_HOME to a folder"
    made_of = [" ".join([compiler, *flags]).encode(), *(source.read_bytes() for source in (HEADER, *SOURCES))]
    made = hashlib.sha256(b"".join(made_of)).hexdigest()[:16]
    path = kept / f"kernels-{made}.so"
    try:
        if not path.exists():
            kept.mkdir(parents=True, exist_ok=True)
            print(printable(f"compiling kernels for this processor with {compiler}: some seconds, once"), file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=kept) as unfinished:
                new = Path(unfinished) / path.name
                command = [*shlex.split(compiler), *flags, *map(str, SOURCES), "-o", str(new)]
                subprocess.run(command, check=True, capture_output=True, timeout=300)
                new.replace(path)
        found = ctypes.CDLL(str(path))
    except FileNotFoundError:
        return f"no C++ compiler {compiler!r} found"
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[:1]
        return f"{compiler} did not compile the kernels: {' '.join(last)}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the kernels could not be compiled in {kept}: {error}"
    found.granted.restype = found.decode.restype = ctypes.c_bool
    if not found.granted():
        return "the system does not let programs use AMX"
    return found


def check_head(width: int) -> None:
    """Raises Unavailable unless head and loss of a model of this width can be trained by the kernels, on this machine."""
    if width % BLOCK:
        raise Unavailable(f"width {width}: no multiple of {BLOCK}")
    library()


def check(config: "DecoderConfig", context: int) -> None:
    """Raises Unavailable unless the layers of a dense decoder of this shape can be."""
    sizes = {
        "width": config.hidden_size,
        "MLP": config.intermediate_size,
        "channels of a head": config.head_dim,
        "context": context,
    }
    if config.model_type != "qwen3":
        raise Unavailable(f"they know qwen3 only, not {config.model_type}")
    if odd := [f"{name} {size}" for name, size in sizes.items() if size % BLOCK]:
        raise Unavailable(f"{', '.join(odd)}: no multiple of {BLOCK}")
    if config.head_dim > MAX_CHANNELS:
        raise Unavailable(f"{config.head_dim} channels a head: more than {MAX_CHANNELS}")
    library()


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


class _Room:
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


class Kernels:
    """A backbone that `check` has accepted."""

    def __init__(self, backbone: "Backbone") -> None:
        self.backbone = backbone
        layers = [layer.get_submodule(name).weight for layer in backbone.layers for name in PARAMETERS]
        self.parameters = (backbone.embed_tokens.weight, backbone.norm.weight, *layers)
        self.rooms: list[_Room] = []  # kept, since memory that is given back must be cleared when it comes again

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

    def room(self, rows: int, time: int) -> _Room:
        while self.rooms:
            found = self.rooms.pop()
            if (found.rows, found.time, found.shape.threads) == (rows, time, torch.get_num_threads()):
                return found
        return _Room(self.backbone, rows, time)


class _Backbone(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        batch: tuple[Tensor, Tensor],
        backward_follows: bool,
        embedding: Tensor,
        gain: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        room = kernels.room(*batch[0].shape)
        places = (batch[0], room.cos, room.sin, batch[1])
        gradients = [torch.empty_like(parameter) for parameter in parameters] if backward_follows else []
        layers = _layers(room, parameters, gradients)
        y_BTD = torch.empty(*batch[0].shape, len(gain), dtype=torch.bfloat16)
        library().forward(
            ctypes.byref(room.shape), layers, c_long(len(layers)), *map(_at, (embedding, *places, gain, room.last, y_BTD))
        )
        if gradients:
            ctx.kept = kernels, room, places, embedding, gain, gradients, layers
        else:
            kernels.rooms.append(room)
        return y_BTD

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        kernels, room, places, embedding, gain, gradients, layers = ctx.kept
        ctx.kept = None
        grad_BTD, grad_embedding, grad_gain = grad_BTD.contiguous(), torch.empty_like(embedding), torch.empty_like(gain)
        library().backward(
            ctypes.byref(room.shape),
            layers,
            c_long(len(layers)),
            *map(_at, (*places, gain, room.last, grad_BTD, grad_gain, grad_embedding)),
            c_long(len(embedding)),
        )
        kernels.rooms.append(room)
        return None, None, None, grad_embedding, grad_gain, *gradients


def _layers(room: _Room, parameters: tuple[Tensor, ...], gradients: list[Tensor]) -> ctypes.Array:
    count = len(PARAMETERS)
    return (_Layer * len(room.layers))(*(
        _Layer(*map(_at, (
            *parameters[index * count : (index + 1) * count],
            *(gradients or parameters)[index * count : (index + 1) * count],
            *own,
        )))
        for index, own in enumerate(room.layers)
    ))  # fmt: skip


def weighted_log_probability(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, places_M: Tensor, slopes_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The targets' log-probabilities at `places_M`, weighted by `slopes_N` and added up, and its gradients by hidden states
    (bfloat16) and weight (float32).
    """
    (V, D), M = weight_VD.shape, len(places_M)
    if not M:
        return slopes_N.new_zeros(()), torch.zeros_like(hidden_ND), torch.zeros_like(weight_VD)
    every = len(hidden_ND) == M and M % BLOCK == 0
    filled = M if every else -(-M // BLOCK) * BLOCK
    places = places_M if every else torch.cat((places_M, places_M.new_zeros(filled - M)))
    hidden, targets, slopes = (x.contiguous() if every else x[places] for x in (hidden_ND, targets_N, slopes_N))
    if not 0 <= int(targets.min()) <= int(targets.max()) < V:
        raise IndexError(f"a target is not among the {V} tokens")
    if not every:
        slopes[M:] = 0
    known, V = V, -(-V // BLOCK) * BLOCK
    weight = weight_VD if known == V else torch.cat((weight_VD, weight_VD[:1].expand(V - known, D)))
    found, grad_hidden, grad_weight = torch.zeros(filled), torch.empty_like(hidden), torch.empty_like(weight)
    library().weighted_log_probability(
        *map(c_long, (filled, D, V, known, torch.get_num_threads())),
        *map(_at, (hidden, weight, targets, slopes, found, grad_hidden, grad_weight)),
    )
    if not every:
        everywhere = torch.zeros_like(hidden_ND)
        everywhere[places_M] = grad_hidden[:M]
        grad_hidden = everywhere
    return (found * slopes).sum(), grad_hidden, grad_weight[:known]


def can_orthogonalise(shape: tuple[int, ...]) -> bool:
    """Whether `muon` takes matrices of this shape."""
    return len(shape) == 2 and not any(side % BLOCK for side in shape)


class _Matrix(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("weight", "momentum", "grad")]


def muon(
    weights: list[Tensor],
    momenta: list[Tensor],
    gradients: list[Tensor],
    momentum: float,
    rate: float,
    keep: float,
    newton_schulz: tuple[tuple[float, float, float], ...],
) -> None:
    """One update by Muon of matrices (rows, columns) of one shape, float32, in place: see `training.optimizer`."""
    gradients = [gradient.contiguous() for gradient in gradients]
    matrices = (_Matrix * len(weights))(*(
        _Matrix(*map(_at, three)) for three in zip(weights, momenta, gradients, strict=True)
    ))  # fmt: skip
    coefficients = [coefficient for step in newton_schulz for coefficient in step]
    library().muon(
        matrices, *map(c_long, (len(weights), *weights[0].shape, torch.get_num_threads())),
        *map(c_float, (momentum, rate, keep)), (c_float * len(coefficients))(*coefficients), c_long(len(newton_schulz)),
    )  # fmt: skip


def adamw(
    weights: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    betas: tuple[float, float],
    rate: float,
    keep: float,
    updates: int,
) -> None:
    """One update by AdamW, the `updates`th, of float32 tensors in place: see `training.optimizer`."""
    corrections = [1 - beta**updates for beta in betas]
    numbers = [*betas, corrections[1] ** 0.5, rate / corrections[0], keep]
    gradients = [gradient.contiguous() for gradient in gradients]
    for weight, gradient, *moments in zip(weights, gradients, first, second, strict=True):
        library().adamw(
            *map(c_long, (weight.numel(), torch.get_num_threads())),
            *map(_at, (weight, gradient, *moments)), *map(c_float, numbers),
        )  # fmt: skip


def _at(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())
