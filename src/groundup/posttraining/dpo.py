"""Direct preference optimisation (Rafailov et al. 2023): RLHF's objective as a classification loss on pairs.

loss = -log sigmoid(beta * [(log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected))])
At the start pi = ref, so the loss is ln 2 = 0.693 and both implicit rewards are zero. `preference_losses.py` has the others
that came of it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groundup.core.errors import UserError
from groundup.core.files import replacing
from groundup.core.seals import is_sealed, seal
from groundup.model.base import LanguageModel
from groundup.model.weights import digest_of_model
from groundup.posttraining import data_checks, lora
from groundup.posttraining.batches import Row, answer_log_probabilities, collate, pair_batches, parts_by_length
from groundup.posttraining.config import DpoConfig
from groundup.posttraining.preference_losses import Pairs, length_desensitised, loss_of, rewards
from groundup.posttraining.reward import pair_figures
from groundup.posttraining.tokenize_rows import pair, unfit_pair, usable_pairs, usable_rows
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.by_kernels import by_kernels
from groundup.training.epoch_order import log_steps
from groundup.training.loop import tune
from groundup.training.objectives import Batch, Metrics
from groundup.training.parallel import Processes
from groundup.training.runtime import Runtime

BATCH = 64  # rows that the reference scores at once
HELD_OUT_PAIRS = 128  # that are measured while it trains: a fifth of the time of an epoch of 1,000 pairs


def sequence_log_probability(model: LanguageModel, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log-probability (batch,) in nats of each row's answer, summed over its tokens."""
    return answer_log_probabilities(model, batch, dtype).sum(dim=1)


def preference_loss(pairs: Pairs, settings: DpoConfig) -> tuple[Tensor, Metrics]:
    """Mean loss of the pairs, by `settings.losses` (`preference_losses.py`), and its metrics."""
    loss = loss_of(pairs, settings).mean()
    chosen, rejected = rewards(pairs, settings)
    return loss, {
        "loss": loss.item(),
        "accuracy": (chosen > rejected).float().mean().item(),
        "reward_chosen": chosen.mean().item(),
        "reward_rejected": rejected.mean().item(),
    }


def objective(model: LanguageModel, batch: Batch, settings: DpoConfig, dtype: torch.dtype) -> tuple[Tensor, Metrics]:
    """Loss and metrics of `share` of a step.

    batch: as `collate` gives it, rows as (all chosen, then all rejected); reference (batch,) as `sum_log_probabilities` gives it.
    """
    logp_BT, mask_BT = answer_log_probabilities(model, batch, dtype), batch["mask"]
    columns = (sum_log_probabilities(logp_BT, mask_BT, settings), batch["reference"], mask_BT.sum(dim=1))
    parts = [side for column in columns for side in column.chunk(2)]
    loss, metrics = preference_loss(Pairs(*parts, chosen_unweighted=logp_BT.sum(dim=1).chunk(2)[0]), settings)
    share = batch["share"].item()
    return loss * share, {name: value * share for name, value in metrics.items()}


def sum_log_probabilities(logp_BT: Tensor, mask_BT: Tensor, settings: DpoConfig) -> Tensor:
    """Log-probability (batch,) of answers, as the losses take it."""
    return logp_BT.sum(dim=1) if settings.ld_alpha == 1 else length_desensitised(logp_BT, mask_BT, settings.ld_alpha)


def train(
    policy: LanguageModel, tokenizer: Tokenizer, pairs: Sequence[dict[str, Any]], settings: DpoConfig, runtime: Runtime,
    held_out: Sequence[dict[str, Any]] = (), cache: Path | None = None,
) -> int:  # fmt: skip
    """Train `policy` in place on preference rows, with itself as it comes for reference; returns the number of steps.

    The reference's log-probabilities are computed once, so the reference need not stay in memory. The folder `cache` keeps
    them for a training that resumes, or another one of the same policy and pairs. The loss and accuracy on the first of the
    `held_out` pairs are in the metrics of some steps, since those of training pairs that are seen again also improve by
    memorising them.
    Pairs that cannot be read or are longer than the context are counted in `runtime.left_out` by reason.
    Raises UserError when there are no pairs, or none stays, and for settings that cannot work together.
    """
    _check(settings, runtime)
    longest = policy.config.max_position_embeddings + 1
    left_out, label, dtype = runtime.left_out, runtime.label, runtime.device.training_dtype
    rows, _ = usable_pairs(tokenizer, pairs, longest, label, left_out)
    data_checks.report_findings(label, data_checks.of_pairs(rows, tokenizer, left_out), settings.strict)
    device = policy.lm_head.weight.device
    steps = log_steps(runtime.log, runtime.label, settings.epochs, settings.batch_pairs, len(rows))

    def batches(step: int) -> list[Batch]:
        return pair_batches(
            step, rows, tokenizer.pad, device, settings.batch_pairs, settings.pairs_at_once, runtime,
            lambda indices: {"reference": reference[indices].T.flatten().to(device)},
        )  # fmt: skip

    held_out_rows = _usable(held_out, tokenizer, longest, left_out)[:HELD_OUT_PAIRS]
    with by_kernels([policy], runtime):
        reference = _cached_reference(policy, tokenizer, rows, settings, runtime, cache)
        observe = _held_out_observer(policy, tokenizer, held_out_rows, settings, dtype)
        with lora.adapted(policy, settings.lora_rank, runtime.seed, runtime.folder):
            tune(
                policy, lambda model, batch: objective(model, batch, settings, dtype), batches, settings.learning_rate, steps,
                runtime, warmup=10, observe=observe,
            )  # fmt: skip
    return steps


@torch.no_grad()
def assess(
    policy: LanguageModel, reference: LanguageModel, tokenizer: Tokenizer, pairs: Sequence[dict[str, Any]], settings: DpoConfig
) -> dict[str, Any]:
    """Figures of the policy's implicit rewards on held-out pairs: those of `reward.pair_figures`, with length too.

    They are beta times the log-ratio to the `reference`, in float32. Empty where no pair can be read.
    """
    longest = policy.config.max_position_embeddings + 1
    rows = _usable(pairs, tokenizer, longest, None)
    if not rows:
        return {}
    policy_logp, reference_logp = (
        _log_probabilities(model, tokenizer, rows, DpoConfig(), torch.float32, Processes()) for model in (policy, reference)
    )
    implicit_rewards = (settings.beta * (policy_logp - reference_logp)).numpy()
    lengths = np.array([[sum(spoken) for _, spoken in row] for row in rows], dtype=np.float64)
    return pair_figures(implicit_rewards[:, 0], implicit_rewards[:, 1], lengths)


def _usable(
    pairs: Sequence[dict[str, Any]], tokenizer: Tokenizer, longest: int, left_out: Counter[str] | None
) -> list[tuple[Row, Row]]:
    """(chosen, rejected) of the held-out pairs that can be measured."""
    usable = usable_rows(pairs, lambda row: pair(tokenizer, row), lambda answers: unfit_pair(longest, *answers[:2]), left_out)
    return [(chosen, rejected) for chosen, rejected, _ in usable]


def _check(settings: DpoConfig, runtime: Runtime) -> None:
    if settings.of_the_batch and runtime.processes.world > 1:
        names = ", ".join(settings.losses)
        raise UserError(f"{names} is of a whole batch, which several processes would share; train in one process")


def _held_out_observer(
    policy: LanguageModel, tokenizer: Tokenizer, pairs: Sequence[tuple[Row, Row]], settings: DpoConfig, dtype: torch.dtype
) -> Callable[[], Metrics] | None:
    """What measures loss and accuracy on pairs: of the policy when it is called, with the policy of now as reference."""
    if not pairs:
        return None
    device = policy.lm_head.weight.device
    batches = [
        collate([answers[side] for side in (0, 1) for answers in pairs[start : start + BATCH // 2]], tokenizer.pad, device)
        | {"share": torch.tensor(len(pairs[start : start + BATCH // 2]) / len(pairs))}
        for start in range(0, len(pairs), BATCH // 2)
    ]
    if settings.of_the_batch:
        rows = [answers[side] for side in (0, 1) for answers in pairs]
        batches = [collate(rows, tokenizer.pad, device) | {"share": torch.tensor(1.0)}]
    with torch.no_grad():
        for batch in batches:
            batch["reference"] = sum_log_probabilities(answer_log_probabilities(policy, batch, dtype), batch["mask"], settings)

    @torch.no_grad()
    def observe() -> Metrics:
        parts = [objective(policy, batch, settings, dtype)[1] for batch in batches]
        means = {f"held_out_{name}": sum(part[name] for part in parts) for name in ("loss", "accuracy")}
        return {**means, "held_out_pairs": len(pairs)}

    return observe


def _cached_reference(
    policy: LanguageModel, tokenizer: Tokenizer, rows: Sequence[tuple[Row, Row]], settings: DpoConfig, runtime: Runtime,
    cache: Path | None,
) -> Tensor:  # fmt: skip
    """The reference's log-probabilities (pairs, 2), on the processor; the first process alone reads and writes the `cache`."""
    processes, dtype = runtime.processes, runtime.device.training_dtype
    path = _cache_path(cache, policy, rows, settings, dtype) if cache and processes.first else None
    if is_cached := processes.sum([float(path is not None and is_sealed(path))])[0]:
        runtime.log(f"{runtime.label}: the reference's log-probabilities of {len(rows):,} pairs are in {cache}")
    if is_cached and path:
        log_probabilities = torch.from_numpy(np.load(path, allow_pickle=False))
    elif is_cached:
        log_probabilities = torch.zeros(len(rows), 2)
    else:
        log_probabilities = _log_probabilities(policy, tokenizer, rows, settings, dtype, processes)
    log_probabilities = torch.tensor(processes.sum(log_probabilities.flatten().tolist())).view(-1, 2)
    if path and not is_cached:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, log_probabilities.numpy(), allow_pickle=False)
        seal(path)
    return log_probabilities


def _cache_path(
    cache: Path, policy: LanguageModel, rows: Sequence[tuple[Row, Row]], settings: DpoConfig, dtype: torch.dtype
) -> Path:
    key = blake2b(repr((digest_of_model(policy), str(dtype), settings.ld_alpha)).encode(), digest_size=16)
    for row in rows:
        key.update(repr(row).encode())
    return cache / f"{key.hexdigest()}.npy"


@torch.no_grad()
def _log_probabilities(
    policy: LanguageModel, tokenizer: Tokenizer, rows: Sequence[tuple[Row, Row]], settings: DpoConfig, dtype: torch.dtype,
    processes: Processes,
) -> Tensor:  # fmt: skip
    """Of the chosen and the rejected answers (pairs, 2); zero where another process computes it."""
    device, log_probabilities = policy.lm_head.weight.device, torch.zeros(len(rows), 2)
    for indices in parts_by_length(range(len(rows)), rows, BATCH // 2)[processes.rank :: processes.world]:
        batch = collate([rows[index][side] for side in (0, 1) for index in indices], tokenizer.pad, device)
        sums = sum_log_probabilities(answer_log_probabilities(policy, batch, dtype), batch["mask"], settings)
        log_probabilities[indices] = torch.stack(sums.chunk(2), dim=1).cpu()
    return log_probabilities
