"""How likely a model finds continuations of contexts, each context computed once.

The questions of a subject begin with the same examples, the answers to a question with the same question. So requests are
sorted by their tokens. What a run of them begins with goes through the model once, and its keys and values are kept. What only a
few of them share further, such as a question, is one row with a branch for each answer: a token sees what is on its path from
the root, and its position is its depth. Letters after one prompt need no tokens of their own: they are read off the same
logits. Architectures other than the decoder cannot branch: there each request is a row.

By kernels, which compute a dense decoder on the processor, a request's result has the same bits whatever the other requests are;
by PyTorch it depends on them in the last bits of float32 only.
Shape suffixes: those of `model.decoder`; P tokens of the shared prefix, T of a row after it.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from groundup.core.errors import UserError
from groundup.generation.decoding import Decoding, normalised
from groundup.generation.native_steps import Steps
from groundup.kernels import Unavailable
from groundup.model.base import LanguageModel
from groundup.model.decoder import Decoder
from groundup.model.likelihood import target_log_probabilities

logger = logging.getLogger(__name__)

MIN_SHARED_TOKENS = 32  # tokens that requests must have in common before keys and values are kept for them
MIN_SHARING_CONTEXTS = 4  # contexts that must have them in common: fewer are cheaper as branches in a batch with all others
MIN_SHARED_FRACTION = 0.25  # of a request's own tokens that must be in a row already for it to join as a branch
BATCH_TOKENS = 2048  # of rows together, padding included: activations then stay in the processor's caches
MAX_ROW_TOKENS = 2048  # with branches: attention of a row costs their square


class ScoringRequest(NamedTuple):
    """`ids`: context and continuation; those from `start` on, and no others, are scored."""

    ids: tuple[int, ...]
    start: int


class Scored(NamedTuple):
    nats: float  # log-probability of the continuation
    greedy: bool  # whether each of its tokens was the likeliest
    likeliest: int  # token after the context


@dataclass
class _Row:
    """Tokens with branches. `parents`: index of the token before each, -1 for what follows the shared prefix.

    `requests`: of each its number, and its predictors: indices of the tokens after which its continuation's tokens come.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    requests: list[tuple[int, list[int]]]

    @property
    def branches(self) -> bool:
        return any(parent != index - 1 for index, parent in enumerate(self.parents))


@torch.inference_mode()
def score(
    model: LanguageModel, requests: Sequence[ScoringRequest], batch_size: int = 64, steps: Steps | None = None
) -> list[Scored]:
    """Each request's result, in their order. At most `batch_size` rows are computed at once. `steps`: `native_steps(model)`, for
    callers that score several times.

    Raises ValueError for a request without context or continuation, or longer than the model's context and one token;
    UserError where the model computes numbers that are not finite.
    """
    max_tokens = model.config.max_position_embeddings + 1
    for ids, start in requests:
        if not 0 < start < len(ids) <= max_tokens:
            raise ValueError(f"a request of {len(ids)} tokens, of which {start} are context")
    results: list[Scored | None] = [None] * len(requests)
    can_branch = isinstance(model, Decoder)
    plan = []
    for numbers, length in _groups(requests, can_branch):
        rows = sorted(_rows(requests, numbers, length, can_branch), key=lambda row: len(row.tokens))
        plan.append((requests[numbers[0]].ids[:length], [*_batches(rows, batch_size)]))
    scorer = _scorer_of(model, plan, steps)
    for prefix, batches in plan:
        scorer.set_prefix(prefix)
        for batch in batches:
            _collect(scorer, requests, batch, results)
    return [result for result in results if result is not None]


def _groups(requests: Sequence[ScoringRequest], can_branch: bool) -> Iterator[tuple[list[int], int]]:
    """Groups of requests: their numbers, sorted so that similar requests are neighbours, and how many first tokens all share."""
    keys = [np.asarray(ids, ">u4").tobytes() for ids, _ in requests]
    order = sorted(range(len(requests)), key=lambda number: (keys[number], number))
    if not can_branch:
        yield order, 0
        return
    ungrouped: list[int] = []
    group: list[int] = []
    length = 0
    for number in [*order, None]:
        if number is not None and group:
            common = min(_common_tokens(keys[group[0]], keys[number]), requests[number].start - 1, length)
            # A prefix that would be cut by half or more belongs to another group: a description shared by two subjects.
            if common >= MIN_SHARED_TOKENS and (len(group) == 1 or 2 * common > length):
                group.append(number)
                length = common
                continue
        if len({requests[other].ids[: requests[other].start] for other in group}) >= MIN_SHARING_CONTEXTS:
            yield group, length
        else:
            ungrouped += group
        if number is not None:
            group, length = [number], requests[number].start - 1
    if ungrouped:
        yield ungrouped, 0


def _common_tokens(first: bytes, second: bytes) -> int:
    """How many tokens two keys have in common at their start."""
    low, high = 0, min(len(first), len(second)) // 4
    while low < high:
        length = (low + high + 1) // 2
        if first[4 * low : 4 * length] == second[4 * low : 4 * length]:
            low = length
        else:
            high = length - 1
    return low


def _rows(requests: Sequence[ScoringRequest], numbers: Sequence[int], length: int, can_branch: bool) -> Iterator[_Row]:
    """The group's requests without their shared prefix. The last token of each is only predicted, so it is in no row."""
    row: _Row | None = None
    previous: tuple[int, ...] = ()
    path: list[int] = []  # indices in the row of the previous request's tokens
    for number in numbers:
        ids, start = requests[number]
        inputs = ids[length:-1]
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(previous, inputs, strict=False)))
        new = len(inputs) - common
        if row is None or not can_branch or common < MIN_SHARED_FRACTION * len(inputs) or len(row.tokens) + new > MAX_ROW_TOKENS:
            if row is not None:
                yield row
            row, common, path = _Row([], [], [], []), 0, []
        path = path[:common]
        for depth in range(common, len(inputs)):
            row.parents.append(path[-1] if path else -1)
            path.append(len(row.tokens))
            row.tokens.append(inputs[depth])
            row.depths.append(depth)
        row.requests.append((number, path[start - 1 - length :]))
        previous = inputs
    if row is not None:
        yield row


def _batches(rows: list[_Row], batch_size: int) -> Iterator[list[_Row]]:
    """Rows in order of their length, as many as fit."""
    batch: list[_Row] = []
    for row in rows:
        if batch and (len(batch) >= batch_size or (len(batch) + 1) * len(row.tokens) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


_Plan = Sequence[tuple[Sequence[int], list[list[_Row]]]]  # what rows begin with, and batches of them


class _Scorer:
    """Rows without branches, by any architecture."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def set_prefix(self, ids: Sequence[int]) -> None:
        """The tokens, maybe none, that all rows begin with from now on; without branches there are none."""

    def hidden(self, rows: list[_Row], predictors: list[list[int]]) -> Tensor:
        """Hidden states (M, D) at the predictors of each row, row by row."""
        ids = np.zeros((len(rows), max(len(row.tokens) for row in rows)), np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row.tokens)] = row.tokens
        hidden_BTD = self.model.model(torch.from_numpy(ids).to(self.model.lm_head.weight.device))
        return torch.cat([hidden_BTD[number, indices] for number, indices in enumerate(predictors)])

    def likelihoods(
        self, rows: list[_Row], predictors: list[list[int]], sources: list[int], targets: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the targets (N,), and the likeliest token after each predictor (M,). `sources`: of each target the
        index of its predictor, counted over all rows.
        """
        hidden_MD, weight = self.hidden(rows, predictors), self.model.lm_head.weight
        source_ids, target_ids = (torch.tensor(ids, device=weight.device) for ids in (sources, targets))
        return target_log_probabilities(hidden_MD, weight, source_ids, target_ids)


class _TreeScorer(_Scorer, Decoding):
    """The tokens of rows one after another, without padding; of the last layer only the predictors.

    The cache has one row: the shared prefix is at its front, and the rows' tokens behind it, where the next rows overwrite them.
    """

    def __init__(self, model: Decoder, plan: _Plan) -> None:
        """With room for the largest batch and its prefix."""
        _Scorer.__init__(self, model)
        max_tokens = max(len(ids) + sum(len(row.tokens) for row in rows) for ids, batches in plan for rows in batches)
        Decoding.__init__(self, model, 1, max_tokens)
        self.prefix_length = 0

    def set_prefix(self, ids: Sequence[int]) -> None:
        self.prefix_length = 0
        if ids:
            self._prefill(_Row([*ids], [*range(-1, len(ids) - 1)], [*range(len(ids))], []))
        self.prefix_length = len(ids)

    def _prefill(self, row: _Row) -> None:
        self.hidden([row], [[len(row.tokens) - 1]])

    def hidden(self, rows: list[_Row], predictors: list[list[int]]) -> Tensor:
        device, P, last = self.head.device, self.prefix_length, len(self.layers) - 1
        lengths = [len(row.tokens) for row in rows]
        starts = np.cumsum([0, *lengths])
        predictor_indices = [start + token for start, tokens in zip(starts, predictors, strict=False) for token in tokens]
        predictors_M = torch.tensor(predictor_indices, device=device)
        longest = max(lengths)
        # padded_R: the token at each slot of the padded rows; unpadded_R: the slots that hold a token.
        padded = np.zeros((len(rows), longest), np.int64)
        for number, (start, length) in enumerate(zip(starts, lengths, strict=False)):
            padded[number, :length] = np.arange(start, start + length)
        unpadded_R = torch.from_numpy(np.flatnonzero(np.arange(longest) < np.array(lengths)[:, None])).to(device)
        padded_R = torch.from_numpy(padded.ravel()).to(device)
        mask = self._tree_mask(rows, longest) if any(row.branches for row in rows) else None

        def attend(index: int, heads_NHC: Tensor) -> Tensor:
            """Each token sees its own row and the prefix: two attentions, averaged with their normalisers as weights."""
            shaped = heads_NHC[padded_R].view(len(rows), longest, -1, self.channels).transpose(1, 2)
            q, k, v = shaped.split((self.query_heads, self.key_heads, self.key_heads), dim=1)
            out, norms = _attention(q, k, v, mask)
            out_NHC = out.transpose(1, 2).flatten(0, 1)[unpadded_R]
            queries = heads_NHC[:, : self.query_heads]
            if index == last:
                out_NHC, queries = out_NHC[predictors_M], queries[predictors_M]
            if P:
                norms_NH = norms.transpose(1, 2).flatten(0, 1)[unpadded_R]
                prefix_NHC, prefix_norms_NH = self._attend_to_prefix(index, queries)
                weights_NH = torch.sigmoid(prefix_norms_NH - (norms_NH[predictors_M] if index == last else norms_NH))
                out_NHC = torch.lerp(out_NHC, prefix_NHC, weights_NH[..., None])
            return out_NHC.flatten(1)

        ids_N = torch.tensor([token for row in rows for token in row.tokens], device=device)
        positions_N = torch.tensor([P + depth for row in rows for depth in row.depths], device=device)
        slots_N = torch.arange(len(ids_N), device=device) + P
        return normalised(self._layers(ids_N, positions_N, slots_N, attend, predictors_M), self.norm)

    def _attend_to_prefix(self, index: int, queries_NHC: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of queries over the prefix (N, H, C), and the logarithms of its softmax normalisers (N, H). Heads that share
        a key head are computed like queries of further tokens.
        """
        K, N = self.key_heads, len(queries_NHC)
        keys, values = self.cache[index, None, :, 0, : self.prefix_length].split(K, dim=1)
        grouped = queries_NHC.view(N, K, -1, self.channels).transpose(0, 1).flatten(1, 2)
        out, norms = _attention(grouped[None], keys, values, None, sees_all=True)
        shape = (K, N, -1)
        out_NHC = out[0].view(*shape, self.channels).transpose(0, 1).flatten(1, 2)
        return out_NHC, norms[0].view(shape).transpose(0, 1).flatten(1, 2)

    def _tree_mask(self, rows: Sequence[_Row], longest: int) -> Tensor:
        """The additive attention mask within rows (rows, 1, T, T): 0 where a token sees another, -inf elsewhere."""
        visible = np.tri(longest, dtype=bool)[None].repeat(len(rows), 0)
        for mask, row in zip(visible, rows, strict=True):
            if row.branches:
                for index, parent in enumerate(row.parents):
                    mask[index, :index] = mask[parent, :index] if parent >= 0 else False
        return torch.from_numpy(np.where(visible, np.float32(0), np.float32(-np.inf))).to(self.head.device)[:, None]


class _NativeTreeScorer(_TreeScorer):
    """The same by C++: each token of a tree sees its path to the root, and nothing is padded or masked."""

    def __init__(self, model: Decoder, plan: _Plan, steps: Steps) -> None:
        self.steps = steps
        super().__init__(model, plan)

    def _prefill(self, row: _Row) -> None:
        self.likelihoods([row], [[]], [], [])

    def likelihoods(
        self, rows: list[_Row], predictors: list[list[int]], sources: list[int], targets: list[int]
    ) -> tuple[Tensor, Tensor]:
        starts = np.cumsum([0, *(len(row.tokens) for row in rows)])
        parents = [
            start + parent if parent >= 0 else -1 for start, row in zip(starts, rows, strict=False) for parent in row.parents
        ]
        tree = (
            [token for row in rows for token in row.tokens],
            [self.prefix_length + depth for row in rows for depth in row.depths],
            range(self.prefix_length, self.prefix_length + len(parents)),
            parents,
        )
        predictor_indices = [start + token for start, tokens in zip(starts, predictors, strict=False) for token in tokens]
        tree_tensors = [torch.tensor(values, dtype=torch.long) for values in tree]
        target_tensors = [torch.tensor(values, dtype=torch.long) for values in (predictor_indices, sources, targets)]
        return self.steps.likelihoods(*tree_tensors, self.rope_cache, self.cache, *target_tensors)


def native_steps(model: LanguageModel) -> Steps | None:
    """The kernels' form of a model whose weights no longer change; None where the kernels do not support it."""
    try:
        return Steps(model, panels=True) if isinstance(model, Decoder) else None
    except Unavailable as error:
        logger.debug("native kernels disabled: %s; using PyTorch", error)
        return None


def _scorer_of(model: LanguageModel, plan: _Plan, steps: Steps | None) -> _Scorer:
    if not isinstance(model, Decoder) or not plan:
        return _Scorer(model)
    steps = steps or native_steps(model)
    return _NativeTreeScorer(model, plan, steps) if steps else _TreeScorer(model, plan)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sees_all: bool = False) -> tuple[Tensor, Tensor]:
    """Attention (rows, heads, T, C), and the logarithm of each query's softmax normaliser (rows, heads, T). Without a mask a
    token sees those before it, or with `sees_all` all.
    """
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, mask is None and not sees_all, attn_mask=mask
        )
    return _plain_attention(q, k, v, mask, sees_all)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sees_all: bool) -> tuple[Tensor, Tensor]:
    k, v = (heads.repeat_interleave(q.shape[1] // k.shape[1], 1) for heads in (k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if mask is None and not sees_all:
        mask = torch.full(scores.shape[-2:], -torch.inf, device=q.device).triu(1)
    if mask is not None:
        scores = scores + mask
    norms = scores.logsumexp(-1)
    return torch.exp(scores - norms[..., None]) @ v, norms


def _collect(scorer: _Scorer, requests: Sequence[ScoringRequest], rows: list[_Row], results: list[Scored | None]) -> None:
    """Fill `results` for the rows' requests."""
    predictors = [sorted({token for _, indices in row.requests for token in indices}) for row in rows]
    tokens = ((number, token) for number, indices in enumerate(predictors) for token in indices)
    index_of = {token: index for index, token in enumerate(tokens)}
    sources = [index_of[number, token] for number, row in enumerate(rows) for _, indices in row.requests for token in indices]
    targets = [token for row in rows for number, _ in row.requests for token in requests[number].ids[requests[number].start :]]
    nats_N, likeliest_M = scorer.likelihoods(rows, predictors, sources, targets)
    nats, likeliest = nats_N.double().cpu().numpy(), likeliest_M.cpu().numpy()[sources]
    if not np.isfinite(nats).all():
        raise UserError("the model computes numbers that are not finite: its weights are damaged; train or download it again")
    right = likeliest == np.array(targets)
    start = 0
    for row in rows:
        for request, indices in row.requests:
            end = start + len(indices)
            results[request] = Scored(float(nats[start:end].sum()), bool(right[start:end].all()), int(likeliest[start]))
            start = end
