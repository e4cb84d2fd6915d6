"""Clipping, divergences and weights against numbers worked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.config import configured
from groundup.core.errors import UserError
from groundup.model.likelihood import log_probabilities_and_entropies, token_log_probabilities
from groundup.posttraining.config import GrpoConfig
from groundup.posttraining.policy_losses import (
    approximate_kl,
    clipped_surrogate,
    clipped_value_errors,
    group_losses,
    importance,
    is_clipped,
    masked_mean,
    reference_divergence,
    token_weights,
    vespo_losses,
)


def test_gains_are_cut_off_where_they_would_be_gained_twice():
    ratio = torch.tensor([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]])
    advantages = torch.tensor([[2.0, 2, 2], [-2, -2, -2]])
    assert clipped_surrogate(ratio, advantages, 0.2, 0.28).tolist() == [
        pytest.approx([1.0, 2.0, 2.56]), pytest.approx([-1.6, -2.0, -3.0])
    ]  # fmt: skip
    assert is_clipped(ratio, advantages, 0.2, 0.28).tolist() == [[False, False, True], [True, False, False]]


def test_what_is_cut_off_has_no_gradient():
    ratio = torch.tensor([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]], requires_grad=True)
    advantages = torch.tensor([[2.0, 2, 2], [-2, -2, -2]])
    clipped_surrogate(ratio, advantages, 0.2, 0.2).sum().backward()
    assert ((ratio.grad == 0) == is_clipped(ratio.detach(), advantages, 0.2, 0.2)).all()


def test_values_are_clipped_around_those_of_the_rollout():
    values, before = torch.tensor([[1.0, 0.5, 0.1]]), torch.zeros(1, 3)
    errors, held = clipped_value_errors(values, before, torch.tensor([[1.0, -1.0, 0.0]]), 0.2)
    # Free 0, 2.25, 0.01; held at 0.2, 0.2, 0.1: 0.64, 1.44, 0.01. The larger counts, halved.
    assert errors[0].tolist() == pytest.approx([0.32, 1.125, 0.005])
    assert held.tolist() == [[1, 0, 0]]


def test_divergences_by_hand():
    logp, reference, mask = torch.tensor([[-1.0, -2.0, -9]]), torch.tensor([[-1.0, -1.0, -1]]), torch.tensor([[1.0, 1, 0]])
    assert approximate_kl(logp, reference, mask).item() == pytest.approx(0.5 * (0 + 1) / 2)
    assert reference_divergence(logp, reference)[0, :2].tolist() == pytest.approx([0, math.e - 2])
    assert importance(logp, reference, mask, "token")[0, :2].tolist() == pytest.approx([1, math.exp(-1)])
    assert importance(logp, reference, mask, "sequence").tolist() == [[pytest.approx(math.exp(-0.5))]]
    assert masked_mean(logp, mask).item() == -1.5


@given(st.integers(0, 99))
def test_k3_is_an_estimate_of_the_divergence_and_never_negative(seed):
    generator = torch.Generator().manual_seed(seed)
    policy, reference = torch.randn(2, 6, generator=generator).log_softmax(-1)
    estimate = reference_divergence(policy, reference)
    assert (estimate >= -1e-6).all()
    exact = (policy.exp() * (policy - reference)).sum().item()
    assert (policy.exp() * estimate).sum().item() == pytest.approx(exact, abs=1e-5)


def test_losses_by_type():
    ratio, logp = torch.tensor([[0.5, 1.0, 3.0]]), torch.tensor([[-1.0, -2.0, -3.0]])
    better, worse = torch.tensor([[2.0]]), torch.tensor([[-2.0]])
    for name in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo"):
        assert group_losses(ratio, better, logp, name, 0.2, 0.2)[0].tolist() == pytest.approx([-1, -2, -2.4])
        assert group_losses(ratio, worse, logp, name, 0.2, 0.2)[0].tolist() == pytest.approx([1.6, 2, 6])
    assert group_losses(ratio, better, logp, "cispo", 0.2, 2.0)[0].tolist() == pytest.approx([1, 4, 12])
    at_one = [group_losses(torch.ones(1, 1), side, logp, "sapo", 0.2, 0.2).item() for side in (better, worse)]
    assert at_one == pytest.approx([-0.5 * 4 * 2, 0.5 * 4 / 1.05 * 2])


def test_vespo_fades_on_both_sides_of_a_ratio_of_one():
    mask, advantages = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[2.0]])
    before = torch.full((1, 3), -1.0)
    found = {
        by: vespo_losses(before + torch.tensor([[by, 0.0, 9.0]]), before, mask, advantages)[0, 1].item() for by in (-1, 0, 1)
    }
    assert found[0] == pytest.approx(2)  # of a log-probability of -1, with a weight of one
    assert found[-1] == pytest.approx(2 * math.exp(3 - 2 - 3 * math.exp(-1))) and found[-1] < 2
    assert found[1] == pytest.approx(2 * math.exp(3 + 2 - 3 * math.exp(1)), rel=1e-4) and found[1] < 0.2


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"loss_type": "vespo", "importance": "sequence"}, "importance = sequence: vespo"),
        ({"baseline": "leave_one_out", "scale_rewards": "batch"}, "scale_rewards = batch: leave_one_out"),
    ],
)
def test_settings_that_cannot_work_together(changes, said):
    with pytest.raises(UserError, match=said):
        configured(GrpoConfig, changes, "grpo")


def test_weights_by_type():
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    sums = {name: token_weights(mask, name, 8, 2.0) for name in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")}
    assert sums["grpo"].tolist() == [pytest.approx([1 / 6] * 3), [0.5, 0, 0]]
    assert sums["bnpo"].tolist() == [[0.25] * 3, [0.25, 0, 0]]
    assert sums["dr_grpo"].tolist() == [[1 / 16] * 3, [1 / 16, 0, 0]]
    assert sums["dapo"].tolist() == [[0.5] * 3, [0.5, 0, 0]]
    assert sums["luspo"].tolist() == [[0.5] * 3, [0.5, 0, 0]]
    nothing = token_weights(torch.zeros(2, 3), "grpo", 8, 0.0)
    assert (nothing == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_probabilities_are_those_at_the_temperature(toy_decoder, temperature):
    model = toy_decoder(seed=1)
    ids, targets = torch.randint(0, 50, (2, 3, 7), generator=torch.Generator().manual_seed(0))
    wanted = torch.ones(3, 7)
    wanted[1, 3:] = 0
    exact = (model(ids) / temperature).log_softmax(-1)
    expected = exact.gather(-1, targets[..., None]).squeeze(-1) * wanted
    found = token_log_probabilities(model, ids, targets, wanted_BT=wanted, temperature=temperature)
    assert torch.allclose(found, expected, atol=1e-5)
    logp, entropy = log_probabilities_and_entropies(model, ids, targets, wanted, torch.float32, temperature)
    assert torch.equal(logp, found)  # or the first ratio would not be one
    assert torch.allclose(entropy, -(exact.exp() * exact).sum(-1) * wanted, atol=1e-5)


@torch.no_grad()
def test_no_dropout(toy_decoder):
    """What is trained is what answered."""
    model, ids = toy_decoder(seed=1), torch.arange(12)[None]
    assert torch.equal(model.train()(ids), model.eval()(ids))
