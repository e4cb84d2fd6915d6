"""Direct preference optimisation (Rafailov et al. 2023): RLHF's objective as a classification loss on pairs.

loss = -log sigmoid(beta * [(log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected))])
At the start pi = ref, so the loss is ln 2 = 0.693 and both implicit rewards are zero.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.model.decoder import Decoder
from groundup.posttraining.batches import Row, answer_log_probabilities, collate
from groundup.posttraining.config import DpoConfig
from groundup.posttraining.rows import kept, kept_pairs, pair, too_long
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.epoch_order import chosen_rows, steps_for
from groundup.training.loop import tune
from groundup.training.objectives import Batch, Metrics

BATCH = 64  # rows that the reference scores at once
HELD_OUT_PAIRS = 128  # that are measured while it trains: a fifth of the time of an epoch of 1,000 pairs


def sequence_log_probability(model: Decoder, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log-probability (batch,) in nats of each row's answer, summed over its tokens."""
    return answer_log_probabilities(model, batch, dtype).sum(dim=1)


def preference_loss(policy_B: Tensor, reference_B: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """policy_B, reference_B: (batch,) log-probabilities of rows that come as (all chosen, then all rejected)."""
    chosen, rejected = (beta * (policy_B - reference_B)).chunk(2)
    loss = -F.logsigmoid(chosen - rejected).mean()
    return loss, {
        "loss": loss.item(),
        "accuracy": (chosen > rejected).float().mean().item(),
        "reward_chosen": chosen.mean().item(),
        "reward_rejected": rejected.mean().item(),
    }


def train(
    policy: Decoder, tokenizer: Tokenizer, pairs: Sequence[dict[str, Any]], settings: DpoConfig, dtype: torch.dtype,
    folder: Path, seed: int, left_out: Counter[str] | None = None, held_out: Sequence[dict[str, Any]] = (),
) -> int:  # fmt: skip
    """Train `policy` in place on preference rows, with itself as it comes for reference; returns the number of steps.

    The reference's log-probabilities are computed once, so the reference need not stay in memory. The loss and accuracy
    on the first of the `held_out` pairs stand in the metrics of some steps: pairs that are seen again are soon known by
    heart, which the training's own figures take for learning.
    Pairs that cannot be read or are longer than the context are counted in `left_out` by reason.
    Raises UserError when there are no pairs, or none stays.
    """
    longest = policy.config.max_position_embeddings + 1
    rows, _ = kept_pairs(tokenizer, pairs, longest, "dpo", left_out)
    device = policy.lm_head.weight.device
    reference = [_reference(policy, tokenizer, [row[side] for row in rows], dtype) for side in (0, 1)]
    steps = steps_for(settings.epochs, settings.batch_pairs, len(rows))

    def batches(step: int) -> list[Batch]:
        some = chosen_rows(step, settings.batch_pairs, len(rows), seed)
        batch = collate([rows[index][side] for side in (0, 1) for index in some], tokenizer.pad, device)
        batch["reference"] = torch.cat([reference[side][some] for side in (0, 1)])
        return [batch]

    def objective(model: Decoder, batch: Batch) -> tuple[Tensor, Metrics]:
        return preference_loss(sequence_log_probability(model, batch, dtype), batch["reference"], settings.beta)

    unseen = kept(held_out, lambda row: pair(tokenizer, row), lambda one: too_long(longest, one[0], one[1]), left_out)
    observe = _observed(policy, tokenizer, [one[:2] for one in unseen[:HELD_OUT_PAIRS]], settings.beta, dtype)
    tune(policy, objective, batches, settings.learning_rate, steps, folder, "dpo", warmup=10, observe=observe)
    return steps


def _observed(
    policy: Decoder, tokenizer: Tokenizer, rows: Sequence[tuple[Row, Row]], beta: float, dtype: torch.dtype
) -> Callable[[], Metrics] | None:
    """What measures the loss and the accuracy of the policy, as it is then, on pairs against what it is now."""
    if not rows:
        return None
    sides = [row[side] for side in (0, 1) for row in rows]
    reference = _reference(policy, tokenizer, sides, dtype)

    def observe() -> Metrics:
        found = preference_loss(_reference(policy, tokenizer, sides, dtype), reference, beta)[1]
        return {**{f"held_out_{name}": found[name] for name in ("loss", "accuracy")}, "held_out_pairs": len(rows)}

    return observe


@torch.no_grad()
def _reference(policy: Decoder, tokenizer: Tokenizer, rows: Sequence[Row], dtype: torch.dtype) -> Tensor:
    device = policy.lm_head.weight.device
    parts = [collate(rows[start : start + BATCH], tokenizer.pad, device) for start in range(0, len(rows), BATCH)]
    return torch.cat([sequence_log_probability(policy, part, dtype) for part in parts])
