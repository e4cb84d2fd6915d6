"""Rows of unequal length, one after the other; and the same rows packed into rows of one length.

Shape suffixes: N tokens of all rows, R rows, T tokens of a packed row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SHARED = -(2**31)  # the document number of a beginning that all documents of its row see
MAX_STRETCH, LENGTH_STEPS = 2, 8  # longest packed row, in lengths of the longest row; and how many lengths up to it are tried
TOKEN_COST = 13 * 256  # work of a token in the matrices of a layer 256 wide, in products of a query and a key


class Rows(NamedTuple):
    """Tokens of rows, one after the other; int32.

    A token sees those before it in its row that have its document's number, and those of `SHARED`, which begin a row.
    """

    ids: Tensor  # (N,)
    documents: Tensor  # (N,)
    positions: Tensor  # (N,): in its document, for rotary positions
    starts: Tensor  # (R + 1,): of the rows among the tokens, and the end

    def check(self) -> None:
        """Raises TypeError for rows by which the C++ would read outside of the tensors."""
        N, starts = len(self.ids), self.starts
        if any(x.dtype != torch.int32 or x.dim() != 1 or not x.is_contiguous() or x.device.type != "cpu" for x in self):
            raise TypeError("ids, documents, positions and starts must be vectors of int32 on the processor, without gaps")
        if not N or len(self.documents) != N or len(self.positions) != N or int(self.positions.min()) < 0:
            raise TypeError("documents and positions must be as many as ids, one or more, and positions not below zero")
        if int(starts[0]) or int(starts[-1]) != N or not bool((starts.diff() > 0).all()):
            raise TypeError(f"starts must ascend from 0 to the {N} tokens")


class PackedRows(NamedTuple):
    """Rows of one length T that hold several of `Rows`; all int32 (R, T), but `indices` int64.

    A token sees those before it that have its document's number or its prefix's; padding is a document of its own.
    """

    ids: Tensor
    documents: Tensor
    prefixes: Tensor
    positions: Tensor
    indices: Tensor  # (N,): where in R x T each token lies


def pack_rows(rows: Rows, block: int) -> PackedRows:
    """The rows packed into few rows of one short length, a multiple of `block`: the choice with the least work.

    An odd number of rows counts as one more: two cores take one each. The choice depends on the rows alone, not on the machine.
    """
    starts = rows.starts.numpy().astype(np.int64)
    lengths = np.diff(starts)
    shortest = -(-int(lengths.max()) // block) * block
    step = -(-shortest // (LENGTH_STEPS * block)) * block
    choices = [(T, bins(lengths.tolist(), T)) for T in range(shortest, MAX_STRETCH * shortest + 1, step)]
    T, members = min(choices, key=lambda choice: (len(choice[1]) + len(choice[1]) % 2) * choice[0] * (choice[0] + TOKEN_COST))
    offsets = np.zeros(len(lengths), dtype=np.int64)  # of each row, in R x T
    for number, row_members in enumerate(members):
        offsets[row_members] = number * T + np.cumsum([0, *lengths[row_members[:-1]]])
    row_N = np.repeat(np.arange(len(lengths)), lengths)
    indices_N = offsets[row_N] + np.arange(len(row_N)) - starts[row_N]
    documents = rows.documents.numpy().astype(np.int64)
    first_N = starts[row_N]
    numbers_N = np.unique(np.stack((row_N, documents)), axis=1, return_inverse=True)[1].reshape(-1)
    prefixes_N = np.where(documents[first_N] == SHARED, numbers_N[first_N], numbers_N)

    def spread(values: np.ndarray, padding: int) -> Tensor:
        padded = np.full(len(members) * T, padding, dtype=np.int32)
        padded[indices_N] = values
        return torch.from_numpy(padded).view(-1, T)

    ids, positions = spread(rows.ids.numpy(), 0), spread(rows.positions.numpy(), 0)
    return PackedRows(ids, spread(numbers_N, -1), spread(prefixes_N, -1), positions, torch.from_numpy(indices_N))


def bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the members of each row of `capacity`: the longest first, each into the fullest row that has room for it.

    Best-fit decreasing needs at most 11/9 of the fewest rows (Johnson et al. 1974). Raises ValueError for a length beyond it.
    """
    if any(length > capacity for length in lengths):
        raise ValueError(f"a conversation of {max(lengths)} tokens does not fit a row of {capacity}")
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [(space, row) for row, space in enumerate(free) if space >= lengths[index]]
        if fitting:
            row = min(fitting)[1]
            rows[row].append(index)
            free[row] -= lengths[index]
        else:
            rows.append([index])
            free.append(capacity - lengths[index])
    return rows
