"""Pre-training: from nothing or from a published folder, and then, if the recipe asks for it, on to a longer context.

Continuing is the same training with other first weights: the rate warms up again and decays again (Ibrahim et al. 2024).
For a longer context the base of the rotary positions is raised, as in Code Llama (Rozière et al. 2023), by the amount
that stretches the slowest pair of channels exactly as far as the context and leaves the fastest alone ("NTK-aware",
Peng et al. 2023, section 3.1); then the model is trained on documents that are longer than what it could see before.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from groundup import kernels
from groundup.core.device import Device
from groundup.core.errors import UserError
from groundup.data.config import MixtureConfig
from groundup.data.token_files import TokenFile
from groundup.model import architectures, moe
from groundup.model import folder as model_folder
from groundup.model.base import LanguageModel, parameter_counts
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.tokenizer.load import of_model
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training import checkpoint
from groundup.training.budget import budget
from groundup.training.config import PretrainingConfig
from groundup.training.data import Shares, Stream, check_ids, document_order
from groundup.training.loop import mean_loss, train
from groundup.training.objectives import BalancedNextToken, Z, next_token
from groundup.training.optimizer import Optimizer, pretraining_lrs
from groundup.training.parallel import Objective, Processes
from groundup.training.schedule import warmup_stable_decay

PROBE_ROWS = 64  # of held-out text, for the loss curve
PEAK_SECONDS = 0.2
LAST_STEPS = 100  # at most, whose mean loss is told as the one at the end
LONG_CONTEXT_LR = 0.1  # of the peak rates: the model has been annealed already


@dataclass(frozen=True)
class Lengths:
    """How a number of tokens is cut up: `steps` of `rows` rows of `context` tokens, `micro_rows` at once."""

    context: int
    rows: int
    micro_rows: int
    steps: int

    @property
    def step_tokens(self) -> int:
        return self.rows * self.context

    @property
    def tokens(self) -> int:
        return self.steps * self.step_tokens


def pretrain(
    tokens: Path,
    tokenizer: Tokenizer,
    settings: PretrainingConfig,
    mixture: MixtureConfig,
    device: Device,
    processes: Processes,
    folder: Path,
    label: str,
    log: Callable[[str], None],
    seed: int,
) -> tuple[LanguageModel, dict[str, Any]]:
    """A model trained on the token files in `tokens`, whole in the first process's memory, and what is to be told of it.

    Raises UserError where the files, the tokenizer and the model do not belong together.
    """
    files = {split: TokenFile(tokens / split) for split in ("train", "held_out")}
    table = [row for row in pq.read_table(tokens / "documents.parquet").to_pylist() if row["split"] == "train"]
    model, reasons = starting_model(settings, tokenizer, seed)
    config = model.config
    for split, file in files.items():
        check_ids(file, config.vocab_size, str(tokens / f"{split}.bin"))
    counts = parameter_counts(model)
    sparse = getattr(config, "num_experts", 0) > 0
    if sparse:
        counts["active"] = moe.active_parameters(model)
    derived = budget(settings, architectures.multiplied(model), available_tokens(table, mixture))
    settings = settings.model_copy(update={"tokens": derived.tokens, "batch_tokens": derived.batch_tokens})
    tied = getattr(config, "tie_word_embeddings", False)
    lrs, lr_reasons = pretraining_lrs(config.hidden_size, settings.lr_scale, tied)
    for reason in (*device.reasons, *reasons, *derived.reasons, *lr_reasons):
        log(reason)
    if processes.world > 1:
        how = "FSDP2: each holds its rows of every parameter" if processes.shard else "DDP: each holds the whole model"
        log(f"{processes.world} processes; {how}")

    def planned(
        numbers: np.ndarray, shares: MixtureConfig, best_share: float, wanted: Lengths
    ) -> tuple[Stream, Lengths, dict[str, Shares]]:
        """Rows of the documents with these `numbers`, as many of the `wanted` steps as they reach for, and the mixture."""
        documents = [table[number] for number in numbers]
        phases, realised = document_order(documents, shares, best_share, wanted.tokens + 1, seed)
        order = [numbers[phase] for phase in phases]
        stream = Stream(files["train"], order, wanted.context, tokenizer.begin_of_text, seed)
        if not stream.rows:
            raise UserError(
                f"the training documents do not fill one row of {wanted.context} tokens; take more pages, a shorter "
                "context or a larger max_repeats"
            )
        for phase, parts in realised.items():
            told = (f"{name} {one['share']:.0%} ({one['repeats']:.2f} passes)" for name, one in parts.items())
            log(f"{phase}: {', '.join(told)}")
        steps = min(wanted.steps, -(-stream.rows // wanted.rows))
        if steps < wanted.steps:
            log(f"{steps} steps instead of {wanted.steps}: within max_repeats there is no more of this mixture")
        return stream, replace(wanted, steps=steps), realised

    stream, lengths, realised = planned(
        np.arange(len(table)), mixture, settings.anneal_data_fraction, cut(settings, settings.context_length, settings.tokens)
    )
    decay, warmup = round(settings.decay_fraction * lengths.steps), max(1, lengths.steps // 50)
    shape = f"{lengths.rows} x {lengths.context} tokens"
    log(f"{lengths.steps} steps of {shape}; warm-up {warmup}, decay over the last {decay}")
    longer = long_lengths = long_stream = None
    if settings.long_context:
        longer = lengthened(model, settings.long_context)
        wanted = cut(settings, settings.long_context, settings.long_tokens)
        numbers, long_mixture = long_documents(table, mixture, config.max_position_embeddings)
        long_stream, long_lengths, _ = planned(numbers, long_mixture, 0.0, wanted)

    dtype = device.training_dtype
    flops = [architectures.flops(model, some.context, some.tokens) for some in (lengths, long_lengths) if some]
    log(f"{counts['total']:,} parameters, {counts['without_embedding']:,} without the embedding; {sum(flops):.2g} FLOP")
    if sparse:
        log(f"a token meets {counts['active']:,} of them; balance loss {settings.balance:g}, z-loss {Z:g}")
    dense = isinstance(model, Decoder) and not sparse
    by_kernels = processes.world == 1 and device.torch_device.type == "cpu" and dtype == torch.bfloat16
    if by_kernels:
        try:
            for some in filter(None, (long_lengths, lengths)):  # what they cannot do is to be known before any training
                model.use_kernels(some.context)
            what = "trained" if dense else "loss and optimizer"
            log(f"{what} by kernels of our own: up to twice as fast as compiled by torch (groundup/kernels)")
        except kernels.Unavailable as error:
            log(f"not trained by kernels of our own: {error}")
            by_kernels = False
            model.drop_kernels()
    compiles, reason = False, ""
    if not (by_kernels and dense):
        compiles, reason = device.compiling_pays(sum(flops))
        if compiles and not dense:
            compiles, reason = False, "not compiled: only the dense decoder is"
        log(reason)
    if compiles:
        for module in [model.model] if processes.world == 1 else model.model.layers:
            module.compile()
    peak = measured_peak(device.torch_device, device.training_dtype)
    log(f"matrix products run at {peak / 1e9:,.0f} GFLOP/s here; progress shows what share of that training reaches")

    balanced = BalancedNextToken(dtype, settings.balance, processes.world)
    objective = processes.spread(model, balanced if sparse else partial(next_token, dtype=dtype), device.torch_device)

    def run(stream: Stream, some: Lengths, lr: Callable[[int], float], where: Path, flops: float) -> list:
        everything = [np.arange(len(files["held_out"]))]
        probe = Stream(files["held_out"], everything, some.context, tokenizer.begin_of_text, seed)
        return train(
            model,
            objective,
            lambda step: stream.batches(step, some.rows, some.micro_rows, device.torch_device, processes),
            Optimizer(
                model, lrs, muon_decay=derived.weight_decay, dtype=dtype, processes=processes, kernels=by_kernels
            ),
            lr,
            some.steps,
            where,
            label,
            tokens_per_step=some.step_tokens,
            seconds_at_peak=flops / some.steps / peak / processes.world,
            skip_spikes=True,
            observe=partial(_observe, model, objective, probe, some, device.torch_device, processes),
            observe_every=max(1, some.steps // 20),
            processes=processes,
            compiled=compiles,
        )

    history = run(
        stream, lengths, lambda step: warmup_stable_decay(step, lengths.steps, warmup, decay), folder, flops[0]
    )
    log(_ended(history))
    results = {
        "parameters": counts,
        "tokens": lengths.tokens,
        "flop": sum(flops),
        "steps": lengths.steps,
        "mixture": realised,
        "compiled": compiles,
        "kernels": by_kernels,
        **_summary(history),
    }
    if longer and long_lengths and long_stream:
        model.config = model.model.config = longer
        if by_kernels:
            model.use_kernels(longer.max_position_embeddings)  # they keep the angles of the positions
        steps = long_lengths.steps
        log(
            f"context {config.max_position_embeddings} -> {longer.max_position_embeddings}: {steps} steps of "
            f"{long_lengths.rows} rows at {LONG_CONTEXT_LR:g} of the rates; RoPE base {config.rope_theta:,.0f} -> "
            f"{longer.rope_theta:,.0f} (NTK-aware, Peng et al. 2023)"
        )
        history = run(
            long_stream,
            long_lengths,
            lambda step: LONG_CONTEXT_LR * warmup_stable_decay(step, steps, max(1, steps // 20), steps),
            folder / "long",
            flops[1],
        )
        log(_ended(history))
        results["long"] = {
            "context": longer.max_position_embeddings,
            "tokens": long_lengths.tokens,
            "steps": steps,
            **_summary(history),
        }
    model.drop_kernels()
    if processes.shard and processes.first:
        model = _whole_model(model, folder / "long" if longer else folder, results)
    return model, results


def starting_model(settings: PretrainingConfig, tokenizer: Tokenizer, seed: int) -> tuple[LanguageModel, list[str]]:
    """A new model of `settings.depth`, or the one in `settings.start_from`; and why it is as it is.

    Raises UserError when that one has another tokenizer or a shorter context, or patches are asked of what is no bytes.
    """
    if not settings.start_from:
        if settings.architecture == "patches" and tokenizer.bytes_per_token.max() > 1:
            raise UserError(
                f"architecture = 'patches' reads bytes, but the tokenizer has {tokenizer.size} tokens; train one of 260, "
                "which merges nothing"
            )
        return architectures.build(
            settings.architecture, settings.depth, tokenizer.size, settings.context_length, seed, settings.experts,
            settings.experts_per_token,
        )  # fmt: skip
    source = Path(settings.start_from)
    model = model_folder.load_decoder(source)
    own = of_model(source)
    if not own.is_that_of(tokenizer):
        raise UserError(
            f"{source}: its tokenizer ({own.size} tokens) is not the one of these token files ({tokenizer.size}); "
            "encode the texts with its own"
        )
    if tokenizer.size > model.config.vocab_size:
        raise UserError(
            f"{source}: {tokenizer.size} tokens, but the model has {model.config.vocab_size}: not of one folder"
        )
    if settings.context_length > model.config.max_position_embeddings:
        raise UserError(
            f"context_length = {settings.context_length}: the model in {source} was trained on "
            f"{model.config.max_position_embeddings}; train on that and set long_context for more"
        )
    return model, [
        f"continues {source}, step counts and rates from the beginning; architecture and depth do not matter"
    ]


def available_tokens(table: list[dict[str, Any]], mixture: MixtureConfig) -> float:
    """Training tokens that the mixture can give, read as often as it allows."""
    return mixture.max_repeats * sum(
        row["tokens"] for row in table if not mixture.weights or row["domain"] in mixture.weights
    )


def cut(settings: PretrainingConfig, context: int, tokens: int) -> Lengths:
    rows = max(1, settings.batch_tokens // context)
    micro_rows = max(1, min(rows, settings.micro_batch_tokens // context))
    return Lengths(context, rows, micro_rows, max(1, tokens // (rows * context)))


def lengthened(model: LanguageModel, context: int) -> DecoderConfig:
    """The same decoder with its slowest pair of channels stretched from the old context to the new `context`."""
    config = model.config
    if not isinstance(model, Decoder):
        raise UserError(f"long_context is for dense decoders and mixtures of experts, not for {config.model_type}")
    factor = context / config.max_position_embeddings
    if factor <= 1:
        raise UserError(f"long_context = {context}: the model already has {config.max_position_embeddings}")
    theta = config.rope_theta * factor ** (config.head_dim / (config.head_dim - 2))
    return replace(config, max_position_embeddings=context, rope_theta=theta)


def long_documents(table: list[dict[str, Any]], mixture: MixtureConfig, context: int) -> tuple[np.ndarray, MixtureConfig]:
    """Numbers of the documents longer than `context`, and the mixture without the domains that have no such."""
    numbers = np.array([number for number, row in enumerate(table) if row["tokens"] > context], dtype=np.int64)
    domains = {table[number]["domain"] for number in numbers}
    weights = {name: weight for name, weight in sorted(mixture.weights.items()) if name in domains}
    if not domains or (mixture.weights and not weights):
        raise UserError(f"long_context: no training document of the mixture is longer than {context} tokens")
    return numbers, mixture.model_copy(update={"weights": weights})


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of large square matrices, the best in a fifth of a second; nothing but what is shown depends on it.

    A busy host makes most of them two to three times slower for ten milliseconds and longer.
    """
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.linspace(-1, 1, size * size, device=device).view(size, size).to(dtype)
    product, fastest, begun = torch.empty_like(matrix), float("inf"), time.perf_counter()
    while fastest == float("inf") or time.perf_counter() - begun < PEAK_SECONDS:
        start = time.perf_counter()
        torch.mm(matrix, matrix, out=product)
        product[0, 0].item()  # waits for a GPU
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


def _observe(
    model: LanguageModel, objective: Objective, probe: Stream, some: Lengths, device: torch.device, processes: Processes
) -> dict[str, float]:
    if not probe.rows:  # a loss of nothing would be zero
        return {}
    batches = probe.batches(0, min(PROBE_ROWS, probe.rows), some.micro_rows, device, processes)
    return {"held_out": mean_loss(model, objective, batches, processes)}


def _summary(history: list[dict[str, float]]) -> dict[str, Any]:
    """The loss at the end is the mean over the last twentieth of the steps: that of one batch is chance."""
    used = [row["loss"] for row in history if "skipped" not in row] or [history[-1]["loss"]]
    last = used[-max(1, min(LAST_STEPS, len(history) // 20)) :]
    return {
        "train_loss": sum(last) / len(last),
        "train_loss_steps": len(last),
        "held_out_loss": next((row["held_out"] for row in reversed(history) if "held_out" in row), None),
        "skipped_steps": sum("skipped" in row for row in history),
    }


def _ended(history: list[dict[str, float]]) -> str:
    found = _summary(history)
    held_out = "" if found["held_out_loss"] is None else f"; on held-out text {found['held_out_loss']:.3f}"
    return f"loss {found['train_loss']:.3f}, mean of the last {found['train_loss_steps']} steps{held_out}"


def _whole_model(parts: LanguageModel, folder: Path, results: dict[str, Any]) -> LanguageModel:
    """What the processes hold in parts, read from the last state; the origin is in the configuration."""
    model = type(parts)(parts.config)
    steps = results["long"]["steps"] if "long" in results else results["steps"]
    checkpoint.load(folder, steps, {f"model.{name}": parameter for name, parameter in model.named_parameters()})
    return model
