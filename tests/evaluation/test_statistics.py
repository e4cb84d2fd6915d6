import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core import statistics
from groundup.evaluation.metrics import compare

counts = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_wilson_of_the_textbook():
    # Agresti & Coull (1998) and every calculator: 8 of 10.
    assert statistics.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert statistics.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert statistics.wilson(0, 0) == (0.0, 1.0)


@given(counts)
def test_wilson_bounds_are_the_proportions_that_the_score_test_just_accepts(pair):
    successes, n = pair
    low, high = statistics.wilson(successes, n)
    share = successes / n
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        assert abs(share - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / n), abs=1e-9)
    assert statistics.wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_bootstrap_of_a_mean_has_the_width_of_the_standard_error():
    values = np.random.default_rng(5).normal(3.0, 2.0, size=2000)
    low, high = statistics.bootstrap(values, seed=1)
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_bootstrap_covers_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = statistics.bootstrap(generator.normal(size=60), seed=trial, draws=400)
        covered += low <= 0 <= high
    assert 180 <= covered <= 199


def test_bootstrap_of_other_statistics_and_in_pieces(monkeypatch):
    values = np.random.default_rng(2).exponential(size=(50, 2))

    def ratio(resampled, axis):
        totals = resampled.sum(axis=axis)
        return totals[:, 0] / totals[:, 1]

    whole = statistics.bootstrap(values, ratio, seed=3, draws=500)
    low, high = whole
    assert low < values[:, 0].sum() / values[:, 1].sum() < high
    monkeypatch.setattr(statistics, "_RESAMPLED_VALUES", 700)  # seven draws at a time
    assert statistics.bootstrap(values, ratio, seed=3, draws=500) == whole
    assert statistics.bootstrap([4.0] * 9, np.median) == (4.0, 4.0)
    with pytest.raises(ValueError, match="at least one"):
        statistics.bootstrap([])


def test_of_a_single_value_nothing_is_certain():
    """Every resample of one document or question is that one: 'better, by 0.30 (0.30 to 0.30)' was said of it."""
    assert statistics.bootstrap([0.3]) == (-math.inf, math.inf)
    assert statistics.bootstrap([[3.0, 8.0]], lambda values, axis: values.sum(axis=axis)[:, 0]) == (-math.inf, math.inf)


@pytest.mark.parametrize(("pairs", "low"), [(1, 0.103), (10, 0.361), (1000, 0.498)])
def test_ties_alone_do_not_show_that_sides_are_equal(pairs, low):
    """Their interval was 50.0 % to 50.0 %, of one pair too."""
    rate = statistics.win_rate([0.5] * pairs)
    bounds = pytest.approx((low, 1 - low), abs=1e-3)
    assert rate["win_rate"] == 0.5 and (rate["low"], rate["high"]) == bounds


def test_win_rate_counts_ties_half():
    assert statistics.win_rate([1, 1, 0.5, 0]) == {
        "win_rate": 0.625,
        "low": 0.5 + 0.75 * (statistics.wilson(2, 3)[0] - 0.5),  # three pairs of four were decided
        "high": 0.5 + 0.75 * (statistics.wilson(2, 3)[1] - 0.5),
        "n": 4,
        "ties": 1,
    }
    with pytest.raises(ValueError, match="of 0 "):
        statistics.win_rate([2])


@given(st.lists(st.sampled_from([0, 0.5, 1]), min_size=1))
def test_win_rates_of_both_sides_sum_to_one(outcomes):
    ours, theirs = statistics.win_rate(outcomes), statistics.win_rate([1 - one for one in outcomes])
    assert ours["win_rate"] + theirs["win_rate"] == pytest.approx(1)
    assert ours["low"] == pytest.approx(1 - theirs["high"])


def test_a_small_difference_of_what_varies_much_is_seen_by_pairs():
    """Between questions 0.2, within a pair 0.01: intervals of the two means overlap, that of the difference does not."""
    generator = np.random.default_rng(0)
    theirs = generator.normal(0.5, 0.2, size=300)
    ours = theirs + generator.normal(0.02, 0.01, size=300)
    found = statistics.difference(ours, theirs)
    assert found["difference"] == pytest.approx(0.02, abs=0.002) and found["n"] == 300
    assert 0.015 < found["low"] < found["difference"] < found["high"] < 0.025
    assert statistics.bootstrap(ours)[0] < statistics.bootstrap(theirs)[1]
    swapped = statistics.difference(theirs, ours)
    assert (swapped["low"], swapped["high"]) == pytest.approx((-found["high"], -found["low"]), abs=1e-3)


def test_a_difference_of_nothing_or_of_one_pair_decides_nothing():
    one = statistics.difference([1.0], [0.5])
    assert (one["difference"], one["low"], one["high"], one["n"]) == (0.5, -math.inf, math.inf, 1)
    found = statistics.difference([], [])
    assert math.isnan(found["difference"]) and found["low"] < 0 < found["high"]
    with pytest.raises(ValueError, match="pairs"):
        statistics.difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize("n", [2, 3, 40])
def test_pairs_of_right_and_wrong_without_a_difference_prove_no_equality(n):
    right = [float(number % 2) for number in range(n)]
    same = statistics.difference(right, right)
    assert same["difference"] == 0 and -1 <= same["low"] < 0 < same["high"] <= 1
    assert same["high"] == pytest.approx(compare(right, right)["high"]) and same["high"] > 1 / (n + 2)
