import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.model import likelihood
from groundup.model.likelihood import bits_per_byte, score, token_log_probabilities


def some(*shape, seed=0):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


def directly(model, ids, targets, dtype=torch.float32):
    logits = model.lm_head(model.model(ids, dtype=dtype)).float()
    return torch.log_softmax(logits, dim=-1).gather(-1, targets[..., None]).squeeze(-1)


def gradients(model, logp, weight):
    model.zero_grad()
    (logp * weight).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 256])
def test_equals_log_softmax_with_its_gradients(toy_decoder, monkeypatch, tied, rows):
    monkeypatch.setattr(likelihood, "ROWS", rows)  # 3 x 11 places: one slice, several, and an incomplete last one
    model = toy_decoder(tie_word_embeddings=tied)
    ids, targets = some(3, 11), some(3, 11, seed=1)
    weight = torch.randn(3, 11, generator=torch.Generator().manual_seed(2)) / 33
    ours = token_log_probabilities(model, ids, targets)
    theirs = directly(model, ids, targets)
    assert ours.dtype == torch.float32 and torch.allclose(ours, theirs, atol=1e-5)
    expected = gradients(model, theirs, weight)
    for name, gradient in gradients(model, ours, weight).items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name


def test_bfloat16_equals_log_softmax_in_bfloat16(toy_decoder):
    model = toy_decoder(scale=0.1)
    ids, targets, weight = some(4, 16), some(4, 16, seed=1), torch.full((4, 16), 1 / 64)
    ours = token_log_probabilities(model, ids, targets, dtype=torch.bfloat16)
    theirs = directly(model, ids, targets, dtype=torch.bfloat16)
    exact = directly(model, ids, targets)
    assert ours.dtype == torch.float32
    # As near to the exact values as the plain computation in the same format.
    assert (ours - exact).abs().max() < 2 * (theirs - exact).abs().max() < 0.2
    expected, rounded = gradients(model, exact, weight), gradients(model, ours, weight)
    for name, gradient in expected.items():
        assert rounded[name].dtype == torch.float32
        assert (rounded[name] - gradient).norm() < 0.05 * gradient.norm() + 1e-6, name


def test_with_and_without_gradients_the_same_bits(toy_decoder):
    """DPO's first loss is ln 2 and PPO's first ratio one only where the reference is worked out as the policy is."""
    model, ids = toy_decoder(), torch.arange(1, 25).view(2, 12)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            reference = token_log_probabilities(model, ids, ids, dtype=dtype)
        assert torch.equal(token_log_probabilities(model, ids, ids, dtype=dtype), reference)



def test_probabilities_of_all_tokens_add_up_to_one(toy_decoder):
    model = toy_decoder()
    ids = some(1, 6).expand(50, 6)
    targets = torch.arange(50)[:, None].expand(50, 6).contiguous()
    total = token_log_probabilities(model, ids, targets).exp().sum(dim=0)
    assert torch.allclose(total, torch.ones(6), atol=1e-5)


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 49), max_size=65), max_size=6))
def test_short_sequences_are_scored_directly(toy_decoder, sequences):
    model = toy_decoder()
    for sequence, found in zip(sequences, score(model, sequences), strict=True):
        assert len(found) == max(len(sequence) - 1, 0) and found.dtype == np.float32
        if len(sequence) > 1:
            ids = torch.tensor([sequence])
            expected = directly(model, ids[:, :-1], ids[:, 1:])[0].detach().numpy()
            assert np.abs(found - expected).max() <= 1e-4


@pytest.mark.parametrize("length", [65, 66, 97, 98, 129, 300])
@pytest.mark.parametrize("context", [64, 63])
def test_a_token_of_a_long_sequence_is_told_from_at_least_half_a_context(toy_decoder, length, context):
    model = toy_decoder(max_position_embeddings=context)
    sequence = some(length)
    [found] = score(model, [sequence.tolist()])
    told = {place: [] for place in range(1, length, 7)}
    for reach in range(1, context + 1):  # how much is seen before a place; all of that length at once
        seen_from = [place for place in told if min(place, context // 2) <= reach <= place]
        if seen_from:
            ids = torch.stack([sequence[place - reach : place + 1] for place in seen_from])
            for place, value in zip(seen_from, directly(model, ids[:, :-1], ids[:, 1:])[:, -1].tolist(), strict=True):
                told[place].append(value)
    for place, values in told.items():
        assert len(values) == max(1, min(place, context) - context // 2 + 1)
        assert min(abs(found[place - 1] - value) for value in values) < 1e-3


def test_every_place_of_a_long_sequence_is_scored_exactly_once(toy_decoder, monkeypatch):
    """With a model that says where it stands: the token's own id."""
    calls = []

    def fake(model, ids, targets):
        calls.append(ids.shape)
        return targets.float()

    monkeypatch.setattr(likelihood, "token_log_probabilities", fake)
    sequences = [list(range(length)) for length in (0, 1, 2, 64, 65, 66, 500)]
    for sequence, found in zip(sequences, score(toy_decoder(), sequences, batch_tokens=200), strict=True):
        assert found.tolist() == sequence[1:]
    assert all(shape[0] * shape[1] <= 200 and shape[1] <= 64 for shape in calls)


@settings(max_examples=15)
@given(st.integers(0, 5), st.lists(st.integers(2, 150), min_size=1, max_size=6), st.sampled_from([1, 100, 16_384]))
def test_company_and_padding_do_not_change_a_score(toy_decoder, seed, lengths, batch_tokens):
    model = toy_decoder(scale=0.2)
    sequences = [some(length, seed=seed + place).tolist() for place, length in enumerate(lengths)]
    together = score(model, sequences, batch_tokens)
    for sequence, found in zip(sequences, together, strict=True):
        assert np.abs(found - score(model, [sequence])[0]).max() <= 1e-5


def test_bits_per_byte():
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)


def test_only_the_places_that_are_wanted_are_worked_out(toy_decoder, monkeypatch):
    monkeypatch.setattr(likelihood, "ROWS", 4)
    model, ids = toy_decoder(), some(3, 10)
    wanted = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)) > 0.6
    every = token_log_probabilities(model, ids[:, :-1], ids[:, 1:]) * wanted
    chosen = token_log_probabilities(model, ids[:, :-1], ids[:, 1:], wanted_BT=wanted)
    torch.testing.assert_close(chosen, every)
    expected = gradients(model, every, wanted)
    for name, gradient in gradients(model, chosen, 1.0).items():
        torch.testing.assert_close(gradient, expected[name])


def test_a_compiled_model_has_its_loss_compiled_too(toy_decoder, monkeypatch):
    asked = []
    monkeypatch.setattr(likelihood, "_compiled_gradients", lambda: asked.append(True) or likelihood._gradients)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    model, weights = toy_decoder(), torch.full((3, 11), 1 / 33)
    likelihood.weighted_log_probability(model, some(3, 11), some(3, 11, seed=1), weights)
    assert not asked
    model.model.compile()
    likelihood.weighted_log_probability(model, some(3, 11), some(3, 11, seed=1), weights)
    assert asked
