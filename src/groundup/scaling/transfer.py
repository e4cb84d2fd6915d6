"""Do rates that were tuned on a narrow model hold for a wide one? A coordinate check, and the best rate over widths.

Two rules: `ours` (`training/optimizer.py`, muP by Yang et al. 2022: the embedding's rate stays, the head's falls with the width)
and `root` (nanochat's, and ours before: both fall with the root of the width). Muon's updates of hidden matrices have the same
spectral norm at every width by themselves, which is what muP asks for, so both rules agree there.

A rule is right where, after some steps, activations have the same size at every width, and the best rate is the same.
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
from groundup.training.pretraining import warm_up
from groundup.training.schedule import warmup_stable_decay

HEAD_DIM, DEPTH = 64, 2
FLAT = 1.2  # largest over smallest size of an activation
STEP = 1.4  # of rates: the best of one width may be so far from that of another
RUN = 500  # steps of the run whose first ones a coordinate check makes: 10 of warm-up
Lrs = Callable[[str, nn.Parameter], tuple[str, float]]
Rows = Callable[[int], Tensor]  # step -> token ids (rows, context + 1)


def ours(width: int, scale: float = 1.0) -> Lrs:
    return pretraining_lrs(width, scale)[0]


def root(width: int, scale: float = 1.0) -> Lrs:
    by_width = (width / 768) ** -0.5
    rates = {"embed_tokens": 0.2 * by_width * scale, "lm_head": 0.004 * by_width * scale}
    others = ours(width, scale)

    def lrs(name: str, parameter: nn.Parameter) -> tuple[str, float]:
        method, lr = others(name, parameter)
        return method, next((rate for role, rate in rates.items() if role in name), lr)

    return lrs


RULES: dict[str, Callable[..., Lrs]] = {"ours": ours, "root": root}


def of_width(width: int, vocabulary: int, context: int, seed: int = 0) -> Decoder:
    """A fresh decoder of DEPTH layers that is so wide, a multiple of 64."""
    config, _ = shape_for(DEPTH, vocabulary, context)
    heads = width // HEAD_DIM
    model = Decoder(replace(
        config, hidden_size=width, num_attention_heads=heads, num_key_value_heads=heads, intermediate_size=3 * width
    ))  # fmt: skip
    initialise(model, seed)
    return model


def trained(model: Decoder, lrs: Lrs, rows: Rows, steps: int, of: int, dtype: torch.dtype = torch.float32) -> list[float]:
    """Train in place the first `steps` of a run's `of` steps by the loop's objective, optimizer and schedule; their losses.

    By kernels where there are any in `dtype`.
    """
    try:
        model.use_kernels(kernels.BLOCK, dtype)
    except kernels.Unavailable:
        model.drop_kernels()
    optimizer, losses = Optimizer(model, lrs, dtype=dtype, kernels=in_use(model)), []
    warmup, decay = warm_up(of), round(PretrainingConfig().decay_fraction * of)
    for step in range(steps):
        ids = rows(step).long()
        weight = torch.full((len(ids), ids.shape[1] - 1), 1 / (len(ids) * (ids.shape[1] - 1)))
        loss, metrics = next_token(model, {"ids": ids[:, :-1], "targets": ids[:, 1:], "weight": weight}, dtype)
        loss.backward()
        optimizer.step(warmup_stable_decay(step, of, warmup, decay))
        losses.append(metrics["loss"])
    model.drop_kernels()
    return losses


def coordinates(
    widths: Sequence[int], rule: str, rows: Rows, vocabulary: int, context: int, steps: int = 20, seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, dict[int, float]]:  # fmt: skip
    """Root mean square of what each block adds and of the logits, after `steps` of RUN steps: activation -> width -> size."""
    found: dict[str, dict[int, float]] = {}
    for width in widths:
        model = of_width(width, vocabulary, context, seed)
        trained(model, RULES[rule](width), rows, steps, max(RUN, steps), dtype)
        sizes: dict[str, float] = {}

        def watch(name: str, sizes: dict[str, float] = sizes) -> Callable[..., None]:
            def seen(module: nn.Module, inputs: Any, output: Any) -> None:
                sizes[name] = float((output[0] if isinstance(output, tuple) else output).float().square().mean().sqrt())

            return seen

        for name, module in model.named_modules():
            if name.endswith(("o_proj", "down_proj")):
                module.register_forward_hook(watch(name.removeprefix("model.layers.")))
        with torch.no_grad():
            logits = model(rows(steps).long()[:, :-1])
        sizes["logits"] = float(logits.float().square().mean().sqrt())
        for name, size in sizes.items():
            found.setdefault(name, {})[width] = size
    return found


def spread(sizes: dict[int, float]) -> float:
    """Largest over smallest: 1 is flat."""
    return max(sizes.values()) / max(min(sizes.values()), 1e-30)


def best_scales(
    widths: Sequence[int], scales: Sequence[float], rule: str, rows: Rows, vocabulary: int, context: int, steps: int,
    seed: int = 0, dtype: torch.dtype = torch.float32,
) -> dict[int, dict[float, float]]:  # fmt: skip
    """For each width the loss (mean of the last tenth of the steps) at each `lr_scale`; infinite where a training diverged."""
    found: dict[int, dict[float, float]] = {}
    for width in widths:
        for scale in scales:
            run = trained(of_width(width, vocabulary, context, seed), RULES[rule](width, scale), rows, steps, steps, dtype)
            last = run[-max(1, steps // 10) :]
            loss = sum(last) / len(last)
            found.setdefault(width, {})[scale] = loss if math.isfinite(loss) else math.inf
    return found


def best_of(losses: dict[float, float]) -> tuple[float, float]:
    """The scale of least loss, and that loss: of the parabola over log scale through the least and its neighbours.

    Of the least itself where it lies at an end, or a neighbour is not finite.
    """
    scales = sorted(losses)
    at = min(range(len(scales)), key=lambda place: losses[scales[place]])
    if not 0 < at < len(scales) - 1:
        return scales[at], losses[scales[at]]
    three = scales[at - 1 : at + 2]
    x, y = np.log(three), np.array([losses[scale] for scale in three])
    if not np.isfinite(y).all():
        return scales[at], losses[scales[at]]
    curve = np.polynomial.Polynomial.fit(x, y, 2).convert().coef
    middle = -curve[1] / (2 * curve[2]) if curve[2] > 0 else x[1]
    return math.exp(middle), float(np.polynomial.polynomial.polyval(middle, curve))
