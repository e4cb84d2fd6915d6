import json
import math

import numpy as np
import pytest
import torch

from groundup.core.device import Device
from groundup.core.errors import UserError
from groundup.posttraining.batches import answer_log_probabilities, collate, row_of
from groundup.posttraining.config import RewardConfig
from groundup.posttraining.reward import assess, bradley_terry, from_policy, rewards, score_rows, train
from groundup.training.runtime import Runtime

CPU = torch.device("cpu")
FLOAT32 = Device(torch.device("cpu"), torch.float32, 1, "cpu", ())


def pairs(count):
    """The one that says "path" is preferred, whatever its length."""
    words = ["the", "file", "returns", "def", "function"]
    rows = []
    for number in range(count):
        good, bad = [f"{words[(number + shift) % 5]} " * (1 + (number * 7 + shift) % 3) for shift in (0, 1)]
        rows.append(
            {
                "prompt": [{"role": "user", "content": f"what does {words[number % 5]} return"}],
                "chosen": [{"role": "assistant", "content": good + "path"}],
                "rejected": [{"role": "assistant", "content": bad + "it"}],
            }
        )
    return rows


@pytest.fixture
def policy(toy_decoder, toy_tokenizer):
    return toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size)


def test_the_scorer_begins_on_the_policys_backbone(policy):
    reward_model = from_policy(policy, seed=3)
    copied = reward_model.model.state_dict()
    assert all(torch.equal(tensor, copied[name]) for name, tensor in policy.model.state_dict().items())
    assert torch.equal(reward_model.score.weight, from_policy(policy, seed=3).score.weight)
    wide = torch.cat([from_policy(policy, seed).score.weight.flatten() for seed in range(60)])
    assert wide.std().item() == pytest.approx(1 / math.sqrt(33), rel=0.05)
    with torch.no_grad():
        reward_model.model.norm.weight.zero_()
    assert policy.model.norm.weight.abs().min() > 0  # a copy: training one leaves the other


def test_a_head_of_zeros_has_loss_ln_2(policy, toy_tokenizer):
    reward_model = from_policy(policy, seed=3)
    with torch.no_grad():
        reward_model.score.weight.zero_()
    batch = collate([row_of(toy_tokenizer, "what", said) for said in ("path", "file")], toy_tokenizer.pad, CPU)
    loss, metrics = bradley_terry(reward_model, batch, 0.01)
    assert loss.item() == metrics["loss"] == pytest.approx(math.log(2)) and metrics["margin"] == 0


def test_bradley_terry_by_hand(policy, toy_tokenizer):
    reward_model = from_policy(policy, seed=3)
    said = ("path", "the file", "file", "returns it")
    batch = collate([row_of(toy_tokenizer, "what", text) for text in said], toy_tokenizer.pad, CPU)
    one, two, three, four = rewards(reward_model, batch).tolist()
    loss, metrics = bradley_terry(reward_model, batch, 0.01)
    fit_ = -(math.log(1 / (1 + math.exp(three - one))) + math.log(1 / (1 + math.exp(four - two)))) / 2
    centring = 0.01 * ((one + three) ** 2 + (two + four) ** 2) / 2
    assert metrics["loss"] == pytest.approx(fit_, abs=1e-5) and loss.item() == pytest.approx(fit_ + centring, abs=1e-5)
    assert metrics["margin"] == pytest.approx((one - three + two - four) / 2, abs=1e-5)
    swapped = {name: torch.cat((tensor[2:], tensor[:2])) for name, tensor in batch.items()}
    assert bradley_terry(reward_model, swapped, 0.01)[1]["margin"] == pytest.approx(-metrics["margin"], abs=1e-5)


def test_the_reward_is_read_at_the_end_of_the_answer_whatever_the_padding(policy, toy_tokenizer):
    reward_model = from_policy(policy, seed=3)
    rows = [row_of(toy_tokenizer, "what", text) for text in ("path", "", "the file returns it " * 2)]
    together = rewards(reward_model, collate(rows, toy_tokenizer.pad, CPU))
    for row, found in zip(rows, together, strict=True):
        at_the_end = reward_model(torch.tensor([row[0]]))[0, -1]
        assert row[0][-1] == toy_tokenizer.message_end
        assert found.item() == pytest.approx(at_the_end.item(), abs=1e-5)
        assert rewards(reward_model, collate([row], toy_tokenizer.pad, CPU)).item() == pytest.approx(found.item(), abs=1e-5)
    other_padding = rewards(reward_model, collate(rows, 0, CPU))
    assert torch.allclose(together, other_padding, atol=1e-5)
    assert score_rows(reward_model, toy_tokenizer, rows, batch=2) == pytest.approx(together.detach().numpy(), abs=1e-5)


def test_what_is_preferred_is_learned(policy, toy_tokenizer, tmp_path):
    settings = RewardConfig(epochs=6, batch_pairs=10, learning_rate=3e-3)
    reward_model = train(policy, toy_tokenizer, pairs(40), settings, Runtime(FLOAT32, tmp_path, "reward"))
    first = json.loads((tmp_path / "training" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=0.3)
    results, scored = assess(reward_model, toy_tokenizer, pairs(60)[40:])
    assert results["accuracy"]["accuracy"] > 0.9
    assert len(scored) == 40 and {row["side"] for row in scored} == {"chosen", "rejected"}
    values = np.array([row["reward"] for row in scored])
    assert results["reward_mean"] == pytest.approx(values.mean(), abs=1e-3)
    assert results["reward_std"] == pytest.approx(values.std(), abs=1e-3)
    assert -1 <= results["length_correlation"] <= 1


def test_longer_wins_is_the_accuracy_of_always_preferring_the_longer(policy, toy_tokenizer):
    def pair(chosen, rejected):
        return {
            "prompt": [{"role": "user", "content": "what"}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }

    answers = [("the path of the file", "it"), ("it", "the path of the file"), ("a", "b"), ("a b c", "a")]
    rows = [pair(chosen, rejected) for chosen, rejected in answers]
    results, _ = assess(from_policy(policy, seed=3), toy_tokenizer, rows)
    assert results["longer_wins"] == (1 + 0 + 0.5 + 1) / 4
    ahead = results["ahead_of_longer"]
    assert ahead["difference"] == pytest.approx(results["accuracy"]["accuracy"] - results["longer_wins"])
    assert ahead["low"] <= ahead["difference"] <= ahead["high"] and ahead["n"] == 4


def test_the_likelier_answer_and_pairs_of_one_length(policy, toy_tokenizer):
    def pair(chosen, rejected):
        return {"prompt": "what", "chosen": chosen, "rejected": rejected}

    rows = [pair("the path of it", "it"), pair("a", "b"), pair("path", "file"), pair("it", "returns the file " * 3)]
    scorer = from_policy(policy, seed=3)
    results, _ = assess(scorer, toy_tokenizer, rows, policy=policy)
    sides = [[rewards(scorer, batch).item() for batch in one] for one in (
        [collate([row_of(toy_tokenizer, "what", row[side])], toy_tokenizer.pad, CPU) for side in ("chosen", "rejected")]
        for row in rows
    )]  # fmt: skip
    right = [chosen > rejected for chosen, rejected in sides]
    assert results["accuracy"]["accuracy"] == sum(right) / 4
    assert results["length_matched"]["n"] == 2 and results["length_matched"]["accuracy"] == sum(right[1:3]) / 2
    likelier = 0
    for row in rows:
        logp = [
            answer_log_probabilities(policy, collate([row_of(toy_tokenizer, "what", row[side])], toy_tokenizer.pad, CPU)).sum()
            for side in ("chosen", "rejected")
        ]
        likelier += bool(logp[0] > logp[1])
    assert results["likelier_wins"] == likelier / 4
    assert results["ahead_of_likelier"]["difference"] == pytest.approx((sum(right) - likelier) / 4)
    assert assess(scorer, toy_tokenizer, rows[:1])[0]["length_matched"] is None


def test_no_pairs(policy, toy_tokenizer, tmp_path):
    with pytest.raises(UserError, match="reward: no preference pairs"):
        train(policy, toy_tokenizer, [], RewardConfig(), Runtime(FLOAT32, tmp_path, "reward"))
