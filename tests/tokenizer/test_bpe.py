from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.tokenizer import bpe
from groundup.tokenizer.bpe import ALPHABET, train
from groundup.tokenizer.counts import Counts

ID = {byte: number for number, byte in enumerate(ALPHABET)}


def naive_train(counts, merges_wanted):
    """Textbook BPE: count every pair anew before each merge."""
    words = {word: [(ID[byte], bytes([byte])) for byte in word] for word in counts}
    merges = []
    while len(merges) < merges_wanted:
        pairs = Counter()
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair[0][0], pair[1][0]), default=None)
        if best is None or pairs[best] <= 0:
            break
        token = (256 + len(merges), best[0][1] + best[1][1])
        merges.append((best[0][1], best[1][1]))
        for word, symbols in words.items():
            joined = []
            for symbol in symbols:
                joined.append(symbol)
                if len(joined) >= 2 and (joined[-2], joined[-1]) == best:
                    joined[-2:] = [token]
            words[word] = joined
    return merges


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text("ab ", min_size=1, max_size=12).map(str.encode), st.integers(0, 5), max_size=12))
def test_merges_are_those_of_textbook_bpe(counts):
    merges = train(counts, 256 + 4 + 25)
    assert merges == naive_train(counts, 25)
    joined = [left + right for left, right in merges]
    assert len(set(joined)) == len(joined)


def test_counts_beyond_32_bits():
    counts = {b"aaab": 3_000_000_000, b"cd": 4_000_000_000}
    # (a, a) occurs twice in aaab, 6e9 times; then (c, d) with 4e9.
    assert train(counts, 256 + 4 + 2) == [(b"a", b"a"), (b"c", b"d")]


any_words = st.dictionaries(st.text("ab -", min_size=1, max_size=12).map(str.encode), st.integers(0, 1 << 40), max_size=12)


@pytest.mark.parametrize(("many_positions", "followed"), [(0, 1), (0, 16), (2, 3), (1 << 30, 1 << 60)])
@settings(max_examples=60, deadline=None)
@given(counts=any_words)
def test_merging_at_once_and_one_by_one_are_the_same(many_positions, followed, counts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "MANY_POSITIONS", many_positions)
        patch.setattr(bpe, "FOLLOWED", followed)
        assert train(counts, 256 + 4 + 25) == naive_train(counts, 25)


def test_counts_beyond_64_bits_are_refused():
    with pytest.raises(UserError, match="64 bits"):
        train({b"ab": 2**62}, 300)


def test_the_order_of_pretokens_does_not_matter():
    counts = {b" the": 5, b" then": 3, b" hen": 4, "漢字".encode(): 2}
    assert train(counts, 280) == train(dict(reversed(counts.items())), 280) == train(Counts.of(counts), 280)


def test_fewer_merges_when_no_pair_is_left():
    assert train({b"ab": 1}, 1000) == [(b"a", b"b")]
    assert train({}, 1000) == []


def test_a_vocabulary_without_room_is_refused():
    assert train({b"ab": 1}, 260) == []
    with pytest.raises(UserError, match="260"):
        train({b"ab": 1}, 259)


def test_pairs_are_sorted_alike_however_many_bits_they_take():
    symbols = np.random.default_rng(0).integers(-2, 40, 500).astype(np.int32)
    found = {room: bpe._by_pair(symbols, room) for room in (40, 1 << 28)}
    for room, (pairs, places) in found.items():
        assert [*zip(pairs // room, pairs % room, strict=True)] == [*zip(symbols[places], symbols[places + 1], strict=True)]
        assert [*zip(pairs, places, strict=True)] == sorted(zip(pairs, places, strict=True))
    assert (found[40][1] == found[1 << 28][1]).all()
    assert len(found[40][1]) == sum(left >= 0 <= right for left, right in pairwise(symbols))
