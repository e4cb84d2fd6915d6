"""Packed is unpacked, and micro-batches are the batch: losses and gradients, in every architecture."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.model.lstm import LSTM, LSTMConfig
from groundup.model.ragged import bins
from groundup.posttraining.batches import collate, row_of
from groundup.posttraining.config import DpoConfig, SftConfig
from groundup.posttraining.dpo import objective, sequence_log_probability
from groundup.posttraining.packing import weights_of
from groundup.posttraining.reward import bradley_terry, from_policy
from groundup.posttraining.sft import batches_of
from groundup.training.epoch_order import micro_batches
from groundup.training.objectives import next_token

CPU = torch.device("cpu")
SAID = ("the path", "it", "def path(file): return file " * 6, "the file returns it", "path of it " * 3, "", "what")
EXPERTS = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.fixture(scope="module")
def rows(toy_tokenizer):
    return [row_of(toy_tokenizer, f"what is {number}", said) for number, said in enumerate(SAID)]


@pytest.fixture(scope="module", params=["dense", "experts", "LSTM"])
def model(request, toy_decoder, toy_tokenizer):
    if request.param == "LSTM":
        torch.manual_seed(0)
        return LSTM(LSTMConfig(toy_tokenizer.size, 32, 2, 128))
    changes = EXPERTS if request.param == "experts" else {}
    return toy_decoder(seed=1, scale=0.2, vocab_size=toy_tokenizer.size, max_position_embeddings=128, **changes)


def loss_and_gradients(model, objective, batches):
    model.zero_grad(set_to_none=True)
    loss = 0.0
    for batch in batches:
        part, metrics = objective(model, batch)
        part.backward()
        loss += metrics["loss"]
    return loss, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def require_close(one, other):
    assert one[0] == pytest.approx(other[0], abs=1e-5) and one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert torch.allclose(gradient, other[1][name], atol=1e-5 * max(1.0, gradient.abs().max().item())), name
    assert max(gradient.abs().max() for gradient in one[1].values()) > 1e-3


def fine_tuning(model, rows, pad, **settings):
    batches = batches_of(rows, pad, SftConfig(**settings), CPU)
    found = loss_and_gradients(model, lambda model, batch: next_token(model, batch, torch.float32), batches)
    return found, batches


@pytest.mark.parametrize("weighting", ["token", "example"])
def test_packed_is_unpacked(model, rows, toy_tokenizer, weighting):
    plain, [batch] = fine_tuning(model, rows, toy_tokenizer.pad, weighting=weighting)
    packed, [other] = fine_tuning(model, rows, toy_tokenizer.pad, weighting=weighting, packing=True)
    require_close(plain, packed)
    assert len(other["ids"]) < len(batch["ids"]) and other["ids"].shape[1] <= batch["ids"].shape[1]


@pytest.mark.parametrize("settings", [{}, {"packing": True}, {"weighting": "example"}])
def test_accumulated_fine_tuning_is_the_big_batch(model, rows, toy_tokenizer, settings):
    whole, _ = fine_tuning(model, rows, toy_tokenizer.pad, **settings)
    parts, batches = fine_tuning(model, rows, toy_tokenizer.pad, examples_at_once=3, **settings)
    require_close(whole, parts)
    assert len(batches) == 3


def pair_batches(rows, reference, pad, at_once):
    """Pairs of neighbours, in micro-batches."""
    pairs = [[rows[index], rows[index + 1]] for index in range(6)]
    for part in micro_batches(list(range(6)), at_once):
        sides = [pairs[index][side] for side in (0, 1) for index in part]
        more = {"share": torch.tensor(len(part) / 6), "reference": torch.cat([reference[part], reference[part] + 1]) if
                reference is not None else None, "margin": torch.arange(6.0)[part]}  # fmt: skip
        yield collate(sides, pad, CPU) | more


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "simpo"])
def test_accumulated_preferences_are_the_big_batch(model, rows, toy_tokenizer, loss):
    reference = torch.linspace(-30, -10, 6)
    settings = DpoConfig(loss=loss, ld_alpha=0.5)

    def measure(at_once):
        batches = list(pair_batches(rows, reference, toy_tokenizer.pad, at_once))
        return loss_and_gradients(model, lambda m, b: objective(m, b, settings, torch.float32), batches)

    require_close(measure(0), measure(4))


def test_accumulated_rewards_are_the_big_batch(model, rows, toy_tokenizer):
    scorer = from_policy(model, seed=3)

    def measure(at_once):
        return loss_and_gradients(
            scorer, lambda m, b: bradley_terry(m, b, 0.01), pair_batches(rows, None, toy_tokenizer.pad, at_once)
        )

    require_close(measure(0), measure(4))


@torch.no_grad()
def test_at_the_start_preferences_have_loss_ln_2(model, rows, toy_tokenizer):
    """As its own reference, and with equal rewards; swapped pairs have the margin's negative."""
    batch = collate(rows[:6], toy_tokenizer.pad, CPU) | {"share": torch.tensor(1.0)}
    batch["reference"] = sequence_log_probability(model, batch)
    loss, metrics = objective(model, batch, DpoConfig(), torch.float32)
    assert loss.item() == pytest.approx(0.693147, abs=1e-5) and metrics["reward_chosen"] == pytest.approx(0, abs=1e-5)
    scorer = from_policy(model, seed=3)
    straight, swapped = (
        bradley_terry(scorer, collate(some, toy_tokenizer.pad, CPU), 0.0)[1]["margin"]
        for some in (rows[:6], rows[3:6] + rows[:3])
    )
    assert straight == pytest.approx(-swapped, abs=1e-5) and abs(straight) > 1e-3
    scorer.score.weight.zero_()
    assert bradley_terry(scorer, batch, 0.0)[1]["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_a_conversation_sees_nothing_of_its_neighbours(model, rows, toy_tokenizer):
    """Other words in one change the weighted loss of no other."""
    def losses(some):
        [batch] = batches_of(some, toy_tokenizer.pad, SftConfig(packing=True), CPU)
        only = batch["weight"] * 0
        place = (batch["ids"] == some[0][0][-2]).nonzero()[0]  # of the longest, which begins the first row
        only[place[0], : len(some[0][0]) - 1] = batch["mask"][place[0], : len(some[0][0]) - 1]
        return next_token(model, batch | {"weight": only}, torch.float32)[1]["loss"]

    longest = max(rows, key=lambda row: len(row[0]))
    others = [row for row in rows if row is not longest]
    changed = [([7] * len(ids), spoken) for ids, spoken in others]
    assert losses([longest, *others]) == pytest.approx(losses([longest, *changed]), abs=1e-5)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(50, 90))
def test_bins_hold_each_once_and_no_more_than_fits(lengths, capacity):
    found = bins(lengths, capacity)
    assert sorted(index for row in found for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in found)
    assert len(found) <= max(1, 11 / 9 * -(-sum(lengths) // (capacity // 2)))


def test_what_fits_no_row_is_refused():
    with pytest.raises(ValueError, match="51 tokens does not fit a row of 50"):
        bins([51], 50)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.sampled_from(["token", "example"]))
def test_weights_add_up_to_one(counts, weighting):
    rows = [([0] * (count + 1), [0] + [1] * count) for count in counts]
    found = weights_of(rows, weighting)
    assert sum(weight * count for weight, count in zip(found, counts, strict=True)) == pytest.approx(1)
    if weighting == "example":
        assert len({round(weight * count, 9) for weight, count in zip(found, counts, strict=True)}) == 1
