"""What a model's folder says beside its shape: number format, unused ids, ids of special tokens, sampling, card.

It is a part of the configuration. Every model that begins with this one's weights is built from that: a reward model, a policy
put together from the parts of many processes. So none of them can lose it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from groundup.model.generation import Generation

# Of config.json: what other tools train by, and we do not compute with. What changes a model's results is refused or computed,
# and what a folder says of its own files, as auto_map, would be wrong in another.
TRAINED_BY = (
    "initializer_range", "output_router_logits", "pretraining_tp", "router_aux_loss_coef", "router_jitter_noise",
)  # fmt: skip
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Origin:
    dtype: str = "float32"  # of the weights on disk; they are float32 in memory
    unused_ids: tuple[int, ...] = ()  # ids that no token of the tokenizer has: never sampled
    ids: Mapping[str, Any] | None = None  # those of `IDS` that config.json states; None: we made the model
    trained_by: Mapping[str, float] = field(default_factory=dict)  # those of `TRAINED_BY` that config.json states
    generation: Generation = field(default_factory=Generation)
    card: Mapping[str, str] = field(default_factory=dict)  # licence, language and name of somebody's model; see `card.head_of`


@dataclass(frozen=True, kw_only=True)
class WithOrigin:
    """A configuration: the sizes that a subclass adds, and the model's origin."""

    origin: Origin = field(default=Origin(), compare=False, repr=False)

    def sizes(self) -> dict[str, Any]:
        """All but the origin."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "origin"}
        return {name: value.sizes() if isinstance(value, WithOrigin) else value for name, value in values.items()}
