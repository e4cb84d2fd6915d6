import copy
import dataclasses

import numpy as np
import pytest
import torch

from groundup.core.device import Device
from groundup.core.files import read_jsonl
from groundup.generation.engine import Sampling, generate
from groundup.posttraining import ppo
from groundup.posttraining.advantages import advantage_estimates
from groundup.posttraining.config import PpoConfig
from groundup.posttraining.ppo import ActorCritic, RewardSetup, clipped_objective, rollout, train
from groundup.posttraining.reward import from_policy
from groundup.posttraining.rewards import ModelReward, Prompt
from groundup.posttraining.rollouts import by_length
from groundup.training import loop
from groundup.training.runtime import Runtime

FLOAT32 = Device(torch.device("cpu"), torch.float32, 1, "cpu", ())

PROMPTS = [Prompt("", ids) for ids in ([5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [15])]
ENDS, PAD = [1, 2], 0


@pytest.fixture
def actor(toy_decoder):
    policy = toy_decoder(seed=1, scale=0.1)
    return ActorCritic(policy, from_policy(policy, seed=2))


class Scores:
    """A reward that is a function of the answers' ids."""

    def __init__(self, score, scale=(0.0, 1.0)):
        self.score, self.scale = score, scale

    def __call__(self, prompts, answers):
        return torch.tensor([float(self.score(answer)) for answer in answers])


@pytest.fixture
def setup(actor, toy_decoder, toy_tokenizer):
    reward_model = from_policy(toy_decoder(seed=5, scale=0.1, vocab_size=toy_tokenizer.size), seed=6)
    reward = ModelReward(reward_model, (0.2, 0.5), toy_tokenizer, torch.float32)
    return RewardSetup(copy.deepcopy(actor.policy), reward, PpoConfig(), torch.float32)


def with_settings(setup, **changes):
    return dataclasses.replace(setup, settings=PpoConfig(**changes))


def objective(model, batch, **changes):
    return clipped_objective(model, batch, PpoConfig(**changes), torch.float32)


def test_a_rollout_holds_what_the_updates_need(actor, setup):
    sampling = Sampling(6)
    batch, metrics, *_ = rollout(actor, setup, PROMPTS, ENDS, PAD, sampling, seed=3)
    answers = generate(actor.policy, [prompt.ids for prompt in PROMPTS], ENDS, sampling, seed=3)
    width = max(len(prompt.ids) + len(answer) for prompt, answer in zip(PROMPTS, answers, strict=True)) - 1
    names = {"ids", "targets", "mask", "logp", "values", "advantages", "returns"}
    assert batch.keys() == names and all(batch[name].shape == (4, width) for name in names)
    assert not any(tensor.requires_grad for tensor in batch.values())
    mask = batch["mask"]
    assert mask.sum(dim=1).tolist() == [len(answer) for answer in answers]
    for row, answer in enumerate(answers):
        assert batch["targets"][row][mask[row] == 1].tolist() == answer
    assert all((batch[name] * (1 - mask)).abs().max() == 0 for name in ("logp", "values", "advantages"))
    assert metrics["kl"] == pytest.approx(0, abs=1e-5)
    assert metrics["length"] == pytest.approx(np.mean([len(answer) for answer in answers]))
    assert metrics["ended"] == np.mean([answer[-1] in ENDS for answer in answers])


def test_the_score_stands_at_the_last_token_and_unfinished_answers_have_their_own(actor, setup, monkeypatch):
    seen = {}

    def spy(rewards, values, mask, *rest):
        seen.update(rewards=rewards.clone(), mask=mask)
        return advantage_estimates(rewards, values, mask, *rest)

    monkeypatch.setattr(ppo, "advantage_estimates", spy)
    batch, metrics, *_ = rollout(actor, setup, PROMPTS * 4, [*range(1, 20)], PAD, Sampling(4), seed=3)
    assert 0 < metrics["ended"] < 1
    scores = []
    for row in range(16):
        places = seen["mask"][row].nonzero().flatten().tolist()
        last = places[-1]
        ids = torch.cat((batch["ids"][row, : last + 1], batch["targets"][row, last : last + 1]))
        if ids[-1] in range(1, 20):
            expected = (setup.reward.reward_model(ids[None])[0, -1].item() - 0.2) / 0.5
        else:
            expected = -3.0
        assert seen["rewards"][row, last].item() == pytest.approx(expected, abs=1e-4)
        others = [place for place in range(seen["mask"].shape[1]) if place != last]
        assert seen["rewards"][row, others].abs().max() < 1e-5  # no KL yet: policy and reference are the same
        scores.append(expected)
    assert metrics["score"] == pytest.approx(np.mean(scores), abs=1e-4)


def test_leaving_the_reference_costs(actor, setup, toy_decoder):
    moved = ActorCritic(toy_decoder(seed=1, scale=0.11), actor.value)
    _, metrics, *_ = rollout(moved, setup, PROMPTS * 8, ENDS, PAD, Sampling(8), seed=3)
    assert metrics["kl"] > 0.01


def test_before_the_first_update_the_ratio_is_one(actor, setup):
    batch, *_ = rollout(actor, setup, PROMPTS, ENDS, PAD, Sampling(6), seed=3)
    loss, metrics = objective(actor, batch)
    assert metrics["loss"] == pytest.approx(0, abs=1e-5)  # minus the mean of whitened advantages
    assert metrics["clip_fraction"] == 0
    mask = batch["mask"]
    errors = ((batch["values"] - batch["returns"]).square() * mask).sum() / mask.sum()
    assert metrics["value_loss"] == pytest.approx(0.5 * errors.item(), abs=1e-5)
    assert loss.item() == pytest.approx(metrics["loss"] + 0.1 * metrics["value_loss"], abs=1e-6)


def test_the_first_gradient_is_that_of_reinforce(actor, setup):
    batch, *_ = rollout(actor, setup, PROMPTS, ENDS, PAD, Sampling(6), seed=3)
    loss, _ = objective(actor, batch)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in actor.policy.named_parameters()}
    actor.zero_grad()
    logp = torch.log_softmax(actor.policy(batch["ids"]), dim=-1).gather(-1, batch["targets"][..., None]).squeeze(-1)
    (-(logp * batch["advantages"] * batch["mask"]).sum() / batch["mask"].sum()).backward()
    for name, parameter in actor.policy.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-5), name


def test_the_ratio_is_clipped_where_it_would_gain(actor, setup):
    batch, *_ = rollout(actor, setup, PROMPTS, ENDS, PAD, Sampling(6), seed=3)
    far = batch | {"logp": batch["logp"] - batch["mask"]}  # the policy has moved: every ratio is e
    _, metrics = objective(actor, far)
    gains = torch.where(batch["advantages"] > 0, 1.2, float(np.e)) * batch["advantages"]
    gained = (batch["advantages"] > 0).float()
    assert metrics["clip_fraction"] == pytest.approx(((gained * batch["mask"]).sum() / batch["mask"].sum()).item())
    expected = -(gains * batch["mask"]).sum() / batch["mask"].sum()
    assert metrics["loss"] == pytest.approx(expected.item(), abs=1e-4)


def share_of_even_tokens(answer):
    return sum(token % 2 == 0 for token in answer) / len(answer)


def optimised(toy_decoder, toy_tokenizer, folder, reward=None, **changes):
    policy = toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size)
    reward = reward or ModelReward(from_policy(policy, seed=4), (0.5, 0.1), toy_tokenizer, torch.float32)
    small = {"iterations": 24, "rollouts": 32, "minibatches": 1, "epochs": 2}
    values = {**small, "learning_rate": 3e-3, "kl_coefficient": 0.0, **changes}
    questions = ["what is the path", "what does it return", "the file"] * 11
    settings = PpoConfig(**values)
    return train(policy, toy_tokenizer, questions, settings, Runtime(FLOAT32, folder, "ppo"), reward, 8), policy


def test_training_earns_more_reward(toy_decoder, toy_tokenizer, tmp_path):
    summary, _ = optimised(
        toy_decoder, toy_tokenizer, tmp_path, Scores(share_of_even_tokens, (0.5, 0.1)), missing_end_reward="off"
    )
    log = read_jsonl(tmp_path / "training" / "rollouts.jsonl")
    assert [row["iteration"] for row in log] == list(range(24))
    assert summary["first"] == log[0] and summary["last"] == log[-1]
    assert log[0]["kl"] == pytest.approx(0, abs=1e-5) and log[-1]["kl"] > 0.01
    scores = [row["score"] for row in log]
    assert np.mean(scores[-4:]) > np.mean(scores[:4]) + 0.5
    in_steps = [row for row in read_jsonl(tmp_path / "training" / "metrics.jsonl") if "rollout_length" in row]
    assert [row["step"] for row in in_steps] == list(range(0, 48, 2))
    assert [row["rollout_ended"] for row in in_steps] == [row["ended"] for row in log]
    samples = read_jsonl(tmp_path / "training" / "rollout_samples.jsonl")
    assert {row["iteration"] for row in samples} == {0, 10, 20, 23} and len(samples) == 4 * 8
    assert samples[0].keys() == {"iteration", "question", "answer", "reward", "tokens", "ended"}


@pytest.mark.parametrize("killed_at", [1, 2, 5])
def test_resumed_training_ends_with_the_same_bits(toy_decoder, toy_tokenizer, tmp_path, monkeypatch, killed, killed_at):
    changes = {"iterations": 4, "rollouts": 8, "minibatches": 2, "kl_coefficient": 0.1, "kl_target": 0.01, "kl_horizon": 50}
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    summary, policy = optimised(toy_decoder, toy_tokenizer, tmp_path / "whole", **changes)

    with pytest.raises(killed(ppo, "clipped_objective", killed_at + 1)):
        optimised(toy_decoder, toy_tokenizer, tmp_path / "cut", **changes)
    again, resumed = optimised(toy_decoder, toy_tokenizer, tmp_path / "cut", **changes)
    assert again == summary
    for one, other in zip(policy.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    for name in ("metrics.jsonl", "rollouts.jsonl", "rollout_samples.jsonl"):
        assert (tmp_path / "cut" / "training" / name).read_bytes() == (tmp_path / "whole" / "training" / name).read_bytes()


def test_parts_hold_every_row_once_and_no_padding_that_all_share(actor, setup):
    batch, *_ = rollout(actor, setup, PROMPTS * 2, ENDS, PAD, Sampling(6), seed=3)
    parts = by_length(batch, 3)
    assert sorted(row for rows, _ in parts for row in rows.tolist()) == list(range(8))
    for rows, part in parts:
        width = part["ids"].shape[1]
        for name, tensor in part.items():
            assert torch.equal(tensor, batch[name][rows, :width])
        assert part["mask"][:, -1].any() and not batch["mask"][rows, width:].any()
