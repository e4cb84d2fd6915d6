"""The reward side of PPO and GRPO against worked numbers: those of the N+ details and of definitions written out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.posttraining.advantages import (
    adaptive_kl,
    advantage_estimates,
    group_advantages,
    last_tokens,
    leave_one_out,
    normalised,
    token_rewards,
    whiten,
    with_missing_end,
    without_difference,
)

SPANS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), min_size=1, max_size=4)


def estimates_one_by_one(rewards, values, discount=1.0, trace=0.95):
    """The sum of the definition: advantage(t) = sum over l of (discount x trace)^l x delta(t + l)."""
    deltas = [
        rewards[t] + discount * (values[t + 1] if t + 1 < len(values) else 0.0) - values[t] for t in range(len(values))
    ]
    return [
        sum((discount * trace) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def test_advantages_by_hand():
    found = advantage_estimates(
        torch.tensor([[0.0, -0.1, 1.0]]), torch.tensor([[0.5, 0.4, 0.2]]), torch.tensor([[1.0, 1.0, 1.0]])
    )
    # Deltas: 0 + 0.4 - 0.5 = -0.1; -0.1 + 0.2 - 0.4 = -0.3; 1 - 0.2 = 0.8.
    assert found[0].tolist() == pytest.approx([-0.1 + 0.95 * (-0.3 + 0.95 * 0.8), -0.3 + 0.95 * 0.8, 0.8])


@given(SPANS, st.integers(0, 99), st.sampled_from([(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.0, 0.0)]))
def test_advantages_equal_a_straightforward_loop(spans, seed, discounts):
    width = max(start + length for start, length in spans) + 1
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(spans), width, generator=generator)
    mask = torch.zeros(len(spans), width)
    for row, (start, length) in enumerate(spans):
        mask[row, start : start + length] = 1
    found = advantage_estimates(rewards * mask, values * mask, mask, *discounts)
    for row, (start, length) in enumerate(spans):
        part = slice(start, start + length)
        expected = estimates_one_by_one(rewards[row, part].tolist(), values[row, part].tolist(), *discounts)
        assert found[row, part].tolist() == pytest.approx(expected, abs=1e-4)
    assert (found * (1 - mask)).abs().max() == 0


@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 4), st.integers(0, 99))
def test_padding_on_either_side_changes_nothing(length, left, right, seed):
    generator = torch.Generator().manual_seed(seed)
    logp, reference, values = torch.randn(3, 2, length, generator=generator)
    scores, mask = torch.tensor([1.5, -0.5]), torch.ones(2, length)

    def padded(tensor):
        return torch.nn.functional.pad(tensor, (left, right))

    def of(*tensors):
        *some, mask = tensors
        earned = token_rewards(scores, some[0], some[1], mask, 0.1)
        advantages = advantage_estimates(earned, some[2], mask)
        return earned, advantages, whiten(advantages, mask)

    for alone, wide in zip(of(logp, reference, values, mask), of(*map(padded, (logp, reference, values, mask))), strict=True):
        assert torch.allclose(padded(alone), wide, atol=1e-6)


def test_whitening_the_worked_example():
    """Mean 1.6 and biased variance 0.06667, of the N+ details: without its mean shifted the least becomes 0.0508."""
    rewards = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    kept = whiten(rewards, torch.ones(3, 3), shift_mean=False)
    expected = [0.05080712, 0.4381051, 0.8254035, 1.2127019, 1.6000004, 1.9872988, 2.3745968, 2.7618952, 3.1491938]
    assert kept.flatten().tolist() == pytest.approx(expected, abs=1e-5)
    assert whiten(rewards, torch.ones(3, 3)).flatten().tolist() == pytest.approx([one - 1.6 for one in expected], abs=1e-5)


@given(st.integers(0, 99), st.booleans())
def test_whitening_uses_the_biased_variance_of_the_masked(seed, shift_mean):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 5, generator=generator) * 4 + 2
    mask = (torch.rand(3, 5, generator=generator) < 0.6).float()
    mask[0, :2] = 1
    found = whiten(values, mask, shift_mean)
    chosen = values[mask == 1].double().numpy()
    expected = (chosen - chosen.mean()) / np.sqrt(chosen.var() + 1e-8) + (0 if shift_mean else chosen.mean())
    assert found[mask == 1].numpy() == pytest.approx(expected, abs=1e-4)
    assert (found * (1 - mask)).abs().max() == 0


def test_rewards_are_normalised_and_missing_ends_have_their_own():
    scores = normalised(torch.tensor([1.0, 2.0, 3.0]), 2.0, 0.5)
    assert scores.tolist() == [-2, 0, 2]
    ended = torch.tensor([True, True, False])
    assert with_missing_end(scores, ended, -1.0).tolist() == [-2, 0, -1]
    assert with_missing_end(scores, ended, None).tolist() == [-2, 0, 2]


def test_the_score_stands_at_the_last_token_and_every_token_pays():
    mask = torch.tensor([[0.0, 1, 1, 0], [1, 1, 1, 1]])
    logp, reference = torch.full((2, 4), -1.0), torch.tensor([[0.0, -1.5, -0.5, 9], [-1, -1, -1, -3]])
    assert last_tokens(mask).tolist() == [2, 3]
    found = token_rewards(torch.tensor([5.0, 7.0]), logp, reference, mask, 0.1)
    assert found.tolist() == [pytest.approx([0, -0.05, 5.05, 0]), pytest.approx([0, 0, 0, 7 - 0.2])]


def test_the_adaptive_coefficient_by_hand():
    """The controller of Ziegler et al. 2019 as it was released: 0.15, a target of 6 and a horizon of 10,000."""
    assert adaptive_kl(0.15, 6.0, 6.0, 256, 10_000) == 0.15
    assert adaptive_kl(0.15, 60.0, 6.0, 256, 10_000) == pytest.approx(0.15 * (1 + 0.2 * 0.0256))
    assert adaptive_kl(0.15, 0.0, 6.0, 256, 10_000) == pytest.approx(0.15 * (1 - 0.2 * 0.0256))
    assert adaptive_kl(0.15, 6.6, 6.0, 256, 10_000) == pytest.approx(0.15 * (1 + 0.1 * 0.0256))


def test_advantages_of_groups_by_hand():
    rewards = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    deviation = (1 / 3) ** 0.5  # of 0, 0, 1, 1, with Bessel's correction
    assert group_advantages(rewards, "none").tolist() == [[-0.5, -0.5, 0.5, 0.5], [0, 0, 0, 0]]
    scaled = group_advantages(rewards, "group")
    assert scaled[0].tolist() == pytest.approx([side * 0.5 / (deviation + 1e-4) for side in (-1, -1, 1, 1)])
    assert scaled[1].tolist() == [0, 0, 0, 0]
    every = float(np.std(rewards.numpy(), ddof=1))
    assert group_advantages(rewards, "batch")[0, 3].item() == pytest.approx(0.5 / (every + 1e-4))
    assert leave_one_out(rewards)[0].tolist() == pytest.approx([-2 / 3, -2 / 3, 2 / 3, 2 / 3])
    assert without_difference(rewards).tolist() == [False, True]


@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_a_groups_advantages_add_up_to_nothing(rewards):
    table = torch.tensor(rewards, dtype=torch.float32)
    for found in (group_advantages(table, "group"), group_advantages(table, "none"), leave_one_out(table)):
        assert found.sum(dim=1).abs().max() < 1e-3
        assert (found[without_difference(table)] == 0).all()
    assert torch.allclose(leave_one_out(table), group_advantages(table, "none") * 4 / 3, atol=1e-5)
