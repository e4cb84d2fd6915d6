"""How likely a model finds continuations of contexts, each context computed once.

The questions of a subject begin with the same examples, the answers to a question with the same question. So requests are
sorted by their tokens; what a run of them begins with goes through the model once, and its keys and values are kept; what
few of them share besides, such as a question, is one row with a branch for each answer: a token sees what is on its way
from the root, and its position is its depth. Letters after one prompt need no tokens of their own: they are read off the
same logits. Other architectures than the decoder, which cannot branch, score each request as a row.

The result of a request does not depend on the others but in the last bits of float32.
Shape suffixes: those of `model.decoder`; P tokens of the shared beginning, T of a row after it.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from groundup.core.errors import UserError
from groundup.model.decoder import Decoder, KeyValueCache, LanguageModel
from groundup.model.likelihood import of_tokens

SHARED = 32  # tokens that requests must have in common before keys and values are kept for them
SHARING = 4  # contexts that must have them in common: fewer are better off as branches in a batch with all others
SHARED_OF_ROW = 0.25  # of a request's own tokens that must stand in a row already for it to join as a branch
BATCH_TOKENS = 16_384  # those of the shared beginning counted for every row: that much memory is at work at once
LONGEST_ROW = 2048  # tokens with branches: attention of a row costs their square


class Request(NamedTuple):
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
def score(model: LanguageModel, requests: Sequence[Request], batch_size: int = 64) -> list[Scored]:
    """Each request's result, in their order. At most `batch_size` rows are computed at once.

    Raises ValueError for a request without context or continuation, or longer than the model's context and one token;
    UserError where the model computes numbers that are not finite.
    """
    longest = model.config.max_position_embeddings + 1
    for ids, start in requests:
        if not 0 < start < len(ids) <= longest:
            raise ValueError(f"a request of {len(ids)} tokens, of which {start} are context")
    found: list[Scored | None] = [None] * len(requests)
    shares = isinstance(model, Decoder)
    for numbers, length in _groups(requests, shares):
        beginning = requests[numbers[0]].ids[:length]
        rows = sorted(_rows(requests, numbers, length, shares), key=lambda row: len(row.tokens))
        kept = _Beginning(model, beginning) if length else None
        for some in _batches(rows, length, batch_size):
            hidden_BTD = _hidden(model, some, kept)
            _collect(model, requests, some, hidden_BTD, found)
    return [one for one in found if one is not None]


def _groups(requests: Sequence[Request], shares: bool) -> Iterator[tuple[list[int], int]]:
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


def _rows(requests: Sequence[Request], numbers: Sequence[int], length: int, shares: bool) -> Iterator[_Row]:
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


def _batches(rows: list[_Row], length: int, batch_size: int) -> Iterator[list[_Row]]:
    """Rows in order of their length, as many as fit."""
    some: list[_Row] = []
    for row in rows:
        if some and (len(some) >= batch_size or (len(some) + 1) * (length + len(row.tokens)) > BATCH_TOKENS):
            yield some
            some = []
        some.append(row)
    if some:
        yield some


class _Beginning:
    """Keys and values of tokens that several rows begin with."""

    def __init__(self, model: Decoder, ids: Sequence[int]) -> None:
        self.length = len(ids)
        device = model.lm_head.weight.device
        self.cache = KeyValueCache.empty(model.config, 1, self.length, device)
        backbone = model.model
        ids_1P = torch.tensor([ids], device=device)
        places = backbone.places(torch.arange(self.length, device=device)[None])
        places.slots = torch.arange(self.length, device=device)[None]
        places.visible = torch.ones(self.length, self.length, dtype=torch.bool, device=device).tril()[None, None]
        _through(model, ids_1P, places, self.cache)

    def room(self, rows: int, tokens: int) -> KeyValueCache:
        """For so many rows of so many tokens, each after this beginning."""

        def widened(one: Tensor) -> Tensor:
            return torch.cat((one.expand(rows, -1, -1, -1), one.new_zeros(rows, one.shape[1], tokens, one.shape[3])), 2)

        return KeyValueCache([*map(widened, self.cache.keys)], [*map(widened, self.cache.values)], self.cache.filled)


def _through(model: Decoder, ids_BT: Tensor, places: object, cache: KeyValueCache | None) -> Tensor:
    """Hidden states (B, T, D) of tokens whose places are given."""
    backbone = model.model
    x_BTD = backbone.embed_tokens(ids_BT)
    for index, layer in enumerate(backbone.layers):
        x_BTD = layer(x_BTD, places, (cache.keys[index], cache.values[index]) if cache else None)
    return backbone.norm(x_BTD)


def _hidden(model: LanguageModel, rows: list[_Row], kept: _Beginning | None) -> Tensor:
    """Hidden states (B, T, D) of the rows' tokens; what is beyond a row's end means nothing."""
    device = model.lm_head.weight.device
    B, T, P = len(rows), max(len(row.tokens) for row in rows), kept.length if kept else 0
    ids, depths = np.zeros((B, T), np.int64), np.tile(np.arange(T), (B, 1))
    for number, row in enumerate(rows):
        ids[number, : len(row.tokens)] = row.tokens
    ids_BT = torch.from_numpy(ids).to(device)
    if not P and not any(row.branches for row in rows):
        return model.model(ids_BT)
    seen = np.zeros((B, T, P + T), bool)
    seen[:, :, :P] = True
    seen[:, np.arange(T), P + np.arange(T)] = True  # padding too, since what sees nothing is not a number
    for number, row in enumerate(rows):
        depths[number, : len(row.tokens)] = row.depths
        for place, parent in enumerate(row.parents):
            if parent >= 0:
                seen[number, place, P:] |= seen[number, parent, P:]
    places = model.model.places(torch.from_numpy(P + depths).to(device))
    places.visible = torch.from_numpy(seen[:, None]).to(device)
    if not kept:
        return _through(model, ids_BT, places, None)
    places.slots = (P + torch.arange(T, device=device)).expand(B, T)
    return _through(model, ids_BT, places, kept.room(B, T))


def _collect(
    model: LanguageModel, requests: Sequence[Request], rows: list[_Row], hidden_BTD: Tensor, found: list[Scored | None]
) -> None:
    """Fill `found` with the results of the rows' requests."""
    place_of: dict[tuple[int, int], int] = {}  # (row, token) -> which of the states that are asked for
    asked: list[int] = []
    targets: list[int] = []
    for number, row in enumerate(rows):
        for request, way in row.wanted:
            asked += [place_of.setdefault((number, token), len(place_of)) for token in way]
            targets += requests[request].ids[requests[request].start :]
    device = hidden_BTD.device
    where = torch.tensor([*place_of], device=device)
    hidden_MD = hidden_BTD[where[:, 0], where[:, 1]]
    nats_N, likeliest_M = of_tokens(
        hidden_MD, model.lm_head.weight, torch.tensor(asked, device=device), torch.tensor(targets, device=device)
    )
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
