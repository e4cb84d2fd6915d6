"""Loss, LSTM, experts, Muon and AdamW in float32. The decoder's layers are called from `model/float32_layers.py`."""

import ctypes
from ctypes import c_float, c_long, c_void_p
from typing import Any

import torch
from torch import Tensor

from groundup import kernels

LINE = 16  # numbers: the sides of a matrix are multiples of it, but for the vocabulary


def check_head(width: int) -> None:
    """Raises Unavailable unless head and loss of a model of this width can be trained by the kernels, on this machine."""
    if width % LINE:
        raise kernels.Unavailable(f"width {width}: no multiple of {LINE}")
    kernels.float32_library()


class _Loss(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ("tokens", "width", "padded_vocabulary", "vocabulary", "threads")),
        *(
            (name, c_void_p)
            for name in ("hidden", "weight", "targets", "slopes", "logp", "entropy", "grad_hidden", "grad_weight")
        ),
    ]


def log_probabilities(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, indices_M: Tensor) -> Tensor:
    """Log-probabilities (N,) of the targets at `indices_M`, zero elsewhere."""
    return _run(hidden_ND, weight_VD, targets_N, indices_M, None, False)[0]


def log_probabilities_and_entropies(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """At all positions; the log-probabilities have the same bits as those of `log_probabilities`."""
    return _run(hidden_ND, weight_VD, targets_N, torch.arange(len(hidden_ND)), None, True)[:2]


def weighted_log_probability(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, indices_M: Tensor, slopes_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the targets' log-probabilities at `indices_M`, weighted by `slopes_N`, and its gradients by hidden states
    and weight.
    """
    logp_N, _, grad_hidden, grad_weight = _run(hidden_ND, weight_VD, targets_N, indices_M, slopes_N, False)
    return (logp_N * slopes_N).sum(), grad_hidden, grad_weight


def _run(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, indices_M: Tensor, slopes_N: Tensor | None, entropies: bool
) -> tuple[Tensor, ...]:
    (V, D), M, N = weight_VD.shape, len(indices_M), len(hidden_ND)
    if hidden_ND.shape != (N, D) or D % LINE or {hidden_ND.dtype, weight_VD.dtype} != {torch.float32}:
        raise TypeError(f"hidden states {tuple(hidden_ND.shape)} and head {tuple(weight_VD.shape)} must be float32, their width "
                        f"a multiple of {LINE}")  # fmt: skip
    if targets_N.shape != (N,) or targets_N.dtype != torch.int64 or (slopes_N is not None and slopes_N.shape != (N,)):
        raise TypeError(f"targets must be {N} of int64, and slopes as many")
    logp_N, entropy_N = torch.zeros(2, N)
    if not M:
        return logp_N, entropy_N, *([] if slopes_N is None else [torch.zeros_like(hidden_ND), torch.zeros_like(weight_VD)])
    all_rows, vocabulary = M == N, V
    hidden, targets = (x.contiguous() if all_rows else x[indices_M].contiguous() for x in (hidden_ND, targets_N))
    if not 0 <= int(targets.min()) <= int(targets.max()) < V:
        raise IndexError(f"a target is not among the {V} tokens")
    V = -(-V // LINE) * LINE
    weight = weight_VD.contiguous() if vocabulary == V else torch.cat((weight_VD, weight_VD[:1].expand(V - vocabulary, D)))
    logp, entropy = torch.empty(M), torch.empty(M)
    grads = [] if slopes_N is None else [torch.empty_like(hidden), torch.empty_like(weight)]
    slopes = None if slopes_N is None else (slopes_N if all_rows else slopes_N[indices_M]).float().contiguous()
    arguments = _Loss(
        M, D, V, vocabulary, kernels.threads(), *map(kernels.address, (hidden, weight, targets)),
        None if slopes is None else kernels.address(slopes), kernels.address(logp),
        kernels.address(entropy) if entropies else None, *(map(kernels.address, grads) if grads else (None, None)),
    )  # fmt: skip
    kernels.float32_library().float32_log_probability(ctypes.byref(arguments))
    logp_N[indices_M] = logp
    if entropies:
        entropy_N[indices_M] = entropy
    if grads and not all_rows:
        grad_hidden = torch.zeros_like(hidden_ND)
        grad_hidden[indices_M] = grads[0]
        grads[0] = grad_hidden
    return logp_N, entropy_N, *grads[:1], *(grad[:vocabulary] for grad in grads[1:])


class _Recurrence(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ("rows", "time", "width", "threads")),
        *(
            (name, c_void_p)
            for name in ("inputs", "weight", "begins", "gates", "cells", "hidden", "grad_hidden", "grad_inputs")
        ),
    ]


def recurrence(inputs_BTG: Tensor, weight_GD: Tensor, begins_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gates (batch, time, 4 D; in PyTorch's order), cells and hidden states (batch, time, D) of an LSTM, from the inputs' part of
    the gates; `begins_BT`, bool: before it the state is zero, as before a row. `model.lstm` computes the same by nn.LSTM.
    """
    (B, T, G), D = inputs_BTG.shape, weight_GD.shape[1]
    gates, cells, hidden = torch.empty(B, T, G), torch.empty(B, T, D), torch.empty(B, T, D)
    _recur(inputs_BTG, weight_GD, begins_BT, gates, cells, hidden, None, None)
    return gates, cells, hidden


def recurrence_backward(
    grad_BTD: Tensor, weight_GD: Tensor, begins_BT: Tensor, gates_BTG: Tensor, cells_BTD: Tensor
) -> Tensor:
    """The gradient by `inputs_BTG`, from the gradient by the hidden states and the gates and cells of `recurrence`."""
    grad_inputs = torch.empty_like(gates_BTG)
    _recur(None, weight_GD, begins_BT, gates_BTG, cells_BTD, None, grad_BTD, grad_inputs)
    return grad_inputs


def _recur(inputs: Tensor | None, weight_GD: Tensor, begins_BT: Tensor, *others: Tensor | None) -> None:
    """`others`: gates, cells, hidden states, and of the backward pass gradients by hidden states and inputs."""
    (B, T), (G, D) = begins_BT.shape, weight_GD.shape
    widths = zip((inputs, *others), (G, G, D, D, D, G), strict=True)
    tensors = [tensor for tensor in (inputs, *others) if tensor is not None]
    wrong = [tuple(tensor.shape) for tensor, width in widths if tensor is not None and tensor.shape != (B, T, width)]
    if wrong or G != 4 * D or D % LINE or not B * T:
        raise TypeError(f"a recurrent weight of shape {(G, D)}, {(B, T)} tokens and {wrong}: they must be (4 D, D), (B, T, 4 D) "
                        f"and (B, T, D), D a multiple of {LINE}")  # fmt: skip
    for tensor in (weight_GD, *tensors):
        _check(tensor)
    if begins_BT.dtype != torch.bool or begins_BT.device.type != "cpu":
        raise TypeError(f"{begins_BT.dtype}: the beginnings of documents must be bool, on the processor")
    begins_BT = (begins_BT | (torch.arange(T) == 0)).contiguous()
    arguments = _Recurrence(
        B, T, D, kernels.threads(),
        *(tensor if tensor is None else kernels.address(tensor) for tensor in (inputs, weight_GD, begins_BT, *others)),
    )  # fmt: skip
    kernels.float32_library().float32_recurrence(ctypes.byref(arguments))


class _Experts(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ("tokens", "width", "inner", "count", "threads")),
        *((name, c_void_p) for name in ("experts", "x", "gates", "out", "grad_out", "grad_x")),
    ]


def can_run_experts(width: int, inner: int) -> bool:
    """Whether `experts` takes MLPs of these sizes."""
    return not (width % LINE or inner % LINE)


def experts(x_MD: Tensor, ends: list[int], matrices: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Gated MLPs of the tokens (M, D), of which expert i has those up to `ends[i]`: outputs (M, D), and what the backward pass
    needs.

    `matrices`: of each expert gate, up (inner, D) and down (D, inner). `model.moe` computes the same by PyTorch.
    """
    gates = torch.empty((len(x_MD) | 1) * 2 * len(matrices[0]))
    out = torch.empty_like(x_MD)
    _experts(x_MD, ends, matrices, gates, (out, None, None), [])
    return out, gates


def experts_backward(
    grad_MD: Tensor, x_MD: Tensor, ends: list[int], matrices: list[Tensor], gates: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Gradients by `x_MD` and the matrices, from the gradient by the outputs of `experts`; its `gates` are overwritten."""
    grad_x, gradients = torch.empty_like(x_MD), [torch.empty_like(matrix) for matrix in matrices]
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
    _check(*(tensor for tensor in (x_MD, *others) if tensor is not None))
    for position in range(3):
        _check(*matrices[position::3], *gradients[position::3])
    shapes = {tuple(one.shape) for one in matrices[::3] + matrices[1::3]}, {tuple(one.shape) for one in matrices[2::3]}
    if shapes != ({(F, D)}, {(D, F)}) or len(matrices) != 3 * len(ends) or not can_run_experts(D, F):
        raise TypeError(f"experts of shapes {shapes} for {D} numbers a token, {len(matrices)} matrices for {len(ends)} experts")
    if not M or sorted(ends) != list(ends) or ends[0] < 0 or ends[-1] != M or len(gates) != (M | 1) * 2 * F:
        raise ValueError(f"{M} tokens cannot be those of experts up to {ends}, with {len(gates)} numbers kept")
    expert_array = (kernels.Expert * len(ends))(*(
        kernels.Expert(*map(kernels.address, matrices[3 * i : 3 * i + 3] + (gradients or matrices)[3 * i : 3 * i + 3]), end)
        for i, end in enumerate(ends)
    ))  # fmt: skip
    arguments = _Experts(
        M, D, F, len(ends), kernels.threads(), ctypes.cast(expert_array, c_void_p),
        *(tensor if tensor is None else kernels.address(tensor) for tensor in (x_MD, gates, out, grad_out, grad_x)),
    )  # fmt: skip
    kernels.float32_library().float32_experts(ctypes.byref(arguments))


def can_orthogonalise(shape: tuple[int, ...]) -> bool:
    """Whether `muon` takes matrices of this shape."""
    return len(shape) == 2 and not any(side % LINE for side in shape)


def muon(weights: list[Tensor], momenta: list[Tensor], gradients: list[Tensor], *settings: Any) -> None:
    """As `kernels.muon`. Raises TypeError for matrices of other shapes and tensors of other formats."""
    gradients = [gradient.contiguous() for gradient in gradients]
    for parts in zip(weights, momenta, gradients, strict=True):
        _check(*parts)
    if not can_orthogonalise(weights[0].shape) or any(weight.shape != weights[0].shape for weight in weights):
        shapes = [tuple(weight.shape) for weight in weights]
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
    per_weight = list(zip(weights, gradients, first, second, strict=True))
    for parts in per_weight:
        _check(*parts)
    for parts in per_weight:
        kernels.float32_library().float32_adamw(
            *map(c_long, (parts[0].numel(), kernels.threads())),
            *map(kernels.address, parts), *map(c_float, numbers),
        )  # fmt: skip


def _check(*tensors: Tensor) -> None:
    """Raises TypeError unless these parts of one weight are float32, one number after the other, and alike in shape."""
    if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
        raise TypeError(f"the parts of one weight have the shapes {sorted(shapes)}")
    if wrong := [x for x in tensors if x.dtype != torch.float32 or not x.is_contiguous() or x.device.type != "cpu"]:
        raise TypeError(f"{wrong[0].dtype} of strides {wrong[0].stride()}: kernels take contiguous float32 on the processor")
