"""Do learning rates that were tuned on a narrow model hold for a wide one? A coordinate check, and the best scale over widths.

Two rules: `ours` (`training/optimizer.py`, muP by Yang et al. 2022: the embedding's lr stays, the head's falls with the width)
and `root` (nanochat's, and ours before: both fall with the root of the width). Muon's updates of hidden matrices have the same
spectral norm at every width by themselves, which is what muP asks for, so both rules agree there.

A rule is right where, after some steps, activations have the same size at every width, and the best learning rate is the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from groundup import kernels
from groundup.model.base import initialise
from groundup.model.decoder import Decoder, shape_for
from groundup.training.by_kernels import in_use
from groundup.training.config import PretrainingConfig
from groundup.training.objectives import next_token
from groundup.training.optimizer import Optimizer, pretraining_lrs
from groundup.training.pretraining import warmup_steps
from groundup.training.schedule import warmup_stable_decay

HEAD_DIM, DEPTH = 64, 2
FLAT = 1.2  # largest over smallest size of an activation
STEP = 1.4  # of learning rates: the best of one width may be so far from that of another
RUN = 500  # steps of the run whose first ones a coordinate check makes: 10 of warm-up
Lrs = Callable[[str, nn.Parameter], tuple[str, float]]
Rows = Callable[[int], Tensor]  # step -> token ids (rows, context + 1)


def mup_lrs(width: int, scale: float = 1.0) -> Lrs:
    return pretraining_lrs(width, scale)[0]


def root_lrs(width: int, scale: float = 1.0) -> Lrs:
    by_width = (width / 768) ** -0.5
    lr_of_role = {"embed_tokens": 0.2 * by_width * scale, "lm_head": 0.004 * by_width * scale}
    our_lrs = mup_lrs(width, scale)

    def lrs(name: str, parameter: nn.Parameter) -> tuple[str, float]:
        method, lr = our_lrs(name, parameter)
        return method, next((role_lr for role, role_lr in lr_of_role.items() if role in name), lr)

    return lrs


RULES: dict[str, Callable[..., Lrs]] = {"ours": mup_lrs, "root": root_lrs}


def model_of_width(width: int, vocabulary: int, context: int, seed: int = 0) -> Decoder:
    """A fresh decoder of DEPTH layers and `width` channels, a multiple of 64."""
    config, _ = shape_for(DEPTH, vocabulary, context)
    heads = width // HEAD_DIM
    model = Decoder(replace(
        config, hidden_size=width, num_attention_heads=heads, num_key_value_heads=heads, intermediate_size=3 * width
    ))  # fmt: skip
    initialise(model, seed)
    return model


def train_first_steps(
    model: Decoder, lrs: Lrs, rows: Rows, steps: int, run_steps: int, dtype: torch.dtype = torch.float32
) -> list[float]:
    """Train in place the first `steps` of a run of `run_steps` by the loop's objective, optimizer and schedule; their losses.

    By kernels where there are any for `dtype`.
    """
    try:
        model.use_kernels(kernels.BLOCK, dtype)
    except kernels.Unavailable:
        model.drop_kernels()
    optimizer, losses = Optimizer(model, lrs, dtype=dtype, kernels=in_use(model)), []
    warmup, decay = warmup_steps(run_steps), round(PretrainingConfig().decay_fraction * run_steps)
    for step in range(steps):
        ids = rows(step).long()
        weight = torch.full((len(ids), ids.shape[1] - 1), 1 / (len(ids) * (ids.shape[1] - 1)))
        loss, metrics = next_token(model, {"ids": ids[:, :-1], "targets": ids[:, 1:], "weight": weight}, dtype)
        loss.backward()
        optimizer.step(warmup_stable_decay(step, run_steps, warmup, decay))
        losses.append(metrics["loss"])
    model.drop_kernels()
    return losses


def coordinate_check(
    widths: Sequence[int], rule: str, rows: Rows, vocabulary: int, context: int, steps: int = 20, seeds: int = 3,
    dtype: torch.dtype = torch.float32,
) -> dict[str, dict[int, float]]:  # fmt: skip
    """Root mean square of what each block adds and of the logits, after `steps` of RUN steps: activation -> width -> size.

    The geometric mean of several seeds: one is up to a tenth off.
    """
    activation_sizes: dict[str, dict[int, float]] = {}
    for width in widths:
        models = [model_of_width(width, vocabulary, context, seed) for seed in range(seeds)]
        sizes_of_seeds = [_sizes(model, RULES[rule](width), rows, steps, dtype) for model in models]
        for name in sizes_of_seeds[0]:
            mean = math.exp(sum(math.log(max(sizes[name], 1e-30)) for sizes in sizes_of_seeds) / seeds)
            activation_sizes.setdefault(name, {})[width] = mean
    return activation_sizes


def _sizes(model: Decoder, lrs: Lrs, rows: Rows, steps: int, dtype: torch.dtype) -> dict[str, float]:
    train_first_steps(model, lrs, rows, steps, max(RUN, steps), dtype)
    sizes: dict[str, float] = {}

    def size(output: Tensor) -> float:
        return float(output.float().square().mean().sqrt())

    def watch(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            sizes[name] = size(output[0] if isinstance(output, tuple) else output)

        return record

    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_hook(watch(name.removeprefix("model.layers.")))
    with torch.no_grad():
        sizes["logits"] = size(model(rows(steps).long()[:, :-1]))
    return sizes


def spread(sizes: dict[int, float]) -> float:
    """Largest over smallest: 1 is flat."""
    return max(sizes.values()) / max(min(sizes.values()), 1e-30)


def losses_by_scale(
    widths: Sequence[int], scales: Sequence[float], rule: str, rows: Rows, vocabulary: int, context: int, steps: int,
    seed: int = 0, dtype: torch.dtype = torch.float32,
) -> dict[int, dict[float, float]]:  # fmt: skip
    """For each width the loss (mean of the last tenth of the steps) at each `lr_scale`; infinite where a training diverged."""
    losses: dict[int, dict[float, float]] = {}
    for width in widths:
        for scale in scales:
            model = model_of_width(width, vocabulary, context, seed)
            run_losses = train_first_steps(model, RULES[rule](width, scale), rows, steps, steps, dtype)
            last = run_losses[-max(1, steps // 10) :]
            loss = sum(last) / len(last)
            losses.setdefault(width, {})[scale] = loss if math.isfinite(loss) else math.inf
    return losses


def best_scale(losses: dict[float, float]) -> tuple[float, float]:
    """The scale of least loss, and that loss, of a parabola of least squares over log scale, within the scales given.

    The parabola goes by all of them, since two seeds are as far apart as two steps of 1.4. Where a training diverged, the scale
    with the least measured loss is taken.
    """
    scales, y = np.array(sorted(losses)), np.array([losses[scale] for scale in sorted(losses)])
    lowest = float(scales[y.argmin()])
    if len(scales) < 3 or not np.isfinite(y).all():
        return lowest, losses[lowest]
    curve = np.polynomial.Polynomial.fit(np.log(scales), y, 2).convert(domain=[-1, 1])
    _, slope, bend = curve.coef
    if bend <= 0:
        return lowest, losses[lowest]
    middle = float(np.clip(-slope / (2 * bend), *np.log(scales[[0, -1]])))
    return math.exp(middle), float(curve(middle))
