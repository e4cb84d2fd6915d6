"""Rows of unequal length put into rows of one length: every token is there once, and sees what it did."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.model.ragged import SHARED, Rows, bins, pack_rows

BLOCK = 8


@st.composite
def ragged(draw):
    """Rows of several documents each, some with a beginning that all of the row see."""
    documents, positions, starts = [], [], [0]
    for _ in range(draw(st.integers(1, 7))):
        common = draw(st.integers(0, 9))
        row = [SHARED] * common
        for number in draw(st.lists(st.integers(0, 3), min_size=0 if common else 1, max_size=3, unique=True)):
            row += [number] * draw(st.integers(1, 12))
        documents += row
        positions += range(len(row))
        starts.append(len(documents))
    ids = range(1, len(documents) + 1)
    return Rows(*(torch.tensor(list(one), dtype=torch.int32) for one in (ids, documents, positions, starts)))


def seen_in(rows):
    """(N, N): whether a token sees another, by what `Rows` says."""
    documents = rows.documents.numpy()
    row = np.repeat(np.arange(len(rows.starts) - 1), np.diff(rows.starts.numpy()))
    order = np.arange(len(documents))
    alike = (documents[:, None] == documents) | (documents == SHARED)
    return (row[:, None] == row) & (order[:, None] >= order) & alike


@settings(max_examples=200, deadline=None)
@given(rows=ragged())
def test_every_token_is_there_once_and_sees_what_it_saw(rows):
    rows.check()
    found = pack_rows(rows, BLOCK)
    R, T = found.ids.shape
    at = found.indices.numpy()
    lengths = np.diff(rows.starts.numpy())
    assert T % BLOCK == 0 and max(lengths) <= T <= 2 * (max(lengths) + BLOCK) and len(set(at)) == len(rows.ids)
    for before, placed in ((rows.ids, found.ids), (rows.positions, found.positions)):
        assert torch.equal(placed.flatten()[found.indices], before)
    assert (found.ids.flatten() != 0).sum() == len(rows.ids)  # the rest is padding, by the number -1
    documents, prefixes = (one.numpy().reshape(-1) for one in (found.documents, found.prefixes))
    assert np.count_nonzero(documents == -1) == R * T - len(rows.ids)
    same = (documents[at][:, None] == documents[at]) | (prefixes[at][:, None] == documents[at])
    placed_row = at // T
    sees = (placed_row[:, None] == placed_row) & (at[:, None] >= at) & same
    assert np.array_equal(sees, seen_in(rows))


def test_two_cores_have_as_many_rows_each_where_that_is_no_more_work():
    lengths = [64, 50, 40, 20]
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    tokens = torch.zeros(sum(lengths), dtype=torch.int32)
    found = pack_rows(Rows(tokens, tokens, tokens, starts), 32)
    assert found.ids.shape == (2, 96)  # of 64 there would be three, which take two cores as long as four


def test_a_row_longer_than_there_is_room_for_is_refused():
    with pytest.raises(ValueError, match="9 tokens does not fit a row of 8"):
        bins([9], 8)
