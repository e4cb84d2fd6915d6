import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.data.mixture import plan


def test_natural_shares():
    found = plan({"a": 300, "b": 100}, {}, 200, 4)
    assert found.tokens == {"a": 150, "b": 50}
    assert found.repeats == {"a": 0.5, "b": 0.5}
    assert found.capped == [] and found.missing == 0


def test_excess_goes_to_the_uncapped_in_proportion():
    # "a" may give 40; the other 60 are split 3 : 1.
    found = plan({"a": 10, "b": 1000, "c": 1000, "d": 5}, {"a": 0.6, "b": 0.3, "c": 0.1}, 100, 4)
    assert found.tokens == {"a": 40, "b": 45, "c": 15, "d": 0}
    assert found.capped == ["a"]
    assert found.shares["a"] == 0.4


def test_budget_that_nobody_can_give():
    found = plan({"a": 10, "b": 20}, {"a": 1.0, "b": 1.0}, 1000, 2)
    assert found.tokens == {"a": 20, "b": 40}
    assert found.missing == 940


def test_unknown_domain_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'reference'"):
        plan({"reference": 5}, {"referense": 1.0}, 5, 1)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10_000), min_size=1),
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 10)),
    st.integers(0, 100_000),
    st.floats(0.1, 5),
)
def test_budget_is_met_or_everything_is_capped(tokens, weights, budget, repeats):
    weights = {domain: weight for domain, weight in weights.items() if domain in tokens}
    found = plan(tokens, weights, budget, repeats)
    drawn = sum(found.tokens.values())
    wanted = [domain for domain in tokens if not weights or domain in weights]
    assert all(found.tokens[domain] <= tokens[domain] * repeats for domain in tokens)
    assert drawn + found.missing == budget
    assert found.missing == 0 or all(found.tokens[domain] == int(tokens[domain] * repeats) for domain in wanted)
