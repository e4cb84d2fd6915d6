"""Pre-training: from nothing or from a published folder.

Continuing is the same training with other first weights: the rate warms up again and decays again (Ibrahim et al. 2024).
`long_context.py` trains the result on for a longer context.
"""

import time
from collections.abc import Callable, Sequence
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
from groundup.training.objectives import BalancedNextToken, Z, next_token
from groundup.training.optimizer import Optimizer, pretraining_lrs
from groundup.training.parallel import Objective, Processes
from groundup.training.runtime import Runtime
from groundup.training.schedule import warmup_stable_decay

PROBE_ROWS = 64  # of held-out text, for the loss curve
OBSERVATIONS = 20  # of the loss curve
PEAK_SECONDS = 0.2
LAST_STEPS = 100  # at most, whose mean loss is told as the one at the end
Lrs = Callable[[str, nn.Parameter], tuple[str, float]]  # name and parameter -> optimizer and peak rate


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


@dataclass(frozen=True)
class TrainingTokens:
    """A folder of token files, and the table of its training documents."""

    files: dict[str, TokenFile]
    table: list[dict[str, Any]]
    begin_of_text: int

    @classmethod
    def open(cls, folder: Path, begin_of_text: int, vocabulary: int) -> "TrainingTokens":
        """Raises UserError where a file holds an id that the model's `vocabulary` has not."""
        if not (folder / "documents.parquet").is_file():  # as `tokenizer encode` leaves it, which writes one split
            raise UserError(f"{folder}: no documents.parquet there: give the folder tokens of a run")
        files = {split: TokenFile(folder / split) for split in ("train", "held_out")}
        table = [row for row in pq.read_table(folder / "documents.parquet").to_pylist() if row["split"] == "train"]
        for split, file in files.items():
            check_ids(file, vocabulary, str(folder / f"{split}.bin"))
        return cls(files, table, begin_of_text)

    def stream(
        self, numbers: np.ndarray, mixture: MixtureConfig, best_share: float, wanted: Lengths, runtime: Runtime
    ) -> tuple[Stream, Lengths, dict[str, Shares]]:
        """Rows of the documents with these `numbers`, as many of the `wanted` steps as they reach for, and the mixture.

        Raises UserError where they do not fill one row.
        """
        documents = [self.table[number] for number in numbers]
        phases, realised = document_order(documents, mixture, best_share, wanted.tokens + 1, runtime.seed)
        order = [numbers[phase] for phase in phases]
        most = [-(-sum(one["tokens"] for one in parts.values()) // wanted.context) for parts in realised.values()]
        stream = Stream(self.files["train"], order, wanted.context, self.begin_of_text, runtime.seed, most)
        if not stream.rows:
            raise UserError(
                f"the training documents do not fill one row of {wanted.context} tokens; take more pages, a shorter "
                "context or a larger max_repeats"
            )
        for phase, parts in realised.items():
            told = (f"{name} {one['share']:.0%} ({one['repeats']:.2f} passes)" for name, one in parts.items())
            runtime.log(f"{phase}: {', '.join(told)}")
        steps = min(wanted.steps, -(-stream.rows // wanted.rows))
        if steps < wanted.steps:
            runtime.log(f"{steps} steps instead of {wanted.steps}: within max_repeats there is no more of this mixture")
        return stream, replace(wanted, steps=steps), realised

    def probe(self, context: int, seed: int) -> Stream:
        """Rows of the held-out documents."""
        return Stream(self.files["held_out"], [np.arange(len(self.files["held_out"]))], context, self.begin_of_text, seed)


def pretrain(
    tokenizer: Tokenizer, tokens: Path, settings: PretrainingConfig, runtime: Runtime, mixture: MixtureConfig | None = None
) -> tuple[LanguageModel, dict[str, Any]]:
    """A model trained on the token files in `tokens`, whole in the first process's memory, and what is to be told of it.

    The model is made by `settings`. mixture: of the documents' domains; None: as they are.

    Raises UserError where the files, the tokenizer and the model do not belong together.
    """
    one = prepared(tokenizer, tokens, settings, runtime, mixture or MixtureConfig())
    steps, decay, warmup = one.lengths.steps, round(settings.decay_fraction * one.lengths.steps), warm_up(one.lengths.steps)
    shape = f"{one.lengths.rows} x {one.lengths.context} tokens"
    runtime.log(f"{steps} steps of {shape}; warm-up {warmup}, decay over the last {decay}")
    return train_rows(
        one.model, one.data, one.stream, one.lengths, lambda step: warmup_stable_decay(step, steps, warmup, decay), one.lrs,
        one.weight_decay, settings.balance, one.realised, runtime,
    )  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A model at the beginning of its training, the rows that it will read, and how."""

    model: LanguageModel
    data: TrainingTokens
    stream: Stream
    lengths: Lengths
    lrs: Lrs
    weight_decay: float
    realised: dict[str, Shares]


def prepared(
    tokenizer: Tokenizer, tokens: Path, settings: PretrainingConfig, runtime: Runtime, mixture: MixtureConfig
) -> Prepared:
    """Everything that follows from the settings and the data. Raises UserError as `pretrain` does."""
    model, reasons = starting_model(settings, tokenizer, runtime.seed)
    data = TrainingTokens.open(tokens, tokenizer.begin_of_text, model.config.vocab_size)
    derived = budget(settings, architectures.multiplied(model), available_tokens(data.table, mixture))
    settings = settings.model_copy(update={"tokens": derived.tokens, "batch_tokens": derived.batch_tokens})
    lrs = log_decisions(model, settings, derived, reasons, runtime)
    stream, lengths, realised = data.stream(
        np.arange(len(data.table)), mixture, settings.anneal_data_fraction,
        cut(settings, settings.context_length, settings.tokens), runtime,
    )  # fmt: skip
    return Prepared(model, data, stream, lengths, lrs, derived.weight_decay, realised)


def warm_up(steps: int) -> int:
    """Steps over which the rate rises."""
    return max(1, steps // 50)


def log_decisions(
    model: LanguageModel, settings: PretrainingConfig, derived: Budget, reasons: Sequence[str], runtime: Runtime
) -> Lrs:
    """Say why everything is as it is; the learning rates."""
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
    lengths: Lengths,
    lr: Callable[[int], float],
    lrs: Lrs,
    weight_decay: float,
    balance: float,
    realised: dict[str, Shares],
    runtime: Runtime,
    observations: int = OBSERVATIONS,
) -> tuple[LanguageModel, dict[str, Any]]:
    """The model trained on the rows of `stream`, whole in the first process's memory, and what is to be told of it.

    lr: of a step, as a share of `lrs`; realised: the mixture of the rows, to be told too; observations: how often the loss
    on held-out rows is measured on the way, 0 for never.
    """
    device, processes, log = runtime.device.torch_device, runtime.processes, runtime.log
    counts = parameter_counts(model)
    if sparse := getattr(model.config, "num_experts", 0) > 0:
        counts["active"] = moe.active_parameters(model)
    flops = architectures.flops(model, lengths.context, lengths.tokens)
    log(f"{counts['total']:,} parameters, {counts['without_embedding']:,} without the embedding; {flops:.2g} FLOP")
    if sparse:
        log(f"a token meets {counts['active']:,} of them; balance loss {balance:g}, z-loss {Z:g}")
    by_kernels, compiles = _made_fast(model, lengths.context, flops, runtime)
    dtype = runtime.device.training_dtype
    peak = measured_peak(device, dtype)
    log(f"matrix products run at {peak / 1e9:,.0f} GFLOP/s here; progress shows what share of that training reaches")
    balanced = BalancedNextToken(dtype, balance, processes.world)
    objective = processes.spread(model, balanced if sparse else partial(next_token, dtype=dtype), device)
    observe = partial(_observe, model, objective, data.probe(lengths.context, runtime.seed), lengths, device, processes)
    history = train(
        model,
        objective,
        lambda step: stream.batches(step, lengths.rows, lengths.micro_rows, device, processes),
        Optimizer(model, lrs, muon_decay=weight_decay, dtype=dtype, processes=processes, kernels=by_kernels),
        lr,
        lengths.steps,
        runtime.training,
        runtime.label,
        tokens_per_step=lengths.step_tokens,
        seconds_at_peak=flops / lengths.steps / peak / processes.world,
        skip_spikes=True,
        observe=observe if observations else None,
        observe_every=max(1, lengths.steps // max(1, observations)),
        processes=processes,
        compiled=compiles,
    )
    log(_ended(history))
    results = {
        "parameters": counts,
        "tokens": lengths.tokens,
        "flop": flops,
        "steps": lengths.steps,
        "mixture": realised,
        "compiled": compiles,
        "kernels": by_kernels,
        **_summary(history),
    }
    model.drop_kernels()
    if processes.shard and processes.first:
        model = _whole_model(model, runtime.training, results)
    return model, results


def _made_fast(model: LanguageModel, context: int, flops: float, runtime: Runtime) -> tuple[bool, bool]:
    """(trained by native kernels, compiled), where they are there and it pays; said either way."""
    device, processes, log = runtime.device, runtime.processes, runtime.log
    dense = isinstance(model, Decoder) and not getattr(model.config, "num_experts", 0)
    by_kernels = (
        processes.world == 1
        and device.torch_device.type == "cpu"
        and device.training_dtype in (torch.bfloat16, torch.float32)
    )
    if by_kernels:
        try:
            model.use_kernels(context, device.training_dtype)
            what = "trained" if dense else "loss and optimizer"
            bfloat16 = device.training_dtype == torch.bfloat16
            gain = "in bfloat16: up to twice as fast as compiled by torch" if bfloat16 else "in float32"
            log(f"{what} by native kernels {gain} (groundup/kernels)")
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
            f"{model.config.max_position_embeddings}; train on that, and then for a longer context"
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
    checkpoint.load(folder, results["steps"], {f"model.{name}": parameter for name, parameter in model.named_parameters()})
    return model
