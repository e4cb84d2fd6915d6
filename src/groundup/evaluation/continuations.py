"""How likely a model finds continuations of contexts, each context computed once.

The questions of a subject begin with the same examples, the answers to a question with the same question. So requests are
sorted by their tokens; what a run of them begins with goes through the model once, and its keys and values are kept; what
few of them share besides, such as a question, is one row with a branch for each answer: a token sees what is on its way
from the root, and its position is its depth. Letters after one prompt need no tokens of their own: they are read off the
same logits. Other architectures than the decoder, which cannot branch, score each request as a row.

By kernels, which have a dense decoder on the processor, a request's result has the same bits in any company; with PyTorch it does
not depend on the others but in the last bits of float32.
Shape suffixes: those of `model.decoder`; P tokens of the shared beginning, T of a row after it.
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

SHARED = 32  # tokens that requests must have in common before keys and values are kept for them
SHARING = 4  # contexts that must have them in common: fewer are better off as branches in a batch with all others
SHARED_OF_ROW = 0.25  # of a request's own tokens that must stand in a row already for it to join as a branch
BATCH_TOKENS = 2048  # of rows together, padding included: what is in between then stays near the processor
LONGEST_ROW = 2048  # tokens with branches: attention of a row costs their square


class ScoringRequest(NamedTuple):
    """`ids`: context and continuation; those from `start` on are scored. The model is asked for none before."""

    ids: tuple[int, ...]
    start: int


class Scored(NamedTuple):
    nats: float  # log-probability of the continuation
    greedy: bool  # whether each of its tokens was the likeliest
    likeliest: int  # token after the context


@dataclass
class _Row:
    """Tokens with branches. `parents`: index of the token before each, -1 for what follows the shared beginning."""

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    wanted: list[tuple[int, list[int]]]  # of each request: its number, and which tokens its continuation is read off

    @property
    def branches(self) -> bool:
        return any(parent != place - 1 for place, parent in enumerate(self.parents))


@torch.inference_mode()
def score(
    model: LanguageModel, requests: Sequence[ScoringRequest], batch_size: int = 64, steps: Steps | None = None
) -> list[Scored]:
    """Each request's result, in their order. At most `batch_size` rows are computed at once. `steps`: `steps_of(model)`, where
    it is asked several times.

    Raises ValueError for a request without context or continuation, or longer than the model's context and one token;
    UserError where the model computes numbers that are not finite.
    """
    longest = model.config.max_position_embeddings + 1
    for ids, start in requests:
        if not 0 < start < len(ids) <= longest:
            raise ValueError(f"a request of {len(ids)} tokens, of which {start} are context")
    found: list[Scored | None] = [None] * len(requests)
    shares = isinstance(model, Decoder)
    planned = []
    for numbers, length in _groups(requests, shares):
        rows = sorted(_rows(requests, numbers, length, shares), key=lambda row: len(row.tokens))
        planned.append((requests[numbers[0]].ids[:length], [*_batches(rows, batch_size)]))
    likelihoods = _computing(model, planned, steps)
    for beginning, batches in planned:
        likelihoods.begin(beginning)
        for some in batches:
            _collect(likelihoods, requests, some, found)
    return [one for one in found if one is not None]


def _groups(requests: Sequence[ScoringRequest], shares: bool) -> Iterator[tuple[list[int], int]]:
    """Numbers of requests that have so many tokens in common: sorted, so that those alike are neighbours."""
    keys = [np.asarray(ids, ">u4").tobytes() for ids, _ in requests]
    order = sorted(range(len(requests)), key=lambda number: (keys[number], number))
    if not shares:
        yield order, 0
        return
    loose: list[int] = []
    group: list[int] = []
    length = 0
    for number in [*order, None]:
        if number is not None and group:
            common = min(_common(keys[group[0]], keys[number]), requests[number].start - 1, length)
            # A beginning that would be cut by half or more is another's: a description shared by two subjects.
            if common >= SHARED and (len(group) == 1 or 2 * common > length):
                group.append(number)
                length = common
                continue
        if len({requests[one].ids[: requests[one].start] for one in group}) >= SHARING:
            yield group, length
        else:
            loose += group
        if number is not None:
            group, length = [number], requests[number].start - 1
    if loose:
        yield loose, 0


def _common(one: bytes, other: bytes) -> int:
    """How many tokens two keys have in common at their start."""
    low, high = 0, min(len(one), len(other)) // 4
    while low < high:
        middle = (low + high + 1) // 2
        if one[4 * low : 4 * middle] == other[4 * low : 4 * middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _rows(requests: Sequence[ScoringRequest], numbers: Sequence[int], length: int, shares: bool) -> Iterator[_Row]:
    """The group's requests without what all begin with; the last token of each is only predicted, so it is in no row."""
    row: _Row | None = None
    before: tuple[int, ...] = ()
    way: list[int] = []  # indices in the row of the tokens of the request before
    for number in numbers:
        ids, start = requests[number]
        inputs = ids[length:-1]
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, inputs, strict=False)))
        own = len(inputs) - common
        if row is None or not shares or common < SHARED_OF_ROW * len(inputs) or len(row.tokens) + own > LONGEST_ROW:
            if row is not None:
                yield row
            row, common, way = _Row([], [], [], []), 0, []
        way = way[:common]
        for depth in range(common, len(inputs)):
            row.parents.append(way[-1] if way else -1)
            way.append(len(row.tokens))
            row.tokens.append(inputs[depth])
            row.depths.append(depth)
        row.wanted.append((number, way[start - 1 - length :]))
        before = inputs
    if row is not None:
        yield row


def _batches(rows: list[_Row], batch_size: int) -> Iterator[list[_Row]]:
    """Rows in order of their length, as many as fit."""
    some: list[_Row] = []
    for row in rows:
        if some and (len(some) >= batch_size or (len(some) + 1) * len(row.tokens) > BATCH_TOKENS):
            yield some
            some = []
        some.append(row)
    if some:
        yield some


_Planned = Sequence[tuple[Sequence[int], list[list[_Row]]]]  # what rows begin with, and batches of them


class _Plain:
    """Rows without branches, by any architecture."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def begin(self, ids: Sequence[int]) -> None:
        """What all rows begin with from now on; it may be nothing, and here it is."""

    def hidden(self, rows: list[_Row], wanted: list[list[int]]) -> Tensor:
        """Hidden states (M, D) of the wanted tokens of each row, row by row."""
        ids = np.zeros((len(rows), max(len(row.tokens) for row in rows)), np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row.tokens)] = row.tokens
        hidden_BTD = self.model.model(torch.from_numpy(ids).to(self.model.lm_head.weight.device))
        return torch.cat([hidden_BTD[number, some] for number, some in enumerate(wanted)])

    def likelihoods(
        self, rows: list[_Row], wanted: list[list[int]], asked: list[int], targets: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the targets, each after the `asked`th of the wanted tokens, and the likeliest after each."""
        hidden_MD, weight = self.hidden(rows, wanted), self.model.lm_head.weight
        return target_log_probabilities(
            hidden_MD, weight, *(torch.tensor(some, device=weight.device) for some in (asked, targets))
        )


class _Branching(_Plain, Decoding):
    """The tokens of rows one after another, without padding; of the last layer only what is asked for.

    What is shared lies at the front of the one row of the cache, what the rows add behind it and is overwritten by the next.
    """

    def __init__(self, model: Decoder, planned: _Planned) -> None:
        """With room for the largest of the batches, each with what its rows begin with."""
        _Plain.__init__(self, model)
        largest = max(len(ids) + sum(len(row.tokens) for row in rows) for ids, batches in planned for rows in batches)
        Decoding.__init__(self, model, 1, largest)
        self.shared = 0

    def begin(self, ids: Sequence[int]) -> None:
        self.shared = 0
        if ids:
            self._keep(_Row([*ids], [*range(-1, len(ids) - 1)], [*range(len(ids))], []))
        self.shared = len(ids)

    def _keep(self, row: _Row) -> None:
        self.hidden([row], [[len(row.tokens) - 1]])

    def hidden(self, rows: list[_Row], wanted: list[list[int]]) -> Tensor:
        device, P, last = self.head.device, self.shared, len(self.layers) - 1
        lengths = [len(row.tokens) for row in rows]
        starts = np.cumsum([0, *lengths])
        places = [start + token for start, some in zip(starts, wanted, strict=False) for token in some]
        places_M = torch.tensor(places, device=device)
        widest = max(lengths)
        # Where each token lies among the rows, each as long as the longest; and in a row's place which token.
        padded = np.zeros((len(rows), widest), np.int64)
        for number, (start, length) in enumerate(zip(starts, lengths, strict=False)):
            padded[number, :length] = np.arange(start, start + length)
        own = torch.from_numpy(np.flatnonzero(np.arange(widest) < np.array(lengths)[:, None])).to(device)
        padded_R = torch.from_numpy(padded.ravel()).to(device)
        mask = self._seen(rows, widest) if any(row.branches for row in rows) else None

        def attend(index: int, heads_NHC: Tensor) -> Tensor:
            """Each token sees its own row, and what is shared: in two parts, which their normalisers weigh together."""
            shaped = heads_NHC[padded_R].view(len(rows), widest, -1, self.channels).transpose(1, 2)
            q, k, v = shaped.split((self.query_heads, self.key_heads, self.key_heads), dim=1)
            out, norms = _attention(q, k, v, mask)
            out_NHC = out.transpose(1, 2).flatten(0, 1)[own]
            queries = heads_NHC[:, : self.query_heads]
            if index == last:
                out_NHC, queries = out_NHC[places_M], queries[places_M]
            if P:
                norms_NH = norms.transpose(1, 2).flatten(0, 1)[own]
                shared_NHC, shared_norms_NH = self._of_shared(index, queries)
                weights_NH = torch.sigmoid(shared_norms_NH - (norms_NH[places_M] if index == last else norms_NH))
                out_NHC = torch.lerp(out_NHC, shared_NHC, weights_NH[..., None])
            return out_NHC.flatten(1)

        ids_N = torch.tensor([token for row in rows for token in row.tokens], device=device)
        positions_N = torch.tensor([P + depth for row in rows for depth in row.depths], device=device)
        slots_N = torch.arange(len(ids_N), device=device) + P
        return normalised(self._layers(ids_N, positions_N, slots_N, attend, places_M), self.norm)

    def _of_shared(self, index: int, queries_NHC: Tensor) -> tuple[Tensor, Tensor]:
        """What queries find in the shared tokens (N, H, C), and the logarithms of the sums that normalise it (N, H). Heads that
        share a key head are as good as queries of other tokens.
        """
        K, N = self.key_heads, len(queries_NHC)
        keys, values = self.cache[index, None, :, 0, : self.shared].split(K, dim=1)
        grouped = queries_NHC.view(N, K, -1, self.channels).transpose(0, 1).flatten(1, 2)
        out, norms = _attention(grouped[None], keys, values, None, sees_all=True)
        shape = (K, N, -1)
        out_NHC = out[0].view(*shape, self.channels).transpose(0, 1).flatten(1, 2)
        return out_NHC, norms[0].view(shape).transpose(0, 1).flatten(1, 2)

    def _seen(self, rows: Sequence[_Row], widest: int) -> Tensor:
        """What to add to the attention within rows (rows, 1, T, T): 0 where a token sees another, -inf elsewhere."""
        seen = np.tri(widest, dtype=bool)[None].repeat(len(rows), 0)
        for mask, row in zip(seen, rows, strict=True):
            if row.branches:
                for place, parent in enumerate(row.parents):
                    mask[place, :place] = mask[parent, :place] if parent >= 0 else False
        return torch.from_numpy(np.where(seen, np.float32(0), np.float32(-np.inf))).to(self.head.device)[:, None]


class _ByKernels(_Branching):
    """The same by C++: of a tree each token sees its way to the root, and nothing is padded or masked."""

    def __init__(self, model: Decoder, planned: _Planned, steps: Steps) -> None:
        self.steps = steps
        super().__init__(model, planned)

    def _keep(self, row: _Row) -> None:
        self.likelihoods([row], [[]], [], [])

    def likelihoods(
        self, rows: list[_Row], wanted: list[list[int]], asked: list[int], targets: list[int]
    ) -> tuple[Tensor, Tensor]:
        starts = np.cumsum([0, *(len(row.tokens) for row in rows)])
        parents = [
            start + parent if parent >= 0 else -1 for start, row in zip(starts, rows, strict=False) for parent in row.parents
        ]
        numbers = (
            [token for row in rows for token in row.tokens],
            [self.shared + depth for row in rows for depth in row.depths],
            range(self.shared, self.shared + len(parents)),
            parents,
        )
        places = [start + token for start, some in zip(starts, wanted, strict=False) for token in some]
        tokens = [torch.tensor(some, dtype=torch.long) for some in numbers]
        asked_for = [torch.tensor(some, dtype=torch.long) for some in (places, asked, targets)]
        return self.steps.likelihoods(*tokens, self.rope_cache, self.cache, *asked_for)


def steps_of(model: LanguageModel) -> Steps | None:
    """What the kernels need of a model whose weights stay as they are; None where they do not compute it."""
    try:
        return Steps(model, panels=True) if isinstance(model, Decoder) else None
    except Unavailable as error:
        logger.debug("native kernels disabled: %s; using PyTorch", error)
        return None


def _computing(model: LanguageModel, planned: _Planned, steps: Steps | None) -> _Plain:
    if not isinstance(model, Decoder) or not planned:
        return _Plain(model)
    steps = steps or steps_of(model)
    return _ByKernels(model, planned, steps) if steps else _Branching(model, planned)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sees_all: bool = False) -> tuple[Tensor, Tensor]:
    """Of (rows, heads, T, C), and the logarithm of the sum that each query's is normalised by (rows, heads, T). Without a mask
    a token sees those before it, or all.
    """
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, mask is None and not sees_all, attn_mask=mask
        )
    return _by_hand(q, k, v, mask, sees_all)


def _by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sees_all: bool) -> tuple[Tensor, Tensor]:
    k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if mask is None and not sees_all:
        mask = torch.full(scores.shape[-2:], -torch.inf, device=q.device).triu(1)
    if mask is not None:
        scores = scores + mask
    norms = scores.logsumexp(-1)
    return torch.exp(scores - norms[..., None]) @ v, norms


def _collect(likelihoods: _Plain, requests: Sequence[ScoringRequest], rows: list[_Row], found: list[Scored | None]) -> None:
    """Fill `found` with the results of the rows' requests."""
    wanted = [sorted({token for _, way in row.wanted for token in way}) for row in rows]
    tokens = ((number, token) for number, some in enumerate(wanted) for token in some)
    place_of = {token: place for place, token in enumerate(tokens)}
    asked = [place_of[number, token] for number, row in enumerate(rows) for _, way in row.wanted for token in way]
    targets = [token for row in rows for one, _ in row.wanted for token in requests[one].ids[requests[one].start :]]
    nats_N, likeliest_M = likelihoods.likelihoods(rows, wanted, asked, targets)
    nats, likeliest = nats_N.double().cpu().numpy(), likeliest_M.cpu().numpy()[asked]
    if not np.isfinite(nats).all():
        raise UserError("the model computes numbers that are not finite: its weights are damaged; train or download it again")
    right = likeliest == np.array(targets)
    start = 0
    for row in rows:
        for request, way in row.wanted:
            end = start + len(way)
            found[request] = Scored(float(nats[start:end].sum()), bool(right[start:end].all()), int(likeliest[start]))
            start = end
