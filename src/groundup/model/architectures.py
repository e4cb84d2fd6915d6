"""An architecture by its name: fresh weights, the reason of every size, and the work of training it.

A new one is a `LanguageModel` (`base.py`) in a file of its own, with a function from depth, vocabulary and context to its
config and the reasons; an entry in WITHOUT_DECODER and in `Name` here; a branch in `flops` where it has attention, or parts
that run once for several tokens; and its model type in `model_folder.OURS`, by which its folder is opened again.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from groundup.core.errors import UserError
from groundup.model import base, convolution, decoder, lstm, moe, patches, weights
from groundup.model.base import LanguageModel, parameter_counts
from groundup.model.convolution import Convolution
from groundup.model.decoder import Decoder
from groundup.model.flops import training_flops
from groundup.model.lstm import LSTM
from groundup.model.patches import PatchedBytes

Name = Literal["dense", "experts", "lstm", "convolution", "patches"]
WITHOUT_DECODER: dict[str, tuple[Callable[..., Any], type[LanguageModel], Callable[..., None]]] = {
    "lstm": (lstm.shape_for, LSTM, lstm.initialise),
    "convolution": (convolution.shape_for, Convolution, base.initialise),
    "patches": (patches.shape_for, PatchedBytes, base.initialise),
}


def build(
    name: Name, depth: int, vocabulary: int, context: int, seed: int, experts: int = 8, per_token: int = 2
) -> tuple[LanguageModel, list[str]]:
    """An untrained model, and the reasons of its sizes. `experts` and `per_token` are for the mixture alone.

    Raises UserError when the experts of a token cannot share the dense model's width.
    """
    model_class, config, initialise, reasons = _shape(name, depth, vocabulary, context, experts, per_token)
    model = model_class(config)
    initialise(model, seed)
    return model, reasons


def outline(
    name: Name, depth: int, vocabulary: int, context: int, experts: int = 8, per_token: int = 2
) -> tuple[LanguageModel, list[str]]:
    """As `build`, without memory for weights."""
    model_class, config, _, reasons = _shape(name, depth, vocabulary, context, experts, per_token)
    return weights.outline(model_class, config, f"depth = {depth}"), reasons


def _shape(
    name: Name, depth: int, vocabulary: int, context: int, experts: int, per_token: int
) -> tuple[type[LanguageModel], Any, Callable[..., None], list[str]]:
    if name in WITHOUT_DECODER:
        shape_for, model_class, initialise = WITHOUT_DECODER[name]
        config, reasons = shape_for(depth, vocabulary, context)
        return model_class, config, initialise, reasons
    config, reasons = decoder.shape_for(depth, vocabulary, context)
    if name == "experts":
        try:
            config, expert_reasons = decoder.with_experts(config, experts, per_token)
        except ValueError as error:
            raise UserError(f"experts_per_token: {error}; let it divide that and be no more than them") from None
        reasons = [*reasons, *expert_reasons]
    return Decoder, config, base.initialise, reasons


def flops(model: LanguageModel, context: int, tokens: int) -> float:
    """Floating-point operations of training on `tokens` in rows of `context`; of the experts only the active ones count."""
    if isinstance(model, Decoder):
        config = model.config
        width = config.num_attention_heads * config.head_dim
        return training_flops(multiplied(model), config.num_hidden_layers, width, context, tokens)
    if isinstance(model, PatchedBytes):
        config, backbone = model.config, model.model
        across, within, patch = config.across, config.within, config.patch_size
        across_parameters = sum(map(multiplied, (backbone.across, backbone.join, backbone.spread)))
        within_parameters = sum(map(multiplied, (backbone.within, model.lm_head)))
        return training_flops(
            across_parameters, across.num_hidden_layers, across.hidden_size, context // patch, tokens / patch
        ) + training_flops(within_parameters, within.num_hidden_layers, within.hidden_size, patch, tokens)
    return training_flops(multiplied(model), 0, 0, 0, tokens)


def multiplied(module: nn.Module) -> int:
    """Parameters that a token is multiplied with: no embedding, unless it is the head too; of the experts the active ones."""
    count = parameter_counts(module)["without_embedding"]
    if isinstance(module, Decoder):
        count -= parameter_counts(module)["total"] - moe.active_parameters(module)
        if module.config.tie_word_embeddings:
            count += module.lm_head.weight.numel()
    return count
