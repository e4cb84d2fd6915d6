import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.files import read_jsonl
from groundup.generation.engine import Sampling, generate
from groundup.posttraining import ppo
from groundup.posttraining.config import PpoConfig
from groundup.posttraining.ppo import (
    ActorCritic,
    RewardSetup,
    advantage_estimates,
    clipped_objective,
    rollout,
    train,
    whiten,
)
from groundup.posttraining.reward import from_policy
from groundup.training import loop

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [15]]
ENDS, PAD = [1, 2], 0


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


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), min_size=1, max_size=4), st.integers(0, 99))
def test_advantages_equal_a_straightforward_loop(spans, seed):
    width = max(start + length for start, length in spans) + 1
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(spans), width, generator=generator)
    mask = torch.zeros(len(spans), width)
    for row, (start, length) in enumerate(spans):
        mask[row, start : start + length] = 1
    found = advantage_estimates(rewards * mask, values * mask, mask)
    for row, (start, length) in enumerate(spans):
        part = slice(start, start + length)
        expected = estimates_one_by_one(rewards[row, part].tolist(), values[row, part].tolist())
        assert found[row, part].tolist() == pytest.approx(expected, abs=1e-4)
    assert (found * (1 - mask)).abs().max() == 0


@given(st.integers(0, 99))
def test_whitening_uses_the_biased_variance_of_the_masked(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 5, generator=generator) * 4 + 2
    mask = (torch.rand(3, 5, generator=generator) < 0.6).float()
    mask[0, :2] = 1
    found = whiten(values, mask)
    chosen = values[mask == 1].double().numpy()
    expected = (chosen - chosen.mean()) / np.sqrt(chosen.var() + 1e-8)
    assert found[mask == 1].numpy() == pytest.approx(expected, abs=1e-4)
    assert (found * (1 - mask)).abs().max() == 0


@pytest.fixture
def actor(toy_decoder):
    policy = toy_decoder(seed=1, scale=0.1)
    return ActorCritic(policy, from_policy(policy, seed=2))


@pytest.fixture
def setup(actor, toy_decoder):
    reward_model = from_policy(toy_decoder(seed=5, scale=0.1), seed=6)
    scale = {"reward_mean": 0.2, "reward_std": 0.5}
    return RewardSetup(copy.deepcopy(actor.policy), reward_model, **scale, kl_coefficient=0.05, dtype=torch.float32)


def test_a_rollout_holds_what_the_updates_need(actor, setup):
    sampling = Sampling(6)
    batch, metrics = rollout(actor, setup, PROMPTS, ENDS, PAD, sampling, seed=3)
    answers = generate(actor.policy, PROMPTS, ENDS, sampling, seed=3)
    width = max(len(prompt) + len(answer) for prompt, answer in zip(PROMPTS, answers, strict=True)) - 1
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

    def spy(rewards, values, mask):
        seen.update(rewards=rewards.clone(), mask=mask)
        return advantage_estimates(rewards, values, mask)

    monkeypatch.setattr(ppo, "advantage_estimates", spy)
    batch, metrics = rollout(actor, setup, PROMPTS * 4, [*range(1, 20)], PAD, Sampling(4), seed=3)
    assert 0 < metrics["ended"] < 1
    scores = []
    for row in range(16):
        places = seen["mask"][row].nonzero().flatten().tolist()
        last = places[-1]
        ids = torch.cat((batch["ids"][row, : last + 1], batch["targets"][row, last : last + 1]))
        if ids[-1] in range(1, 20):
            expected = (setup.reward_model(ids[None])[0, -1].item() - 0.2) / 0.5
        else:
            expected = ppo.UNFINISHED_REWARD
        assert seen["rewards"][row, last].item() == pytest.approx(expected, abs=1e-4)
        others = [place for place in range(seen["mask"].shape[1]) if place != last]
        assert seen["rewards"][row, others].abs().max() < 1e-5  # no KL yet: policy and reference are the same
        scores.append(expected)
    assert metrics["score"] == pytest.approx(np.mean(scores), abs=1e-4)


def test_leaving_the_reference_costs(actor, setup, toy_decoder):
    moved = ActorCritic(toy_decoder(seed=1, scale=0.11), actor.value)
    _, metrics = rollout(moved, setup, PROMPTS * 8, ENDS, PAD, Sampling(8), seed=3)
    assert metrics["kl"] > 0.01


def test_before_the_first_update_the_ratio_is_one(actor, setup):
    batch, _ = rollout(actor, setup, PROMPTS, ENDS, PAD, Sampling(6), seed=3)
    loss, metrics = clipped_objective(0.2, torch.float32)(actor, batch)
    assert metrics["loss"] == pytest.approx(0, abs=1e-5)  # minus the mean of whitened advantages
    assert metrics["clipped"] == 0
    mask = batch["mask"]
    errors = ((batch["values"] - batch["returns"]).square() * mask).sum() / mask.sum()
    assert metrics["value_loss"] == pytest.approx(0.5 * errors.item(), abs=1e-5)
    assert loss.item() == pytest.approx(metrics["loss"] + ppo.VALUE_COEFFICIENT * metrics["value_loss"], abs=1e-6)


def test_the_first_gradient_is_that_of_reinforce(actor, setup):
    batch, _ = rollout(actor, setup, PROMPTS, ENDS, PAD, Sampling(6), seed=3)
    loss, _ = clipped_objective(0.2, torch.float32)(actor, batch)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in actor.policy.named_parameters()}
    actor.zero_grad()
    logp = torch.log_softmax(actor.policy(batch["ids"]), dim=-1).gather(-1, batch["targets"][..., None]).squeeze(-1)
    (-(logp * batch["advantages"] * batch["mask"]).sum() / batch["mask"].sum()).backward()
    for name, parameter in actor.policy.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-5), name


def test_the_ratio_is_clipped_where_it_would_gain(actor, setup):
    batch, _ = rollout(actor, setup, PROMPTS, ENDS, PAD, Sampling(6), seed=3)
    far = batch | {"logp": batch["logp"] - batch["mask"]}  # the policy has moved: every ratio is e
    _, metrics = clipped_objective(0.2, torch.float32)(actor, far)
    gains = torch.where(batch["advantages"] > 0, 1.2, float(np.e)) * batch["advantages"]
    assert metrics["clipped"] == 1
    expected = -(gains * batch["mask"]).sum() / batch["mask"].sum()
    assert metrics["loss"] == pytest.approx(expected.item(), abs=1e-4)


def optimised(toy_decoder, toy_tokenizer, folder, **changes):
    policy = toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size)
    reward_model = from_policy(policy, seed=4)
    small = {"iterations": 24, "rollouts": 32, "minibatches": 1, "epochs": 2}
    values = {**small, "learning_rate": 3e-3, "kl_coefficient": 0.0, **changes}
    questions = ["what is the path", "what does it return", "the file"] * 11
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    settings = PpoConfig(**values)
    summary = train(policy, reward_model, (0.5, 0.1), toy_tokenizer, questions, settings, 8, torch.float32, folder, seed=0)
    return summary, policy, before


def share_of_even_tokens(_, batch, dtype):
    return ((batch["targets"] % 2 == 0) * batch["mask"]).sum(dim=1) / batch["mask"].sum(dim=1)


def test_training_earns_more_reward(toy_decoder, toy_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(ppo, "UNFINISHED_REWARD", 0.0)
    monkeypatch.setattr(ppo, "rewards", share_of_even_tokens)
    summary, policy, before = optimised(toy_decoder, toy_tokenizer, tmp_path)
    log = read_jsonl(tmp_path / "rollouts.jsonl")
    assert [row["iteration"] for row in log] == list(range(24))
    assert summary["first"] == log[0] and summary["last"] == log[-1]
    assert log[0]["kl"] == pytest.approx(0, abs=1e-5) and log[-1]["kl"] > 0.01
    scores = [row["score"] for row in log]
    assert np.mean(scores[-4:]) > np.mean(scores[:4]) + 0.5
    assert any(not torch.equal(parameter, before[name]) for name, parameter in policy.named_parameters())


@pytest.mark.parametrize("killed_at", [1, 2, 5])
def test_resumed_training_ends_with_the_same_bits(toy_decoder, toy_tokenizer, tmp_path, monkeypatch, killed_at):
    changes = {"iterations": 4, "rollouts": 8, "minibatches": 2}
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    summary, policy, _ = optimised(toy_decoder, toy_tokenizer, tmp_path / "whole", **changes)

    class Killed(BaseException):
        pass

    original, calls = ppo.clipped_objective, []

    def killing(clip, dtype):
        loss = original(clip, dtype)

        def call(model, batch):
            calls.append(1)
            if len(calls) == killed_at + 1:
                raise Killed
            return loss(model, batch)

        return call

    monkeypatch.setattr(ppo, "clipped_objective", killing)
    with pytest.raises(Killed):
        optimised(toy_decoder, toy_tokenizer, tmp_path / "cut", **changes)
    again, resumed, _ = optimised(toy_decoder, toy_tokenizer, tmp_path / "cut", **changes)
    assert again == summary
    for one, other in zip(policy.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_parts_hold_every_row_once_and_no_padding_that_all_share(actor, setup):
    batch, _ = rollout(actor, setup, PROMPTS * 2, ENDS, PAD, Sampling(6), seed=3)
    parts = ppo.by_length(batch, 3)
    assert sorted(row for rows, _ in parts for row in rows.tolist()) == list(range(8))
    for rows, part in parts:
        width = part["ids"].shape[1]
        for name, tensor in part.items():
            assert torch.equal(tensor, batch[name][rows, :width])
        assert part["mask"][:, -1].any() and not batch["mask"][rows, width:].any()
