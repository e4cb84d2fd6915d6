"""The instruments of length: by hand, and on simulated comparisons whose effect is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.posttraining.length import (
    at_equal_length,
    concerns,
    correlation,
    instruction_difficulty,
    length_comparison,
    length_controlled,
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def simulated(n, theta, phi, psi=0.0, longer=30.0, seed=0):
    """Comparisons drawn from the model itself: (outcomes, our lengths, their lengths, difficulty)."""
    generator = np.random.default_rng(seed)
    theirs = generator.integers(20, 80, n).astype(float)
    ours = theirs + generator.normal(longer, 20, n)
    difference = ours - theirs
    difficulty = generator.normal(0, 1, n)
    p = sigmoid(theta + phi * np.tanh(difference / difference.std()) + psi * difficulty)
    return (generator.random(n) < p).astype(float), ours, theirs, difficulty


def test_the_interval_holds_what_is_true_as_often_as_it_says():
    held = 0
    for seed in range(200):
        outcomes, ours, theirs, _ = simulated(300, 0.4, 1.5, seed=seed)
        found = length_controlled(outcomes, ours, theirs)
        held += found["low"] <= sigmoid(0.4) <= found["high"]
    assert held >= 0.9 * 200


@pytest.mark.parametrize(("theta", "phi"), [(0.0, 2.0), (0.5, 2.0), (-0.5, 1.0), (0.3, 0.0)])
def test_the_model_finds_the_effect_that_was_put_in(theta, phi):
    outcomes, ours, theirs, _ = simulated(4000, theta, phi)
    found = length_controlled(outcomes, ours, theirs)
    assert found["win_rate"] == pytest.approx(sigmoid(theta), abs=0.05)
    assert found["low"] <= sigmoid(theta) <= found["high"]
    if phi:
        assert outcomes.mean() > found["high"]  # length alone had won more


def test_with_the_difficulty_of_prompts_it_is_the_mean_over_them():
    outcomes, ours, theirs, difficulty = simulated(4000, 0.5, 1.5, psi=2.0)
    wanted = sigmoid(0.5 + 2.0 * difficulty).mean()
    found = length_controlled(outcomes, ours, theirs, difficulty)
    assert found["win_rate"] == pytest.approx(wanted, abs=0.03)
    without = length_controlled(outcomes, ours, theirs)
    assert found["high"] - found["low"] < without["high"] - without["low"]


def test_difficulty_is_found_from_several_models():
    generator = np.random.default_rng(1)
    gamma, theirs = generator.normal(0, 1.5, 60), np.full(60, 50.0)
    ours = theirs + generator.normal(0, 20, (25, 60))
    outcomes = generator.random((25, 60)) < sigmoid(np.linspace(-1, 1, 25)[:, None] + gamma)
    found = instruction_difficulty(outcomes, ours, theirs)
    assert np.corrcoef(found, gamma)[0, 1] > 0.9 and abs(found.mean()) < 1e-9


def test_at_equal_lengths_nothing_is_controlled():
    outcomes, lengths = [1.0, 0.0, 0.5, 1.0, 1.0], [10, 20, 30, 40, 50]
    assert length_controlled(outcomes, lengths, lengths)["win_rate"] == pytest.approx(np.mean(outcomes), abs=1e-4)
    assert length_controlled([1.0] * 20, [5] * 20, [5] * 20)["win_rate"] > 0.99
    with pytest.raises(ValueError, match="at least one"):
        length_controlled([], [], [])


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 90), st.integers(0, 90)), min_size=1, max_size=20))
def test_of_two_models_one_wins_what_the_other_loses(rows):
    outcomes, ours, theirs = (list(column) for column in zip(*rows, strict=True))
    found = length_controlled(outcomes, ours, theirs)
    swapped = length_controlled([1 - one for one in outcomes], theirs, ours)
    assert found["win_rate"] + swapped["win_rate"] == pytest.approx(1, abs=1e-6)
    assert 0 <= found["low"] <= found["high"] <= 1


def test_equal_length_and_who_is_longer_by_hand():
    outcomes, ours, theirs = [1.0, 0.0, 1.0, 0.5], [10, 100, 50, 7], [11, 95, 20, 7]
    assert at_equal_length(outcomes, ours, theirs)["n"] == 3 and at_equal_length(outcomes, ours, theirs)["win_rate"] == 0.5
    texts = [("a " * count, True) for count in ours], [("b " * count, count > 10) for count in theirs]
    found = length_comparison(outcomes, *texts)
    # Longer: theirs, ours, ours; preferred: ours, theirs, ours; the last is a tie.
    assert found["longer_wins"]["win_rate"] == pytest.approx(1 / 3) and found["longer_wins"]["n"] == 3
    assert found["ended"] == 1 and found["baseline_ended"] == 0.75
    assert length_comparison([0.5], [("x", True)], [("y", True)])["length_controlled"]["win_rate"] == pytest.approx(0.5)


def test_correlation():
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1) and correlation([3, 2, 1], [2, 4, 6]) == pytest.approx(-1)
    assert correlation([1, 1, 1], [2, 4, 6]) == correlation([1], [1]) == correlation([], []) == 0
    assert correlation([0, 1, 0], [1, 2, 3]) == pytest.approx(0)


def test_concerns():
    first = {"ended": 0.95, "length": 20.0, "reward_length_correlation": 0.1}
    assert concerns(first, first) == []
    (ends,) = concerns(first, first | {"ended": 0.1})
    assert ends.startswith("Answers stop ending: 10%") and "95%" in ends
    (length,) = concerns(first, first | {"length": 40.0, "reward_length_correlation": 0.9})
    assert length.startswith("Reward goes with length: answers grew from 20.0 to 40.0 tokens")
    assert not concerns(first, first | {"length": 40.0})
    assert not math.isnan(correlation([1.0, math.pi], [1.0, 1.0]))
