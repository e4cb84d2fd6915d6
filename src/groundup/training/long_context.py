"""A longer context for a trained decoder: another base of its rotary positions, and training on documents to fill it.

The base is raised, as in Code Llama (Rozière et al. 2023), by the amount that stretches the slowest pair of channels
exactly as far as the context and leaves the fastest alone ("NTK-aware", Peng et al. 2023, section 3.1); then the model is
trained on documents that are longer than its old context.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.data.config import MixtureConfig
from groundup.model import architectures
from groundup.model.base import LanguageModel
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.budget import budget
from groundup.training.config import LongContextConfig, PretrainingConfig
from groundup.training.pretraining import TrainingTokens, available_tokens, batching_of, log_decisions, train_rows
from groundup.training.runtime import Runtime
from groundup.training.schedule import warmup_stable_decay

LONGER = 4  # times the context, where the settings do not say; Code Llama's 4,096 -> 16,384


def train_longer(
    model: LanguageModel, tokenizer: Tokenizer, tokens: Path, settings: LongContextConfig, runtime: Runtime,
    mixture: MixtureConfig | None = None,
) -> tuple[LanguageModel, dict[str, Any]]:
    """The model with a longer context, gathered in the first process's memory, and its results.

    `tokens`: the folder of the token files to train on. Raises UserError where the model is no decoder, has that context
    already, or no training document is longer than its context.
    """
    mixture = mixture or MixtureConfig()
    before = model.config
    longer = lengthened(model, settings.context_length or LONGER * before.max_position_embeddings)
    data = TrainingTokens.open(tokens, tokenizer.begin_of_text, before.vocab_size)
    indices, mixture = long_documents(data.table, mixture, before.max_position_embeddings)
    model.config = model.model.config = longer
    context_length = longer.max_position_embeddings
    as_pretraining = PretrainingConfig(
        context_length=context_length, tokens=settings.tokens, batch_tokens=settings.batch_tokens,
        micro_batch_tokens=settings.micro_batch_tokens, lr_scale=settings.lr_scale,
    )  # fmt: skip
    available = available_tokens([data.table[index] for index in indices], mixture)
    derived = budget(as_pretraining, architectures.multiplied(model), available)
    as_pretraining = as_pretraining.model_copy(update={"batch_tokens": derived.batch_tokens})
    lrs = log_decisions(model, as_pretraining, derived, (), runtime)
    stream, batching, phase_shares = data.stream(
        indices, mixture, 0.0, batching_of(as_pretraining, context_length, derived.tokens), runtime
    )
    runtime.log(
        f"context {before.max_position_embeddings} -> {context_length}: {batching.steps} steps of {batching.rows} rows at "
        f"{settings.lr_scale:g} of the learning rates; RoPE base {before.rope_theta:,.0f} -> {longer.rope_theta:,.0f} "
        "(NTK-aware, Peng et al. 2023)"
    )
    warmup = max(1, batching.steps // 20)
    trained, results = train_rows(
        model, data, stream, batching, lambda step: warmup_stable_decay(step, batching.steps, warmup, batching.steps), lrs,
        derived.weight_decay, settings.balance, phase_shares, runtime,
    )  # fmt: skip
    return trained, {
        **results,
        "context": {"before": before.max_position_embeddings, "after": context_length},
        "rope_base": {"before": before.rope_theta, "after": longer.rope_theta},
        "documents": len(indices),
    }


def lengthened(model: LanguageModel, context_length: int) -> DecoderConfig:
    """The same decoder with its slowest pair of channels stretched from the old context to `context_length`.

    Raises UserError where it is no decoder, or has that context already.
    """
    config = model.config
    if not isinstance(model, Decoder):
        raise UserError(f"a longer context is for dense decoders and mixtures of experts, not for {config.model_type}")
    factor = context_length / config.max_position_embeddings
    if factor <= 1:
        raise UserError(f"context_length = {context_length}: the model already has {config.max_position_embeddings}")
    theta = config.rope_theta * factor ** (config.head_dim / (config.head_dim - 2))
    return replace(config, max_position_embeddings=context_length, rope_theta=theta)


def long_documents(
    table: list[dict[str, Any]], mixture: MixtureConfig, context_length: int
) -> tuple[np.ndarray, MixtureConfig]:
    """Indices of the documents longer than `context_length`, and the mixture without the domains that have none.

    Raises UserError where there is none.
    """
    indices = np.array([index for index, row in enumerate(table) if row["tokens"] > context_length], dtype=np.int64)
    domains = {table[index]["domain"] for index in indices}
    weights = {name: weight for name, weight in sorted(mixture.weights.items()) if name in domains}
    if not domains or (mixture.weights and not weights):
        raise UserError(f"no training document of the mixture is longer than {context_length} tokens")
    return indices, mixture.model_copy(update={"weights": weights})
