"""Do rates that were tuned on a narrow model hold for a wide one? A coordinate check, and the best rate over widths.

Two rules for the same peak rates at width 768: `ours` (`training/optimizer.py`: those of embedding and head fall with the root of
the width) and `mup` (Yang et al. 2022: the embedding's stays, the head's falls with the width). Muon's updates of hidden matrices
have the same spectral norm at every width by themselves, which is what muP asks for, so both rules agree there.

A rule is right where, after some steps, activations have the same size at every width, and the best rate is the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

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
TUNED_AT = 768  # nanochat's width: both rules have its rates there
FLAT = 1.2  # largest over smallest size of an activation
RUN = 500  # steps of the run whose first ones a coordinate check makes: 10 of warm-up
Lrs = Callable[[str, nn.Parameter], tuple[str, float]]
Rows = Callable[[int], Tensor]  # step -> token ids (rows, context + 1)


def ours(width: int, scale: float = 1.0) -> Lrs:
    return pretraining_lrs(width, scale)[0]


def mup(width: int, scale: float = 1.0) -> Lrs:
    by_width = {"embed_tokens": 1.0, "lm_head": TUNED_AT / width}
    at_tuned = pretraining_lrs(TUNED_AT, scale)[0]

    def lrs(name: str, parameter: nn.Parameter) -> tuple[str, float]:
        method, lr = at_tuned(name, parameter)
        return method, lr * next((factor for role, factor in by_width.items() if role in name), 1.0)

    return lrs


RULES: dict[str, Callable[..., Lrs]] = {"ours": ours, "mup": mup}


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
) -> dict[int, dict[str, Any]]:
    """For each width the loss at each `lr_scale` (mean of the last tenth of the steps), and the scale of the least."""
    found = {}
    for width in widths:
        losses = {}
        for scale in scales:
            run = trained(of_width(width, vocabulary, context, seed), RULES[rule](width, scale), rows, steps, steps, dtype)
            last = run[-max(1, steps // 10) :]
            loss = sum(last) / len(last)
            losses[scale] = loss if math.isfinite(loss) else math.inf
        found[width] = {"losses": losses, "best": min(losses, key=losses.__getitem__)}
    return found
