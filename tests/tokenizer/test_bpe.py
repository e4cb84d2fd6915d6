import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.errors import UserError
from groundup.tokenizer.bpe import ALPHABET, count_pretokens, train

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


def test_counting_is_additive_and_blind_to_order():
    texts = ["the cat sat", "the 12 mats\n\n    return x", "Ünïcödé 漢字 🙂"] * 3
    shuffled = random.Random(0).sample(texts, len(texts))
    whole = count_pretokens(texts)
    assert whole[b" 12"] == 0 and whole[b"1"] == whole[b"2"] == 3  # one digit a pre-token
    assert whole[b"   "] == 3  # the last space of an indentation goes with the word
    assert whole == count_pretokens(texts[:4]) + count_pretokens(texts[4:])
    assert train(whole, 300) == train(count_pretokens(shuffled), 300)


def test_counts_beyond_32_bits():
    counts = {b"aaab": 3_000_000_000, b"cd": 4_000_000_000}
    # (a, a) occurs twice in aaab, 6e9 times; then (c, d) with 4e9.
    assert train(counts, 256 + 4 + 2) == [(b"a", b"a"), (b"c", b"d")]


def test_fewer_merges_when_no_pair_is_left():
    assert train({b"ab": 1}, 1000) == [(b"a", b"b")]
    assert train({}, 1000) == []


def test_lone_surrogates_are_replaced_and_pairs_joined():
    assert count_pretokens(["a\ud800", "\ud83d\ude42"]) == {b"a": 1, "\ufffd".encode(): 1, "🙂".encode(): 1}


def test_a_vocabulary_without_room_is_refused():
    assert train({b"ab": 1}, 260) == []
    with pytest.raises(UserError, match="260"):
        train({b"ab": 1}, 259)
