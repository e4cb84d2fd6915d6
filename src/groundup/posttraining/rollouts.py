"""What PPO and GRPO share: answers of the current policy, and training by iterations of a rollout and its updates.

An iteration is a function of its number, of the weights, and of the metrics of the rollouts before it, which are sealed in
rollouts.json. So training that was cut off ends with the same bits.
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
from groundup.posttraining.batches import Question, Row, collate, prompt_of, question_text
from groundup.posttraining.length import concerns, correlation
from groundup.posttraining.rewards import Prompt, Reward
from groundup.posttraining.tokenize_rows import top_reasons, usable_rows
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training import checkpoint
from groundup.training.loop import tune
from groundup.training.objectives import Batch, Metrics
from groundup.training.parallel import Objective
from groundup.training.runtime import Runtime

HELD_OUT_PROMPTS = 64  # that are answered before and after training
SAMPLES = 8  # answers of a rollout that are written for people to read
PER_SAMPLE = 2000  # characters of a sample's question, and of its answer
RewardsAndMetrics = tuple[list[float], Metrics]  # the reward of each answer, and `answer_metrics`


@dataclass(frozen=True)
class Answers:
    """Of one rollout: the prompts and their answers as ids, and both as a batch of ids, targets and mask (batch, time)."""

    prompts: Sequence[Prompt]
    ids: list[list[int]]
    ended: Tensor  # (batch,) bool
    batch: Batch


@dataclass(frozen=True)
class Rollout:
    """`updates`: the micro-batches of each update of one epoch; rewards (batch,): raw, of the answers."""

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
    policy: Decoder, tokenizer: Tokenizer, questions: Sequence[Question], max_tokens: int, runtime: Runtime,
    strict: bool = False,
) -> list[Prompt]:  # fmt: skip
    """The prompts that `generate` takes, with data_checks run on them; the others are counted in `runtime.left_out`.

    Raises UserError when none stays, and, where `strict`, for any finding.
    """
    prompts = _fitting(policy, tokenizer, questions, max_tokens, runtime.left_out)
    if not prompts:
        raise UserError(
            f"{runtime.label}: none of {len(questions)} questions has at most {room(policy, max_tokens)} tokens and can be "
            f"asked; the rest is for the answer: {top_reasons(runtime.left_out)}"
        )
    findings = data_checks.of_prompts([prompt.ids for prompt in prompts], tokenizer, runtime.left_out)
    data_checks.report_findings(runtime.label, findings, strict)
    return prompts


def _fitting(
    policy: Decoder, tokenizer: Tokenizer, questions: Sequence[Question], max_tokens: int, left_out: Counter[str]
) -> list[Prompt]:
    longest = room(policy, max_tokens)
    return usable_rows(
        questions, lambda question: Prompt(question, prompt_of(tokenizer, question)),
        lambda prompt: f"longer than {longest} tokens" if len(prompt.ids) > longest else None, left_out,
    )  # fmt: skip


def held_out_measure(
    policy: Decoder, reward: Reward, tokenizer: Tokenizer, questions: Sequence[Question], sampling: Sampling, ends: Sequence[int],
    runtime: Runtime,
) -> Callable[[], RewardsAndMetrics] | None:  # fmt: skip
    """What answers the first held-out questions with the policy as it is when called; None where none can be asked."""
    prompts = _fitting(policy, tokenizer, questions, sampling.max_tokens, runtime.left_out)[:HELD_OUT_PROMPTS]

    def measure() -> RewardsAndMetrics:
        answers = answers_of(policy, prompts, ends, tokenizer.pad, sampling, runtime.seed)
        rewards = reward(prompts, answers.ids)
        return rewards.tolist(), answer_metrics(answers, rewards)

    return measure if prompts else None


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


def answer_metrics(answers: Answers, rewards_B: Tensor) -> Metrics:
    """Mean raw reward of the answers, their mean length in tokens, the share that ended, and reward against length."""
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
            "question": question_text(prompt.question)[:PER_SAMPLE], "answer": tokenizer.decode(ids).strip()[:PER_SAMPLE],
            "reward": round(reward, 4), "tokens": len(ids), "ended": ended,
        }
        for prompt, ids, reward, ended in zip(
            answers.prompts[:SAMPLES], answers.ids, rewards_B.tolist(), answers.ended.tolist(), strict=False
        )
    ]  # fmt: skip


def by_length(batch: Batch, count: int) -> list[tuple[Tensor, Batch]]:
    """The rows in `count` parts of similar length, each cut to its longest: (row indices, part). Saves the padding."""
    lengths = _lengths(batch)
    return _trimmed(batch, lengths, lengths.argsort(stable=True).tensor_split(min(count, len(lengths))))


def in_order(batch: Batch, at_once: int) -> list[tuple[Tensor, Batch]]:
    """The same in parts of `at_once` rows in their order. Answers to one prompt stay together, which is computed once for all."""
    lengths = _lengths(batch)
    return _trimmed(batch, lengths, torch.arange(len(lengths), device=lengths.device).split(at_once))


def _lengths(batch: Batch) -> Tensor:
    mask = batch["mask"]
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)


def _trimmed(batch: Batch, lengths: Tensor, parts: Sequence[Tensor]) -> list[tuple[Tensor, Batch]]:
    return [
        (rows, {name: tensor[rows, : max(int(lengths[rows].max()), 1)] for name, tensor in batch.items()})
        for rows in parts
    ]


def train_by_iterations(
    model: nn.Module, objective: Objective, rollout: Callable[[int, list[Metrics]], Rollout], plan: RolloutPlan, runtime: Runtime,
    tokenizer: Tokenizer, held_out: Callable[[], RewardsAndMetrics] | None,
) -> dict[str, Any]:  # fmt: skip
    """Train `model` in place; metrics of the first rollout and the last, those on held-out prompts, what is wrong with the form.

    The metrics of every rollout are written to rollouts.jsonl. What is wrong with the answers of the first one is logged, and
    refused where `plan.strict`.

    rollout(iteration, before): of the current weights and the metrics of the rollouts before. Its metrics are in metrics.jsonl
    too, at the iteration's first update, as rollout_*; its samples in rollout_samples.jsonl, for every `samples_every`
    iterations and the last. Training that was cut off resumes with both from rollouts.json; without it, it starts again.
    """
    updates, folder = plan.minibatches * plan.epochs, runtime.training
    log = folder / "rollouts.json"
    sealed = read_sealed(log)
    if sealed is None:
        checkpoint.clear(folder)
    rollouts: list[Metrics] = sealed["rollouts"] if sealed else []
    samples: list[dict[str, Any]] = sealed["samples"] if sealed else []
    current: list[list[Batch]] = []
    fresh_metrics: Metrics = {}

    def batches(step: int) -> list[Batch]:
        nonlocal current
        iteration, update = divmod(step, updates)
        if update == 0:
            fresh = rollout(iteration, rollouts[:iteration])
            current = fresh.updates
            if iteration == 0:
                answers = fresh.answers
                findings = data_checks.of_first_answers(answers.ids, answers.ended.tolist(), fresh.rewards.tolist())
                data_checks.report_findings(runtime.label, findings, plan.strict)
            rollouts[iteration:] = [{"iteration": iteration, **fresh.metrics}]
            fresh_metrics.update({f"rollout_{name}": value for name, value in fresh.metrics.items()})
            samples[:] = [row for row in samples if row["iteration"] < iteration]
            if iteration % plan.samples_every == 0 or iteration + 1 == plan.iterations:
                samples.extend({"iteration": iteration, **row} for row in samples_of(fresh.answers, fresh.rewards, tokenizer))
                write_jsonl(folder / "rollout_samples.jsonl", samples)
            write_sealed(log, {"rollouts": rollouts, "samples": samples})
        return current[update % len(current)]

    def watched(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        loss, metrics = objective(model, batch)
        metrics |= fresh_metrics
        fresh_metrics.clear()
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
    return {**summary, "held_out": held_out_comparison(before, held_out()) if held_out and before else None}


def held_out_comparison(before: RewardsAndMetrics, after: RewardsAndMetrics) -> dict[str, Any]:
    """Answers to the same prompts before and after training: reward with its difference, length, share that ended."""
    names = ("reward", "length", "ended")
    figures = {name: {"before": before[1][name], "after": after[1][name]} for name in names}
    return {"prompts": len(before[0]), **figures, "gain": difference(after[0], before[0])}
