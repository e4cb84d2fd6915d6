"""Proximal policy optimisation for language models (Schulman et al. 2017; Ouyang et al. 2022).

One iteration: the policy answers a batch of prompts; the reward scores each answer; every token also pays for leaving the
reference (SFT) model; generalised advantage estimation says which tokens did better than the value function expected; a few
clipped updates follow. Details after Huang et al. 2024, "The N+ implementation details of RLHF with PPO", each a function
of `advantages` or `policy_losses`; no model here has dropout.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from groundup.generation.engine import Sampling
from groundup.model.decoder import Decoder, RewardModel
from groundup.model.likelihood import log_probabilities_and_entropies
from groundup.posttraining.advantages import (
    adaptive_kl,
    advantage_estimates,
    normalised,
    token_rewards,
    whiten,
    with_missing_end,
)
from groundup.posttraining.batches import Question, answer_log_probabilities
from groundup.posttraining.config import PpoConfig
from groundup.posttraining.policy_losses import (
    approximate_kl,
    clipped_surrogate,
    clipped_value_errors,
    is_clipped,
    masked_mean,
)
from groundup.posttraining.reward import from_policy
from groundup.posttraining.rewards import ModelReward, Prompt, Reward
from groundup.posttraining.rollouts import (
    Answers,
    Rollout,
    RolloutPlan,
    answer_metrics,
    answers_of,
    asked_prompts,
    by_length,
    held_out_measure,
    train_by_iterations,
)
from groundup.tokenizer.chat import answer_ends
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.by_kernels import by_kernels
from groundup.training.epoch_order import chosen_rows
from groundup.training.objectives import Batch, Metrics
from groundup.training.runtime import Runtime

PARTS = 4  # micro-batches in which a rollout is scored


class ActorCritic(nn.Module):
    """Policy and value function, trained together."""

    def __init__(self, policy: Decoder, value: RewardModel) -> None:
        super().__init__()
        self.policy, self.value = policy, value


@dataclass(frozen=True)
class RewardSetup:
    """What is not trained: the reference that the policy must stay near, and the reward."""

    reference: Decoder
    reward: Reward
    settings: PpoConfig
    dtype: torch.dtype  # of the matrix products, here and in the updates: the first ratio must be one


def value_of(policy: Decoder, reward: Reward) -> RewardModel:
    """The value function to begin with: the reward model where it reads the policy's ids, else zero on the policy's backbone."""
    if isinstance(reward, ModelReward) and reward.own_tokenizer is None:
        return copy.deepcopy(reward.reward_model)
    value = from_policy(policy, 0).to(policy.lm_head.weight.device)
    nn.init.zeros_(value.score.weight)
    return value


@torch.no_grad()
def rollout(
    model: ActorCritic, setup: RewardSetup, prompts: Sequence[Prompt], ends: list[int], pad: int, sampling: Sampling,
    seed: int, before: Sequence[Metrics] = (),
) -> tuple[Batch, Metrics, Answers, Tensor]:  # fmt: skip
    """Answers of the current policy with everything that the updates need, and the raw reward of each.

    The batch: ids, targets, mask, logp (of the policy that answered), values, advantages, returns, all (batch, time). The
    metrics: mean score (normalised, with missing ends), KL to the reference in nats an answer, entropy in nats per token, and
    those of `answer_metrics`. `before`: the metrics of the rollouts before, on which the adaptive coefficient and the scale
    depend.
    """
    settings, dtype, temperature = setup.settings, setup.dtype, setup.settings.temperature
    answers = answers_of(model.policy, prompts, ends, pad, sampling, seed)
    batch, mask = answers.batch, answers.batch["mask"]
    rewards = setup.reward(prompts, answers.ids)
    mean, std = scale_of(setup.reward, rewards, before)
    missing = None if settings.missing_end_reward == "off" else settings.missing_end_reward
    scores = with_missing_end(normalised(rewards, mean, std), answers.ended, missing)
    logp, entropy, reference, values = (torch.zeros_like(mask) for _ in range(4))
    for rows, part in by_length(batch, PARTS):
        width = part["ids"].shape[1]
        logp[rows, :width], entropy[rows, :width] = log_probabilities_and_entropies(
            model.policy, part["ids"], part["targets"], part["mask"], dtype, temperature
        )
        reference[rows, :width] = answer_log_probabilities(setup.reference, part, dtype, temperature)
        values[rows, :width] = model.value(part["ids"], dtype, part["mask"])
    coefficient = coefficient_of(settings, before, len(prompts))
    rewards_BT = token_rewards(scores, logp, reference, mask, coefficient)
    if settings.whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask, shift_mean=False)
    advantages = advantage_estimates(rewards_BT, values, mask, settings.gamma, settings.gae_lambda)
    batch = batch | {"logp": logp, "values": values, "returns": advantages + values, "advantages": whiten(advantages, mask)}
    metrics = {
        "score": scores.mean().item(),
        "kl": (logp - reference).sum(dim=1).mean().item(),
        "entropy": masked_mean(entropy, mask).item(),
        **answer_metrics(answers, rewards),
        "kl_coefficient": coefficient,
        "reward_mean": mean,
        "reward_std": std,
    }
    return batch, metrics, answers, rewards


def scale_of(reward: Reward, rewards_B: Tensor, before: Sequence[Metrics]) -> tuple[float, float]:
    """Mean and standard deviation to normalise by: the reward's own, or of the first rollout, whose policy is the SFT model."""
    if reward.scale is not None:
        return reward.scale
    if before:
        return before[0]["reward_mean"], before[0]["reward_std"]
    return rewards_B.mean().item(), rewards_B.std(correction=0).item() or 1.0


def coefficient_of(settings: PpoConfig, before: Sequence[Metrics], answers: int) -> float:
    """The KL coefficient of this rollout, which has as many `answers` as those before."""
    if not before:
        return settings.kl_coefficient
    last = before[-1]
    if not settings.kl_target:
        return last["kl_coefficient"]
    return adaptive_kl(last["kl_coefficient"], last["kl"], settings.kl_target, answers, settings.kl_horizon)


def clipped_objective(
    model: ActorCritic, batch: Batch, settings: PpoConfig, dtype: torch.dtype
) -> tuple[Tensor, Metrics]:
    """The loss of one update on a (part of a) rollout."""
    mask, advantages, clip = batch["mask"], batch["advantages"], settings.clip
    logp = answer_log_probabilities(model.policy, batch, dtype, settings.temperature)
    ratio = torch.exp(logp - batch["logp"])
    policy_loss = -masked_mean(clipped_surrogate(ratio, advantages, clip, clip), mask)
    values = model.value(batch["ids"], dtype, mask)
    errors, value_clipped = clipped_value_errors(values, batch["values"], batch["returns"], settings.value_clip)
    value_loss = masked_mean(errors, mask)
    with torch.no_grad():
        metrics = {
            "loss": policy_loss.item(),
            "value_loss": value_loss.item(),
            "clip_fraction": masked_mean(is_clipped(ratio, advantages, clip, clip), mask).item(),
            "value_clip_fraction": masked_mean(value_clipped, mask).item(),
            "approx_kl": approximate_kl(logp, batch["logp"], mask).item(),
            "ratio": masked_mean(ratio, mask).item(),
        }
    return policy_loss + settings.value_coefficient * value_loss, metrics


def train(
    policy: Decoder, tokenizer: Tokenizer, questions: Sequence[Question], settings: PpoConfig, runtime: Runtime, reward: Reward,
    max_tokens: int, held_out: Sequence[Question] = (),
) -> dict[str, Any]:  # fmt: skip
    """Train `policy` in place against the reward.

    max_tokens: of an answer. `train_by_iterations` says what it returns and writes. The first of the questions `held_out` are
    answered before and after. Questions that leave no room in the context for an answer are counted in
    `runtime.left_out`. Raises UserError when none stays, and where `settings.strict` for what data_checks.py finds.
    """
    prompts = asked_prompts(policy, tokenizer, questions, max_tokens, runtime, settings.strict)
    dtype, seed = runtime.device.training_dtype, runtime.seed
    setup = RewardSetup(copy.deepcopy(policy), reward, settings, dtype)
    model = ActorCritic(policy, value_of(policy, reward))
    ends = answer_ends(tokenizer, policy.generation.ends)
    sampling = Sampling(max_tokens, settings.temperature)
    count = min(settings.minibatches, settings.rollouts, len(prompts))

    def one_rollout(iteration: int, before: list[Metrics]) -> Rollout:
        chosen = [prompts[index] for index in chosen_rows(iteration, settings.rollouts, len(prompts), seed)]
        batch, metrics, answers, rewards = rollout(
            model, setup, chosen, ends, tokenizer.pad, sampling, seed * 100_003 + iteration, before
        )
        updates = [[part] for _, part in by_length(batch, count)]
        return Rollout(updates, metrics, answers, rewards)

    objective = partial(clipped_objective, settings=settings, dtype=dtype)
    plan = RolloutPlan(
        settings.iterations, count, settings.epochs, settings.learning_rate, settings.samples_every, settings.strict
    )
    scorer = [reward.reward_model] if isinstance(reward, ModelReward) else []
    with by_kernels([policy, setup.reference, model.value, *scorer], runtime):
        measure = held_out_measure(policy, reward, tokenizer, held_out, sampling, ends, runtime)
        return train_by_iterations(model, objective, one_rollout, plan, runtime, tokenizer, measure)
