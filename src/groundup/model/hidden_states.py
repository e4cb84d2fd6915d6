"""Hidden states at chosen positions of rows of unequal length; little else is computed: no padding, no prompt twice.

A batch comes padded on the right. A token sees nothing after it, so a row ends at the last of its hidden states that is asked
for. For the kernels rows of any length lie one after the other, and rows that begin alike, as both answers of a preference or a
group's answers to one prompt, share their beginning: it is computed once, and what follows in each row sees it. The kernels in
bfloat16 take rows of one length: `ragged.pack_rows` packs these into such. For PyTorch several rows of a decoder are packed into
one, kept apart as `documents`.

Shape suffixes: B batch, T time, N tokens that are computed, M positions that are asked for, R rows of them, D width.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from groundup.model import float32_layers, native_layers
from groundup.model.ragged import SHARED, Rows, bins

MIN_PADDING = 0.1  # part of a batch: with less padding, packing is not worth its attention mask


def hidden_states(
    backbone: nn.Module, ids_BT: Tensor, indices_M: Tensor, dtype: torch.dtype, documents_BT: Tensor | None = None,
    pack: bool = True,
) -> Tensor:  # fmt: skip
    """Hidden states (M, width) of a model's backbone at `indices_M` of the flattened batch, which ascend.

    Without `pack` PyTorch computes the rows as they are given.
    """
    B, T = ids_BT.shape
    by_kernels = getattr(backbone, "kernel_dtype", None) == dtype
    if by_kernels and documents_BT is not None and len(indices_M) < B * T:
        rows, new_index_N = document_rows(ids_BT, documents_BT, indices_M)
        return _hidden_states_at(backbone, rows, new_index_N[indices_M])
    if documents_BT is None and hasattr(backbone, "kernel_dtype"):
        lengths = _lengths(indices_M, B, T)
        if by_kernels:
            rows, new_index_BT = without_padding(ids_BT, lengths, backbone.config.hidden_size)
            return _hidden_states_at(backbone, rows, new_index_BT.flatten()[indices_M])
        if pack and sum(lengths) < (1 - MIN_PADDING) * B * T:
            ids_BT, documents_BT, new_index_BT = packed(ids_BT, lengths)
            indices_M = new_index_BT.flatten()[indices_M]
    hidden = backbone(ids_BT, documents_BT, dtype=dtype).flatten(0, 1)
    return hidden if len(indices_M) == len(hidden) == B * T else hidden.index_select(0, indices_M)


def _hidden_states_at(backbone: nn.Module, rows: Rows, indices_M: Tensor) -> Tensor:
    """Hidden states of the tokens at these indices, which may repeat; if there are none, one token is computed all the same."""
    if backbone.kernel_dtype == torch.bfloat16:
        return native_layers.hidden_states(backbone, rows, indices_M)
    distinct, inverse_M = indices_M.unique(return_inverse=True)
    return float32_layers.hidden_states(backbone, rows, distinct if len(distinct) else distinct.new_zeros(1)).index_select(
        0, inverse_M
    )


def _lengths(indices_M: Tensor, B: int, T: int) -> list[int]:
    """Tokens of each row up to the last that is asked for; if none is, one token of the first row: it needs a gradient."""
    lengths = np.zeros(B, dtype=np.int64)
    indices = indices_M.cpu().numpy()
    np.maximum.at(lengths, indices // T, indices % T + 1)
    if not len(indices):
        lengths[:1] = 1
    return lengths.tolist()


def document_rows(ids_BT: Tensor, documents_BT: Tensor, indices_M: Tensor) -> tuple[Rows, Tensor]:
    """Each document of each row as a row of its own, up to its last token that is asked for (if none is, the first token of all),
    at its positions in the row that it came in; and the new index of each token of the batch (N,), 0 if it is not computed.
    """
    B, T = ids_BT.shape
    row_and_document = np.stack((np.arange(B).repeat(T), documents_BT.numpy().flatten()))
    document_N = np.unique(row_and_document, axis=1, return_inverse=True)[1].reshape(-1)
    indices, wanted = np.arange(B * T), indices_M.numpy() if len(indices_M) else np.zeros(1, dtype=np.int64)
    last = np.full(B * T, -1)
    np.maximum.at(last, document_N[wanted], wanted)
    order = indices[indices <= last[document_N]]
    order = order[np.argsort(document_N[order], kind="stable")]
    starts = np.flatnonzero(np.diff(document_N[order], prepend=-1, append=-1))
    ids, positions = ids_BT.flatten()[order], torch.from_numpy(order % T)
    tensors = (ids, torch.zeros_like(ids), positions, torch.from_numpy(starts))
    new_index_N = np.zeros(B * T, dtype=np.int64)
    new_index_N[order] = np.arange(len(order))
    return Rows(*(tensor.to(torch.int32) for tensor in tensors)), torch.from_numpy(new_index_N)


def without_padding(ids_BT: Tensor, lengths: Sequence[int], width: int) -> tuple[Rows, Tensor]:
    """The rows that a model of this width computes for rows of these lengths, and the new index of each token (B, T)."""
    tokens = [row[:length] for row, length in zip(ids_BT.tolist(), lengths, strict=True)]
    ids, documents, positions, starts = [], [], [], [0]
    new_index_BT = np.zeros(ids_BT.shape, dtype=np.int64)
    for prefix, members in groups(tokens, width):
        begin, branches = len(ids), len(members) > 1
        ids += tokens[members[0]][:prefix]
        documents += [SHARED if branches else 0] * prefix
        positions += range(prefix)
        for document, row in enumerate(members):
            rest = tokens[row][prefix:]
            new_index_BT[row, :prefix] = range(begin, begin + prefix)
            new_index_BT[row, prefix : len(tokens[row])] = range(len(ids), len(ids) + len(rest))
            ids += rest
            documents += [document] * len(rest)
            positions += range(prefix, prefix + len(rest))
        starts.append(len(ids))
    tensors = (torch.tensor(values, dtype=torch.int32) for values in (ids, documents, positions, starts))
    return Rows(*tensors), torch.from_numpy(new_index_BT)


def groups(tokens: Sequence[Sequence[int]], width: int) -> Iterator[tuple[int, list[int]]]:
    """(length of a common prefix, the rows that share it) of all rows but empty ones: shared where that is less work."""
    prefix, members = 0, []
    for row in sorted((row for row in range(len(tokens)) if tokens[row]), key=lambda row: tokens[row]):
        if members:
            shorter_prefix = _common_prefix(tokens[members[0]][:prefix], tokens[row])
            joint_work = _work(shorter_prefix, [len(tokens[one]) for one in (*members, row)], width)
            if joint_work < _work(prefix, [len(tokens[one]) for one in members], width) + _work(0, [len(tokens[row])], width):
                prefix = shorter_prefix
                members.append(row)
                continue
            yield (prefix if len(members) > 1 else 0), members
        prefix, members = len(tokens[row]), [row]
    if members:
        yield (prefix if len(members) > 1 else 0), members


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many first tokens are the same."""
    return next((index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _work(prefix: int, lengths: Sequence[int], width: int) -> int:
    """In products of a query and a key: a token passes matrices of 13 width^2 numbers in a layer, a pair costs 2 width.

    Pairs within a row are left out, as each row needs them alone too: only pairs of tokens of different rows count.
    """
    rests = [length - prefix for length in lengths]
    before = np.cumsum([0, *rests[:-1]])
    return 13 * width // 2 * (prefix + sum(rests)) + int(np.dot(rests, before))


def packed(ids_BT: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and documents of fewer rows, (R, longest), and the index in them, flattened, of each given token (B, T)."""
    longest = max(lengths)
    nonempty = [row for row, length in enumerate(lengths) if length]
    rows = bins([lengths[row] for row in nonempty], longest)
    ids, documents = np.zeros((2, len(rows), longest), dtype=np.int64)
    new_index_BT, source = np.zeros(ids_BT.shape, dtype=np.int64), ids_BT.cpu().numpy()
    for number, members in enumerate(rows):
        start = 0
        for document, member in enumerate(members, start=1):
            row, length = nonempty[member], lengths[nonempty[member]]
            ids[number, start : start + length], documents[number, start : start + length] = source[row, :length], document
            new_index_BT[row, :length] = np.arange(length) + number * longest + start
            start += length
    return tuple(torch.from_numpy(array).to(ids_BT.device) for array in (ids, documents, new_index_BT))
