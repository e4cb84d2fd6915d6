"""Proximal policy optimisation for language models (Schulman et al. 2017; Ouyang et al. 2022).

One iteration: the policy answers a batch of prompts; the reward model scores each answer; every token also pays for
leaving the reference (SFT) model; generalised advantage estimation says which tokens did better than the value function
expected; a few clipped updates follow. Details after Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO":
rewards normalised, fixed penalty for an answer that does not end, advantages whitened, values clipped, gamma = 1,
value function initialised from the reward model, no dropout.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groundup.core.errors import UserError
from groundup.core.files import write_jsonl
from groundup.core.seals import read_sealed, write_sealed
from groundup.generation.engine import Sampling, generate, room
from groundup.model.decoder import Decoder, RewardModel
from groundup.posttraining.batches import Asked, Row, answer_log_probabilities, collate, prompt_of
from groundup.posttraining.config import PpoConfig
from groundup.posttraining.reward import rewards
from groundup.tokenizer.chat import after_answer, answer_ends
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training import checkpoint
from groundup.training.epoch_order import chosen_rows
from groundup.training.loop import tune
from groundup.training.objectives import Batch, Metrics

GAMMA, LAMBDA = 1.0, 0.95
VALUE_COEFFICIENT, VALUE_CLIP = 0.1, 0.2
PARTS = 4  # of a rollout that is scored
UNFINISHED_REWARD = -3.0  # of an answer that ran into the length limit; at -1 rambling on beats a poor answer


class ActorCritic(nn.Module):
    """Policy and value function, trained together."""

    def __init__(self, policy: Decoder, value: RewardModel) -> None:
        super().__init__()
        self.policy, self.value = policy, value


@dataclass(frozen=True)
class RewardSetup:
    """What does not learn: the reference that the policy must stay near, and the reward model with its scale."""

    reference: Decoder
    reward_model: RewardModel
    reward_mean: float
    reward_std: float
    kl_coefficient: float
    dtype: torch.dtype  # of the matrix products, here and in the updates: the first ratio must be one
    tail: tuple[int, ...] = ()  # what the chat template writes after an answer, where the reward model learned to read


@torch.no_grad()
def rollout(
    model: ActorCritic, setup: RewardSetup, prompts: list[list[int]], ends: list[int], pad: int, sampling: Sampling, seed: int
) -> tuple[Batch, Metrics]:
    """Answers of the current policy with everything that the updates need.

    Returns ids, targets, mask, logp (of the policy that answered), values, advantages, returns, all (batch, time), and
    metrics: mean score, KL to the reference in nats an answer, mean length, share of answers that ended.
    """
    device = model.policy.lm_head.weight.device
    answers = generate(model.policy, prompts, ends, sampling, seed)
    rows: list[Row] = [
        (prompt + answer, [0] * len(prompt) + [1] * len(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    batch = collate(rows, pad, device)
    ended = torch.tensor([answer[-1] in ends for answer in answers], device=device)
    read = batch
    if setup.tail:
        tail = list(setup.tail)
        read = collate([(ids + tail, spoken + [1] * len(tail)) for ids, spoken in rows], pad, device)
    scores = (rewards(setup.reward_model, read, setup.dtype) - setup.reward_mean) / setup.reward_std
    scores = torch.where(ended, scores, UNFINISHED_REWARD)
    mask = batch["mask"]
    logp, reference, values = (torch.zeros_like(mask) for _ in range(3))
    for rows_of_part, part in by_length(batch, PARTS):
        width = part["ids"].shape[1]
        logp[rows_of_part, :width] = answer_log_probabilities(model.policy, part, setup.dtype)
        reference[rows_of_part, :width] = answer_log_probabilities(setup.reference, part, setup.dtype)
        values[rows_of_part, :width] = model.value(part["ids"], setup.dtype) * part["mask"]
    token_rewards = -setup.kl_coefficient * (logp - reference)
    last = (mask * torch.arange(mask.shape[1], device=device)).argmax(dim=1)
    token_rewards[torch.arange(len(rows), device=device), last] += scores
    advantages = advantage_estimates(token_rewards, values, mask)
    batch |= {"logp": logp, "values": values, "returns": advantages + values, "advantages": whiten(advantages, mask)}
    return batch, {
        "score": scores.mean().item(),
        "kl": (logp - reference).sum(dim=1).mean().item(),
        "length": mask.sum(dim=1).mean().item(),
        "ended": ended.float().mean().item(),
    }


def by_length(batch: Batch, count: int) -> list[tuple[Tensor, Batch]]:
    """The rows in `count` parts of similar length, each cut to its longest: (row numbers, part). Saves the padding."""
    mask = batch["mask"]
    lengths = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)
    parts = lengths.argsort(stable=True).tensor_split(min(count, len(lengths)))
    return [(rows, {name: tensor[rows, : int(lengths[rows].max())] for name, tensor in batch.items()}) for rows in parts]


def advantage_estimates(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016) over the tokens where mask is 1, which are contiguous."""
    advantages = torch.zeros_like(rewards_BT)
    running = torch.zeros_like(rewards_BT[:, 0])
    next_value = torch.zeros_like(running)
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        delta = rewards_BT[:, t] + GAMMA * next_value - values_BT[:, t]
        running = (delta + GAMMA * LAMBDA * running) * mask_BT[:, t]
        advantages[:, t] = running
        next_value = values_BT[:, t] * mask_BT[:, t]
    return advantages


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean zero and variance one over the masked places."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / count
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def clipped_objective(clip: float, dtype: torch.dtype) -> Callable[[ActorCritic, Batch], tuple[Tensor, Metrics]]:
    """The loss of one update on a (part of a) rollout."""

    def loss(model: ActorCritic, batch: Batch) -> tuple[Tensor, Metrics]:
        mask = batch["mask"]
        count = mask.sum()
        ratio = torch.exp(answer_log_probabilities(model.policy, batch, dtype) - batch["logp"])
        clipped = ratio.clamp(1 - clip, 1 + clip)
        gains = torch.minimum(ratio * batch["advantages"], clipped * batch["advantages"])
        policy_loss = -(gains * mask).sum() / count
        values = model.value(batch["ids"], dtype)
        near = batch["values"] + (values - batch["values"]).clamp(-VALUE_CLIP, VALUE_CLIP)
        errors = torch.maximum((values - batch["returns"]).square(), (near - batch["returns"]).square())
        value_loss = 0.5 * (errors * mask).sum() / count
        total = policy_loss + VALUE_COEFFICIENT * value_loss
        return total, {
            "loss": policy_loss.item(),
            "value_loss": value_loss.item(),
            "clipped": (((ratio - 1).abs() > clip) * mask).sum().item() / count.item(),
        }

    return loss


def train(
    policy: Decoder,
    reward_model: RewardModel,
    reward_scale: tuple[float, float],
    tokenizer: Tokenizer,
    questions: Sequence[Asked],
    settings: PpoConfig,
    max_tokens: int,
    dtype: torch.dtype,
    folder: Path,
    seed: int,
    left_out: Counter[str] | None = None,
) -> dict[str, Any]:
    """Train `policy` in place against the reward model; `reward_scale` is the mean and standard deviation of its rewards.

    Returns the first and last iteration's metrics; each rollout's also stand in `folder`/rollouts.jsonl. When cut off, they
    are found again in rollouts.json; without them, training begins anew. Questions that leave no room in the context for an
    answer are counted in `left_out`. Raises UserError when none stays.
    """
    tail = after_answer(tokenizer)
    setup = RewardSetup(copy.deepcopy(policy), reward_model, *reward_scale, settings.kl_coefficient, dtype, tail)
    model = ActorCritic(policy, copy.deepcopy(reward_model))
    prompts = _fitting(policy, [prompt_of(tokenizer, question) for question in questions], max_tokens, left_out)
    ends = answer_ends(tokenizer, policy.generation.ends)
    sampling = Sampling(max_tokens)
    updates = settings.epochs * min(settings.minibatches, settings.rollouts, len(prompts))  # an iteration
    steps = settings.iterations * updates
    log = folder / "rollouts.json"
    kept = read_sealed(log)
    if kept is None:
        checkpoint.clear(folder)
    rollouts: list[dict[str, Any]] = kept["rollouts"] if kept else []
    current: list[Batch] = []

    def batches(step: int) -> list[Batch]:
        nonlocal current
        iteration, update = divmod(step, updates)
        if update == 0:
            chosen = chosen_rows(iteration, settings.rollouts, len(prompts), seed)
            asked = [prompts[index] for index in chosen]
            whole, metrics = rollout(model, setup, asked, ends, tokenizer.pad, sampling, seed * 100_003 + iteration)
            current = [part for _, part in by_length(whole, settings.minibatches)]
            rollouts[iteration:] = [{"iteration": iteration, **metrics}]
            write_sealed(log, {"rollouts": rollouts})
        return [current[update % len(current)]]

    objective = clipped_objective(settings.clip, dtype)
    tune(model, objective, batches, settings.learning_rate, steps, folder, "ppo", checkpoint_multiple=updates)
    write_jsonl(folder / "rollouts.jsonl", rollouts)
    log.unlink()
    return {"iterations": settings.iterations, "first": rollouts[0], "last": rollouts[-1]}


def _fitting(
    policy: Decoder, prompts: list[list[int]], max_tokens: int, left_out: Counter[str] | None
) -> list[list[int]]:
    """The prompts that `generate` takes."""
    longest = room(policy, max_tokens)
    found = [prompt for prompt in prompts if len(prompt) <= longest]
    if left_out is not None and len(found) < len(prompts):
        left_out[f"longer than {longest} tokens"] += len(prompts) - len(found)
    if not found:
        raise UserError(f"ppo: none of {len(prompts)} questions has at most {longest} tokens; the rest is for the answer")
    return found
