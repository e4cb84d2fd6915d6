"""Muon for the matrices of the blocks, AdamW for everything else.

Muon (Jordan et al. 2024): the momentum of a matrix is replaced by its nearest semi-orthogonal matrix, so every direction
moves at the same speed. On modded-nanogpt's fixed benchmark it needs 3,250 steps where Adam needs 5,625.
All state is float32 and named after the parameters, so a checkpoint is a flat dictionary of tensors.

With several processes AdamW works on each one's own rows. Muon needs whole matrices: each is orthogonalised by one
process, so the work is shared and the result is that of one process.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn

from groundup import kernels
from groundup.kernels import float32
from groundup.training.parallel import ALONE, Processes, local

NEWTON_SCHULZ = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
                 (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012))  # fmt: skip
MATRIX_LR = 0.02  # of Muon: nanochat's, tuned there at 1.3e9 tokens and as good at 3.2e6 (docs/log.md)
EMBEDDING_LR = 0.25  # of AdamW, as is the next: both tuned at widths 64 to 256 (docs/scaling.md)
HEAD_LR = 1.8  # over the width
NARROWEST_WIDTH = 80  # any smaller width counts as this: otherwise the second MLP of width 64 lags behind (docs/scaling.md)


def orthogonalise(matrices_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """Push all singular values of each matrix (n, rows, columns) towards one by five quintic Newton-Schulz steps.

    The coefficients, one triple a step, are those that L. Cesista et al. (2025) found to converge fastest.
    """
    x = matrices_NRC.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT.contiguous()  # half the time of products of a transposed view
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices_NRC.dtype)


def _native(dtype: torch.dtype) -> ModuleType:
    return kernels if dtype == torch.bfloat16 else float32


class Optimizer:
    """`lrs(name, parameter)` gives each parameter's method ("muon" or "adamw") and peak learning rate."""

    def __init__(
        self,
        model: nn.Module,
        lrs: Callable[[str, nn.Parameter], tuple[str, float]],
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        muon_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
        processes: Processes = ALONE,
        kernels: bool = False,
    ) -> None:
        """`weight_decay`: of AdamW's parameters; `muon_decay`: of Muon's; both times the learning rate (decoupled).

        `kernels`: whether both methods use `groundup.kernels` for this `dtype`, Muon where it takes the matrix's shape.
        """
        self.native = _native(dtype) if kernels else None
        self.betas, self.momentum, self.dtype = betas, momentum, dtype
        self.weight_decay, self.muon_decay = weight_decay, muon_decay
        self.processes = processes
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.methods = {name: lrs(name, parameter) for name, parameter in self.parameters.items()}
        self.state: dict[str, Tensor] = {"updates": torch.zeros((), dtype=torch.int64)}
        self.muon: dict[tuple[torch.Size, float], list[str]] = {}  # same shape and learning rate: one batched product
        self.adamw: dict[float, list[str]] = {}
        for name, (method, lr) in self.methods.items():
            parameter = self.parameters[name]
            self.state[f"first.{name}"] = torch.zeros_like(parameter)
            if method == "muon":
                self.muon.setdefault((parameter.shape, lr), []).append(name)
            else:
                self.state[f"second.{name}"] = torch.zeros_like(parameter)
                self.adamw.setdefault(lr, []).append(name)

    @torch.no_grad()
    def step(self, multiplier: float) -> None:
        """One update at `multiplier` times the peak learning rates; then the gradients are cleared."""
        self.state["updates"] += 1
        updates = int(self.state["updates"])
        for (shape, lr), names in self.muon.items():
            momenta = [local(self.state[f"first.{name}"]) for name in names]
            gradients = [local(self.parameters[name].grad) for name in names]
            parameters = [local(self.parameters[name]) for name in names]
            scale = lr * multiplier * max(1.0, shape[0] / shape[1]) ** 0.5
            decay_factor = 1 - lr * multiplier * self.muon_decay
            if self.native and self.native.can_orthogonalise(shape):
                self.native.muon(parameters, momenta, gradients, self.momentum, scale, decay_factor, NEWTON_SCHULZ)
                continue
            torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
            nesterov = torch._foreach_lerp(gradients, momenta, self.momentum)
            directions = self.processes.share_out(partial(orthogonalise, dtype=self.dtype), nesterov, shape)
            torch._foreach_mul_(parameters, decay_factor)
            torch._foreach_add_(parameters, directions, alpha=-scale)
        first_beta, second_beta = self.betas
        for lr, names in self.adamw.items():
            parameters = [local(self.parameters[name]) for name in names]
            gradients = [local(self.parameters[name].grad) for name in names]
            first = [local(self.state[f"first.{name}"]) for name in names]
            second = [local(self.state[f"second.{name}"]) for name in names]
            decay_factor = 1 - lr * multiplier * self.weight_decay
            if self.native:
                float32.adamw(parameters, gradients, first, second, self.betas, lr * multiplier, decay_factor, updates)
                continue
            torch._foreach_lerp_(first, gradients, 1 - first_beta)
            torch._foreach_mul_(second, second_beta)
            torch._foreach_addcmul_(second, gradients, gradients, 1 - second_beta)
            denominator = torch._foreach_sqrt(second)
            torch._foreach_div_(denominator, (1 - second_beta**updates) ** 0.5)
            torch._foreach_add_(denominator, 1e-8)
            torch._foreach_mul_(parameters, decay_factor)
            torch._foreach_addcdiv_(
                parameters, first, denominator, value=-lr * multiplier / (1 - first_beta**updates)
            )
        for parameter in self.parameters.values():
            parameter.grad = None


def pretraining_lrs(
    width: int, scale: float = 1.0, tied: bool = False
) -> tuple[Callable[[str, nn.Parameter], tuple[str, float]], list[str]]:
    """Peak learning rates by role: the head's falls with the width, the others' stay (muP, Yang et al. 2022; docs/scaling.md).

    An embedding that is the head too (`tied`) has the head's: the embedding's, many times that, would undo the head.
    """
    matrix, embedding, norm_weight = MATRIX_LR * scale, EMBEDDING_LR * scale, 0.01 * scale
    head = HEAD_LR / max(width, NARROWEST_WIDTH) * scale
    if tied:
        embedding = head

    def lrs(name: str, parameter: nn.Parameter) -> tuple[str, float]:
        if parameter.dim() == 1:
            return "adamw", norm_weight
        if "embed_tokens" in name:
            return "adamw", embedding
        if "lm_head" in name:
            return "adamw", head
        if name.endswith(".gate.weight"):  # a mixture's router: Muon would give every expert the same influence
            return "adamw", norm_weight
        return "muon", matrix

    return lrs, [
        f"learning rates: matrices {matrix:.3g} by Muon; embedding {embedding:.3g}, head {head:.3g} "
        f"({HEAD_LR:g} / {max(width, NARROWEST_WIDTH)}), norm weights {norm_weight:.3g} by AdamW "
        "(muP: the same are best at every width, docs/scaling.md)"
    ]


def one_lr(lr: float) -> Callable[[str, nn.Parameter], tuple[str, float]]:
    """AdamW for everything: what fine-tuning on top of a trained model uses."""
    return lambda name, parameter: ("adamw", lr)
