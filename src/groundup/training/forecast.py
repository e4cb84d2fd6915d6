"""A training before it begins: its sizes, steps, learning rates and FLOP, by the rules of the training itself.

Models are outlined on torch's `meta` device, where the largest costs no memory.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from groundup.model import architectures, moe
from groundup.model import model_folder as model_folder
from groundup.model.base import LanguageModel, parameter_counts
from groundup.training.budget import budget
from groundup.training.config import LongContextConfig, PretrainingConfig
from groundup.training.epoch_order import steps_for
from groundup.training.long_context import LONGER, lengthened
from groundup.training.optimizer import pretraining_lrs
from groundup.training.pretraining import batching_of

SIZES = {
    "num_hidden_layers": "layers", "hidden_size": "width", "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads", "num_experts": "experts", "num_experts_per_tok": "experts_per_token",
}  # fmt: skip
BACKWARD = 3  # a training step costs as much as three forward passes: 6 FLOP a parameter, not 2


@dataclass(frozen=True)
class Outline:
    """A model without weights, and its context length in tokens."""

    model: LanguageModel
    context_length: int

    def flops(self, tokens: float, passes: float = BACKWARD) -> float:
        """Of `passes` forward passes over `tokens` in full rows."""
        return architectures.flops(self.model, self.context_length, int(tokens)) * passes / BACKWARD


def of_folder(folder: Path) -> Outline:
    """Raises UserError where config.json is not that of a model that we compute."""
    model = model_folder.outline(folder)
    return Outline(model, model.config.max_position_embeddings)


def pretraining(settings: PretrainingConfig, vocabulary: int, available: float) -> tuple[dict[str, Any], list[str], Outline]:
    """Sizes and FLOP as numbers, the decisions in words, and the model.

    available: tokens that the mixture can give, infinite where there is no corpus yet.
    Raises UserError for sizes that cannot be, as the training does.
    """
    if settings.start_from:
        model, reasons = model_folder.outline(Path(settings.start_from)), [f"continues {settings.start_from}"]
    else:
        model, reasons = architectures.outline(
            settings.architecture, settings.depth, vocabulary, settings.context_length, settings.experts,
            settings.experts_per_token,
        )  # fmt: skip
    counts, config = parameter_counts(model), model.config
    derived = budget(settings, architectures.multiplied(model), available)
    settings = settings.model_copy(update={"tokens": derived.tokens, "batch_tokens": derived.batch_tokens})
    batching = batching_of(settings, settings.context_length, settings.tokens)
    lrs, lr_reasons = pretraining_lrs(config.hidden_size, settings.lr_scale, getattr(config, "tie_word_embeddings", False))
    outline = Outline(model, settings.context_length)
    figures: dict[str, Any] = {
        "parameters": counts["total"],
        "parameters_without_embedding": counts["without_embedding"],
        **{shown: getattr(config, name) for name, shown in SIZES.items() if getattr(config, name, None)},
        "vocabulary": config.vocab_size,
        "context": settings.context_length,
        "tokens": batching.tokens,
        "batch_tokens": batching.step_tokens,
        "steps": batching.steps,
        "weight_decay": derived.weight_decay,
        "learning_rates": _lrs_by_role(lrs),
    }
    if getattr(config, "num_experts", 0):
        figures["active_parameters"] = moe.active_parameters(model)
    figures["flop"] = outline.flops(batching.tokens)
    return figures, [*reasons, *derived.reasons, *lr_reasons], outline


def longer(outline: Outline, settings: LongContextConfig) -> tuple[dict[str, Any], Outline]:
    """Of training a decoder on, on longer rows, at most: how many documents fill them is not known before.

    Raises UserError where it is no decoder, or has that context already.
    """
    config = lengthened(outline.model, settings.context_length or LONGER * outline.context_length)
    as_pretraining = PretrainingConfig(
        context_length=config.max_position_embeddings, tokens=settings.tokens, batch_tokens=settings.batch_tokens,
        micro_batch_tokens=settings.micro_batch_tokens,
    )  # fmt: skip
    derived = budget(as_pretraining, architectures.multiplied(outline.model), math.inf)
    as_pretraining = as_pretraining.model_copy(update={"batch_tokens": derived.batch_tokens})
    batching = batching_of(as_pretraining, config.max_position_embeddings, derived.tokens)
    longer_outline = Outline(outline.model, config.max_position_embeddings)
    figures = {
        "context": longer_outline.context_length, "tokens": batching.tokens, "steps": batching.steps,
        "flop": longer_outline.flops(batching.tokens),
    }  # fmt: skip
    return figures, longer_outline


def _lrs_by_role(lrs: Any) -> dict[str, float]:
    matrix, vector = (torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in ((1, 1), (1,)))
    roles = {"matrices": ("q_proj.weight", matrix), "embedding": ("embed_tokens.weight", matrix),
             "head": ("lm_head.weight", matrix), "norm_weights": ("norm.weight", vector)}  # fmt: skip
    return {role: lrs(*example)[1] for role, example in roles.items()}


def tuning(outline: Outline, rows: int, batch: int, epochs: int, sides: int = 1, passes: float = BACKWARD) -> dict[str, Any]:
    """At most, for `rows` examples of `sides` texts each, all as long as the context."""
    steps = steps_for(epochs, batch, rows)
    return {"steps": steps, "flop": outline.flops(steps * min(batch, rows) * sides * outline.context_length, passes)}
