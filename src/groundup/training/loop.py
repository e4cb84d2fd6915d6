"""The one training loop: pre-training, fine-tuning, reward modelling, DPO and PPO differ in objective and batches only.

What happens at step k is a function of k and the state before it. So a run that was killed continues from its last
checkpoint and ends with the same bits as one that was not.
"""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.files import write_text
from groundup.progress import Progress
from groundup.training import checkpoint
from groundup.training.objectives import Batch, Metrics
from groundup.training.optimizer import Optimizer

CHECKPOINT_SECONDS = 15.0
MAX_SKIPPED_IN_A_ROW = 10


def train(
    model: nn.Module,
    objective: Callable[[nn.Module, Batch], tuple[Tensor, Metrics]],
    batches: Callable[[int], list[Batch]],
    optimizer: Optimizer,
    rate: Callable[[int], float],
    steps: int,
    folder: Path,
    label: str,
    *,
    tokens_per_step: int = 0,
    checkpoint_multiple: int = 1,
    max_grad_norm: float | None = None,
    observe: Callable[[], Metrics] | None = None,
    observe_every: int = 1,
) -> list[Metrics]:
    """Train `model` in place and return the metrics of every step, which also stand in `folder`/metrics.jsonl.

    batches(step): the micro-batches of that step. rate(step): multiplier of the optimizer's peak rates.
    observe(): further metrics, measured after every `observe_every` steps and the last.
    checkpoint_multiple: checkpoints only at multiples of it (PPO: a rollout and its updates are one unit).
    A step whose loss or gradient is not finite is skipped and counted; ten in a row raise UserError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metrics_path = folder / "metrics.jsonl"
    done = _restore(model, optimizer, folder)
    history = _read_history(metrics_path, done)
    skipped_in_a_row, saved_at = 0, time.monotonic()
    unit = "tokens" if tokens_per_step else "steps"
    scale = tokens_per_step or 1
    with Progress(label, steps * scale, unit, done * scale) as progress, metrics_path.open("a") as log:
        for step in range(done, steps):
            totals: Metrics = {}
            for batch in batches(step):
                loss, metrics = objective(model, batch)
                loss.backward()
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0.0) + value
            norm = _gradient_norm(model)
            row = {"step": step, **totals, "grad_norm": norm, "rate": rate(step)}
            if math.isfinite(norm) and math.isfinite(totals["loss"]):
                skipped_in_a_row = 0
                if max_grad_norm and norm > max_grad_norm:
                    torch._foreach_mul_(
                        [p.grad for p in model.parameters() if p.grad is not None], max_grad_norm / norm
                    )
                optimizer.step(rate(step))
            else:
                skipped_in_a_row += 1
                row["skipped"] = 1
                model.zero_grad(set_to_none=True)
                if skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                    raise UserError(
                        f"{label}: loss or gradient not finite {skipped_in_a_row} steps in a row, up to step {step}; "
                        "lower the learning rate or look at the data of these steps"
                    )
            if observe and ((step + 1) % observe_every == 0 or step + 1 == steps):
                row |= observe()
            history.append(row)
            log.write(json.dumps({k: v if math.isfinite(v) else str(v) for k, v in row.items()}) + "\n")
            log.flush()
            progress.advance(scale, note=f"loss {totals['loss']:.3f}")
            due = time.monotonic() - saved_at > CHECKPOINT_SECONDS and (step + 1) % checkpoint_multiple == 0
            if due or step + 1 == steps:
                os.fsync(log.fileno())
                checkpoint.save(folder, step + 1, _state(model, optimizer))
                saved_at = time.monotonic()
    return history


@torch.no_grad()
def mean_loss(
    model: nn.Module, objective: Callable[[nn.Module, Batch], tuple[Tensor, Metrics]], batches: list[Batch]
) -> float:
    """Loss over micro-batches whose weights add up to one."""
    return sum(objective(model, batch)[0].item() for batch in batches)


def _state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        **{f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()},
        **{f"optimizer.{name}": tensor for name, tensor in optimizer.state.items()},
    }


def _restore(model: nn.Module, optimizer: Optimizer, folder: Path) -> int:
    found = checkpoint.latest(folder)
    if found is None:
        return 0
    step, tensors = found
    with torch.no_grad():
        for name, tensor in _state(model, optimizer).items():
            tensor.copy_(tensors[name])
    return step


def _read_history(path: Path, steps: int) -> list[Metrics]:
    """The metrics of the steps before the checkpoint; later ones will be computed again, to the same values."""
    lines = path.read_text(encoding="utf-8").split("\n")[:steps] if path.exists() else []
    write_text(path, "".join(line + "\n" for line in lines))
    return [{name: float(value) for name, value in json.loads(line).items()} for line in lines]


def _gradient_norm(model: nn.Module) -> float:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).norm().item()
