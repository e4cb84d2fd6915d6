"""Rows of unequal length, one after the other, and the same in rows of one length that several share.

Shape suffixes: N tokens of all rows, R rows, T tokens of a row in which several lie.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SHARED = -(2**31)  # the number of a document that all of its row see
WIDEST, STEPS = 2, 8  # times the longest row: what several may share; and lengths that are tried between
OF_A_TOKEN = 13 * 256  # its products with the matrices of a layer 256 wide, in such of a query and a key


class Rows(NamedTuple):
    """Tokens of rows, one after the other; int32.

    A token sees those before it in its row that have its document's number, and those of `SHARED`, which begin a row.
    """

    ids: Tensor  # (N,)
    documents: Tensor  # (N,)
    positions: Tensor  # (N,): in its document, for rotary positions
    starts: Tensor  # (R + 1,): of the rows among the tokens, and the end

    def check(self) -> None:
        """Raises TypeError for what the C++ would read beyond."""
        N, starts = len(self.ids), self.starts
        if any(one.dtype != torch.int32 or one.dim() != 1 or not one.is_contiguous() or one.device.type != "cpu" for one in self):
            raise TypeError("ids, documents, positions and starts must be vectors of int32 on the processor, without gaps")
        if not N or len(self.documents) != N or len(self.positions) != N or int(self.positions.min()) < 0:
            raise TypeError("documents and positions must be as many as ids, one or more, and positions not below zero")
        if int(starts[0]) or int(starts[-1]) != N or not bool((starts.diff() > 0).all()):
            raise TypeError(f"starts must ascend from 0 to the {N} tokens")


class Shared(NamedTuple):
    """Rows of one length T that hold several of `Rows`; all int32 (R, T), but `at` int64.

    A token sees those before it that have its document's number or its prefix's; padding is a document of its own.
    """

    ids: Tensor
    documents: Tensor
    prefixes: Tensor
    positions: Tensor
    at: Tensor  # (N,): where in R x T each token lies


def shared(rows: Rows, block: int) -> Shared:
    """The rows in as few places of as short a row as can be, whose length is a multiple of `block`.

    They are an even number where that is no more work: two cores take one each. The choice asks the rows alone, no machine.
    """
    starts = rows.starts.numpy().astype(np.int64)
    lengths = np.diff(starts)
    shortest = -(-int(lengths.max()) // block) * block
    step = -(-shortest // (STEPS * block)) * block
    choices = [(T, bins(lengths.tolist(), T)) for T in range(shortest, WIDEST * shortest + 1, step)]
    T, members = min(choices, key=lambda choice: (len(choice[1]) + len(choice[1]) % 2) * choice[0] * (choice[0] + OF_A_TOKEN))
    begins = np.zeros(len(lengths), dtype=np.int64)  # of each row, in R x T
    for number, some in enumerate(members):
        begins[some] = number * T + np.cumsum([0, *lengths[some[:-1]]])
    row_N = np.repeat(np.arange(len(lengths)), lengths)
    at_N = begins[row_N] + np.arange(len(row_N)) - starts[row_N]
    documents = rows.documents.numpy().astype(np.int64)
    first_N = starts[row_N]
    numbers_N = np.unique(np.stack((row_N, documents)), axis=1, return_inverse=True)[1].reshape(-1)
    prefixes_N = np.where(documents[first_N] == SHARED, numbers_N[first_N], numbers_N)

    def spread(values: np.ndarray, padding: int) -> Tensor:
        whole = np.full(len(members) * T, padding, dtype=np.int32)
        whole[at_N] = values
        return torch.from_numpy(whole).view(-1, T)

    ids, positions = spread(rows.ids.numpy(), 0), spread(rows.positions.numpy(), 0)
    return Shared(ids, spread(numbers_N, -1), spread(prefixes_N, -1), positions, torch.from_numpy(at_N))


def bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of what shares a row of `capacity`: the longest first, each into the fullest row that has room for it.

    Best-fit decreasing needs at most 11/9 of the fewest rows (Johnson et al. 1974). Raises ValueError for what fits in none.
    """
    if any(length > capacity for length in lengths):
        raise ValueError(f"a conversation of {max(lengths)} tokens does not fit a row of {capacity}")
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [(left, row) for row, left in enumerate(room) if left >= lengths[index]]
        if fits:
            row = min(fits)[1]
            rows[row].append(index)
            room[row] -= lengths[index]
        else:
            rows.append([index])
            room.append(capacity - lengths[index])
    return rows
