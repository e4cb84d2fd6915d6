"""The reward model: a backbone with one number at the last token, trained on comparisons (Stiennon et al. 2020).

Bradley-Terry: P(chosen is preferred) = sigmoid(r(chosen) - r(rejected)). Where a row has a `margin`, the rewards must
differ by more than that, as in Llama 2 (Touvron et al. 2023) and TRL: loss = -log sigmoid(r(chosen) - r(rejected) - margin).
The centring term keeps the mean reward at zero (Eisenstein et al. 2023), since the comparisons leave it free.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.core.statistics import difference, proportion
from groundup.model.base import LanguageModel
from groundup.model.decoder import RewardModel
from groundup.model.likelihood import score
from groundup.posttraining import data_checks
from groundup.posttraining.batches import Row, collate, pair_batches
from groundup.posttraining.config import RewardConfig
from groundup.posttraining.length import correlation
from groundup.posttraining.tokenize_rows import usable_pairs
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.by_kernels import by_kernels
from groundup.training.epoch_order import log_steps
from groundup.training.loop import tune
from groundup.training.objectives import Batch, Metrics
from groundup.training.runtime import Runtime

MATCHED = 0.1  # share of the longer answer's tokens by which the lengths of a matched pair differ at most


def from_policy(policy: LanguageModel, seed: int) -> RewardModel:
    """A reward model on a copy of the policy's backbone; the head starts at N(0, 1 / (width + 1))."""
    reward_model = RewardModel(policy.config, copy.deepcopy(policy.model))
    width = policy.config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        reward_model.score.weight.copy_(torch.randn(1, width, generator=generator) / (width + 1) ** 0.5)
    return reward_model


def rewards(reward_model: RewardModel, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
    """Reward (batch,) at the last token of the assistant.

    batch: ids, targets, mask (batch, time) as `collate` gives them.
    """
    ids = torch.cat((batch["ids"], batch["targets"][:, -1:]), dim=1)
    positions = torch.arange(1, ids.shape[1], device=ids.device)
    last = (batch["mask"] * positions).amax(dim=1).long()[:, None]
    wanted = torch.zeros_like(ids).scatter(1, last, 1)
    return reward_model(ids, dtype, wanted).gather(1, last).squeeze(1)


def bradley_terry(
    reward_model: RewardModel, batch: Batch, centring: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Metrics]:
    """Loss of rows in the order (all chosen, then all rejected), with the `margin` (pairs,) of each pair or none.

    `centring`: weight of the squared sum of a pair's rewards. With `share` in the batch, loss and metrics are that part of the
    step's.
    """
    chosen, rejected = rewards(reward_model, batch, dtype).chunk(2)
    ranking_loss = -F.logsigmoid(chosen - rejected - batch.get("margin", 0.0)).mean()
    loss = ranking_loss + centring * (chosen + rejected).square().mean()
    metrics = {
        "loss": ranking_loss.item(),
        "accuracy": (chosen > rejected).float().mean().item(),
        "margin": (chosen - rejected).mean().item(),
    }
    share = batch["share"].item() if "share" in batch else 1.0
    return loss * share, {name: value * share for name, value in metrics.items()}


def train(
    policy: LanguageModel, tokenizer: Tokenizer, pairs: Sequence[dict[str, Any]], settings: RewardConfig, runtime: Runtime
) -> RewardModel:
    """A reward model, from the policy that wrote the answers, trained on preference rows.

    Pairs that cannot be read or are longer than the context are counted in `runtime.left_out` by reason.
    Raises UserError when there are no pairs, or none stays.
    """
    left_out, label = runtime.left_out, runtime.label
    rows, margins = usable_pairs(tokenizer, pairs, policy.config.max_position_embeddings, label, left_out)
    data_checks.report_findings(label, data_checks.of_pairs(rows, tokenizer, left_out), settings.strict)
    device = policy.lm_head.weight.device
    reward_model = from_policy(policy, runtime.seed).to(device)
    steps = log_steps(runtime.log, runtime.label, settings.epochs, settings.batch_pairs, len(rows))

    def batches(step: int) -> list[Batch]:
        return pair_batches(
            step, rows, tokenizer.pad, device, settings.batch_pairs, settings.pairs_at_once, runtime,
            lambda part: {"margin": torch.tensor([margins[index] for index in part], device=device)},
        )  # fmt: skip

    dtype = runtime.device.training_dtype
    objective = partial(bradley_terry, centring=settings.centring, dtype=dtype)
    with by_kernels([reward_model], runtime):
        tune(reward_model, objective, batches, settings.learning_rate, steps, runtime)
    return reward_model


@torch.no_grad()
def score_rows(reward_model: RewardModel, tokenizer: Tokenizer, rows: Sequence[Row], batch: int = 128) -> np.ndarray:
    """Reward of each conversation (rows,) float32."""
    device = reward_model.score.weight.device
    parts = [
        rewards(reward_model, collate(rows[start : start + batch], tokenizer.pad, device)).cpu().numpy()
        for start in range(0, len(rows), batch)
    ]
    return np.concatenate(parts)


def assess(
    reward_model: RewardModel, tokenizer: Tokenizer, pairs: Sequence[dict[str, Any]], left_out: Counter[str] | None = None,
    policy: LanguageModel | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """On held-out pairs: accuracy with interval, scale of the rewards, and how far reward is mere length.

    "longer_wins" is the accuracy of always preferring the longer answer; "likelier_wins" that of preferring the answer that is
    likelier to `policy`, which wrote them. "ahead_of_longer" and "ahead_of_likelier" are by how much the reward model's accuracy
    on the same pairs exceeds these; "length_matched" is its accuracy where the lengths differ by `MATCHED` of the longer at most.
    Pairs that `train` would leave out are left out here too. Raises UserError when none stays.
    """
    rows, _ = usable_pairs(tokenizer, pairs, reward_model.config.max_position_embeddings, "reward", left_out)
    chosen = score_rows(reward_model, tokenizer, [row for row, _ in rows])
    rejected = score_rows(reward_model, tokenizer, [row for _, row in rows])
    lengths = np.array([[sum(spoken) for _, spoken in row] for row in rows], dtype=np.float64)
    right = chosen > rejected
    results = pair_figures(chosen, rejected, lengths)
    results["reward_std"] = results["reward_std"] or 1.0  # a scale to divide by
    if policy is not None:
        likelier = _first_wins(_log_probabilities(policy, rows))
        results |= {"ahead_of_likelier": difference(right.astype(float), likelier), "likelier_wins": float(likelier.mean())}
    scored = [
        {"reward": round(float(value), 4), "tokens": int(count), "side": side}
        for side, values, column in (("chosen", chosen, 0), ("rejected", rejected, 1))
        for value, count in zip(values, lengths[:, column], strict=True)
    ]
    return results, scored


def pair_figures(chosen: np.ndarray, rejected: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """The figures of `assess` from rewards (pairs,) and the answers' numbers of tokens, `lengths` (pairs, 2)."""
    values, tokens = np.concatenate((chosen, rejected)), lengths.T.ravel()
    right, longer = chosen > rejected, _first_wins(lengths)
    matched = np.abs(lengths[:, 0] - lengths[:, 1]) <= MATCHED * lengths.max(axis=1)
    return {
        "accuracy": proportion(int(right.sum()), len(right)),
        "ahead_of_longer": difference(right.astype(float), longer),
        "longer_wins": float(longer.mean()),
        "length_matched": proportion(int(right[matched].sum()), int(matched.sum())) if matched.any() else None,
        "reward_mean": float(values.mean()),
        "reward_std": float(values.std()),
        "length_correlation": correlation(values.tolist(), tokens.tolist()),
    }


def _first_wins(measures: np.ndarray) -> np.ndarray:
    """1 where the first of the measures (pairs, 2) is larger, 0.5 where both are equal, else 0 (pairs,)."""
    return (measures[:, 0] > measures[:, 1]) + 0.5 * (measures[:, 0] == measures[:, 1])


def _log_probabilities(policy: LanguageModel, rows: Sequence[tuple[Row, Row]]) -> np.ndarray:
    """Of both answers (pairs, 2), in nats."""
    flat = [row for pair in rows for row in pair]
    scores = score(policy, [ids for ids, _ in flat])
    sums = [float(log_probs[np.array(spoken[1:], dtype=bool)].sum()) for log_probs, (_, spoken) in zip(scores, flat, strict=True)]
    return np.array(sums).reshape(-1, 2)
