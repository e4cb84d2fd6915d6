"""Rotary positions (Su et al. 2021): how fast each pair of channels rotates, and how that is scaled for long contexts.

A pair of channels i of C rotates by theta^(-2i/C) radians per token, so one rotation takes 2 pi theta^(2i/C) tokens. A
context longer than the one trained on has angles that were never seen. The remedies, by their names in config.json:

- `linear` (Chen et al. 2023): every pair `factor` times slower, so all angles fall back into the trained range;
- `llama3` (Dubey et al. 2024): only pairs too slow for one rotation in the old context; those in between, in part;
- `yarn` (Peng et al. 2023): likewise, along a ramp between two numbers of rotations; and attention is sharpened a little.
"""

import math
from typing import Any

import torch
from torch import Tensor

# By `rope_type` the settings that it needs, and those that it may have.
KINDS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, set()),
    "yarn": (
        {"factor", "original_max_position_embeddings"},
        {"attention_factor", "beta_fast", "beta_slow", "truncate"},
    ),
}


def rope_frequencies(channels: int, theta: float, scaling: dict[str, Any] | None, device: torch.device) -> Tensor:
    """Radians per token (channels / 2,), float32. `scaling`: `rope_type` and its settings; None is the default."""
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=device) / half
    plain = theta**-exponents
    if scaling is None:
        return plain
    kind, factor = scaling["rope_type"], scaling.get("factor")
    if kind == "linear":
        return plain / factor
    if kind == "llama3":
        rotations = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
        slow, fast = scaling["low_freq_factor"], scaling["high_freq_factor"]
        ramp = ((rotations - slow) / (fast - slow)).clamp(0, 1)
        return ramp * plain + (1 - ramp) * plain / factor
    if kind == "yarn":
        first, last = (
            half * math.log(scaling["original_max_position_embeddings"] / (2 * math.pi * rotations)) / math.log(theta)
            for rotations in (scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1)
        )
        if scaling.get("truncate", True):
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, channels - 1)
        pairs = torch.arange(half, dtype=torch.float32, device=device)
        ramp = 1 - ((pairs - first) / ((last - first) or 0.001)).clamp(0, 1)
        return ramp * plain + (1 - ramp) * plain / factor
    raise ValueError(f"unknown rope_type {kind!r}")


def attention_scale(scaling: dict[str, Any] | None) -> float:
    """The factor of queries and keys: YaRN's 0.1 ln(factor) + 1, 1 for every other kind."""
    if scaling is None or scaling["rope_type"] != "yarn":
        return 1.0
    factor = scaling.get("attention_factor")
    return factor if factor is not None else 0.1 * math.log(max(scaling["factor"], 1.0)) + 1.0
