"""ROUGE-L beside the table that it is defined by, and the search for near texts beside comparing all with all."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from groundup.posttraining.rouge import Distinct, f1, lcs_length, rouge_l, tokens

some = st.lists(st.sampled_from("abcdefg"), max_size=12)


def table(first, second):
    row = [0] * (len(second) + 1)
    for one in first:
        corner = 0
        for place, other in enumerate(second, start=1):
            corner, row[place] = row[place], corner + 1 if one == other else max(row[place], row[place - 1])
    return row[-1]


@settings(max_examples=40)
@given(some, some)
def test_the_longest_common_subsequence(first, second):
    assert lcs_length(first, second) == table(first, second) == lcs_length(second, first)


@settings(max_examples=40)
@given(st.lists(some, max_size=12), some, st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0]))
@example([list("abcdefg")], list("abcdefg"), 1.0)
@example([list("abcdefgabcdef")], list("abcdefg"), 0.7)  # 2 * 7 / 20: the limit itself
def test_near_texts_are_those_that_comparing_all_finds(others, text, limit):
    distinct = Distinct(limit)
    for other in others:
        distinct.add(" ".join(other))
    scores = [f1(table(text, other), len(text), len(other)) for other in others]
    assert distinct.near_duplicate(" ".join(text)) == next((n for n, found in enumerate(scores) if found >= limit), None)


def test_scripts_other_than_latin_have_tokens():
    assert tokens("Übung macht den Meister!") == ["übung", "macht", "den", "meister"]
    assert tokens("写一首诗 2x") == ["写", "一", "首", "诗", "2x"]
    assert rouge_l("напиши стих", "напиши письмо") == pytest.approx(0.5)
    assert rouge_l("...", "...") == 0


def test_few_are_compared():
    distinct = Distinct(0.7)
    for number in range(1000):
        distinct.add(f"write a short text about the number {number} and the number {number * 7} of all the {number % 13} days")
    assert distinct.near_duplicate("write an answer to the letter below and say that you agree with all of it") is None
    assert distinct.compared < 10
