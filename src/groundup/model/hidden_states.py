"""Hidden states of rows of unequal length where they are asked for, and little else computed: no padding, no prompt twice.

A batch comes padded on the right. A token sees nothing after it, so a row ends where the last of its hidden states is asked
for. By kernels rows of any length lie one after the other, and rows that begin alike, as both answers of a
preference or a group's answers to one prompt, share their beginning: it is computed once, and what follows in each sees it.
Those in bfloat16 take rows of one length, into which `ragged.shared` puts these. By PyTorch several rows of a decoder are put
into one, kept apart as `documents`.

Shape suffixes: B batch, T time, N tokens that are computed, M places that are asked for, R rows of them, D width.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from groundup.model import float32_layers, native_layers
from groundup.model.ragged import SHARED, Rows, bins

PADDING = 0.1  # of a batch: less is not worth attention in blocks


def hidden_states(
    backbone: nn.Module, ids_BT: Tensor, wanted_M: Tensor, dtype: torch.dtype, documents_BT: Tensor | None = None,
    pack: bool = True,
) -> Tensor:  # fmt: skip
    """Hidden states (M, width) of a model's backbone at the places `wanted_M` of the flattened batch, which ascend.

    Without `pack` PyTorch computes the rows as they are given.
    """
    B, T = ids_BT.shape
    by_kernels = getattr(backbone, "by_kernels_in", None) == dtype
    if by_kernels and documents_BT is not None and len(wanted_M) < B * T:
        rows, at_N = of_documents(ids_BT, documents_BT, wanted_M)
        return _asked(backbone, rows, at_N[wanted_M])
    if documents_BT is None and hasattr(backbone, "by_kernels_in"):
        lengths = _lengths(wanted_M, B, T)
        if by_kernels:
            rows, at_BT = without_padding(ids_BT, lengths, backbone.config.hidden_size)
            return _asked(backbone, rows, at_BT.flatten()[wanted_M])
        if pack and sum(lengths) < (1 - PADDING) * B * T:
            ids_BT, documents_BT, at_BT = packed(ids_BT, lengths)
            wanted_M = at_BT.flatten()[wanted_M]
    hidden = backbone(ids_BT, documents_BT, dtype=dtype).flatten(0, 1)
    return hidden if len(wanted_M) == len(hidden) == B * T else hidden.index_select(0, wanted_M)


def _asked(backbone: nn.Module, rows: Rows, at_M: Tensor) -> Tensor:
    """Of the tokens at these places of the rows, of which some may be there twice; of none, a token is computed all the same."""
    if backbone.by_kernels_in == torch.bfloat16:
        return native_layers.hidden_states(backbone, rows, at_M)
    asked, back_M = at_M.unique(return_inverse=True)
    return float32_layers.hidden_states(backbone, rows, asked if len(asked) else asked.new_zeros(1)).index_select(0, back_M)


def _lengths(wanted_M: Tensor, B: int, T: int) -> list[int]:
    """Tokens of each row up to the last that is asked for; of a batch of which none is, one: it has a gradient all the same."""
    lengths = np.zeros(B, dtype=np.int64)
    places = wanted_M.cpu().numpy()
    np.maximum.at(lengths, places // T, places % T + 1)
    if not len(places):
        lengths[:1] = 1
    return lengths.tolist()


def of_documents(ids_BT: Tensor, documents_BT: Tensor, wanted_M: Tensor) -> tuple[Rows, Tensor]:
    """Each document of each row as a row of its own, as far as it is asked for (of a batch of which nothing is, the first token),
    at its positions in the row that it came in; and where each token of the batch then is (N,), 0 where it is not computed.
    """
    B, T = ids_BT.shape
    row_and_document = np.stack((np.arange(B).repeat(T), documents_BT.numpy().flatten()))
    own_N = np.unique(row_and_document, axis=1, return_inverse=True)[1].reshape(-1)
    places, wanted = np.arange(B * T), wanted_M.numpy() if len(wanted_M) else np.zeros(1, dtype=np.int64)
    last = np.full(B * T, -1)
    np.maximum.at(last, own_N[wanted], wanted)
    kept = places[places <= last[own_N]]
    kept = kept[np.argsort(own_N[kept], kind="stable")]
    starts = np.flatnonzero(np.diff(own_N[kept], prepend=-1, append=-1))
    ids, positions = ids_BT.flatten()[kept], torch.from_numpy(kept % T)
    whole = (ids, torch.zeros_like(ids), positions, torch.from_numpy(starts))
    at_N = np.zeros(B * T, dtype=np.int64)
    at_N[kept] = np.arange(len(kept))
    return Rows(*(one.to(torch.int32) for one in whole)), torch.from_numpy(at_N)


def without_padding(ids_BT: Tensor, lengths: Sequence[int], width: int) -> tuple[Rows, Tensor]:
    """What a model of this width computes of rows of these lengths, and where each of their tokens then is (B, T)."""
    tokens = [row[:length] for row, length in zip(ids_BT.tolist(), lengths, strict=True)]
    ids, documents, positions, starts = [], [], [], [0]
    at_BT = np.zeros(ids_BT.shape, dtype=np.int64)
    for shared, members in groups(tokens, width):
        begin, branches = len(ids), len(members) > 1
        ids += tokens[members[0]][:shared]
        documents += [SHARED if branches else 0] * shared
        positions += range(shared)
        for number, row in enumerate(members):
            rest = tokens[row][shared:]
            at_BT[row, :shared] = range(begin, begin + shared)
            at_BT[row, shared : len(tokens[row])] = range(len(ids), len(ids) + len(rest))
            ids += rest
            documents += [number] * len(rest)
            positions += range(shared, shared + len(rest))
        starts.append(len(ids))
    whole = (torch.tensor(one, dtype=torch.int32) for one in (ids, documents, positions, starts))
    return Rows(*whole), torch.from_numpy(at_BT)


def groups(tokens: Sequence[Sequence[int]], width: int) -> Iterator[tuple[int, list[int]]]:
    """Numbers of rows that share so many first tokens, all rows but empty ones: together where that is less work."""
    shared, members = 0, []
    for row in sorted((row for row in range(len(tokens)) if tokens[row]), key=lambda row: tokens[row]):
        if members:
            common = _common(tokens[members[0]][:shared], tokens[row])
            together = _work(common, [len(tokens[one]) for one in (*members, row)], width)
            if together < _work(shared, [len(tokens[one]) for one in members], width) + _work(0, [len(tokens[row])], width):
                shared = common
                members.append(row)
                continue
            yield (shared if len(members) > 1 else 0), members
        shared, members = len(tokens[row]), [row]
    if members:
        yield (shared if len(members) > 1 else 0), members


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """First tokens that are alike."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _work(shared: int, lengths: Sequence[int], width: int) -> int:
    """In products of a query and a key: a token passes matrices of 13 width^2 numbers in a layer, a pair costs 2 width.

    What a row alone needs too is left out: only pairs of tokens that do not see each other, of rows side by side, count.
    """
    rests = [length - shared for length in lengths]
    before = np.cumsum([0, *rests[:-1]])
    return 13 * width // 2 * (shared + sum(rests)) + int(np.dot(rests, before))


def packed(ids_BT: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and documents of fewer rows, (R, longest), and where in them, flattened, each token of the given ones is (B, T)."""
    longest = max(lengths)
    there = [row for row, length in enumerate(lengths) if length]
    rows = bins([lengths[row] for row in there], longest)
    ids, documents = np.zeros((2, len(rows), longest), dtype=np.int64)
    at_BT, given = np.zeros(ids_BT.shape, dtype=np.int64), ids_BT.cpu().numpy()
    for number, members in enumerate(rows):
        start = 0
        for document, member in enumerate(members, start=1):
            row, length = there[member], lengths[there[member]]
            ids[number, start : start + length], documents[number, start : start + length] = given[row, :length], document
            at_BT[row, :length] = np.arange(length) + number * longest + start
            start += length
    return tuple(torch.from_numpy(one).to(ids_BT.device) for one in (ids, documents, at_BT))
