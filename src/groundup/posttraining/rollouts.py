"""What PPO and GRPO share: answers of the current policy, and training by iterations of a rollout and its updates.

What happens in an iteration is a function of its number, of the weights, and of the figures of the rollouts before it, which
lie sealed in rollouts.json. So training that was cut off ends with the same bits.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from groundup.core.errors import UserError
from groundup.core.files import write_jsonl
from groundup.core.seals import read_sealed, write_sealed
from groundup.core.statistics import difference
from groundup.generation.engine import Sampling, generate, room
from groundup.model.decoder import Decoder
from groundup.posttraining import data_checks
from groundup.posttraining.batches import Asked, Row, collate, prompt_of, shown
from groundup.posttraining.length import concerns, correlation
from groundup.posttraining.rewards import Prompt, Reward
from groundup.posttraining.tokenize_rows import kept, said
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training import checkpoint
from groundup.training.loop import tune
from groundup.training.objectives import Batch, Metrics
from groundup.training.parallel import Objective
from groundup.training.runtime import Runtime

HELD_OUT_PROMPTS = 64  # that are answered before and after
SAMPLES = 8  # of a rollout that are kept to be read
PER_SAMPLE = 2000  # characters of its question, and of its answer
Measured = tuple[list[float], Metrics]  # the reward of each answer, and `form`


@dataclass(frozen=True)
class Answers:
    """Of one rollout: the prompts and their answers as ids, and both as a batch of ids, targets and mask (batch, time)."""

    prompts: Sequence[Prompt]
    ids: list[list[int]]
    ended: Tensor  # (batch,) bool
    batch: Batch


@dataclass(frozen=True)
class Rollout:
    """`updates`: the micro-batches of each update of one epoch; rewards (batch,): of the answers, as they came."""

    updates: list[list[Batch]]
    metrics: Metrics
    answers: Answers
    rewards: Tensor


@dataclass(frozen=True)
class RolloutPlan:
    """How many iterations there are, and updates in each: `minibatches` times `epochs`."""

    iterations: int
    minibatches: int
    epochs: int
    learning_rate: float
    samples_every: int
    strict: bool


def asked_prompts(
    policy: Decoder, tokenizer: Tokenizer, questions: Sequence[Asked], max_tokens: int, runtime: Runtime,
    strict: bool = False,
) -> list[Prompt]:  # fmt: skip
    """The prompts that `generate` takes, looked through; the others are counted in `runtime.left_out`.

    Raises UserError when none stays, and where `strict` for what is found.
    """
    found = _fitting(policy, tokenizer, questions, max_tokens, runtime.left_out)
    if not found:
        raise UserError(
            f"{runtime.label}: none of {len(questions)} questions has at most {room(policy, max_tokens)} tokens and can be "
            f"asked; the rest is for the answer: {said(runtime.left_out)}"
        )
    findings = data_checks.of_prompts([prompt.ids for prompt in found], tokenizer, runtime.left_out)
    data_checks.tell(runtime.label, findings, strict)
    return found


def _fitting(
    policy: Decoder, tokenizer: Tokenizer, questions: Sequence[Asked], max_tokens: int, left_out: Counter[str]
) -> list[Prompt]:
    longest = room(policy, max_tokens)
    return kept(
        questions, lambda question: Prompt(question, prompt_of(tokenizer, question)),
        lambda prompt: f"longer than {longest} tokens" if len(prompt.ids) > longest else None, left_out,
    )  # fmt: skip


def reward_on(
    policy: Decoder, reward: Reward, tokenizer: Tokenizer, questions: Sequence[Asked], sampling: Sampling, ends: Sequence[int],
    runtime: Runtime,
) -> Callable[[], Measured] | None:  # fmt: skip
    """What answers the first of held-out questions by the policy as it is then; None where none can be asked."""
    prompts = _fitting(policy, tokenizer, questions, sampling.max_tokens, runtime.left_out)[:HELD_OUT_PROMPTS]

    def measured() -> Measured:
        answers = answers_of(policy, prompts, ends, tokenizer.pad, sampling, runtime.seed)
        rewards = reward(prompts, answers.ids)
        return rewards.tolist(), form(answers, rewards)

    return measured if prompts else None


def answers_of(
    policy: Decoder, prompts: Sequence[Prompt], ends: Sequence[int], pad: int, sampling: Sampling, seed: int
) -> Answers:
    """One answer of the current policy to each prompt."""
    device = policy.lm_head.weight.device
    answers = generate(policy, [prompt.ids for prompt in prompts], ends, sampling, seed)
    rows: list[Row] = [
        (prompt.ids + answer, [0] * len(prompt.ids) + [1] * len(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    ended = torch.tensor([answer[-1] in ends for answer in answers], device=device)
    return Answers(prompts, answers, ended, collate(rows, pad, device))


def form(answers: Answers, rewards_B: Tensor) -> Metrics:
    """Mean reward of the answers as it came, their mean length in tokens, the share that ended, and reward against length."""
    lengths = answers.batch["mask"].sum(dim=1)
    return {
        "reward": rewards_B.mean().item(),
        "length": lengths.mean().item(),
        "ended": answers.ended.float().mean().item(),
        "reward_length_correlation": correlation(rewards_B.tolist(), lengths.tolist()),
    }


def samples_of(answers: Answers, rewards_B: Tensor, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The first answers of a rollout, as text."""
    return [
        {
            "question": shown(prompt.asked)[:PER_SAMPLE], "answer": tokenizer.decode(ids).strip()[:PER_SAMPLE],
            "reward": round(reward, 4), "tokens": len(ids), "ended": ended,
        }
        for prompt, ids, reward, ended in zip(
            answers.prompts[:SAMPLES], answers.ids, rewards_B.tolist(), answers.ended.tolist(), strict=False
        )
    ]  # fmt: skip


def by_length(batch: Batch, count: int) -> list[tuple[Tensor, Batch]]:
    """The rows in `count` parts of similar length, each cut to its longest: (row numbers, part). Saves the padding."""
    lengths = _lengths(batch)
    return _cut(batch, lengths, lengths.argsort(stable=True).tensor_split(min(count, len(lengths))))


def as_they_come(batch: Batch, at_once: int) -> list[tuple[Tensor, Batch]]:
    """The same in parts of so many rows, which leaves the answers to one prompt together: it is computed once for all of them."""
    lengths = _lengths(batch)
    return _cut(batch, lengths, torch.arange(len(lengths), device=lengths.device).split(at_once))


def _lengths(batch: Batch) -> Tensor:
    mask = batch["mask"]
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)


def _cut(batch: Batch, lengths: Tensor, parts: Sequence[Tensor]) -> list[tuple[Tensor, Batch]]:
    return [
        (rows, {name: tensor[rows, : max(int(lengths[rows].max()), 1)] for name, tensor in batch.items()})
        for rows in parts
    ]


def train_by_iterations(
    model: nn.Module, objective: Objective, rollout: Callable[[int, list[Metrics]], Rollout], plan: RolloutPlan, runtime: Runtime,
    tokenizer: Tokenizer, held_out: Callable[[], Measured] | None,
) -> dict[str, Any]:  # fmt: skip
    """Train `model` in place; metrics of the first rollout and the last, those on held-out prompts, what is wrong with the form.

    The metrics of every rollout stand in rollouts.jsonl. What is wrong with the answers of the first one is said, and refused
    where `plan.strict`.

    rollout(iteration, before): of the current weights and the metrics of the rollouts before. Its metrics also stand in
    metrics.jsonl, at the iteration's first update, as rollout_*; its samples in rollout_samples.jsonl, of every
    `samples_every` iterations and the last. When training was cut off, both are found again in rollouts.json; without it,
    training begins anew.
    """
    updates, folder = plan.minibatches * plan.epochs, runtime.training
    log = folder / "rollouts.json"
    kept = read_sealed(log)
    if kept is None:
        checkpoint.clear(folder)
    rollouts: list[Metrics] = kept["rollouts"] if kept else []
    samples: list[dict[str, Any]] = kept["samples"] if kept else []
    current: list[list[Batch]] = []
    fresh: Metrics = {}

    def batches(step: int) -> list[Batch]:
        nonlocal current
        iteration, update = divmod(step, updates)
        if update == 0:
            found = rollout(iteration, rollouts[:iteration])
            current = found.updates
            if iteration == 0:
                answers = found.answers
                findings = data_checks.of_first_answers(answers.ids, answers.ended.tolist(), found.rewards.tolist())
                data_checks.tell(runtime.label, findings, plan.strict)
            rollouts[iteration:] = [{"iteration": iteration, **found.metrics}]
            fresh.update({f"rollout_{name}": value for name, value in found.metrics.items()})
            samples[:] = [row for row in samples if row["iteration"] < iteration]
            if iteration % plan.samples_every == 0 or iteration + 1 == plan.iterations:
                samples.extend({"iteration": iteration, **row} for row in samples_of(found.answers, found.rewards, tokenizer))
                write_jsonl(folder / "rollout_samples.jsonl", samples)
            write_sealed(log, {"rollouts": rollouts, "samples": samples})
        return current[update % len(current)]

    def watched(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        loss, metrics = objective(model, batch)
        metrics |= fresh
        fresh.clear()
        return loss, metrics

    before = held_out() if held_out else None  # of the model as it was given, also where training resumes
    tune(
        model, watched, batches, plan.learning_rate, plan.iterations * updates, runtime, checkpoint_multiple=updates
    )
    write_jsonl(folder / "rollouts.jsonl", rollouts)
    write_jsonl(folder / "rollout_samples.jsonl", samples)
    log.unlink()
    first, last = rollouts[0], rollouts[-1]
    summary = {"iterations": plan.iterations, "first": first, "last": last, "concerns": concerns(first, last)}
    return {**summary, "held_out": compared(before, held_out()) if held_out and before else None}


def compared(before: Measured, after: Measured) -> dict[str, Any]:
    """Of the same prompts, answered by the model as it was and as it is: reward with the difference, length, share that ended."""
    names = ("reward", "length", "ended")
    figures = {name: {"before": before[1][name], "after": after[1][name]} for name in names}
    return {"prompts": len(before[0]), **figures, "gain": difference(after[0], before[0])}
