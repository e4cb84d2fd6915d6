"""Mixture of experts: many MLPs, of which a router picks a few for each token (Shazeer et al. 2017; Qwen3-MoE, Mixtral).

The router is a softmax over all experts; the k most likely run, weighted by their probabilities. No token is dropped:
tokens are sorted by expert, and every expert works on its own slice, however long. Left alone, the router sends more
tokens to the experts that are trained most, until few experts are used. The *balance loss* prevents that (Fedus et al. 2021),
counted over the whole batch (Qiu et al. 2025), and the *z-loss* keeps the logits small (Zoph et al. 2022). Nothing else steers
the router: a selection bias as DeepSeek-V3's could not be written into a Qwen3-MoE or Mixtral folder.

Shape suffixes: N tokens, D width, E experts, K experts a token, L layers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup import kernels
from groundup.kernels import float32

ROW_MULTIPLE = 64  # rows: a slice is padded to a multiple of it
DEAD_SHARE = 0.01  # an expert with less than this part of its fair share learns nothing


@dataclass(frozen=True)
class Routing:
    """What one layer decided in one forward."""

    logits_NE: Tensor  # float32
    chosen_NK: Tensor  # expert numbers, the likeliest first


class Expert(nn.Module):
    """A gated MLP whose matrices are called `names` (gate, up, down), as the checkpoint of the family calls them."""

    def __init__(self, width: int, inner: int, names: tuple[str, str, str]) -> None:
        super().__init__()
        for name, (inputs, outputs) in zip(names, ((width, inner), (width, inner), (inner, width)), strict=True):
            self.add_module(name, nn.Linear(inputs, outputs, bias=False))

    def matrices(self) -> list[Tensor]:
        """Gate and up (inner, width), down (width, inner)."""
        return [linear.weight for linear in self.children()]

    def forward(self, x_ND: Tensor) -> Tensor:
        gate, up, down = (matrix.to(x_ND.dtype) for matrix in self.matrices())
        return F.linear(F.silu(F.linear(x_ND, gate)) * F.linear(x_ND, up), down)


class MixtureOfExperts(nn.Module):
    def __init__(
        self, width: int, inner: int, experts: int, per_token: int, normalise: bool, names: tuple[str, str, str]
    ) -> None:
        """`normalise`: the weights of a token's experts add up to one (Mixtral always, Qwen3-MoE by its config)."""
        super().__init__()
        self.per_token, self.normalise = per_token, normalise
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(Expert(width, inner, names) for _ in range(experts))
        self.recorder: list[Routing] | None = None
        self.kernel_dtype: torch.dtype | None = None  # on a processor

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        # Always in float32: rounding a logit sends a token to another expert (Fedus et al. 2021).
        logits_NE = F.linear(x_ND.float(), self.gate.weight)
        weights_NK, chosen_NK = logits_NE.softmax(-1).topk(self.per_token, dim=-1)
        if self.normalise:
            weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
        if self.recorder is not None:
            self.recorder.append(Routing(logits_NE, chosen_NK))
        expert_M = chosen_NK.flatten()
        by_kernels = self.kernel_dtype == x_ND.dtype
        block = kernels.BLOCK if by_kernels and x_ND.dtype == torch.bfloat16 else 1
        order_M, inverse, counts_E = _sort_by_expert(expert_M, len(self.experts), block)
        sorted_MD = _Gather.apply(x_ND, order_M // self.per_token, inverse, self.per_token)
        if by_kernels:
            matrices = [matrix for expert in self.experts for matrix in expert.matrices()]
            outputs_MD = _ByKernels.apply(sorted_MD, counts_E.cumsum(0).tolist(), *matrices)
        else:
            outputs_MD = self._run(sorted_MD, counts_E)
        outputs_NKD = _Gather.apply(outputs_MD, inverse, order_M, 1).view(*chosen_NK.shape, -1)
        return (outputs_NKD * weights_NK[..., None].to(x_ND.dtype)).sum(1).view_as(x_BTD)

    def _run(self, sorted_MD: Tensor, counts_E: Tensor) -> Tensor:
        aligned = all(size % 8 == 0 for size in self.experts[0].matrices()[0].shape)
        if sorted_MD.is_cuda and sorted_MD.dtype == torch.bfloat16 and aligned:
            return self._grouped(sorted_MD, counts_E)
        # An expert without tokens runs all the same in training: its gradient is zero, not absent.
        slices = zip(self.experts, sorted_MD.split(counts_E.tolist()), strict=True)
        return torch.cat([_padded(expert, rows) for expert, rows in slices if len(rows) or torch.is_grad_enabled()])

    def _grouped(self, sorted_MD: Tensor, counts_E: Tensor) -> Tensor:
        """All experts in three products; a GPU need not wait for the lengths of the slices."""
        gate, up, down = (
            torch.stack(matrices).to(sorted_MD.dtype).mT
            for matrices in zip(*(expert.matrices() for expert in self.experts), strict=True)
        )
        ends = counts_E.cumsum(0).int()
        inner = F.silu(F.grouped_mm(sorted_MD, gate, offs=ends)) * F.grouped_mm(sorted_MD, up, offs=ends)
        return F.grouped_mm(inner, down, offs=ends)


class _ByKernels(torch.autograd.Function):
    """The experts' outputs (M, D) for their tokens (M, D), by the kernels of their format."""

    @staticmethod
    def forward(ctx: Any, sorted_MD: Tensor, ends: list[int], *matrices: Tensor) -> Tensor:
        ctx.native = float32 if sorted_MD.dtype == torch.float32 else kernels
        sorted_MD = sorted_MD.contiguous()
        out_MD, saved = ctx.native.experts(sorted_MD, ends, list(matrices))
        ctx.save_for_backward(sorted_MD, *matrices)
        ctx.ends, ctx.saved = ends, saved
        return out_MD

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor | None, ...]:
        sorted_MD, *matrices = ctx.saved_tensors
        saved, ctx.saved = ctx.saved, None
        grad_x, gradients = ctx.native.experts_backward(grad_MD.contiguous(), sorted_MD, ctx.ends, matrices, saved)
        return grad_x, None, *gradients


def _sort_by_expert(chosen: Tensor, experts: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the (token, choice) pairs sorted by expert (M,); the position of each pair in that order; and pairs per expert.

    Each expert's slice is padded to a multiple of `block` with the number of pairs, which is the index of none; that counts in
    its pairs too.
    """
    order, counts_E = chosen.argsort(stable=True), _count(chosen, experts)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    if block == 1:
        return order, inverse, counts_E
    filled_E = (counts_E + block - 1) // block * block
    shift_E = (filled_E - counts_E).cumsum(0) - (filled_E - counts_E)  # padding before an expert's first pair
    positions = inverse + shift_E[chosen]
    order_M = order.new_full((int(filled_E.sum()),), len(order))
    order_M[positions] = torch.arange(len(order), device=order.device)
    return order_M, positions, filled_E


def _padded(expert: Expert, rows_MD: Tensor) -> Tensor:
    """`expert(rows_MD)`. A processor's bfloat16 products are compiled anew for every number of rows, for 1.8 ms each. In training
    each slice has another number; padding leaves few of them.
    """
    count = len(rows_MD)
    if rows_MD.is_cuda or rows_MD.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return expert(rows_MD)
    return expert(F.pad(rows_MD, (0, 0, 0, -count % ROW_MULTIPLE)))[:count]


class _Gather(torch.autograd.Function):
    """Row `indices[i]` of x, for every i, and zeros where x has no such row; `inverse`: the `copies` outputs of each row of x.

    The gradient is a gather and a sum in fixed order. The gradient of plain indexing adds in any order on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, inverse: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = copies
        return _gather(x, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        return _gather(grad, inverse).unflatten(0, (-1, ctx.copies)).sum(1), None, None, None


def _gather(x: Tensor, indices: Tensor) -> Tensor:
    if len(indices) > len(x) and x.device.type == "cpu":  # some may be padding
        x = F.pad(x, (0, 0, 0, 1))
    return x.index_select(0, indices)


def _count(chosen: Tensor, experts: int) -> Tensor:
    return chosen.new_zeros(experts).scatter_add_(0, chosen, torch.ones_like(chosen))


def _masked(of_token: Tensor, mask: Tensor | None) -> Tensor:
    return of_token if mask is None else of_token[mask.flatten()]


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Routing]]:
    """Within it, every forward of `model` appends one `Routing` per sparse layer, in order, to the list."""
    layers = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    routings: list[Routing] = []
    for layer in layers:
        layer.recorder = routings
    try:
        yield routings
    finally:
        for layer in layers:
            layer.recorder = None


def load(routings: Sequence[Routing], mask: Tensor | None = None) -> Tensor:
    """How often each expert was chosen, (layers, experts) float32, over all processes of the run.

    `mask`, True at the tokens that count (any shape of as many elements as tokens): padding does not.
    Add up the results for all micro-batches of a step: one micro-batch may be of one subject and use its experts, and
    balancing each by itself would keep experts from specialising (Qiu et al. 2025).
    """
    counts = [_count(_masked(routing.chosen_NK, mask).flatten(), routing.logits_NE.shape[1]) for routing in routings]
    counts_LE = torch.stack(counts).float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts_LE)
    return counts_LE


def auxiliary_losses(
    routings: Sequence[Routing], load_LE: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Balance loss and router z-loss: means over tokens, summed over layers; `mask` as for `load`.

    A layer's balance is E sum_i f_i P_i, where f is an expert's share of all choices by `load_LE` and P its mean
    probability: 1 when even, E when all go to one. Usual coefficients: 0.01 (Fedus et al. 2021) and 0.001 (Zoph et al.
    2022). transformers' `load_balancing_loss_func` treats all layers as one and does not divide by k.
    """
    balance, z = [], []
    for routing, counts_E in zip(routings, load_LE, strict=True):
        logits_NE = _masked(routing.logits_NE, mask)
        share_E = counts_E / counts_E.sum()
        balance.append(len(share_E) * (share_E * logits_NE.softmax(-1).mean(0)).sum())
        z.append(logits_NE.logsumexp(-1).square().mean())
    return torch.stack(balance).sum(), torch.stack(z).sum()


@torch.no_grad()
def metrics(routings: Sequence[Routing], load_LE: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """Metrics that show a router that collapses; `mask` as for `load`.

    `max_load`: the busiest expert's load over its layer's mean, in the worst layer; 1 is even. `dead_experts`: experts of
    all layers with less than 1 % of their fair share. `router_entropy`: mean entropy of the router's probabilities for a
    token, from 0 (certain) to 1 (uniform).
    """
    relative_LE = load_LE / load_LE.mean(-1, keepdim=True)
    logits = [_masked(routing.logits_NE, mask) for routing in routings]
    entropies = [-(logits_NE.softmax(-1) * logits_NE.log_softmax(-1)).sum(-1).mean() for logits_NE in logits]
    uniform = torch.tensor(float(load_LE.shape[1])).log()
    return {
        "max_load": relative_LE.max().item(),
        "dead_experts": float((relative_LE < DEAD_SHARE).sum()),
        "router_entropy": (torch.stack(entropies).mean().cpu() / uniform).item(),
    }


@torch.no_grad()
def token_samples(model: nn.Module, ids_BT: Tensor, layer: int, count: int) -> list[list[tuple[int, int, float]]]:
    """The tokens of each expert of a sparse layer: positions (row, time) with the expert's probability, the highest first.

    Up to `count` per expert, of different token ids; none for an expert that no token chose.
    """
    with recorded(model) as routings:
        model.model(ids_BT)
    routing, ids = routings[layer], ids_BT.flatten()
    samples = []
    for expert, probability_N in enumerate(routing.logits_NE.softmax(-1).T):
        indices = (routing.chosen_NK == expert).any(-1).nonzero().squeeze(1)
        indices = indices[probability_N[indices].argsort(descending=True, stable=True)]
        index_of_token: dict[int, int] = {}
        for index, token in zip(indices.tolist(), ids[indices].tolist(), strict=True):
            index_of_token.setdefault(token, index)
        chosen = list(index_of_token.values())[:count]
        samples.append([(*divmod(index, ids_BT.shape[1]), probability_N[index].item()) for index in chosen])
    return samples


@torch.no_grad()
def domain_table(model: nn.Module, batches: dict[str, list[Tensor]], layer: int) -> dict[str, list[float]]:
    """Domain x expert: each expert's share of a domain's choices in a sparse layer; rows add up to 1.

    `batches`: ids (batch, time) of each domain. An expert without a domain of its own has 1 / experts in every row.
    """
    table = {}
    for domain, domain_batches in batches.items():
        counts_E = torch.zeros(())
        for ids_BT in domain_batches:
            with recorded(model) as routings:
                model.model(ids_BT)
            routing = routings[layer]
            counts_E = counts_E + _count(routing.chosen_NK.flatten(), routing.logits_NE.shape[1]).cpu()
        table[domain] = (counts_E / counts_E.sum()).tolist()
    return table


def active_parameters(model: nn.Module) -> int:
    """Parameters that one token uses: all but those of the experts that it does not choose."""
    idle = 0
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            expert_size = sum(matrix.numel() for matrix in module.experts[0].matrices())
            idle += (len(module.experts) - module.per_token) * expert_size
    return sum(parameter.numel() for parameter in model.parameters()) - idle
