"""Loss and optimizers in float32, as `groundup.kernels` has them in bfloat16; the layers are in `model/float32_layers.py`."""

import ctypes
from ctypes import c_long, c_void_p
from typing import Any

import torch
from torch import Tensor

from groundup import kernels

LINE = 16  # numbers: a matrix's sides are multiples of it, but for the vocabulary


def check_head(width: int) -> None:
    """Raises Unavailable unless head and loss of a model of this width can be trained by the kernels, on this machine."""
    if width % LINE:
        raise kernels.Unavailable(f"width {width}: no multiple of {LINE}")
    kernels.float32_library()


class _Loss(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ("tokens", "width", "vocabulary", "known", "threads")),
        *(
            (name, c_void_p)
            for name in ("hidden", "weight", "targets", "slopes", "found", "entropy", "grad_hidden", "grad_weight")
        ),
    ]


def log_probabilities(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, places_M: Tensor, entropies: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) of the targets at `places_M`, zero elsewhere; and entropies, zero where they are not asked for."""
    return _run(hidden_ND, weight_VD, targets_N, places_M, None, entropies)[:2]


def weighted_log_probability(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, places_M: Tensor, slopes_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The targets' log-probabilities at `places_M`, weighted by `slopes_N` and added up, and its gradients by hidden states
    and weight.
    """
    found_N, _, grad_hidden, grad_weight = _run(hidden_ND, weight_VD, targets_N, places_M, slopes_N, False)
    return (found_N * slopes_N).sum(), grad_hidden, grad_weight


def _run(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, places_M: Tensor, slopes_N: Tensor | None, entropies: bool
) -> tuple[Tensor, ...]:
    (V, D), M, N = weight_VD.shape, len(places_M), len(hidden_ND)
    if hidden_ND.shape != (N, D) or D % LINE or {hidden_ND.dtype, weight_VD.dtype} != {torch.float32}:
        raise TypeError(f"hidden states {tuple(hidden_ND.shape)} and head {tuple(weight_VD.shape)} must be float32, their width "
                        f"a multiple of {LINE}")  # fmt: skip
    if targets_N.shape != (N,) or targets_N.dtype != torch.int64 or (slopes_N is not None and slopes_N.shape != (N,)):
        raise TypeError(f"targets must be {N} of int64, and slopes as many")
    found_N, entropy_N = torch.zeros(2, N)
    if not M:
        return found_N, entropy_N, *([] if slopes_N is None else [torch.zeros_like(hidden_ND), torch.zeros_like(weight_VD)])
    every, known = M == N, V
    hidden, targets = (x.contiguous() if every else x[places_M].contiguous() for x in (hidden_ND, targets_N))
    if not 0 <= int(targets.min()) <= int(targets.max()) < V:
        raise IndexError(f"a target is not among the {V} tokens")
    V = -(-V // LINE) * LINE
    weight = weight_VD.contiguous() if known == V else torch.cat((weight_VD, weight_VD[:1].expand(V - known, D)))
    found, entropy = torch.empty(M), torch.empty(M)
    grads = [] if slopes_N is None else [torch.empty_like(hidden), torch.empty_like(weight)]
    slopes = None if slopes_N is None else (slopes_N if every else slopes_N[places_M]).float().contiguous()
    given = _Loss(
        M, D, V, known, torch.get_num_threads(), *map(kernels.address, (hidden, weight, targets)),
        None if slopes is None else kernels.address(slopes), kernels.address(found),
        kernels.address(entropy) if entropies else None, *(map(kernels.address, grads) if grads else (None, None)),
    )  # fmt: skip
    kernels.float32_library().float32_log_probability(ctypes.byref(given))
    found_N[places_M] = found
    if entropies:
        entropy_N[places_M] = entropy
    if grads and not every:
        everywhere = torch.zeros_like(hidden_ND)
        everywhere[places_M] = grads[0]
        grads[0] = everywhere
    return found_N, entropy_N, *grads[:1], *(one[:known] for one in grads[1:])


def can_orthogonalise(shape: tuple[int, ...]) -> bool:
    """Whether `muon` takes matrices of this shape."""
    return len(shape) == 2 and not any(side % LINE for side in shape)


def muon(weights: list[Tensor], momenta: list[Tensor], gradients: list[Tensor], *settings: Any) -> None:
    """As `kernels.muon`. Raises TypeError for matrices of other shapes and tensors of other formats."""
    gradients = [gradient.contiguous() for gradient in gradients]
    for parts in zip(weights, momenta, gradients, strict=True):
        _check(*parts)
    if not can_orthogonalise(weights[0].shape) or any(one.shape != weights[0].shape for one in weights):
        shapes = [tuple(one.shape) for one in weights]
        raise TypeError(f"kernels take matrices of one shape, whose sides are multiples of {LINE}: not {shapes}")
    kernels.muon(weights, momenta, gradients, *settings, function=kernels.float32_library().float32_muon)


def adamw(weights: list[Tensor], gradients: list[Tensor], first: list[Tensor], second: list[Tensor], *settings: Any) -> None:
    """As `kernels.adamw`. Raises TypeError for tensors of other formats."""
    gradients = [gradient.contiguous() for gradient in gradients]
    for parts in zip(weights, gradients, first, second, strict=True):
        _check(*parts)
    kernels.adamw(weights, gradients, first, second, *settings, function=kernels.float32_library().float32_adamw)


def _check(*tensors: Tensor) -> None:
    """Raises TypeError unless these parts of one weight are float32, one number after the other, and alike in shape."""
    if len(shapes := {tuple(one.shape) for one in tensors}) > 1:
        raise TypeError(f"the parts of one weight have the shapes {sorted(shapes)}")
    if wrong := [one for one in tensors if one.dtype != torch.float32 or not one.is_contiguous() or one.device.type != "cpu"]:
        raise TypeError(f"{wrong[0].dtype} of strides {wrong[0].stride()}: kernels take contiguous float32 on the processor")
