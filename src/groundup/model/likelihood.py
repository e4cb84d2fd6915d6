"""The one likelihood function: what a model says a text is worth.

Pre-training, fine-tuning, DPO, PPO, perplexity, multiple choice and sentence pairs all call it, so they cannot disagree.

The logits of (batch x time) x vocabulary are never held: the head's product and the softmax run over a slice of rows at
a time (as in Cut Your Losses, Wijmans et al. 2024). Where only a weighted sum is asked for, as in pre-training and
fine-tuning, the gradients come from the same slice of logits; else these are computed again for them.
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

ROWS = 1024  # of a slice: adding up the head's gradient costs a pass over it for each


def _log_softmax(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
    return torch.log_softmax(hidden_MD @ weight_VD.T, dim=-1, dtype=torch.float32)


def _gradients(hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, slopes_M: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets (M,), and the gradient by the logits (M, V) of their sum weighted by `slopes_M`."""
    logp = _log_softmax(hidden_MD, weight_VD)
    found = logp.gather(1, targets_M[:, None])
    # d log p(target) / d logits = [is target] - softmax
    grad_logits = logp.exp_().mul_(-slopes_M[:, None]).to(hidden_MD.dtype)
    grad_logits.scatter_(1, targets_M[:, None], (-torch.expm1(found) * slopes_M[:, None]).to(hidden_MD.dtype))
    return found.squeeze(1), grad_logits


_compiled_gradients = cache(lambda: torch.compile(_gradients))


class _TokenLogProbabilities(torch.autograd.Function):
    """(N,) of hidden states (N, width)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, native: ModuleType | None
    ) -> Tensor:
        ctx.native = native
        places_N = torch.arange(len(hidden_ND), device=hidden_ND.device)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, places_N)
        if native:
            return native.log_probabilities(hidden_ND, weight_VD, targets_N, places_N)
        weight = weight_VD.to(hidden_ND.dtype)
        found_N = torch.zeros(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        for places in places_N.split(ROWS):
            logp = _log_softmax(hidden_ND[places], weight)
            found_N[places] = logp.gather(1, targets_N[places, None]).squeeze(1)
        return found_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, Tensor, None, None]:
        plain = partial(_with_gradients, gradients=_gradients)
        with_gradients = ctx.native.weighted_log_probability if ctx.native else plain
        _, grad_hidden, grad_weight = with_gradients(*ctx.saved_tensors, grad_N)
        return grad_hidden, grad_weight, None, None


class _WeightedSum(torch.autograd.Function):
    """Sum of log-probabilities (N,) times weights (N,): its gradients are known but for a factor before it is used."""

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
    places_M: Tensor,
    slopes_N: Tensor,
    gradients: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """The log-probabilities' sum, weighted by `slopes_N`, and its gradients by hidden states and weight."""
    weight = weight_VD.to(hidden_ND.dtype)
    found_N = torch.zeros(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
    grad_hidden = torch.zeros_like(hidden_ND)
    grad_weight = torch.zeros_like(weight_VD)
    for places in places_M.split(ROWS):
        hidden, slopes = hidden_ND[places], slopes_N[places]
        found_N[places], grad_logits = gradients(hidden, weight, targets_N[places], slopes)
        grad_hidden[places] = grad_logits @ weight
        grad_weight += grad_logits.T @ hidden
    return (found_N * slopes_N).sum(), grad_hidden, grad_weight


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
    places = weights_BT.flatten().nonzero().squeeze(1)
    # How rows share a row is up to those who made them: a mixture's losses beside this one count their tokens.
    hidden = hidden_states(model.model, ids_BT, places, dtype, documents_BT, pack=False)
    targets, weights = targets_BT.flatten()[places], weights_BT.flatten()[places]
    if native := _kernels(model, hidden):
        with_gradients = native.weighted_log_probability
    else:
        gradients = _compiled_gradients() if getattr(model.model, "compiled", False) else _gradients
        with_gradients = partial(_with_gradients, gradients=gradients)
    every = torch.arange(len(hidden), device=hidden.device)
    return _WeightedSum.apply(with_gradients, hidden, model.lm_head.weight, targets, every, weights)


def token_log_probabilities(
    model: LanguageModel,
    ids_BT: Tensor,
    targets_BT: Tensor,
    documents_BT: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    wanted_BT: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Natural log-probability (batch, time) that the model gives each target after the ids up to its place.

    Differentiable. `documents_BT` keeps documents that share a row apart; `dtype` is that of the matrix products.
    `wanted_BT`: where it is zero the result is zero and the head is not asked, which in a conversation is most places.
    `temperature` divides the logits: what was sampled at one has its probability there.
    """
    wanted = torch.ones_like(targets_BT) if wanted_BT is None else wanted_BT
    places = wanted.flatten().nonzero().squeeze(1)
    hidden = hidden_states(model.model, ids_BT, places, dtype, documents_BT)
    hidden = hidden if temperature == 1 else hidden / temperature  # as the logits are then: the head has no bias
    targets = targets_BT.flatten()[places]
    found = _TokenLogProbabilities.apply(hidden, model.lm_head.weight, targets, _kernels(model, hidden))
    return _spread(found, places, targets_BT.shape)


def _spread(found_M: Tensor, places_M: Tensor, shape: torch.Size) -> Tensor:
    """At their places (batch, time), zero elsewhere."""
    return found_M.new_zeros(shape.numel()).index_put((places_M,), found_M).view(shape)


def _kernels(model: LanguageModel, hidden: Tensor) -> ModuleType | None:
    """Those that compute log-probabilities from these hidden states, if any do."""
    if model.loss_by_kernels != hidden.dtype:
        return None
    return float32 if hidden.dtype == torch.float32 else kernels


@torch.no_grad()
def log_probabilities_and_entropies(
    model: LanguageModel, ids_BT: Tensor, targets_BT: Tensor, wanted_BT: Tensor, dtype: torch.dtype, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same bits as `token_log_probabilities`, and the entropy (batch, time) in nats of each distribution; zero elsewhere."""
    places = wanted_BT.flatten().nonzero().squeeze(1)
    hidden_MD = hidden_states(model.model, ids_BT, places, dtype)
    hidden_MD = hidden_MD if temperature == 1 else hidden_MD / temperature
    weight_VD, targets_M = model.lm_head.weight.to(hidden_MD.dtype), targets_BT.flatten()[places]
    native = _kernels(model, hidden_MD)
    if native is float32:
        found = float32.log_probabilities_and_entropies(hidden_MD, weight_VD, targets_M)
    else:
        found = torch.zeros(2, len(places), device=hidden_MD.device)
        for begin in range(0, len(places), ROWS):
            logp, some = _log_softmax(hidden_MD[begin : begin + ROWS], weight_VD), slice(begin, begin + ROWS)
            found[0, some] = logp.gather(1, targets_M[some, None]).squeeze(1)
            found[1, some] = -logp.exp().mul_(logp).sum(1)
        if native:
            found[0] = native.log_probabilities(hidden_MD, model.lm_head.weight, targets_M, torch.arange(len(places)))
    return _spread(found[0], places, targets_BT.shape), _spread(found[1], places, targets_BT.shape)


# A model has one way to compute float32 at a time, and the kernels' memory is shared: two threads that score take turns.
_one_at_a_time = threading.RLock()


@contextmanager
def _float32_by_kernels(model: LanguageModel) -> Iterator[None]:
    """Within it, what there are kernels for is computed by them in float32, 2.8 times as fast as by PyTorch (AVX-512)."""
    before = model.loss_by_kernels
    if before == torch.float32 or model.lm_head.weight.device.type != "cpu":
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
        if before:
            model.use_kernels(kernels.BLOCK, before)


@torch.no_grad()
def score(model: LanguageModel, sequences: Sequence[Sequence[int]], batch_tokens: int = 16_384) -> list[np.ndarray]:
    """Log-probability (nats) of every token of each sequence but its first, in float32.

    Sequences longer than the context are scored in windows that overlap by half, each token once, with at least half a
    context of history (as lm-eval's rolling likelihood, with more history). Padding never changes a score: tokens see
    only what is before them.
    """
    context = model.config.max_position_embeddings
    scores = [np.zeros(max(len(sequence) - 1, 0), dtype=np.float32) for sequence in sequences]
    windows = []  # (sequence, first token of the window, first target to keep)
    for index, sequence in enumerate(sequences):
        start, scored = 0, 1
        while scored < len(sequence):
            windows.append((index, start, scored))
            scored = min(start + context + 1, len(sequence))
            start = scored - context // 2
    lengths = [min(context, len(sequences[index]) - 1 - start) for index, start, _ in windows]
    device = model.lm_head.weight.device
    with _one_at_a_time, _float32_by_kernels(model):
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
def of_tokens(hidden_MD: Tensor, weight_VD: Tensor, rows_N: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target after the hidden state of its row (N,), and the likeliest token of each row (M,).

    Where several targets follow one state, as the letters of a question do, its logits are computed once.
    """
    order = rows_N.argsort(stable=True)
    ends = rows_N[order].bincount(minlength=len(hidden_MD)).cumsum(0)
    found_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_MD.device)
    likeliest_M = torch.empty(len(hidden_MD), dtype=torch.long, device=hidden_MD.device)
    for first in range(0, len(hidden_MD), ROWS):
        logp = _log_softmax(hidden_MD[first : first + ROWS], weight_VD.to(hidden_MD.dtype))
        likeliest_M[first : first + ROWS] = logp.argmax(1)
        start, end = int(ends[first - 1]) if first else 0, int(ends[first + len(logp) - 1])
        asked = order[start:end]
        found_N[asked] = logp[rows_N[asked] - first, targets_N[asked]]
    return found_N, likeliest_M


def bits_per_byte(nats: float, count: int) -> float:
    """The measure that different tokenizers share."""
    return nats / math.log(2) / count
