"""The one likelihood function: how probable a text is to a model.

Pre-training, fine-tuning, DPO, PPO, perplexity, multiple choice and sentence pairs all call it, so they cannot disagree.

The logits of (batch x time) x vocabulary are never in memory at once: the head's product and the softmax run over a slice of
rows at a time (as in Cut Your Losses, Wijmans et al. 2024). Where only a weighted sum is asked for, as in pre-training and
fine-tuning, the gradients come from the same slice of logits; else the logits are computed again for them.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groundup import kernels
from groundup.kernels import float32
from groundup.model.base import LanguageModel
from groundup.model.hidden_states import hidden_states

logger = logging.getLogger(__name__)

ROWS = 1024  # of a slice: each slice costs a pass over the head's gradient, to add to it


def _log_softmax(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
    return torch.log_softmax(hidden_MD @ weight_VD.T, dim=-1, dtype=torch.float32)


def _gradients(hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, slopes_M: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets (M,), and the gradient by the logits (M, V) of their sum weighted by `slopes_M`."""
    logp = _log_softmax(hidden_MD, weight_VD)
    target_logp = logp.gather(1, targets_M[:, None])
    # d log p(target) / d logits = [is target] - softmax
    grad_logits = logp.exp_().mul_(-slopes_M[:, None]).to(hidden_MD.dtype)
    grad_logits.scatter_(1, targets_M[:, None], (-torch.expm1(target_logp) * slopes_M[:, None]).to(hidden_MD.dtype))
    return target_logp.squeeze(1), grad_logits


_compiled_gradients = cache(lambda: torch.compile(_gradients))


class _TokenLogProbabilities(torch.autograd.Function):
    """Log-probabilities (N,) of the targets after hidden states (N, width)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, native: ModuleType | None
    ) -> Tensor:
        ctx.native = native
        indices_N = torch.arange(len(hidden_ND), device=hidden_ND.device)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, indices_N)
        if native:
            return native.log_probabilities(hidden_ND, weight_VD, targets_N, indices_N)
        weight = weight_VD.to(hidden_ND.dtype)
        target_logp_N = torch.zeros(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        for indices in indices_N.split(ROWS):
            logp = _log_softmax(hidden_ND[indices], weight)
            target_logp_N[indices] = logp.gather(1, targets_N[indices, None]).squeeze(1)
        return target_logp_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, Tensor, None, None]:
        plain = partial(_with_gradients, gradients=_gradients)
        with_gradients = ctx.native.weighted_log_probability if ctx.native else plain
        _, grad_hidden, grad_weight = with_gradients(*ctx.saved_tensors, grad_N)
        return grad_hidden, grad_weight, None, None


class _WeightedSum(torch.autograd.Function):
    """Sum of log-probabilities (N,) times weights (N,): its gradients, but for a factor, are computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, with_gradients: Callable[..., tuple[Tensor, Tensor, Tensor]], *inputs: Tensor) -> Tensor:
        total, *gradients = with_gradients(*inputs)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad.item() == 1:  # in pre-training it is
            return None, grad_hidden, grad_weight, None, None, None
        return None, grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad, None, None, None


def _with_gradients(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    indices_M: Tensor,
    slopes_N: Tensor,
    gradients: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of log-probabilities, weighted by `slopes_N`, and its gradients with respect to hidden states and weight."""
    weight = weight_VD.to(hidden_ND.dtype)
    target_logp_N = torch.zeros(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
    grad_hidden = torch.zeros_like(hidden_ND)
    grad_weight = torch.zeros_like(weight_VD)
    for indices in indices_M.split(ROWS):
        hidden, slopes = hidden_ND[indices], slopes_N[indices]
        target_logp_N[indices], grad_logits = gradients(hidden, weight, targets_N[indices], slopes)
        grad_hidden[indices] = grad_logits @ weight
        grad_weight += grad_logits.T @ hidden
    return (target_logp_N * slopes_N).sum(), grad_hidden, grad_weight


def weighted_log_probability(
    model: LanguageModel,
    ids_BT: Tensor,
    targets_BT: Tensor,
    weights_BT: Tensor,
    documents_BT: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sum of `weights_BT` (float32, not differentiated) times `token_log_probabilities`; its logits are computed once."""
    if not torch.is_grad_enabled():
        logp = token_log_probabilities(model, ids_BT, targets_BT, documents_BT, dtype, wanted_BT=weights_BT)
        return (logp * weights_BT).sum()
    indices_M = weights_BT.flatten().nonzero().squeeze(1)
    # Rows are computed as given, not packed: a mixture's balance loss counts their tokens.
    hidden = hidden_states(model.model, ids_BT, indices_M, dtype, documents_BT, pack=False)
    targets, weights = targets_BT.flatten()[indices_M], weights_BT.flatten()[indices_M]
    if native := _kernels(model, hidden):
        with_gradients = native.weighted_log_probability
    else:
        gradients = _compiled_gradients() if getattr(model.model, "compiled", False) else _gradients
        with_gradients = partial(_with_gradients, gradients=gradients)
    all_indices = torch.arange(len(hidden), device=hidden.device)
    return _WeightedSum.apply(with_gradients, hidden, model.lm_head.weight, targets, all_indices, weights)


def token_log_probabilities(
    model: LanguageModel,
    ids_BT: Tensor,
    targets_BT: Tensor,
    documents_BT: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    wanted_BT: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Natural log-probability (batch, time) that the model gives each target after the ids up to its position.

    Differentiable. `documents_BT` keeps documents that share a row apart; `dtype` is that of the matrix products.
    `wanted_BT`: where it is zero the result is zero and the head is not computed; in a conversation that is most positions.
    `temperature` divides the logits: use the one that the tokens were sampled at.
    """
    wanted = torch.ones_like(targets_BT) if wanted_BT is None else wanted_BT
    indices_M = wanted.flatten().nonzero().squeeze(1)
    hidden = hidden_states(model.model, ids_BT, indices_M, dtype, documents_BT)
    hidden = hidden if temperature == 1 else hidden / temperature  # the same as dividing the logits: the head has no bias
    targets = targets_BT.flatten()[indices_M]
    logp_M = _TokenLogProbabilities.apply(hidden, model.lm_head.weight, targets, _kernels(model, hidden))
    return _scatter(logp_M, indices_M, targets_BT.shape)


def _scatter(values_M: Tensor, indices_M: Tensor, shape: torch.Size) -> Tensor:
    """The values at their indices in a tensor of this shape, zero elsewhere."""
    return values_M.new_zeros(shape.numel()).index_put((indices_M,), values_M).view(shape)


def _kernels(model: LanguageModel, hidden: Tensor) -> ModuleType | None:
    """The kernels that compute log-probabilities from these hidden states, if any do."""
    if model.loss_kernel_dtype != hidden.dtype:
        return None
    return float32 if hidden.dtype == torch.float32 else kernels


@torch.no_grad()
def log_probabilities_and_entropies(
    model: LanguageModel, ids_BT: Tensor, targets_BT: Tensor, wanted_BT: Tensor, dtype: torch.dtype, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same bits as `token_log_probabilities`, and the entropy (batch, time) in nats of each distribution; zero elsewhere."""
    indices_M = wanted_BT.flatten().nonzero().squeeze(1)
    hidden_MD = hidden_states(model.model, ids_BT, indices_M, dtype)
    hidden_MD = hidden_MD if temperature == 1 else hidden_MD / temperature
    weight_VD, targets_M = model.lm_head.weight.to(hidden_MD.dtype), targets_BT.flatten()[indices_M]
    native = _kernels(model, hidden_MD)
    if native is float32:
        logp_and_entropy = float32.log_probabilities_and_entropies(hidden_MD, weight_VD, targets_M)
    else:
        logp_and_entropy = torch.zeros(2, len(indices_M), device=hidden_MD.device)
        for begin in range(0, len(indices_M), ROWS):
            logp, part = _log_softmax(hidden_MD[begin : begin + ROWS], weight_VD), slice(begin, begin + ROWS)
            logp_and_entropy[0, part] = logp.gather(1, targets_M[part, None]).squeeze(1)
            logp_and_entropy[1, part] = -logp.exp().mul_(logp).sum(1)
        if native:
            logp_and_entropy[0] = native.log_probabilities(
                hidden_MD, model.lm_head.weight, targets_M, torch.arange(len(indices_M))
            )
    return _scatter(logp_and_entropy[0], indices_M, targets_BT.shape), _scatter(logp_and_entropy[1], indices_M, targets_BT.shape)


# A model computes float32 in one way at a time, and the kernels' memory is shared: two threads that score take turns.
_scoring_lock = threading.RLock()


@contextmanager
def _float32_by_kernels(model: LanguageModel) -> Iterator[None]:
    """Within it, the model computes float32 by kernels where there are any, 2.8 times as fast as by PyTorch (AVX-512)."""
    dtype_before = model.loss_kernel_dtype
    if dtype_before == torch.float32 or model.lm_head.weight.device.type != "cpu":
        yield
        return
    try:
        model.use_kernels(kernels.BLOCK, torch.float32)
    except kernels.Unavailable as error:
        logger.debug("native kernels disabled: %s; scoring by PyTorch", error)
        model.drop_kernels()
    try:
        yield
    finally:
        model.drop_kernels()
        if dtype_before:
            model.use_kernels(kernels.BLOCK, dtype_before)


@torch.no_grad()
def score(model: LanguageModel, sequences: Sequence[Sequence[int]], batch_tokens: int = 16_384) -> list[np.ndarray]:
    """Log-probability (nats) of every token of each sequence but its first, in float32.

    Sequences longer than the context are scored in windows that overlap by half, each token once, with at least half a
    context of history (as lm-eval's rolling likelihood, with more history). Padding never changes a score: tokens see
    only what is before them.
    """
    context = model.config.max_position_embeddings
    scores = [np.zeros(max(len(sequence) - 1, 0), dtype=np.float32) for sequence in sequences]
    windows = []  # (sequence, first token of the window, first target that is scored in it)
    for index, sequence in enumerate(sequences):
        start, scored = 0, 1
        while scored < len(sequence):
            windows.append((index, start, scored))
            scored = min(start + context + 1, len(sequence))
            start = scored - context // 2
    lengths = [min(context, len(sequences[index]) - 1 - start) for index, start, _ in windows]
    device = model.lm_head.weight.device
    with _scoring_lock, _float32_by_kernels(model):
        for group in _batches(lengths, batch_tokens):
            longest = max(lengths[w] for w in group)
            ids = torch.zeros(len(group), longest + 1, dtype=torch.long)
            for row, w in enumerate(group):
                index, start, _ = windows[w]
                ids[row, : lengths[w] + 1] = torch.as_tensor(sequences[index][start : start + lengths[w] + 1])
            ids = ids.to(device)
            result = token_log_probabilities(model, ids[:, :-1], ids[:, 1:]).cpu().numpy()
            for row, w in enumerate(group):
                index, start, first = windows[w]
                scores[index][first - 1 : start + lengths[w]] = result[row, first - 1 - start : lengths[w]]
    return scores


def _batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Indices grouped by similar length, so that little is spent on padding."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[index] <= batch_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


@torch.no_grad()
def target_log_probabilities(hidden_MD: Tensor, weight_VD: Tensor, rows_N: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target after the hidden state of its row (N,), and the likeliest token of each row (M,).

    Where several targets follow one hidden state, as the letters of a question do, its logits are computed once.
    """
    order = rows_N.argsort(stable=True)
    ends = rows_N[order].bincount(minlength=len(hidden_MD)).cumsum(0)
    logp_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_MD.device)
    likeliest_M = torch.empty(len(hidden_MD), dtype=torch.long, device=hidden_MD.device)
    for first in range(0, len(hidden_MD), ROWS):
        logp = _log_softmax(hidden_MD[first : first + ROWS], weight_VD.to(hidden_MD.dtype))
        likeliest_M[first : first + ROWS] = logp.argmax(1)
        start, end = int(ends[first - 1]) if first else 0, int(ends[first + len(logp) - 1])
        target_indices = order[start:end]
        logp_N[target_indices] = logp[rows_N[target_indices] - first, targets_N[target_indices]]
    return logp_N, likeliest_M


def bits_per_byte(nats: float, count: int) -> float:
    """Comparable between tokenizers. `count`: bytes of the text."""
    return nats / math.log(2) / count
