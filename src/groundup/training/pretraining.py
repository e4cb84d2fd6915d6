"""Pre-training: from nothing or from a published folder.

Continuing is the same training with other first weights: the learning rate warms up and decays again (Ibrahim et al. 2024).
`long_context.py` trains the result on for a longer context.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from groundup import kernels
from groundup.core.errors import UserError
from groundup.data.config import MixtureConfig
from groundup.data.token_files import TokenFile
from groundup.model import architectures, moe
from groundup.model import model_folder as model_folder
from groundup.model.base import LanguageModel, parameter_counts
from groundup.model.decoder import Decoder
from groundup.tokenizer.load import of_model
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training import checkpoint
from groundup.training.budget import Budget, budget
from groundup.training.config import PretrainingConfig
from groundup.training.data_order import Shares, Stream, check_ids, document_order
from groundup.training.loop import mean_loss, train
from groundup.training.objectives import Z_LOSS, BalancedNextToken, next_token
from groundup.training.optimizer import Optimizer, pretraining_lrs
from groundup.training.parallel import Objective, Processes
from groundup.training.runtime import Runtime
from groundup.training.schedule import warmup_stable_decay

PROBE_ROWS = 64  # of held-out text, for the loss curve
OBSERVATIONS = 20  # of the loss curve
PEAK_SECONDS = 0.2
LAST_STEPS = 100  # at most, whose mean loss is reported as the final loss
Lrs = Callable[[str, nn.Parameter], tuple[str, float]]  # name and parameter -> optimizer and peak learning rate


@dataclass(frozen=True)
class Batching:
    """How a number of tokens is batched: `steps` steps of `rows` rows of `context_length` tokens, `micro_rows` at once."""

    context_length: int
    rows: int
    micro_rows: int
    steps: int

    @property
    def step_tokens(self) -> int:
        return self.rows * self.context_length

    @property
    def tokens(self) -> int:
        return self.steps * self.step_tokens


@dataclass(frozen=True)
class TrainingTokens:
    """A folder of token files, and the table of its training documents."""

    files: dict[str, TokenFile]
    table: list[dict[str, Any]]
    begin_of_text: int

    @classmethod
    def open(cls, folder: Path, begin_of_text: int, vocabulary: int) -> "TrainingTokens":
        """Raises UserError where the table is of other documents, or a file holds an id that the model's `vocabulary` has not."""
        if not (folder / "documents.parquet").is_file():  # as `tokenizer encode` leaves it, which writes one split
            raise UserError(f"{folder}: no documents.parquet there: give the folder tokens of a run")
        files = {split: TokenFile(folder / split) for split in ("train", "held_out")}
        table = [row for row in pq.read_table(folder / "documents.parquet").to_pylist() if row["split"] == "train"]
        if not np.array_equal([row["tokens"] for row in table], files["train"].lengths):  # domain and best would be others'
            raise UserError(f"{folder}: documents.parquet lists other documents than train.bin holds; encode the corpus again")
        for split, file in files.items():
            check_ids(file, vocabulary, str(folder / f"{split}.bin"))
        return cls(files, table, begin_of_text)

    def stream(
        self, indices: np.ndarray, mixture: MixtureConfig, anneal_data_fraction: float, planned: Batching, runtime: Runtime
    ) -> tuple[Stream, Batching, dict[str, Shares]]:
        """Rows of the documents at `indices` of the table, as many of the `planned` steps as they fill, and the mixture.

        Raises UserError where they do not fill one row.
        """
        documents = [self.table[index] for index in indices]
        phases, phase_shares = document_order(documents, mixture, anneal_data_fraction, planned.tokens + 1, runtime.seed)
        order = [indices[phase] for phase in phases]
        max_rows = [
            -(-sum(one["tokens"] for one in shares.values()) // planned.context_length) for shares in phase_shares.values()
        ]
        stream = Stream(self.files["train"], order, planned.context_length, self.begin_of_text, runtime.seed, max_rows)
        if not stream.rows:
            raise UserError(
                f"the training documents do not fill one row of {planned.context_length} tokens; take more pages, a shorter "
                "context or a larger max_repeats"
            )
        for phase, shares in phase_shares.items():
            domains = (f"{name} {one['share']:.0%} ({one['repeats']:.2f} passes)" for name, one in shares.items())
            runtime.log(f"{phase}: {', '.join(domains)}")
        steps = min(planned.steps, -(-stream.rows // planned.rows))
        if steps < planned.steps:
            runtime.log(f"{steps} steps instead of {planned.steps}: max_repeats allows no more of this mixture")
        return stream, replace(planned, steps=steps), phase_shares

    def probe(self, context_length: int, seed: int) -> Stream:
        """Rows of the held-out documents."""
        return Stream(self.files["held_out"], [np.arange(len(self.files["held_out"]))], context_length, self.begin_of_text, seed)


def pretrain(
    tokenizer: Tokenizer, tokens: Path, settings: PretrainingConfig, runtime: Runtime, mixture: MixtureConfig | None = None
) -> tuple[LanguageModel, dict[str, Any]]:
    """A model trained on the token files in `tokens`, gathered in the first process's memory, and its results.

    The model is made by `settings`. mixture: of the documents' domains; None: as they are.

    Raises UserError where the files, the tokenizer and the model do not belong together.
    """
    setup = prepare(tokenizer, tokens, settings, runtime, mixture or MixtureConfig())
    steps, decay, warmup = (
        setup.batching.steps, round(settings.decay_fraction * setup.batching.steps), warmup_steps(setup.batching.steps)
    )  # fmt: skip
    shape = f"{setup.batching.rows} x {setup.batching.context_length} tokens"
    runtime.log(f"{steps} steps of {shape}; warm-up {warmup}, decay over the last {decay}")
    return train_rows(
        setup.model, setup.data, setup.stream, setup.batching, lambda step: warmup_stable_decay(step, steps, warmup, decay),
        setup.lrs, setup.weight_decay, settings.balance, setup.phase_shares, runtime,
    )  # fmt: skip


@dataclass(frozen=True)
class TrainingSetup:
    """A model at the beginning of its training, the rows that it will read, their batching, learning rates and mixture."""

    model: LanguageModel
    data: TrainingTokens
    stream: Stream
    batching: Batching
    lrs: Lrs
    weight_decay: float
    phase_shares: dict[str, Shares]


def prepare(
    tokenizer: Tokenizer, tokens: Path, settings: PretrainingConfig, runtime: Runtime, mixture: MixtureConfig
) -> TrainingSetup:
    """Everything that follows from the settings and the data. Raises UserError as `pretrain` does."""
    model, reasons = starting_model(settings, tokenizer, runtime.seed)
    data = TrainingTokens.open(tokens, tokenizer.begin_of_text, model.config.vocab_size)
    derived = budget(settings, architectures.multiplied(model), available_tokens(data.table, mixture))
    settings = settings.model_copy(update={"tokens": derived.tokens, "batch_tokens": derived.batch_tokens})
    lrs = log_decisions(model, settings, derived, reasons, runtime)
    stream, batching, phase_shares = data.stream(
        np.arange(len(data.table)), mixture, settings.anneal_data_fraction,
        batching_of(settings, settings.context_length, settings.tokens), runtime,
    )  # fmt: skip
    return TrainingSetup(model, data, stream, batching, lrs, derived.weight_decay, phase_shares)


def warmup_steps(steps: int) -> int:
    """Steps over which the learning rate rises."""
    return max(1, steps // 50)


def log_decisions(
    model: LanguageModel, settings: PretrainingConfig, derived: Budget, reasons: Sequence[str], runtime: Runtime
) -> Lrs:
    """Log every decision with its reason; returns the learning rates."""
    config, processes = model.config, runtime.processes
    lrs, lr_reasons = pretraining_lrs(config.hidden_size, settings.lr_scale, getattr(config, "tie_word_embeddings", False))
    for reason in (*runtime.device.reasons, *reasons, *derived.reasons, *lr_reasons):
        runtime.log(reason)
    if processes.world > 1:
        how = "FSDP2: each holds its rows of every parameter" if processes.shard else "DDP: each holds the whole model"
        runtime.log(f"{processes.world} processes; {how}")
    return lrs


def train_rows(
    model: LanguageModel,
    data: TrainingTokens,
    stream: Stream,
    batching: Batching,
    lr_multiplier: Callable[[int], float],
    lrs: Lrs,
    weight_decay: float,
    balance: float,
    phase_shares: dict[str, Shares],
    runtime: Runtime,
    observations: int = OBSERVATIONS,
) -> tuple[LanguageModel, dict[str, Any]]:
    """The model trained on the rows of `stream`, gathered in the first process's memory, and its results.

    lr_multiplier(step): multiplier of the peak rates `lrs`; phase_shares: the mixture of the rows, for the results;
    observations: how often the loss on held-out rows is measured during training, 0 for never.
    """
    device, processes, log = runtime.device.torch_device, runtime.processes, runtime.log
    counts = parameter_counts(model)
    if sparse := getattr(model.config, "num_experts", 0) > 0:
        counts["active"] = moe.active_parameters(model)
    flops = architectures.flops(model, batching.context_length, batching.tokens)
    log(f"{counts['total']:,} parameters, {counts['without_embedding']:,} without the embedding; {flops:.2g} FLOP")
    if sparse:
        log(f"each token uses {counts['active']:,} of them; balance loss {balance:g}, z-loss {Z_LOSS:g}")
    by_kernels, compiles = _accelerate(model, batching.context_length, flops, runtime)
    dtype = runtime.device.training_dtype
    peak = measured_peak(device, dtype)
    log(f"matrix products run at {peak / 1e9:,.0f} GFLOP/s here; progress shows what share of that training reaches")
    balanced = BalancedNextToken(dtype, balance, processes.world)
    objective = processes.spread(model, balanced if sparse else partial(next_token, dtype=dtype), device)
    observe = partial(_observe, model, objective, data.probe(batching.context_length, runtime.seed), batching, device, processes)
    with kernels.only_in_kernels() if by_kernels and _is_dense(model) else nullcontext():
        history = train(
            model,
            objective,
            lambda step: stream.batches(step, batching.rows, batching.micro_rows, device, processes),
            Optimizer(model, lrs, muon_decay=weight_decay, dtype=dtype, processes=processes, kernels=by_kernels),
            lr_multiplier,
            batching.steps,
            runtime.training,
            runtime.label,
            tokens_per_step=batching.step_tokens,
            seconds_at_peak=flops / batching.steps / peak / processes.world,
            skip_spikes=True,
            observe=observe if observations else None,
            observe_every=max(1, batching.steps // max(1, observations)),
            processes=processes,
            compiled=compiles,
        )
    log(_final_losses(history))
    results = {
        "parameters": counts,
        "tokens": batching.tokens,
        "flop": flops,
        "steps": batching.steps,
        "mixture": phase_shares,
        "compiled": compiles,
        "kernels": by_kernels,
        **_summary(history),
    }
    model.drop_kernels()
    if processes.shard and processes.first:
        model = _whole_model(model, runtime.training, results)
    return model, results


def _is_dense(model: LanguageModel) -> bool:
    """Whether kernels compute all of it but the embedding."""
    return isinstance(model, Decoder) and not model.config.num_experts


def _accelerate(model: LanguageModel, context_length: int, flops: float, runtime: Runtime) -> tuple[bool, bool]:
    """(trained by native kernels, compiled), where kernels are available and compiling pays; either way it is logged."""
    device, processes, log = runtime.device, runtime.processes, runtime.log
    dense = _is_dense(model)
    by_kernels = (
        processes.world == 1
        and device.torch_device.type == "cpu"
        and device.training_dtype in (torch.bfloat16, torch.float32)
    )
    if by_kernels:
        try:
            model.use_kernels(context_length, device.training_dtype)
            what = "trained" if dense else "loss and optimizer"
            bfloat16 = device.training_dtype == torch.bfloat16
            number_format = "in bfloat16: up to twice as fast as compiled by torch" if bfloat16 else "in float32"
            log(f"{what} by native kernels {number_format} (groundup/kernels)")
        except kernels.Unavailable as error:
            log(f"native kernels disabled: {error}; using PyTorch")
            by_kernels = False
            model.drop_kernels()
    compiles, reason = False, ""
    if not (by_kernels and dense):
        compiles, reason = device.compiling_pays(flops)
        if compiles and not dense:
            compiles, reason = False, "not compiled: only the dense decoder is"
        log(reason)
    if compiles:
        for module in [model.model] if processes.world == 1 else model.model.layers:
            module.compile()
    return by_kernels, compiles


def starting_model(settings: PretrainingConfig, tokenizer: Tokenizer, seed: int) -> tuple[LanguageModel, list[str]]:
    """A new model of `settings.depth`, or the one in `settings.start_from`; and the reasons for its sizes.

    Raises UserError when that one has another tokenizer or a shorter context, or for patches of tokens that are not bytes.
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
    source_tokenizer = of_model(source)
    if not source_tokenizer.is_that_of(tokenizer):
        raise UserError(
            f"{source}: its tokenizer ({source_tokenizer.size} tokens) is not the one of these token files ({tokenizer.size}); "
            "encode the texts with its own"
        )
    if tokenizer.size > model.config.vocab_size:
        raise UserError(
            f"{source}: {tokenizer.size} tokens, but the model has {model.config.vocab_size}: not of one folder"
        )
    if settings.context_length > model.config.max_position_embeddings:
        raise UserError(
            f"context_length = {settings.context_length}: the model in {source} was trained on "
            f"{model.config.max_position_embeddings}; train on that, and then for a longer context"
        )
    return model, [
        f"continues {source}; steps and learning rates start again; architecture and depth come from there"
    ]


def available_tokens(table: list[dict[str, Any]], mixture: MixtureConfig) -> float:
    """Training tokens that the mixture can give, read as often as it allows."""
    return mixture.max_repeats * sum(
        row["tokens"] for row in table if not mixture.weights or row["domain"] in mixture.weights
    )


def batching_of(settings: PretrainingConfig, context_length: int, tokens: int) -> Batching:
    rows = max(1, settings.batch_tokens // context_length)
    micro_rows = max(1, min(rows, settings.micro_batch_tokens // context_length))
    return Batching(context_length, rows, micro_rows, max(1, tokens // (rows * context_length)))


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of large square matrices, the best in a fifth of a second; only what is displayed depends on it.

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
    model: LanguageModel, objective: Objective, probe: Stream, batching: Batching, device: torch.device, processes: Processes
) -> dict[str, float]:
    if not probe.rows:  # a loss of nothing would be zero
        return {}
    batches = probe.batches(0, min(PROBE_ROWS, probe.rows), batching.micro_rows, device, processes)
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


def _final_losses(history: list[dict[str, float]]) -> str:
    summary = _summary(history)
    held_out = "" if summary["held_out_loss"] is None else f"; on held-out text {summary['held_out_loss']:.3f}"
    return f"loss {summary['train_loss']:.3f}, mean of the last {summary['train_loss_steps']} steps{held_out}"


def _whole_model(parts: LanguageModel, folder: Path, results: dict[str, Any]) -> LanguageModel:
    """The model whose parts the processes hold, read from the last state; its origin is in the configuration."""
    model = type(parts)(parts.config)
    checkpoint.load(folder, results["steps"], {f"model.{name}": parameter for name, parameter in model.named_parameters()})
    return model
