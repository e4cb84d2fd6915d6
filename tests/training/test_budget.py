import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.training.budget import budget
from groundup.training.config import PretrainingConfig


def test_everything_follows_from_the_parameters():
    found = budget(PretrainingConfig(depth=4, context_length=256), 3_000_000, math.inf)
    assert (found.tokens, found.batch_tokens) == (36_000_000, 8192)  # 10,350 by the rule
    assert found.weight_decay == 0.0
    assert [reason.split(":")[0] for reason in found.reasons] == [
        "36,000,000 tokens", "8,192 tokens per step", "no weight decay under 100M tokens",
    ]  # fmt: skip


def test_other_steps_than_the_rules_are_taken_with_a_hint():
    found = budget(PretrainingConfig(batch_tokens=32_768), 3_000_000, math.inf)
    assert found.batch_tokens == 32_768
    assert any("8,192 by the rule" in reason and "lr_scale = 2 " in reason for reason in found.reasons)


def test_where_it_was_measured_the_rule_is_what_was_measured():
    assert budget(PretrainingConfig(tokens=3_200_000), 2_000_000, math.inf).batch_tokens == 4096


def test_the_horizon_ends_with_the_data():
    assert budget(PretrainingConfig(), 3_000_000, 4e6).tokens == 4_000_000
    found = budget(PretrainingConfig(tokens=9_000_000), 3_000_000, 4e6)
    assert found.tokens == 4_000_000 and "instead of 9,000,000 (as the recipe says)" in found.reasons[0]


def test_a_step_is_of_whole_rows():
    found = budget(PretrainingConfig(context_length=768), 3_000_000, math.inf)
    assert found.batch_tokens == 7_680 and "7,680 tokens per step" in found.reasons[1]  # 8,192 by the rule
    found = budget(PretrainingConfig(context_length=512, batch_tokens=64, tokens=3_200_000), 3_000_000, math.inf)
    assert found.batch_tokens == 512 and "lr_scale = 0.35 " in found.reasons[1]


def test_a_step_has_no_more_tokens_than_the_training():
    found = budget(PretrainingConfig(context_length=16, tokens=2000, batch_tokens=100_000), 70_000, math.inf)
    assert found.batch_tokens == 2000 and "2,000 tokens per step: all in one step, fewer than the 100,000" in found.reasons[1]
    assert budget(PretrainingConfig(context_length=16, batch_tokens=100_000), 70_000, 1387).batch_tokens == 1376


def test_weight_decay_of_long_trainings_is_that_of_the_timescale():
    found = budget(PretrainingConfig(lr_scale=0.5), 100_000_000, math.inf)
    # AdamW's timescale in shares of the training, as Bergsma et al. define it: batch / (rate x decay x tokens)
    timescale = found.batch_tokens / (0.02 * 0.5 * found.weight_decay * found.tokens)
    assert timescale == pytest.approx(1.084 * 12**-0.527)
    assert budget(PretrainingConfig(weight_decay=0.3), 100_000_000, math.inf).weight_decay == 0.3
    assert budget(PretrainingConfig(weight_decay=0.0), 100_000_000, math.inf).weight_decay == 0.0


@given(st.integers(1, 10**12), st.integers(0, 10**13), st.integers(0, 10**7), st.floats(1, 1e14))
def test_any_size_has_a_budget(parameters, tokens, batch, available):
    found = budget(PretrainingConfig(tokens=tokens, batch_tokens=batch, context_length=64), parameters, available)
    assert found.tokens == min(tokens, int(available)) or (not tokens and 1 <= found.tokens <= max(1, available))
    given = max(1, min(batch, found.tokens) // 64) * 64
    assert found.batch_tokens == given or (not batch and found.batch_tokens % 64 == 0 < found.batch_tokens)
    assert 0 <= found.weight_decay < math.inf
