"""The one training loop: pre-training, fine-tuning, reward modelling, DPO and PPO differ in objective and batches only.

What happens at step k is a function of k and the state before it. So a run that was killed resumes from its last
checkpoint and ends with the same bits as one that was not.
"""

import hashlib
import json
import logging
import math
import os
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path
from typing import TextIO

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from groundup.core.errors import UserError
from groundup.core.files import write_text
from groundup.core.progress import Progress
from groundup.training import by_kernels, checkpoint
from groundup.training.objectives import Batch, Metrics
from groundup.training.optimizer import Optimizer, one_lr
from groundup.training.parallel import ALONE, Objective, Processes, local
from groundup.training.runtime import Runtime
from groundup.training.schedule import warmup_stable_decay

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
CHECKPOINT_SECONDS = 15.0  # from one state to the next
AFFORDED_SECONDS = 0.75  # to save one; a larger model, which takes longer, saves less often by that factor
MAX_SKIPPED_IN_A_ROW = 10
OBSERVATIONS = 8  # of held-out rows while a model is tuned: enough to see where it overfits
TERMINATED = 128 + signal.SIGTERM
# A spike is above the median of the last 100 losses by this many of their median distances from it, and by this much.
# The worst of the 1,708 steps of the laptop run was 5.2 distances above, the worst of the tiny run 0.86 nats.
SPIKE_DISTANCES, SPIKE_NATS, SPIKE_WINDOW, SPIKE_FROM = 10.0, 1.0, 100, 20


class Diverged(UserError):
    """Too many steps in a row had no usable loss or gradient."""


def train(
    model: nn.Module, objective: Objective, batches: Callable[[int], list[Batch]], optimizer: Optimizer,
    lr_multiplier: Callable[[int], float], steps: int, folder: Path, label: str, *, tokens_per_step: int = 0,
    seconds_at_peak: float = 0.0, checkpoint_multiple: int = 1, max_grad_norm: float | None = None, skip_spikes: bool = False,
    observe: Callable[[], Metrics] | None = None, observe_every: int = 1, processes: Processes = ALONE, compiled: bool = False,
) -> list[Metrics]:  # fmt: skip
    """Train `model` in place and return the metrics of every step, which are also written to `folder`/metrics.jsonl.

    batches(step): the micro-batches of that step. lr_multiplier(step): multiplier of the optimizer's peak learning rates.
    observe(): further metrics, measured after every `observe_every` steps and the last.
    seconds_at_peak: seconds of a step at the machine's peak FLOP/s, to show what share of that is reached.
    checkpoint_multiple: checkpoints only at multiples of it (PPO: a rollout and its updates are one unit).
    processes: several need an objective from `processes.spread`, metrics that add up over micro-batches as the loss
    does, and `batches` that give each process its own rows.
    compiled: torch compiles the model in the first step, also after resuming; the time of that step is shown apart.

    A step whose loss or gradient is not finite is skipped and counted, and with `skip_spikes` one whose loss is far
    above those before it; ten in a row raise Diverged. SIGTERM saves a checkpoint and ends with exit code 143.
    Raises UserError when another training is at work in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metrics_path, first = folder / METRICS, processes.first
    unit, scale = ("tokens", tokens_per_step) if tokens_per_step else ("steps", 1)
    with _locked(folder, first), _sigterm() as terminated:
        done = _restore(model, optimizer, folder, metrics_path, processes)
        history = _read_history(metrics_path, done, rewrite=first)
        written = _hashed(metrics_path.read_bytes() if first else b"")
        recent = deque((row["loss"] for row in history if "skipped" not in row), maxlen=SPIKE_WINDOW)
        skipped_in_a_row = sum(1 for _ in takewhile(lambda row: "skipped" in row, reversed(history)))
        saved, saved_at, pause = done, time.monotonic(), CHECKPOINT_SECONDS
        progress = Progress(label, steps * scale, unit, done * scale, first="compiled" if compiled else "")
        with progress, _appending(metrics_path, first) as log:
            for step in range(done, steps):
                totals = _accumulated(model, objective, batches(step), processes)
                norm = _gradient_norm(model, processes)
                overdue = first and time.monotonic() - saved_at > pause
                # Whatever is decided here, all processes decide alike.
                *sums, stop, due = processes.sum([*totals.values(), float(terminated()), float(overdue)])
                totals = dict(zip(totals, sums, strict=True))
                row = {"step": step, **totals, "grad_norm": norm, "lr": lr_multiplier(step)}
                if trouble := _skip_reason(totals["loss"], norm, recent if skip_spikes else ()):
                    skipped_in_a_row += 1
                    row["skipped"] = 1
                    model.zero_grad(set_to_none=True)
                    _log_skipped(label, step, skipped_in_a_row, trouble, first)
                else:
                    skipped_in_a_row = 0
                    recent.append(totals["loss"])
                    if max_grad_norm and norm > max_grad_norm:
                        torch._foreach_mul_(_gradients(model), max_grad_norm / norm)
                    optimizer.step(lr_multiplier(step))
                if observe and ((step + 1) % observe_every == 0 or step + 1 == steps):
                    row |= observe()
                history.append(row)
                if first:
                    log.write(_line(row))
                    log.flush()
                    written.update(_line(row).encode())
                    share = progress.rate / scale * seconds_at_peak  # of the steps before: this one is not counted yet
                    progress.advance(scale, note=f"loss {totals['loss']:.3f}" + (f" · {share:.0%} of peak" if share else ""))
                at_multiple = (step + 1) % checkpoint_multiple == 0
                if ((due or stop) and at_multiple) or step + 1 == steps:
                    if first:
                        os.fsync(log.fileno())
                    begun = time.monotonic()
                    _save(model, optimizer, folder, step + 1, processes, written.hexdigest())
                    saved, saved_at = step + 1, time.monotonic()
                    pause = CHECKPOINT_SECONDS * max(1.0, (saved_at - begun) / AFFORDED_SECONDS)
                if stop:
                    if first:
                        resume_hint = f"run the same command again to resume after step {saved}"
                        logger.info(f"{label}: stopped by SIGTERM after step {step + 1} of {steps}; {resume_hint}")
                    raise SystemExit(TERMINATED)
    return history


def _accumulated(model: nn.Module, objective: Objective, parts: list[Batch], processes: Processes) -> Metrics:
    """Add up the gradients of a step's micro-batches in the model; returns the sums of their metrics."""
    totals: Metrics = {}
    for number, batch in enumerate(parts, start=1):
        with processes.accumulating(number < len(parts)):
            loss, metrics = objective(model, batch)
            processes.backward(loss)
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def _log_skipped(label: str, step: int, in_a_row: int, trouble: str, first: bool) -> None:
    """Raises Diverged where too many steps in a row were skipped."""
    if in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise Diverged(
            f"{label}: skipped {in_a_row} steps in a row, up to step {step}; lower the learning rate or look at the data of "
            f"these steps; at the last {trouble}"
        )
    if first:
        logger.warning(f"{label}: step {step} skipped: {trouble}")


def tune(
    model: nn.Module,
    objective: Objective,
    batches: Callable[[int], list[Batch]],
    lr: float,
    steps: int,
    runtime: Runtime,
    *,
    warmup: int = 20,
    decay: int = 1,
    checkpoint_multiple: int = 1,
    observe: Callable[[], Metrics] | None = None,
) -> None:
    """`train` for a model that is trained already: AdamW for everything at one peak rate, gradients of norm one at most.

    The learning rate rises over the first 1 / `warmup` of the steps and falls over the last 1 / `decay` of them. `observe` is
    called about eight times.
    """

    def multiplier(step: int) -> float:
        return warmup_stable_decay(step, steps, max(1, steps // warmup), steps // decay)

    processes = runtime.processes
    objective = processes.spread(model, objective, runtime.device.torch_device)
    optimizer = Optimizer(model, one_lr(lr), kernels=by_kernels.in_use(model), processes=processes)
    train(
        model, objective, batches, optimizer, multiplier, steps, runtime.training, runtime.label,
        checkpoint_multiple=checkpoint_multiple, max_grad_norm=1.0, observe=observe,
        observe_every=max(1, steps // OBSERVATIONS), processes=processes,
    )  # fmt: skip


@torch.no_grad()
def mean_loss(model: nn.Module, objective: Objective, batches: list[Batch], processes: Processes = ALONE) -> float:
    """Loss over micro-batches whose weights add up to one, over all processes."""
    return processes.sum([sum(objective(model, batch)[0].item() for batch in batches)])[0]


def _skip_reason(loss: float, norm: float, recent: Iterable[float]) -> str | None:
    """Why a step must be skipped: an update from it would harm or end the training."""
    if not math.isfinite(loss):
        return f"the loss was {loss}"
    if not math.isfinite(norm):
        return f"the gradient's norm was {norm}"
    before = list(recent)
    if len(before) >= SPIKE_FROM:
        median = statistics.median(before)
        distance = statistics.median(abs(value - median) for value in before)
        if loss > median + max(SPIKE_NATS, SPIKE_DISTANCES * distance):
            return f"the loss was {loss:.2f}, far above the median {median:.2f} of the {len(before)} before it"
    return None


def _state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        **{f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()},
        **{f"optimizer.{name}": tensor for name, tensor in optimizer.state.items()},
    }


def _save(
    model: nn.Module, optimizer: Optimizer, folder: Path, step: int, processes: Processes, metrics: str
) -> None:
    trouble = None
    try:
        checkpoint.save(folder, step, _state(model, optimizer), processes, metrics)
    except OSError as error:
        trouble = error
    if processes.sum([float(trouble is not None)])[0]:
        raise trouble or SystemExit(1)  # the first process raises the error itself


def _restore(model: nn.Module, optimizer: Optimizer, folder: Path, metrics: Path, processes: Processes) -> int:
    """Restore the newest state; returns its step. The first process finds it, with the metrics before it; all read it."""
    latest_step = None
    if processes.first:
        lines = metrics.read_bytes().splitlines(keepends=True) if metrics.is_file() else []
        latest_step = checkpoint.latest(folder, lambda steps: _hashed(b"".join(lines[:steps])).hexdigest())
    step = int(processes.sum([float(latest_step or 0)])[0])
    if step:
        checkpoint.load(folder, step, _state(model, optimizer), processes)
    return step


def _read_history(path: Path, steps: int, rewrite: bool) -> list[Metrics]:
    """The metrics of the steps before the checkpoint; later ones will be computed again, to the same values."""
    # `_restore` compared the digest of these lines alone: later ones may be damaged.
    lines = [line.decode() for line in path.read_bytes().split(b"\n")[:steps]] if steps else []
    if rewrite:
        write_text(path, "".join(line + "\n" for line in lines))
    return [{name: float(value) for name, value in json.loads(line).items()} for line in lines]


def _hashed(content: bytes) -> "hashlib.blake2b":
    return hashlib.blake2b(content, digest_size=16)


def _gradients(model: nn.Module) -> list[Tensor]:
    return [local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]


def _gradient_norm(model: nn.Module, processes: Processes) -> float:
    norm = torch.stack(torch._foreach_norm(_gradients(model))).norm().item()
    return math.sqrt(processes.sum([norm**2])[0]) if processes.shard else norm


@contextmanager
def _appending(path: Path, first: bool) -> Iterator[TextIO | None]:
    if first:
        with path.open("a", encoding="utf-8") as log:
            yield log
    else:
        yield None


@contextmanager
def _locked(folder: Path, first: bool) -> Iterator[None]:
    path = folder / "training.lock"
    try:
        with FileLock(path, timeout=0) if first else nullcontext():
            try:
                yield
            finally:
                if first:
                    path.unlink(missing_ok=True)  # not part of the result
    except Timeout:
        raise UserError(
            f"{folder}: another training is running in this folder; wait for it or choose another"
        ) from None


@contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Yields whether SIGTERM was received, which is checked between steps, where the state is whole."""
    received: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    except ValueError:  # not the main thread, the only one that can set handlers
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if received:
        raise SystemExit(TERMINATED)


def _line(row: Metrics) -> str:
    return json.dumps({name: value if math.isfinite(value) else str(value) for name, value in row.items()}) + "\n"
