"""Intervals, comparisons and calibration, on cases worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.statistics import proportion
from groundup.evaluation import metrics

rights = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40)


@given(rights)
def test_without_clusters_it_is_wilsons(values):
    found = metrics.mean_interval(values)
    assert found == pytest.approx(proportion(sum(values), len(values)))
    assert metrics.mean_interval(values, ["all"] * len(values)) == found  # one cluster tells nothing
    assert metrics.mean_interval(values, [str(n) for n in range(len(values))]) == found  # nor do clusters of one


def test_standard_error_by_hand():
    # Mean 1/2; the sums of deviations are +1 and -1.
    assert metrics.standard_error([1, 1, 0, 0], ["a", "a", "b", "b"]) == pytest.approx(math.sqrt(2) / 4)
    assert metrics.standard_error([1, 0, 1, 0], ["a", "a", "b", "b"]) == 0
    assert metrics.standard_error([1, 1, 0, 0]) == pytest.approx(math.sqrt(1 / 3 / 4))
    assert metrics.standard_error([1]) == 0


def test_questions_that_err_together_are_worth_fewer():
    values = [1.0] * 50 + [0.0] * 50
    apart, together = metrics.mean_interval(values), metrics.mean_interval(values, [str(n // 10) for n in range(100)])
    assert together["clusters"] == 10 and together["low"] < apart["low"] < 0.5 < apart["high"] < together["high"]
    assert together == pytest.approx({**proportion(5, 10), "n": 100, "clusters": 10}, rel=0.2)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from("abc")), min_size=1, max_size=40))
def test_intervals_hold_their_mean(pairs):
    values, clusters = zip(*pairs, strict=True)
    found = metrics.mean_interval(values, clusters)
    assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1 and found["low"] < found["high"]
    assert metrics.mean_interval([], clusters[:0])["n"] == 0


def test_macro_and_micro():
    assert metrics.macro([1, 0, 0, 0], ["a", "b", "b", "b"]) == 0.5
    assert metrics.macro([1, 0], ["a", "a"]) is None


def test_comparison_by_hand():
    found = metrics.compare([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1])
    assert found["difference"] == pytest.approx(4 / 6) and found["p"] == pytest.approx(14 / 64)  # 2 x (1 + 6) / 2^6
    assert metrics.compare([1, 0], [1, 0])["p"] == 1 and metrics.compare([1, 0], [1, 0])["n_to_tell"] is None
    with pytest.raises(ValueError, match="pairs"):
        metrics.compare([1], [1, 0])
    with pytest.raises(ValueError, match="pairs"):
        metrics.compare([], [])


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_pairs_that_are_all_alike_leave_doubt(n):
    """Whoever saw five questions does not know all: no interval is a point, and one question tells nothing."""
    same, better = metrics.compare([1] * n, [1] * n), metrics.compare([1] * n, [0] * n)
    assert same["low"] == -same["high"] < 0 and same["p"] == 1 and same["n_to_tell"] is None
    assert better["low"] < better["difference"] == better["high"] == 1 and better["p"] == pytest.approx(min(1, 2 * 0.5**n))
    assert (better["low"] > 0) == (n > 2) and (better["n_to_tell"] > 1 or n > 5)
    of_two = metrics.compare([1] * n, [0] * n, ["ab"[number % 2] for number in range(n)])
    assert of_two["low"] <= better["low"] and of_two["p"] >= better["p"]
    other = metrics.compare([0.5] * n, [0.25] * n)
    assert other["low"] < 0.25 < other["high"] or n > 1
    assert other["p"] == better["p"] and metrics.compare([-2e4] * n, [-3e4] * n)["p"] == other["p"]


def test_one_value_that_is_neither_right_nor_wrong_has_no_interval():
    assert metrics.mean_interval([0.5]) == {"accuracy": 0.5, "n": 1, "low": 0.0, "high": 1.0}


def test_comparison_by_students_t():
    stats = pytest.importorskip("scipy.stats")
    ours, theirs = [0.9, 0.5, 0.7, 0.6], [0.5, 0.4, 0.2, 0.4]
    found, peer = metrics.compare(ours, theirs), stats.ttest_rel(ours, theirs)
    interval = peer.confidence_interval()
    assert found["p"] == pytest.approx(peer.pvalue)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


def test_the_interval_of_pairs_by_hand():
    """Bonett and Price: of 10 pairs 6 won and 1 lost, (7 - 2) / 12 +- 1.96 sqrt((9 / 12 - (5 / 12)^2) / 12)."""
    found = metrics.compare([1] * 6 + [0] + [1] * 3, [0] * 6 + [1] + [1] * 3)
    half = 1.96 * math.sqrt((9 / 12 - (5 / 12) ** 2) / 12)
    assert (found["low"], found["high"]) == pytest.approx((5 / 12 - half, 5 / 12 + half)) and found["difference"] == 0.5


def test_the_interval_of_pairs_holds_the_truth():
    """In 95 % of draws, of few pairs and rare differences too, and with clusters."""
    generator = np.random.default_rng(0)
    for n, shares in ((5, [0.3, 0.1, 0.6]), (20, [0.1, 0.02, 0.88]), (200, [0.2, 0.15, 0.65])):
        for clusters in (None, [str(number // 2) for number in range(n)]):
            held = 0
            for _ in range(400):
                draws = generator.choice([1.0, -1.0, 0.0], n, p=shares)
                found = metrics.compare(np.maximum(draws, 0), np.maximum(-draws, 0), clusters)
                held += found["low"] <= shares[0] - shares[1] <= found["high"]
            assert held >= 0.93 * 400, (n, shares, clusters)


@given(rights, st.randoms(use_true_random=False))
def test_comparison_turned_around(values, chance):
    others = [chance.choice(values) for _ in values]
    one, other = metrics.compare(values, others), metrics.compare(others, values)
    assert one["difference"] == -other["difference"] and one["p"] == other["p"] and 0 <= one["p"] <= 1
    assert one["n_to_tell"] == other["n_to_tell"]


def test_sign_test_of_many():
    assert metrics.sign_test(5000, 5000) == 1 and metrics.sign_test(0, 0) == 1
    assert 0 < metrics.sign_test(5300, 4700) < 1e-8 and metrics.sign_test(0, 2000) < 1e-300


def test_power():
    # (1.960 + 0.842)^2 x 0.25 / 0.0025 = 784.9: the textbook's for a difference of 5 points and a deviation of a half.
    assert metrics.questions_to_tell(0.05, 0.5) == 785
    assert metrics.questions_to_tell(0, 0.5) is None and metrics.questions_to_tell(1, 0) == 1


def test_power_holds():
    """With so many questions, 80 % of draws show the difference."""
    generator = np.random.default_rng(0)
    n = metrics.questions_to_tell(0.1, math.sqrt(0.3 - 0.01))
    shown = 0
    for _ in range(300):
        draws = generator.choice([1.0, -1.0, 0.0], n, p=[0.2, 0.1, 0.7])
        found = metrics.compare(np.maximum(draws, 0), np.maximum(-draws, 0))
        shown += found["low"] > 0
    assert 0.73 < shown / 300 < 0.87


def test_calibration_by_hand():
    found = metrics.calibration([[0.6, 0.4], [0.55, 0.45], [0.05, 0.95]], [0, 1, 1], bins=10)
    # Bins up to 0.6 and up to 1.0: right one of two at 0.575 on average, and one of one at 0.95.
    assert found["ece"] == pytest.approx((abs(1 - 0.6 - 0.55) + abs(1 - 0.95)) / 3)
    assert found["brier"] == pytest.approx((2 * 0.4**2 + 2 * 0.55**2 + 2 * 0.05**2) / 3)
    assert [one["n"] for one in found["bins"]] == [2, 1]
    assert found["adaptive_ece"] == pytest.approx((abs(1 - 0.6) + 0.55 + 0.05) / 3)  # a bin for each
    with pytest.raises(ValueError, match="calibration"):
        metrics.calibration([], [])


def test_sure_and_right_is_calibrated():
    found = metrics.calibration([[1.0, 0.0]] * 5, [0] * 5)
    assert found["ece"] == found["adaptive_ece"] == found["brier"] == 0


def test_softmax_of_unlikely_answers():
    assert metrics.softmax([-2000.0, -2000.0 + math.log(3)]) == pytest.approx([0.25, 0.75])


def test_baselines_by_hand():
    found = metrics.baselines([2, 4, 4], [1, 1, 0], [[1, 5], [1, 1, 9, 1], [7, 7, 1, 1]])
    assert found == {"chance": pytest.approx(1 / 3), "constant": pytest.approx(2 / 3), "longest": pytest.approx(2 / 3)}
