import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.training.schedule import warmup_stable_decay


def test_values():
    rates = [warmup_stable_decay(step, 10, 2, 4) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert [warmup_stable_decay(step, 4, 0, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [warmup_stable_decay(step, 3, 0, 0) for step in range(3)] == [1, 1, 1]


@given(st.integers(1, 200), st.data())
def test_rises_stays_and_falls_within_zero_and_one(steps, data):
    warmup = data.draw(st.integers(0, steps))
    decay = data.draw(st.integers(0, steps - warmup))
    rates = [warmup_stable_decay(step, steps, warmup, decay) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup]) and rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert all(rate == 1 for rate in rates[warmup : steps - decay])
