"""Loss and Muon in float32, as `groundup.kernels` has them in bfloat16; AdamW. The layers are in `model/float32_layers.py`."""

import ctypes
from ctypes import c_float, c_long, c_void_p
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


def log_probabilities(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, places_M: Tensor) -> Tensor:
    """Log-probabilities (N,) of the targets at `places_M`, zero elsewhere."""
    return _run(hidden_ND, weight_VD, targets_N, places_M, None, False)[0]


def log_probabilities_and_entropies(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Of all places; the former to the bit as `log_probabilities` has them."""
    return _run(hidden_ND, weight_VD, targets_N, torch.arange(len(hidden_ND)), None, True)[:2]


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


class _Recurrence(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ("rows", "time", "width", "threads")),
        *(
            (name, c_void_p)
            for name in ("inputs", "weight", "begins", "gates", "cells", "hidden", "grad_hidden", "grad_inputs")
        ),
    ]


def recurrence(inputs_BTG: Tensor, weight_GD: Tensor, begins_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gates (batch, time, 4 D; in PyTorch's order), cells and hidden states (batch, time, D) of an LSTM, from what a step takes
    of its input; `begins_BT`, bool: before it the state is zero, as before a row. Its twin is nn.LSTM in `model.lstm`.
    """
    (B, T, G), D = inputs_BTG.shape, weight_GD.shape[1]
    gates, cells, hidden = torch.empty(B, T, G), torch.empty(B, T, D), torch.empty(B, T, D)
    _recur(inputs_BTG, weight_GD, begins_BT, gates, cells, hidden, None, None)
    return gates, cells, hidden


def recurrence_backward(
    grad_BTD: Tensor, weight_GD: Tensor, begins_BT: Tensor, gates_BTG: Tensor, cells_BTD: Tensor
) -> Tensor:
    """The gradient by `inputs_BTG`, from that by the hidden states and what `recurrence` found."""
    found = torch.empty_like(gates_BTG)
    _recur(None, weight_GD, begins_BT, gates_BTG, cells_BTD, None, grad_BTD, found)
    return found


def _recur(inputs: Tensor | None, weight_GD: Tensor, begins_BT: Tensor, *others: Tensor | None) -> None:
    """`others`: gates, cells, hidden states, and of the backward pass gradients by hidden states and inputs."""
    (B, T), (G, D) = begins_BT.shape, weight_GD.shape
    widths = zip((inputs, *others), (G, G, D, D, D, G), strict=True)
    some = [one for one in (inputs, *others) if one is not None]
    odd = [tuple(one.shape) for one, width in widths if one is not None and one.shape != (B, T, width)]
    if odd or G != 4 * D or D % LINE or not B * T:
        raise TypeError(f"a recurrent weight of shape {(G, D)}, {(B, T)} tokens and {odd}: (4 D, D), (B, T, 4 D) and (B, T, D) "
                        f"are asked for, D a multiple of {LINE}")  # fmt: skip
    for one in (weight_GD, *some):
        _check(one)
    if begins_BT.dtype != torch.bool or begins_BT.device.type != "cpu":
        raise TypeError(f"{begins_BT.dtype}: where documents begin is told by bool")
    begins_BT = (begins_BT | (torch.arange(T) == 0)).contiguous()
    given = _Recurrence(
        B, T, D, torch.get_num_threads(),
        *(one if one is None else kernels.address(one) for one in (inputs, weight_GD, begins_BT, *others)),
    )  # fmt: skip
    kernels.float32_library().float32_recurrence(ctypes.byref(given))


class _Expert(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("gate", "up", "down", "grad_gate", "grad_up", "grad_down")),
        ("end", c_long),
    ]


class _Experts(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ("tokens", "width", "inner", "count", "threads")),
        *((name, c_void_p) for name in ("each", "x", "gates", "out", "grad_out", "grad_x")),
    ]


def can_run_experts(width: int, inner: int) -> bool:
    """Whether `experts` takes MLPs of these sizes."""
    return not (width % LINE or inner % LINE)


def experts(x_MD: Tensor, ends: list[int], matrices: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Gated MLPs of the tokens (M, D), those of the ith up to `ends[i]`: results (M, D), and what the backward pass needs.

    `matrices`: of each gate, up (inner, D) and down (D, inner). Its twin is `model.moe`'s by PyTorch.
    """
    gates = torch.empty((len(x_MD) | 1) * 2 * len(matrices[0]))
    out = torch.empty_like(x_MD)
    _experts(x_MD, ends, matrices, gates, (out, None, None), [])
    return out, gates


def experts_backward(
    grad_MD: Tensor, x_MD: Tensor, ends: list[int], matrices: list[Tensor], gates: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Gradients by `x_MD` and the matrices, from that by what `experts` made; `gates`, which it gave, are used up."""
    grad_x, gradients = torch.empty_like(x_MD), [torch.empty_like(one) for one in matrices]
    _experts(x_MD, ends, matrices, gates, (None, grad_MD, grad_x), gradients)
    return grad_x, gradients


def _experts(
    x_MD: Tensor,
    ends: list[int],
    matrices: list[Tensor],
    gates: Tensor,
    others: tuple[Tensor | None, ...],
    gradients: list[Tensor],
) -> None:
    (M, D), F, (out, grad_out, grad_x) = x_MD.shape, len(matrices[0]), others
    _check(*(one for one in (x_MD, *others) if one is not None))
    for position in range(3):
        _check(*matrices[position::3], *gradients[position::3])
    shapes = {tuple(one.shape) for one in matrices[::3] + matrices[1::3]}, {tuple(one.shape) for one in matrices[2::3]}
    if shapes != ({(F, D)}, {(D, F)}) or len(matrices) != 3 * len(ends) or not can_run_experts(D, F):
        raise TypeError(f"experts of shapes {shapes} for {D} numbers a token, {len(matrices)} matrices for {len(ends)} experts")
    if not M or sorted(ends) != list(ends) or ends[0] < 0 or ends[-1] != M or len(gates) != (M | 1) * 2 * F:
        raise ValueError(f"{M} tokens cannot be those of experts up to {ends}, with {len(gates)} numbers kept")
    each = (_Expert * len(ends))(*(
        _Expert(*map(kernels.address, matrices[3 * i : 3 * i + 3] + (gradients or matrices)[3 * i : 3 * i + 3]), end)
        for i, end in enumerate(ends)
    ))  # fmt: skip
    given = _Experts(
        M, D, F, len(ends), torch.get_num_threads(), ctypes.cast(each, c_void_p),
        *(one if one is None else kernels.address(one) for one in (x_MD, gates, out, grad_out, grad_x)),
    )  # fmt: skip
    kernels.float32_library().float32_experts(ctypes.byref(given))


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


def adamw(
    weights: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    betas: tuple[float, float],
    lr: float,
    decay_factor: float,
    updates: int,
) -> None:
    """One update by AdamW, the `updates`th, in place: see `training.optimizer`. Raises TypeError for tensors of other formats."""
    corrections = [1 - beta**updates for beta in betas]
    numbers = [*betas, corrections[1] ** 0.5, lr / corrections[0], decay_factor]
    gradients = [gradient.contiguous() for gradient in gradients]
    every = list(zip(weights, gradients, first, second, strict=True))
    for parts in every:
        _check(*parts)
    for parts in every:
        kernels.float32_library().float32_adamw(
            *map(c_long, (parts[0].numel(), torch.get_num_threads())),
            *map(kernels.address, parts), *map(c_float, numbers),
        )  # fmt: skip


def _check(*tensors: Tensor) -> None:
    """Raises TypeError unless these parts of one weight are float32, one number after the other, and alike in shape."""
    if len(shapes := {tuple(one.shape) for one in tensors}) > 1:
        raise TypeError(f"the parts of one weight have the shapes {sorted(shapes)}")
    if wrong := [one for one in tensors if one.dtype != torch.float32 or not one.is_contiguous() or one.device.type != "cpu"]:
        raise TypeError(f"{wrong[0].dtype} of strides {wrong[0].stride()}: kernels take contiguous float32 on the processor")
