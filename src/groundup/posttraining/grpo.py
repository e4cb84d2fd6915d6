"""Group relative policy optimisation (Shao et al. 2024) and its kin: PPO whose baseline is a prompt's other answers.

One iteration: the policy answers each prompt several times; an answer's advantage is how much better its reward is than its
group's mean; a clipped update follows. No value function, and a reference model only where `beta` holds the policy near it.
`loss_type` and `scale_rewards` are TRL's, and so are the numbers: "grpo"; "dr_grpo" with scale "none" (Liu et al. 2025);
"dapo" (Yu et al. 2025); baseline "leave_one_out" is RLOO's (Ahmadian et al. 2024).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from groundup.generation.engine import Sampling
from groundup.model.decoder import Decoder
from groundup.model.likelihood import log_probabilities_and_entropies
from groundup.posttraining.advantages import group_advantages, leave_one_out, without_difference
from groundup.posttraining.batches import Question, answer_log_probabilities
from groundup.posttraining.config import GrpoConfig
from groundup.posttraining.policy_losses import (
    group_losses,
    importance,
    is_clipped,
    masked_mean,
    reference_divergence,
    token_weights,
    vespo_losses,
)
from groundup.posttraining.rewards import Prompt, Reward
from groundup.posttraining.rollouts import (
    Answers,
    Rollout,
    RolloutPlan,
    answer_metrics,
    answers_of,
    asked_prompts,
    held_out_measure,
    in_order,
    train_by_iterations,
)
from groundup.tokenizer.chat import answer_ends
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.by_kernels import by_kernels
from groundup.training.epoch_order import chosen_rows
from groundup.training.objectives import Batch, Metrics
from groundup.training.runtime import Runtime

ROWS = 64  # of a micro-batch


@dataclass(frozen=True)
class GroupSetup:
    """What is not trained. `reference`: None where beta is 0."""

    reference: Decoder | None
    reward: Reward
    settings: GrpoConfig
    max_tokens: int
    dtype: torch.dtype


def advantages_of(rewards_B: Tensor, settings: GrpoConfig) -> tuple[Tensor, Tensor]:
    """The advantages (B,) of answers that are in order of their prompts, and which prompts teach nothing (P,)."""
    groups = rewards_B.view(-1, settings.generations)
    leave_out = settings.baseline == "leave_one_out"
    advantages = leave_one_out(groups) if leave_out else group_advantages(groups, settings.scale_rewards)
    return advantages.flatten(), without_difference(groups)


@torch.no_grad()
def rollout(
    policy: Decoder, setup: GroupSetup, prompts: Sequence[Prompt], ends: list[int], pad: int, sampling: Sampling, seed: int
) -> tuple[Batch, Metrics, Answers, Tensor]:
    """A group of answers to each prompt with everything that the updates need, and the raw reward of each.

    The batch: ids, targets, mask, logp, and with a reference its logp, (batch, time); advantages (batch, 1). The metrics:
    those of `answer_metrics`, entropy in nats per token, KL to the reference in nats an answer, and the share of the groups
    without difference.
    """
    settings = setup.settings
    repeated_prompts = [prompt for prompt in prompts for _ in range(settings.generations)]
    answers = answers_of(policy, repeated_prompts, ends, pad, sampling, seed)
    rewards = setup.reward(repeated_prompts, answers.ids)
    advantages, equal_groups = advantages_of(rewards, settings)
    batch, mask = answers.batch, answers.batch["mask"]
    logp, entropy, reference = (torch.zeros_like(mask) for _ in range(3))
    for rows, part in in_order(batch, ROWS):
        width = part["ids"].shape[1]
        logp[rows, :width], entropy[rows, :width] = log_probabilities_and_entropies(
            policy, part["ids"], part["targets"], part["mask"], setup.dtype, settings.temperature
        )
        if setup.reference:
            reference[rows, :width] = answer_log_probabilities(setup.reference, part, setup.dtype, settings.temperature)
    batch = batch | {"logp": logp, "advantages": advantages[:, None]}
    metrics = {
        **answer_metrics(answers, rewards),
        "entropy": masked_mean(entropy, mask).item(),
        "without_difference": equal_groups.float().mean().item(),
    }
    if setup.reference:
        batch["reference"] = reference
        metrics["kl"] = (logp - reference).sum(dim=1).mean().item()
    if settings.mask_truncated:
        batch["mask"] = mask * answers.ended[:, None]
    return batch, metrics, answers, rewards


def updates_of(batch: Batch, minibatches: int, settings: GrpoConfig, max_tokens: int) -> list[list[Batch]]:
    """The rollout's updates, each of whole prompts, as micro-batches whose losses add up to the update's."""
    tokens = batch["mask"].sum().item() / minibatches
    updates = []
    for rows in torch.arange(len(batch["mask"])).view(-1, settings.generations).tensor_split(minibatches):
        part = {name: tensor[rows.flatten()] for name, tensor in batch.items()}
        part["weight"] = token_weights(part["mask"], settings.loss_type, max_tokens, tokens)
        part["share"] = part["mask"] / part["mask"].sum().clamp(min=1)
        updates.append([micro for _, micro in in_order(part, ROWS)])
    return updates


def group_objective(policy: Decoder, batch: Batch, settings: GrpoConfig, dtype: torch.dtype) -> tuple[Tensor, Metrics]:
    """The loss of a micro-batch, and its share of the update's figures."""
    mask, weight, advantages = batch["mask"], batch["weight"], batch["advantages"]
    low, high = settings.clip_low, settings.clip_high
    logp = answer_log_probabilities(policy, batch, dtype, settings.temperature)
    ratio = importance(logp, batch["logp"], mask, settings.importance)
    if settings.loss_type == "vespo":
        losses = vespo_losses(logp, batch["logp"], mask, advantages)
    else:
        losses = group_losses(ratio, advantages, logp, settings.loss_type, low, high)
    if settings.beta:
        kl = reference_divergence(logp, batch["reference"]) * ratio  # importance weight: an earlier policy wrote the answers
        losses = losses + settings.beta * kl
    loss = (losses * weight).sum()
    with torch.no_grad():
        share = batch["share"]
        metrics = {
            "loss": loss.item(),
            "clip_fraction": (is_clipped(ratio, advantages, low, high) * share).sum().item(),
            "approx_kl": 0.5 * ((logp - batch["logp"]).square() * share).sum().item(),
        }
        if settings.beta:
            metrics["kl"] = (kl * share).sum().item()
    return loss, metrics


def train(
    policy: Decoder, tokenizer: Tokenizer, questions: Sequence[Question], settings: GrpoConfig, runtime: Runtime, reward: Reward,
    max_tokens: int, held_out: Sequence[Question] = (),
) -> dict[str, Any]:  # fmt: skip
    """Train `policy` in place against the reward; returns, counts and raises as `ppo.train` does."""
    prompts = asked_prompts(policy, tokenizer, questions, max_tokens, runtime, settings.strict)
    if settings.loss_type == "cispo" and settings.clip_high < 1:
        runtime.log(f"{runtime.label}: clip_high = {settings.clip_high}: cispo cuts every weight off at it; TRL recommends 5")
    if settings.loss_type == "luspo" and settings.importance == "token":
        runtime.log(f"{runtime.label}: importance = token: luspo is of whole answers; its paper has sequence")
    dtype, seed = runtime.device.training_dtype, runtime.seed
    reference = copy.deepcopy(policy) if settings.beta else None
    setup = GroupSetup(reference, reward, settings, max_tokens, dtype)
    ends = answer_ends(tokenizer, policy.generation.ends)
    sampling = Sampling(max_tokens, settings.temperature)
    count = min(settings.minibatches, settings.prompts, len(prompts))

    def one_rollout(iteration: int, before: list[Metrics]) -> Rollout:
        chosen = [prompts[index] for index in chosen_rows(iteration, settings.prompts, len(prompts), seed)]
        batch, metrics, answers, rewards = rollout(
            policy, setup, chosen, ends, tokenizer.pad, sampling, seed * 100_003 + iteration
        )
        return Rollout(updates_of(batch, count, settings, max_tokens), metrics, answers, rewards)

    objective = partial(group_objective, settings=settings, dtype=dtype)
    plan = RolloutPlan(
        settings.iterations, count, settings.epochs, settings.learning_rate, settings.samples_every, settings.strict
    )
    with by_kernels([policy, *([reference] if reference else [])], runtime):
        measure = held_out_measure(policy, reward, tokenizer, held_out, sampling, ends, runtime)
        return train_by_iterations(policy, objective, one_rollout, plan, runtime, tokenizer, measure)
