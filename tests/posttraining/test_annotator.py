import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.data import simulated_annotator

words = st.lists(st.sampled_from(["copy", "the", "file", "os.path.join", "to", "a", "path"]), max_size=8).map(" ".join)


def test_overlap_is_f1_of_words():
    # 3 words shared (copy, the, file) of 4 and 6: precision 3/4, recall 1/2, F1 0.6.
    assert simulated_annotator.overlap("Copy the file now.", "copy the FILE to a path") == pytest.approx(0.6)
    assert simulated_annotator.overlap("the the the", "the") == pytest.approx(0.5)  # multisets: repeating earns nothing
    assert simulated_annotator.overlap("`os.path.joim`", "`os.path.join`") == 0  # a wrong name is wholly wrong
    assert simulated_annotator.overlap("", "words") == 0
    assert simulated_annotator.overlap("...", "!") == 1


@given(words, words)
def test_overlap_is_symmetric_bounded_and_full_for_equal_texts(a, b):
    assert simulated_annotator.overlap(a, b) == simulated_annotator.overlap(b, a)
    assert 0 <= simulated_annotator.overlap(a, b) <= 1
    assert simulated_annotator.overlap(a, a) == 1


@given(words, words, words, st.floats(0, 1))
def test_swapping_the_answers_swaps_the_choice(a, b, reference, min_gap):
    opposite = {"a": "b", "b": "a", "tie": "tie"}
    choice = simulated_annotator.compare(a, b, reference, min_gap)
    assert simulated_annotator.compare(b, a, reference, min_gap) == opposite[choice]
    gap = simulated_annotator.overlap(a, reference) - simulated_annotator.overlap(b, reference)
    assert (choice == "tie") == (gap == 0 or abs(gap) < min_gap)


def test_sides_are_shown_about_equally_often():
    shown = Counter(simulated_annotator.side_shown_left(f"pair {number}") for number in range(1000))
    assert 430 < shown["a"] < 570 and shown["a"] + shown["b"] == 1000


def test_a_judgement_becomes_a_preference_row():
    one = simulated_annotator.judgement("Q?", "wrong words", "copy the file", "Copy the file.", "p1", 0.05, "b")
    assert json.loads(json.dumps(one)) == {
        "pair_id": "p1",
        "prompt": "Q?",
        "a": "wrong words",
        "b": "copy the file",
        "shown_left": "b",
        "choice": "b",
        "annotator": "simulated",
        "strength": 1.0,
    }
    tie = simulated_annotator.judgement("Q?", "copy", "copy", "Copy the file.", "p2", 0.0, "a")
    assert simulated_annotator.preferences([one, tie]) == [
        {
            "prompt": [{"role": "user", "content": "Q?"}],
            "chosen": [{"role": "assistant", "content": "copy the file"}],
            "rejected": [{"role": "assistant", "content": "wrong words"}],
            "margin": 0.0,
            "annotator": "simulated",
        }
    ]


def label(pair, choice, annotator):
    return {
        "pair_id": pair,
        "prompt": "Q",
        "a": "A",
        "b": "B",
        "shown_left": "a",
        "choice": choice,
        "annotator": annotator,
    }


def test_votes_of_several_people():
    rows = simulated_annotator.preferences(
        [
            *[label("split", choice, who) for choice, who in (("a", "Ann"), ("b", "Bo"))],
            *[label("most", choice, who) for choice, who in (("b", "Ann"), ("b", "Cy"), ("a", "Bo"), ("tie", "Di"))],
            *[label("bad", choice, who) for choice, who in (("both_bad", "Ann"), ("skip", "Bo"))],
            *[label("changed", choice, "Ann") for choice in ("a", "b")],
            *[label("skipped", choice, who) for choice, who in (("a", "Ann"), ("skip", "Bo"))],
            *[label("agreed", "b", who) for who in ("Ann", "Bo")],
        ]
    )
    assert [(row["chosen"][0]["content"], row["margin"], row["annotator"]) for row in rows] == [
        ("B", 0.25, "Ann, Bo, Cy, Di"),
        ("B", 0.0, "Ann"),
        ("A", 0.0, "Ann"),
        ("B", 1.0, "Ann, Bo"),
    ]


def test_a_bad_log_is_refused():
    with pytest.raises(UserError, match="'left'"):
        simulated_annotator.preferences([label("p", "left", "Ann")])
    with pytest.raises(UserError, match="two different pairs"):
        simulated_annotator.preferences([label("p", "a", "Ann"), {**label("p", "a", "Bo"), "b": "C"}])
