"""PPO and GRPO on rewards whose effect is known: a token that is counted, mere length. The instruments must tell them apart."""

import copy
from pathlib import Path

import pytest
import torch

from groundup.core.device import Device
from groundup.core.files import read_jsonl
from groundup.generation.engine import Sampling
from groundup.posttraining import grpo, ppo
from groundup.posttraining.batches import collate, row_of
from groundup.posttraining.config import GrpoConfig, PpoConfig
from groundup.posttraining.grpo import GroupSetup, advantages_of, group_objective, rollout, updates_of
from groundup.posttraining.rewards import Prompt, open_reward
from groundup.posttraining.rollouts import asked_prompts
from groundup.training import loop
from groundup.training.objectives import next_token
from groundup.training.runtime import Runtime

CPU = torch.device("cpu")
FLOAT32 = Device(torch.device("cpu"), torch.float32, 1, "cpu", ())
QUESTIONS = ["what is the path", "what does it return", "the file", "return"]
ANSWERS = ["the path", "it returns the file", "def path file", "file", "path of the file"]
MOST = 12


@pytest.fixture(scope="module")
def fine_tuned(toy_decoder, toy_tokenizer):
    """A model whose answers are short and end."""
    policy = toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size)
    batch = collate([row_of(toy_tokenizer, asked, text) for asked in QUESTIONS[:2] for text in ANSWERS], toy_tokenizer.pad, CPU)
    batch["weight"] = batch["mask"] / batch["mask"].sum()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for _ in range(40):
        next_token(policy, batch, torch.float32)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


def reward_of(name, toy_tokenizer):
    return open_reward(name, toy_tokenizer, torch.float32, CPU)


def by_ppo(policy, toy_tokenizer, folder, reward, **changes):
    values = {"iterations": 14, "rollouts": 24, "minibatches": 1, "epochs": 2, "learning_rate": 4e-3, "kl_coefficient": 0.02}
    settings = PpoConfig(**{**values, **changes})
    asked = QUESTIONS * 6
    return ppo.train(
        copy.deepcopy(policy), toy_tokenizer, asked, settings, Runtime(FLOAT32, folder, "ppo"),
        reward_of(reward, toy_tokenizer), MOST,
    )


def by_grpo(policy, toy_tokenizer, folder, reward, **changes):
    values = {"iterations": 14, "prompts": 4, "generations": 6, "learning_rate": 4e-3}
    settings, trained = GrpoConfig(**{**values, **changes}), copy.deepcopy(policy)
    found = grpo.train(
        trained, toy_tokenizer, QUESTIONS, settings, Runtime(FLOAT32, folder, "grpo"), reward_of(reward, toy_tokenizer), MOST
    )
    return found, trained


def test_a_counted_token_is_said_more_often_and_the_divergence_held(fine_tuned, toy_tokenizer, tmp_path):
    adapted = {"kl_coefficient": 0.1, "kl_target": 2.0, "kl_horizon": 24}
    found = by_ppo(fine_tuned, toy_tokenizer, tmp_path, "count=the", **adapted)
    first, last = found["first"], found["last"]
    assert last["reward"] > 1.5 * first["reward"]
    coefficients = [row["kl_coefficient"] for row in read_jsonl(tmp_path / "training" / "rollouts.jsonl")]
    assert coefficients[0] == 0.1 and coefficients[1] == pytest.approx(0.08)  # no divergence yet: 0.2 lower
    assert max(coefficients[-4:]) > min(coefficients)  # it was above its target
    assert 0.5 < last["kl"] < 6 and last["ended"] > 0.9


def test_length_alone_is_learned_and_said_and_answers_end_for_what_it_costs_not_to(fine_tuned, toy_tokenizer, tmp_path):
    found = by_ppo(fine_tuned, toy_tokenizer, tmp_path, "length")
    first, last = found["first"], found["last"]
    assert last["length"] > 1.5 * first["length"] and last["reward"] > 1.5 * first["reward"] and last["ended"] > 0.8
    assert first["reward_length_correlation"] > 0.5
    assert [one.split(":")[0] for one in found["concerns"]] == ["Reward goes with length"]


def test_without_the_penalty_of_a_missing_end_answers_stop_ending(fine_tuned, toy_tokenizer, tmp_path):
    found = by_ppo(fine_tuned, toy_tokenizer, tmp_path, "length", missing_end_reward="off")
    assert found["first"]["ended"] > 0.9 and found["last"]["ended"] < 0.5 and found["last"]["length"] > 10
    assert found["concerns"][0].startswith("Answers stop ending: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "dapo"},
        {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.02, "epochs": 2},
        {"baseline": "leave_one_out", "importance": "sequence", "loss_type": "grpo", "mask_truncated": True},
    ],
    ids=["dapo", "dr_grpo", "leave one out"],
)
def test_groups_learn_a_counted_token(fine_tuned, toy_tokenizer, tmp_path, changes):
    found, _ = by_grpo(fine_tuned, toy_tokenizer, tmp_path, "count=the", **changes)
    assert found["last"]["reward"] > 1.5 * found["first"]["reward"]
    log, steps = read_jsonl(tmp_path / "training" / "rollouts.jsonl"), read_jsonl(tmp_path / "training" / "metrics.jsonl")
    assert [row["rollout_reward"] for row in steps if "rollout_reward" in row] == [row["reward"] for row in log]
    assert ("kl" in log[0]) == ("kl" in steps[0]) == ("beta" in changes)
    if "beta" in changes:
        assert log[0]["kl"] == pytest.approx(0, abs=1e-5) and log[-1]["kl"] > 0.1


def test_groups_without_difference_are_counted_and_teach_nothing(fine_tuned, toy_tokenizer, tmp_path):
    before = [parameter.clone() for parameter in fine_tuned.parameters()]
    found, trained = by_grpo(fine_tuned, toy_tokenizer, tmp_path, "count=zzz", iterations=2)
    assert found["last"]["without_difference"] == 1
    for row in read_jsonl(tmp_path / "training" / "metrics.jsonl"):
        assert row["grad_norm"] == 0 and row["loss"] == 0
    for one, other in zip(before, trained.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-3)  # but for the weight decay


def a_rollout(policy, toy_tokenizer, settings, reward="count=the"):
    setup = GroupSetup(policy, reward_of(reward, toy_tokenizer), settings, MOST, torch.float32)
    prompts = asked_prompts(policy, toy_tokenizer, QUESTIONS, MOST, Runtime(FLOAT32, Path(), "grpo"))
    return rollout(policy, setup, prompts, [toy_tokenizer.message_end], toy_tokenizer.pad, Sampling(MOST), 3)


def test_a_rollout_is_prompt_by_prompt_and_its_first_ratio_is_one(fine_tuned, toy_tokenizer):
    settings = GrpoConfig(generations=3, beta=0.1)
    batch, metrics, answers, rewards = a_rollout(fine_tuned, toy_tokenizer, settings)
    assert [prompt.question for prompt in answers.prompts] == [asked for asked in QUESTIONS for _ in range(3)]
    advantages, _ = advantages_of(rewards, settings)
    assert torch.equal(batch["advantages"][:, 0], advantages)
    assert metrics["kl"] == 0 and metrics["entropy"] > 0 and metrics["ended"] == answers.ended.float().mean()
    ((whole,),) = updates_of(batch, 1, settings, MOST)
    _, found = group_objective(fine_tuned, whole, settings, torch.float32)
    assert found["clip_fraction"] == 0 and found["approx_kl"] == pytest.approx(0, abs=1e-9)
    assert found["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_micro_batches_add_up_to_the_update(fine_tuned, toy_tokenizer, monkeypatch, loss_type):
    settings = GrpoConfig(generations=3, loss_type=loss_type)
    batch, *_ = a_rollout(fine_tuned, toy_tokenizer, settings)
    batch["logp"] = batch["logp"] - 0.1 * batch["mask"]

    def sums(updates):
        parts = [group_objective(fine_tuned, part, settings, torch.float32)[1] for update in updates for part in update]
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    whole = sums(updates_of(batch, 1, settings, MOST))
    monkeypatch.setattr(grpo, "ROWS", 4)
    cut = updates_of(batch, 1, settings, MOST)
    assert len(cut[0]) == 3 and sums(cut) == pytest.approx(whole, abs=1e-5)
    halves = updates_of(batch, 2, settings, MOST)
    assert [sum(len(part["mask"]) for part in update) for update in halves] == [6, 6]
    if loss_type in ("dr_grpo", "dapo"):  # tokens count alike in both updates
        assert sums(halves)["loss"] / 2 == pytest.approx(whole["loss"], abs=1e-5)


@pytest.mark.parametrize("killed_at", [1, 5])
def test_resumed_groups_end_with_the_same_bits(fine_tuned, toy_tokenizer, tmp_path, monkeypatch, killed, killed_at):
    changes = {"iterations": 3, "minibatches": 2, "beta": 0.1, "samples_every": 2}
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    summary, policy = by_grpo(fine_tuned, toy_tokenizer, tmp_path / "whole", "count=the", **changes)

    with pytest.raises(killed(grpo, "group_objective", killed_at + 1)):
        by_grpo(fine_tuned, toy_tokenizer, tmp_path / "cut", "count=the", **changes)
    again, resumed = by_grpo(fine_tuned, toy_tokenizer, tmp_path / "cut", "count=the", **changes)
    assert again == summary
    for one, other in zip(policy.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    for name in ("metrics.jsonl", "rollouts.jsonl", "rollout_samples.jsonl"):
        assert (tmp_path / "cut" / "training" / name).read_bytes() == (tmp_path / "whole" / "training" / name).read_bytes()


def test_a_folder_without_a_scale_is_normalised_by_the_first_rollout(fine_tuned, toy_tokenizer):
    reward, settings = reward_of("length", toy_tokenizer), PpoConfig()
    reward.scale = None
    scores = torch.tensor([1.0, 3.0])
    assert ppo.scale_of(reward, scores, []) == (2.0, 1.0)
    assert ppo.scale_of(reward, scores, [{"reward_mean": 5.0, "reward_std": 4.0}]) == (5.0, 4.0)
    assert ppo.scale_of(reward, torch.ones(2), []) == (1.0, 1.0)
    value = ppo.value_of(fine_tuned, reward)
    assert (value(torch.arange(5)[None]) == 0).all() and settings.missing_end_reward == -3


def test_whitened_rewards_keep_their_mean(fine_tuned, toy_tokenizer):
    setup = ppo.RewardSetup(fine_tuned, reward_of("length", toy_tokenizer), PpoConfig(whiten_rewards=True), torch.float32)
    actor = ppo.ActorCritic(fine_tuned, ppo.value_of(fine_tuned, setup.reward))
    prompts = asked_prompts(fine_tuned, toy_tokenizer, QUESTIONS, MOST, Runtime(FLOAT32, Path(), "ppo"))
    batch, *_ = ppo.rollout(actor, setup, prompts, [toy_tokenizer.message_end], toy_tokenizer.pad, Sampling(MOST), 3)
    plain = ppo.rollout(
        actor, ppo.RewardSetup(fine_tuned, setup.reward, PpoConfig(), torch.float32), prompts,
        [toy_tokenizer.message_end], toy_tokenizer.pad, Sampling(MOST), 3,
    )[0]  # fmt: skip
    last = batch["mask"].cumsum(1).argmax(1)
    earned, before = (one["returns"][torch.arange(4), last] for one in (batch, plain))
    assert not torch.allclose(earned, before) and torch.allclose(earned.argsort(), before.argsort())
    assert all(isinstance(prompt, Prompt) for prompt in prompts)
