import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.device import Device
from groundup.core.errors import UserError
from groundup.posttraining.batches import collate, row_of
from groundup.posttraining.config import DpoConfig
from groundup.posttraining.dpo import assess, preference_loss, sequence_log_probability, train
from groundup.posttraining.preference_losses import Pairs
from groundup.training.runtime import Runtime

CPU = torch.device("cpu")
FLOAT32 = Device(torch.device("cpu"), torch.float32, 1, "cpu", ())
PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"what is {letter}"}],
        "chosen": [{"role": "assistant", "content": "the path"}],
        "rejected": [{"role": "assistant", "content": "the file returns"}],
    }
    for letter in "abcdefgh"
]


@pytest.fixture
def policy(toy_decoder, toy_tokenizer):
    return toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size)


def sigmoid(policy, reference, beta):
    """Rows as (all chosen, then all rejected)."""
    tokens = torch.ones(len(policy) // 2)
    pairs = Pairs(*policy.chunk(2), *reference.chunk(2), tokens, tokens, policy.chunk(2)[0])
    return preference_loss(pairs, DpoConfig(beta=beta))


def answers(policy, tokenizer, side):
    rows = [row_of(tokenizer, pair["prompt"][0]["content"], pair[side][0]["content"]) for pair in PAIRS]
    with torch.no_grad():
        return sequence_log_probability(policy, collate(rows, tokenizer.pad, CPU))


@given(st.lists(st.floats(-50, 0), min_size=2, max_size=8).filter(lambda row: len(row) % 2 == 0), st.floats(0.01, 1))
def test_the_policy_that_is_its_reference_has_loss_ln_2(values, beta):
    policy = torch.tensor(values)
    loss, metrics = sigmoid(policy, policy.clone(), beta)
    assert loss.item() == pytest.approx(math.log(2))
    assert metrics["reward_chosen"] == metrics["reward_rejected"] == metrics["accuracy"] == 0


def test_by_hand():
    policy, reference = torch.tensor([-10.0, -12.0, -11.0, -9.0]), torch.tensor([-11.0, -11.0, -10.0, -9.5])
    loss, metrics = sigmoid(policy, reference, 0.5)
    # Implicit rewards: chosen +0.5, -0.5; rejected -0.5, +0.25. Margins 1.0 and -0.75.
    expected = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(0.75))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert metrics["loss"] == loss.item() and metrics["accuracy"] == 0.5
    assert (metrics["reward_chosen"], metrics["reward_rejected"]) == pytest.approx((0.0, -0.125))


@given(st.lists(st.tuples(*[st.floats(-40, 0)] * 4), min_size=1, max_size=5), st.floats(0.01, 1))
def test_swapping_the_sides_negates_the_margin(rows, beta):
    one, two, three, four = (torch.tensor(column) for column in zip(*rows, strict=True))
    _, straight = sigmoid(torch.cat((one, two)), torch.cat((three, four)), beta)
    _, swapped = sigmoid(torch.cat((two, one)), torch.cat((four, three)), beta)
    margin = straight["reward_chosen"] - straight["reward_rejected"]
    assert swapped["reward_chosen"] - swapped["reward_rejected"] == pytest.approx(-margin, abs=1e-5)


def test_an_answer_is_worth_the_sum_of_its_tokens_and_of_its_end(policy, toy_tokenizer):
    ids, spoken = row_of(toy_tokenizer, "what is a", "the path")
    logp = torch.log_softmax(policy(torch.tensor([ids])), dim=-1)[0]
    expected = sum(logp[place - 1, ids[place]].item() for place in range(len(ids)) if spoken[place])
    assert answers(policy, toy_tokenizer, "chosen")[0].item() == pytest.approx(expected, abs=1e-4)


def test_training_begins_at_ln_2_and_prefers_the_chosen(policy, toy_tokenizer, tmp_path):
    before = {side: answers(policy, toy_tokenizer, side) for side in ("chosen", "rejected")}
    settings = DpoConfig(epochs=10, batch_pairs=4, learning_rate=1e-3, beta=0.3)
    assert train(policy, toy_tokenizer, PAIRS, settings, Runtime(FLOAT32, tmp_path, "dpo")) == 20
    rows = [json.loads(line) for line in (tmp_path / "training" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["reward_chosen"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["loss"] < 0.5 and rows[-1]["accuracy"] == 1
    gained = {side: answers(policy, toy_tokenizer, side) - before[side] for side in before}
    assert (gained["chosen"] > gained["rejected"]).all()


def test_implicit_rewards_of_held_out_pairs(toy_decoder, toy_tokenizer):
    policy, reference = (toy_decoder(seed=1, scale=scale, vocab_size=toy_tokenizer.size) for scale in (0.2, 0.1))
    pairs = [{**pair, "rejected": "it returns " * (1 + n % 3)} for n, pair in enumerate(PAIRS)]
    settings = DpoConfig(beta=0.3)
    found = assess(policy, reference, toy_tokenizer, [*pairs, {"prompt": "none"}], settings)
    sides = []
    for side in ("chosen", "rejected"):
        texts = [one[side] if isinstance(one[side], str) else one[side][0]["content"] for one in pairs]
        rows = [row_of(toy_tokenizer, one["prompt"][0]["content"], text.strip()) for one, text in zip(pairs, texts, strict=True)]
        with torch.no_grad():
            batch = collate(rows, toy_tokenizer.pad, CPU)
            moved = sequence_log_probability(policy, batch) - sequence_log_probability(reference, batch)
        sides.append((0.3 * moved, batch["mask"].sum(1)))
    (chosen, longs), (rejected, shorts) = sides
    assert found["accuracy"]["n"] == 8 and found["accuracy"]["accuracy"] == (chosen > rejected).float().mean().item()
    rewards, lengths = torch.cat((chosen, rejected)), torch.cat((longs, shorts))
    assert found["reward_mean"] == pytest.approx(rewards.mean().item(), abs=1e-5)
    assert found["length_correlation"] == pytest.approx(torch.corrcoef(torch.stack((rewards, lengths)))[0, 1].item(), abs=1e-4)
    assert found["longer_wins"] == ((longs > shorts).float() + 0.5 * (longs == shorts)).mean().item()
    assert assess(policy, reference, toy_tokenizer, [], settings) == {}


def test_no_pairs(policy, toy_tokenizer, tmp_path):
    with pytest.raises(UserError, match="dpo: no preference pairs"):
        train(policy, toy_tokenizer, [], DpoConfig(), Runtime(FLOAT32, tmp_path, "dpo"))


def test_held_out_pairs_are_measured_while_it_trains(policy, toy_tokenizer, tmp_path):
    seen, unseen = PAIRS[:4], [*PAIRS[4:], {"prompt": "no conversation"}]
    settings, left_out = DpoConfig(epochs=16, batch_pairs=4, learning_rate=1e-3, beta=0.3), Counter()
    before = {side: answers(policy, toy_tokenizer, side)[4:] for side in ("chosen", "rejected")}
    steps = train(policy, toy_tokenizer, seen, settings, Runtime(FLOAT32, tmp_path, "dpo", left_out=left_out), unseen)
    rows = [json.loads(line) for line in (tmp_path / "training" / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "held_out_loss" in row]
    assert steps == 16 and [row["step"] for row in measured] == list(range(1, 16, 2))
    after = {side: answers(policy, toy_tokenizer, side)[4:] for side in before}
    gained = {side: settings.beta * (after[side] - before[side]) for side in before}
    margins = gained["chosen"] - gained["rejected"]
    assert measured[-1]["held_out_loss"] == pytest.approx(torch.log1p(torch.exp(-margins)).mean().item(), abs=1e-5)
    assert measured[-1]["held_out_accuracy"] == (margins > 0).float().mean().item()
    assert measured[-1]["held_out_pairs"] == 4 and left_out.total() == 1


def test_measuring_held_out_pairs_changes_no_weight(toy_decoder, toy_tokenizer, tmp_path):
    weights = []
    for number, unseen in enumerate(([], PAIRS)):
        policy = toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size)
        train(policy, toy_tokenizer, PAIRS, DpoConfig(batch_pairs=4), Runtime(FLOAT32, tmp_path / str(number), "dpo"), unseen)
        weights.append(torch.cat([parameter.flatten() for parameter in policy.parameters()]))
    assert torch.equal(*weights)
