"""Agreement against figures worked out by hand or printed in the papers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.labelling.agreement import (
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    left_chosen,
    longer_chosen,
    ratings_table,
    raw_agreement,
    summary,
)

# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", part C: four observers, twelve units, nominal: 0.743.
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, -1, -1, -1],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, -1, 3],
        [-1, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, -1],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, -1],
    ]
).T


def test_alpha_of_the_paper():
    assert round(krippendorff_alpha(KRIPPENDORFF), 3) == 0.743


def test_cohen_by_hand():
    # 20 both yes, 15 both no, 5 and 10 differ: observed 0.7, by chance 0.5.
    first = np.array([0] * 25 + [1] * 25)
    second = np.array([0] * 20 + [1] * 5 + [0] * 10 + [1] * 15)
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert raw_agreement(np.stack([first, second], 1)) == pytest.approx(0.7)


def test_fleiss_of_the_paper():
    # The worked example of ten subjects and fourteen raters in five categories: 0.210.
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    ratings = np.array([np.repeat(np.arange(5), row) for row in counts])
    assert round(fleiss_kappa(ratings), 3) == 0.210


def test_what_is_not_defined_is_nan():
    nothing, same = ratings_table([])[0], np.zeros((3, 2), np.int64)
    for figure in (raw_agreement, fleiss_kappa, krippendorff_alpha):
        assert math.isnan(figure(nothing))
    assert math.isnan(fleiss_kappa(same)) and math.isnan(krippendorff_alpha(same))
    assert math.isnan(cohen_kappa(same[:, 0], same[:, 1])) and raw_agreement(same) == 1


@given(st.lists(st.tuples(*[st.integers(-1, 3)] * 3), max_size=12))
def test_neither_names_nor_order_matter(rows):
    ratings = np.array(rows, dtype=np.int64).reshape(-1, 3)
    renamed = np.where(ratings < 0, -1, 3 - ratings)[::-1, ::-1]
    for figure in (raw_agreement, fleiss_kappa, krippendorff_alpha):
        assert figure(renamed) == pytest.approx(figure(ratings), nan_ok=True)
        assert math.isnan(figure(ratings)) or figure(ratings) <= 1 + 1e-12


def event(annotator, choice, pair="1", left="a", a="one two", b="one", **more):
    return {"pair_id": pair, "annotator": annotator, "choice": choice, "shown_left": left, "a": a, "b": b, **more}


def test_bias_counts_only_what_can_show_it():
    told = [event("x", "a"), event("x", "b", left="b"), event("x", "a", a="one", left="b"), event("x", "tie")]
    assert {**longer_chosen(told), "low": 0, "high": 0} == {"share": 0.5, "low": 0, "high": 0, "n": 2}
    left = left_chosen(told)
    assert (left["share"], left["n"]) == (pytest.approx(2 / 3), 3) and left["low"] < 2 / 3 < left["high"]


def test_a_summary_of_two_annotators():
    said = {"1": "aa", "2": "bb", "3": "ab"}
    told = [event(name, both[column], pair) for pair, both in said.items() for column, name in enumerate("xy")]
    told += [event("x", "skip", "4"), event("y", "a", "4", gold="b")]
    found = summary(told)
    assert found["raw_agreement"] == pytest.approx(2 / 3)
    # x says a, b, a; y says a, b, b: observed 2/3, by chance 4/9.
    assert found["cohen_kappa"] == {"x, y": pytest.approx(0.4)}
    assert found["annotators"]["y"]["gold"]["share"] == 0 and found["annotators"]["x"]["gold"]["n"] == 0
    assert found["annotators"]["x"]["judgements"] == 3
