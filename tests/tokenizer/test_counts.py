import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.tokenizer import counts as counting
from groundup.tokenizer.counts import Counts, add, count, count_pretokens, prune
from groundup.tokenizer.patterns import PATTERNS, pattern, pattern_of
from groundup.tokenizer.presplit import cut

# What the rules tell apart, all white space there is, and characters whose UTF-8 begins like that of white space.
TRICKY = "ab'sSé漢9٣.,-\U0001d7d8 \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u180e\u2003\u200b\u2028\u202f\u205f\u3000\u3001’©"
texts = st.lists(st.text(st.one_of(st.sampled_from(TRICKY), st.sampled_from(" \n a1")), max_size=24), max_size=6)


def plainly_counted(documents, pattern):
    found = Counter()
    for document in documents:
        found.update(piece.encode() for piece in regex.findall(pattern, document))
    return dict(found)


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=120, deadline=None)
@given(documents=texts)
def test_counts_are_those_of_the_rule_on_whole_texts(name, documents):
    found = count_pretokens(documents, PATTERNS[name])
    assert found.as_dict() == plainly_counted(documents, PATTERNS[name].regex)
    assert found.pretokens.to_pylist() == sorted(found.pretokens.to_pylist())


@pytest.mark.parametrize("name", PATTERNS)
@given(text=st.text(st.characters(max_codepoint=127), max_size=40))
def test_the_ascii_form_of_a_rule_is_the_rule(name, text):
    plain, full = counting._compiled(PATTERNS[name])
    assert plain(text) == full(text)


@given(documents=texts)
def test_pieces_are_the_text_and_belong_to_their_documents(documents):
    padded = pa.array(["x", *documents, None, "y"], pa.string()).slice(1, len(documents) + 1)  # an array with an offset
    pieces, firsts = cut(padded)
    listed = pieces.to_pylist()
    assert firsts[0] == 0 and firsts[-1] == len(listed)
    joined = [b"".join(listed[firsts[i] : firsts[i + 1]]).decode() for i in range(len(documents) + 1)]
    assert joined == [*documents, ""]


def test_words_of_prose_are_pieces():
    assert cut(pa.array(["The mouse  eats.\n\nA cat"]))[0].to_pylist() == [b"The", b" mouse  eats.\n\n", b"A", b" cat"]


@pytest.mark.parametrize(
    ("name", "text", "pretokens"),
    [
        ("qwen2", "a 1234567\n    return", ["a", " ", *"1234567", "\n", "   ", " return"]),
        ("threes", "a 1234567", ["a", " ", "123", "456", "7"]),
        ("threes-from-right", "a 1234567 12", ["a", " ", "1", "234", "567", " ", "12"]),
        ("indentation", "a b\n    return\n\treturn 1", ["a", " b", "\n", "    ", "return", "\n", "\t", "return", " ", "1"]),
    ],
)
def test_what_each_rule_is_for(name, text, pretokens):
    assert regex.findall(PATTERNS[name].regex, text) == pretokens


def test_rules_are_found_by_name_and_by_pattern():
    assert all(pattern_of(known.regex) is known is pattern(known.name) for known in PATTERNS.values())
    assert pattern_of(r"\S+") is None
    with pytest.raises(UserError, match="did you mean 'threes'"):
        pattern("three")


def test_counting_is_additive_and_blind_to_order():
    documents = ["the cat sat", "the 12 mats\n\n    return x", "Ünïcödé 漢字 🙂"] * 3
    shuffled = random.Random(0).sample(documents, len(documents))
    whole = count_pretokens(documents)
    numbers = whole.as_dict()
    assert b" 12" not in numbers and numbers[b"1"] == numbers[b"2"] == 3  # one digit a pre-token
    assert numbers[b"   "] == 3  # the last space of an indentation goes with the word
    halves = add([count_pretokens(documents[:4]), count_pretokens(documents[4:])])
    for other in (halves, count_pretokens(shuffled)):
        assert other.as_dict() == numbers and other.pretokens == whole.pretokens


def test_many_batches_and_pieces_give_the_same(monkeypatch):
    documents = [f"word{i % 7} is {i}" for i in range(200)]
    expected = count_pretokens(documents).as_dict()
    for name, value in (("BATCH_BYTES", 64), ("PIECES_HELD", 10), ("PIECES_AT_ONCE", 3)):
        monkeypatch.setattr(counting, name, value)
    assert count_pretokens(documents).as_dict() == expected


def test_no_text_has_no_counts():
    for nothing in ([], [""], ["", ""]):
        assert len(count_pretokens(nothing)) == 0
    assert len(count([pa.array([None], pa.string())], PATTERNS["qwen2"])) == 0


def test_lone_surrogates_are_replaced_and_pairs_joined():
    assert count_pretokens(["a\ud800", "\ud83d\ude42"]).as_dict() == {b"a": 1, "\ufffd".encode(): 1, "🙂".encode(): 1}


def test_sums_beyond_32_bits_are_exact_and_beyond_64_are_refused():
    part = Counts.of({b"ab": 2**31 - 1, b"c": 1})
    assert add([part, part, part]).as_dict() == {b"ab": 3 * (2**31 - 1), b"c": 3}
    assert add([part, part], [1000, 1]).as_dict()[b"ab"] == 1001 * (2**31 - 1)
    with pytest.raises(UserError, match="64 bits"):
        add([part], [2**33])


def test_pruning_drops_the_rare_ones_together_and_says_so():
    counts = Counts.of({b"aaaa": 9, b"bbbb": 5, b"cccc": 5, b"dddd": 1})
    kept, loss = prune(counts, 10 * counting.BYTES_PER_CELL)  # room for two words of four bytes and their ends
    assert kept.as_dict() == {b"aaaa": 9} and (loss.distinct, loss.occurrences, loss.total) == (3, 11, 20)
    assert "3 rare or overlong pre-tokens left out, 55.000% of 20" in str(loss)
    kept, loss = prune(counts, 1 << 30)
    assert kept.as_dict() == counts.as_dict() and loss.occurrences == 0


def test_a_pretoken_as_long_as_a_file_is_left_out():
    counts = count_pretokens(["a" * (counting.LONGEST_PRETOKEN + 1), "the cat"])
    kept, loss = prune(counts, 1 << 30)
    assert kept.as_dict() == {b"the": 1, b" cat": 1} and loss.distinct == 1
    assert isinstance(kept.numbers, np.ndarray) and kept.numbers.dtype == np.int64
