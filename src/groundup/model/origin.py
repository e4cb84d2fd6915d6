"""What a model's folder says beside its shape: number format, rows without a token, ids of special tokens, sampling, card.

It is a part of the configuration, from which every other model is built that begins with this one's weights: a reward model,
a policy put together from the parts of many processes. So none of them can lose it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from groundup.model.generation import Generation

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Origin:
    dtype: str = "float32"  # of the weights on disk; they are float32 in memory
    without_token: tuple[int, ...] = ()  # rows of the vocabulary that no token has: never picked
    ids: Mapping[str, Any] | None = None  # of `IDS` what config.json states; None: it is a model of our own making
    generation: Generation = field(default_factory=Generation)
    card: Mapping[str, str] = field(default_factory=dict)  # licence, language and name of somebody's model; see `card.head_of`


@dataclass(frozen=True, kw_only=True)
class WithOrigin:
    """A configuration: the sizes that a subclass adds, and where the model began."""

    origin: Origin = field(default=Origin(), compare=False, repr=False)

    def sizes(self) -> dict[str, Any]:
        """All but the origin."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "origin"}
        return {name: value.sizes() if isinstance(value, WithOrigin) else value for name, value in found.items()}
