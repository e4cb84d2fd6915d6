"""A ladder: runs of several sizes and lengths for a budget of time, through the ordinary training loop.

The plan is a file that is written once and may be edited. Each run that is done is a line of `ledger.jsonl`, so that a killed
ladder resumes: done runs are kept, and an interrupted one resumes from its last checkpoint. `runs.csv` is the
table that the laws are fitted to.

The lengths of one size are branches of one run at a constant learning rate (`training/branches.py`), which saves much work.

Sizes are values of the one dial, depth. Lengths double from one that all sizes have, and each size's longest run takes about the
same operations. So the runs of one length differ in size alone, those of one size in tokens alone, and the law can tell its two
exponents apart. The smallest size, which costs least, is repeated with other seeds, which show the noise. All have one batch.
"""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from groundup import kernels
from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.core.files import digest, read_object, write_json, write_jsonl
from groundup.core.locks import alone
from groundup.core.outputs import require_made_with
from groundup.core.text import shown
from groundup.data.config import MixtureConfig
from groundup.data.token_files import TokenFile
from groundup.model import architectures
from groundup.model.base import LanguageModel, parameter_counts
from groundup.model.likelihood import score
from groundup.scaling import training_cost
from groundup.scaling.architecture_comparison import loss_by_position
from groundup.scaling.ledger import read_ledger, write_table
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training import checkpoint
from groundup.training.branches import branch, share_of_work
from groundup.training.budget import budget
from groundup.training.config import PretrainingConfig
from groundup.training.loop import Diverged
from groundup.training.pretraining import measured_peak, pretrain, warmup_steps
from groundup.training.runtime import Runtime

logger = logging.getLogger(__name__)

DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
FEWEST_DEPTHS = 3
LENGTHS_OF_LARGEST, MOST_LENGTHS = 2, 6  # lengths of the largest size; of any
# Of the shortest run: below, size says nothing. On textbooks depths 1, 2 and 3 have 5.05, 5.00 and 5.04 nats at 264,192 tokens.
MIN_TOKENS, MIN_TOKENS_PER_PARAMETER = 1_000_000, 1 / 4
MAX_TOKENS_PER_PARAMETER = 20  # of the largest size's longest run: a budget for more than all sizes is not filled
REPEATED = 2  # further seeds of the smallest
UTILISATION = 0.25  # of the peak of matrix products; what small models reach by PyTorch
UTILISATION_BY_KERNELS = 0.6  # dense ones by our kernels: 0.65 to 0.81 at depths 1 to 5 on an AMD EPYC with AVX-512 for bfloat16
HELD_OUT_TOKENS = 100_000  # at most, that each run is scored on
MIN_DOCUMENT_TOKENS = 256  # tokens of each held-out document that is scored
BEGINNINGS = 200  # of held-out documents, for the loss by position in the context


@dataclass(frozen=True)
class Throughput:
    """FLOP/s that training gets, and the source of that figure."""

    flop_per_second: float
    source: str


def measured_throughput(architecture: str) -> Throughput:
    device = choose()
    peak = measured_peak(device.torch_device, device.training_dtype)
    by_kernels = architecture == "dense" and kernels.are_there(device.torch_device, device.training_dtype)
    share = UTILISATION_BY_KERNELS if by_kernels else UTILISATION
    return Throughput(share * peak, f"{share:.0%} of {peak / 1e9:,.0f} GFLOP/s, the best of matrix products, measured")


def rented_throughput(gpu: str) -> tuple[Throughput, float]:
    """The throughput of a GPU, and its dollars an hour. Raises UserError for unknown hardware."""
    kind = training_cost.hardware(gpu)
    source = f"{UTILISATION:.0%} of {kind.flop_per_second / 1e12:g} TFLOP/s ({kind.source}), ${kind.price:g} an hour"
    return Throughput(UTILISATION * kind.flop_per_second, source), kind.price


def plan(
    minutes: float | None, flop: float | None, vocabulary: int, context: int, architecture: str = "dense", seed: int = 0,
    throughput: Throughput | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The runs of a ladder, smallest first, that together take `minutes` at `throughput`, or `flop`.

    `throughput` is this machine's if not given.

    Raises UserError for neither or both, under a minute, or a budget too small for three sizes.
    """
    if (minutes is None) == (flop is None):
        raise UserError("give minutes or FLOP, one of them")
    if minutes is not None and minutes < 1:
        raise UserError(f"{minutes:g} minutes are too few for a ladder: give 1 or more")
    throughput = throughput or measured_throughput(architecture)
    affordable = flop if flop is not None else 60 * (minutes or 0) * throughput.flop_per_second
    runs: list[dict[str, Any]] = []
    for count in range(FEWEST_DEPTHS, len(DEPTHS) + 1):
        sizes = _sizes(DEPTHS[:count], vocabulary, context, architecture)
        largest = sizes[-1].parameters
        min_tokens = max(MIN_TOKENS, MIN_TOKENS_PER_PARAMETER * largest)
        max_tokens = MAX_TOKENS_PER_PARAMETER * largest / 2 ** (LENGTHS_OF_LARGEST - 1)
        shortest = affordable / _work(_grid(sizes, 1.0, seed))
        if shortest < min_tokens:
            break
        runs = _grid(sizes, min(shortest, max(max_tokens, min_tokens)), seed)
    if not runs:
        needed = min_tokens * _work(_grid(sizes, 1.0, seed))
        raise UserError(
            f"{affordable:.2g} FLOP are too few for {FEWEST_DEPTHS} sizes with a vocabulary of {vocabulary:,}: they take "
            f"{needed:.2g}, {needed / throughput.flop_per_second / 60:.1f} minutes here; give that, or a smaller vocabulary"
        )
    batch, warmup = _batch_and_warmup(runs, context)
    for run in runs:
        run["tokens"], run["batch_tokens"], run["warmup_steps"] = round(run["tokens"]), batch, warmup
        run["seconds"] = run["flop"] * run.pop("share") / throughput.flop_per_second
    seconds = sum(run["seconds"] for run in runs)
    return {
        "architecture": architecture, "context_length": context, "vocabulary": vocabulary, "minutes": minutes,
        "flop": seconds * throughput.flop_per_second, "seconds": seconds,
        "flop_per_second": throughput.flop_per_second, "rate": throughput.source,
        "runs": sorted(runs, key=lambda run: run["flop"]),
    }  # fmt: skip


def _batch_and_warmup(runs: list[dict[str, Any]], context: int) -> tuple[int, int]:
    """Batch and warm-up of the whole ladder: those of a run as long as the geometric mean of the lengths.

    All runs share them, so that the law is of size and tokens alone. The warm-up of the longest of six lengths would last until
    the decay of the shortest.
    """
    middle = max(1, round(math.exp(sum(math.log(run["tokens"]) for run in runs) / len(runs))))
    settings = PretrainingConfig(context_length=context, tokens=middle)
    batch = budget(settings, runs[0]["parameters"], math.inf).batch_tokens
    return batch, warmup_steps(middle // batch)


def _work(runs: list[dict[str, Any]]) -> float:
    """FLOP of runs that share trunks."""
    return sum(run["flop"] * run["share"] for run in runs)


class Size(NamedTuple):
    depth: int
    parameters: int  # that a token is multiplied with
    flop: float  # a token


def _sizes(depths: tuple[int, ...], vocabulary: int, context: int, architecture: str) -> list[Size]:
    sizes = []
    for depth in depths:
        model, _ = architectures.outline(architecture, depth, vocabulary, context)  # type: ignore[arg-type]
        sizes.append(Size(depth, architectures.multiplied(model), architectures.flops(model, context, 1_000_000) / 1e6))
    return sizes


def _grid(sizes: list[Size], shortest: float, seed: int) -> list[dict[str, Any]]:
    """Runs of lengths that double from `shortest`: each size has as many as the FLOP of the largest size's longest run allow."""
    runs: list[dict[str, Any]] = []
    max_flop = shortest * 2 ** (LENGTHS_OF_LARGEST - 1) * sizes[-1].flop
    for size in sizes:
        count = min(MOST_LENGTHS, 1 + int(math.log2(max_flop / size.flop / shortest) + 1e-9))
        lengths = [shortest * 2**number for number in range(count)]
        shares = share_of_work(lengths, PretrainingConfig().decay_fraction)
        wanted = [(number, seed, share) for number, share in enumerate(shares)]
        if size is sizes[0]:
            wanted += [(1, seed + 1 + further, 1.0) for further in range(REPEATED)]
        runs += [
            {
                "name": f"depth{size.depth}-{2**number}x-seed{run_seed}", "trunk": f"depth{size.depth}-seed{run_seed}",
                "depth": size.depth, "tokens": lengths[number], "seed": run_seed, "parameters": size.parameters,
                "flop": size.flop * lengths[number], "share": share,
            } for number, run_seed, share in wanted
        ]  # fmt: skip
    return runs


def run(path: Path, tokens: Path, tokenizer: Tokenizer, out: Path, threads: int = 0) -> dict[str, Any]:
    """Do the runs of a plan that are not done, and write `out`/runs.csv.

    Raises UserError for a file that is no plan, for an `out` that holds the ladder of another plan or of other tokens, and where
    another process works.
    """
    planned = read_plan(path)
    _check_tokens(tokens, max(settings.tokens for _, settings in planned))
    if (size := read_object(path).get("vocabulary", tokenizer.size)) != tokenizer.size:
        message = "%s: planned for a vocabulary of %s, this tokenizer has %s: the runs take other times than planned"
        logger.warning(message, path, size, tokenizer.size)
    with alone(out):
        _claim(out, {"plan": digest(path), "tokens": digest(tokens / "train.idx"), "held_out": digest(tokens / "held_out.idx")})
        return _run(planned, tokens, tokenizer, out, threads)


def _run(
    planned: list[tuple[dict[str, Any], PretrainingConfig]], tokens: Path, tokenizer: Tokenizer, out: Path, threads: int
) -> dict[str, Any]:
    device, ledger = choose(threads), out / "ledger.jsonl"
    done = read_ledger(ledger)
    names, held_out = {row["name"] for row in done}, held_out_documents(tokens)
    held_out_file = TokenFile(tokens / "held_out")
    longest: dict[str, int] = {}
    for entry, settings in planned:
        if trunk := entry.get("trunk"):
            longest[trunk] = max(settings.tokens, longest.get(trunk, 0))
    for number, (entry, settings) in enumerate(planned, 1):
        if entry["name"] in names:
            continue
        started = time.monotonic()
        label = f"ladder {number}/{len(planned)} {entry['name']}"
        runtime = Runtime(device, out / "runs" / entry["name"], label, entry["seed"], lambda text: None)
        try:
            if trunk := entry.get("trunk"):
                warmup = entry.get("warmup_steps", 0)
                model, results = branch(tokenizer, tokens, settings, runtime, longest[trunk], out / "trunks" / trunk, warmup)
            else:
                model, results = pretrain(tokenizer, tokens, settings, runtime)
            row = _row(entry, model, results, held_out)
            beginnings = [np.array(held_out_file[number]) for number in range(min(len(held_out_file), BEGINNINGS))]
            row["by_place"] = loss_by_position(model, beginnings, settings.context_length)
        except Diverged as error:
            logger.warning("%s; it diverged, and the law is fitted without it", error)
            row = _diverged(entry, settings, tokenizer.size)
        row |= {"seconds": time.monotonic() - started, "predicted_seconds": entry.get("seconds")}
        done.append(row)
        write_jsonl(ledger, done)
        write_table(out / "runs.csv", done)  # so that a law can be fitted before the last
        checkpoint.clear(runtime.training)
        logger.info("  %s: loss %s after %s tokens, %.0f s", entry["name"], row["loss"], f"{row['tokens']:,}", row["seconds"])
    write_table(out / "runs.csv", done)
    return {
        "runs": len(done), "diverged": sum(not math.isfinite(float(row["loss"])) for row in done),
        "seconds": sum(row["seconds"] for row in done), "table": str(out / "runs.csv"),
    }  # fmt: skip


def read_plan(path: Path) -> list[tuple[dict[str, Any], PretrainingConfig]]:
    """The runs of a plan and the settings of each. Raises UserError, naming the run, where one cannot be."""
    content = read_object(path)
    runs = content.get("runs")
    if not isinstance(runs, list) or not runs:
        raise UserError(f"{path}: no runs; `groundup scale plan` writes such a file")
    planned, names = [], set()
    trunks: dict[str, tuple[int, int, int, int]] = {}
    for number, entry in enumerate(runs, 1):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: run {number} cannot be: no object with name, depth, tokens and seed")
        try:
            name, seed, warmup = entry["name"], entry["seed"], entry.get("warmup_steps", 0)
            settings = PretrainingConfig(
                architecture=content.get("architecture", "dense"), depth=entry["depth"], tokens=entry["tokens"],
                context_length=content["context_length"], anneal_data_fraction=0.0,
                batch_tokens=entry.get("batch_tokens", 0),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error}"
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                what = f"{first['loc'][0]} = {shown(first['input'])}: {first['msg']}"
            raise UserError(f"{path}: run {number} cannot be: {what[:200]}") from None
        if type(seed) is not int or not isinstance(name, str) or name in names or not _is_name(name) or not 0 <= seed < 2**32:
            raise UserError(f"{path}: run {number} needs a name of its own, of letters, digits and -, and a seed from 0 on")
        if not isinstance(warmup, int) or not 0 <= warmup <= 10**9:
            raise UserError(f"{path}: run {number}: warmup_steps must be a whole number of steps, 0 or more")
        shared = (settings.depth, seed, settings.batch_tokens, warmup)
        if "trunk" in entry and not (
            _is_name(str(entry["trunk"])) and settings.batch_tokens and trunks.setdefault(str(entry["trunk"]), shared) == shared
        ):
            raise UserError(f"{path}: run {number}: the runs of a trunk have a name for it, one depth, seed, batch and warm-up")
        names.add(name)
        planned.append((entry, settings))
    return planned


def _check_tokens(tokens: Path, longest: int) -> None:
    """Raises UserError where the longest run asks for more than the files give, repeats and all; repeats are logged."""
    available, repeats = int(TokenFile(tokens / "train").lengths.sum()), MixtureConfig().max_repeats
    if longest > repeats * available:
        raise UserError(
            f"{tokens}: the longest run has {longest:,} tokens, and {repeats:g} passes over these give "
            f"{repeats * available:,.0f}; plan a smaller ladder, or take more text"
        )
    if longest > available:
        times = longest / available
        logger.warning("%s: the longest run reads its %s tokens %.1f times: repeats teach less", tokens, f"{available:,}", times)


def _is_name(text: str) -> bool:
    return text.replace("-", "").isalnum() and len(text) <= 100


def _claim(out: Path, key: dict[str, str]) -> None:
    path = out / "ladder.json"
    require_made_with(path, out / "ledger.jsonl", out / "runs.csv")
    started = any((out / name).exists() for name in ("ledger.jsonl", "runs", "trunks"))  # else a refused plan was mended
    if started and path.exists() and read_object(path) != key:
        raise UserError(f"{out}: holds the ladder of another plan or of other tokens; choose another folder")
    write_json(path, key)


def held_out_documents(tokens: Path) -> list[np.ndarray]:
    """Beginnings of documents from all over the held-out text, HELD_OUT_TOKENS at most, of equal length where they can be.

    Whole documents would be few: the losses of two seeds of depth 1 on textbooks are 0.021 nats apart on the first 17 of them,
    and 0.002 on the beginnings of all 163. Raises UserError where nothing is held out.
    """
    file = TokenFile(tokens / "held_out")
    chosen = np.linspace(0, len(file) - 1, min(len(file), HELD_OUT_TOKENS // MIN_DOCUMENT_TOKENS), dtype=np.int64)
    lengths = np.sort(file.lengths[chosen])
    # With the n shortest whole, the others share the remaining tokens.
    shares = (HELD_OUT_TOKENS - np.cumsum(lengths) + lengths) // np.arange(len(lengths), 0, -1)
    cut = next((int(share) for share, length in zip(shares, lengths, strict=True) if length > share), HELD_OUT_TOKENS)
    beginnings = [np.array(file[number])[:cut] for number in chosen]
    if sum(map(len, beginnings)) <= len(beginnings):
        raise UserError(f"{tokens}: no held-out text to judge the runs by")
    return beginnings


def held_out_loss(model: LanguageModel, held_out: list[np.ndarray]) -> float:
    """Nats a token, over whole documents."""
    nats = -sum(float(log_probabilities.sum()) for log_probabilities in score(model, held_out))
    return nats / sum(max(0, len(sequence) - 1) for sequence in held_out)


def _row(entry: dict[str, Any], model: LanguageModel, results: dict[str, Any], held_out: list[np.ndarray]) -> dict[str, Any]:
    loss = held_out_loss(model, held_out)
    return {
        "name": entry["name"], "depth": entry["depth"], "seed": entry["seed"],
        "parameters": architectures.multiplied(model), "parameters_total": results["parameters"]["total"],
        "parameters_without_embedding": results["parameters"]["without_embedding"], "tokens": results["tokens"],
        "flop": results["flop"], "batch": results["tokens"] // results["steps"],
        "loss": loss if math.isfinite(loss) else "nan",
    }  # fmt: skip


def _diverged(entry: dict[str, Any], settings: PretrainingConfig, vocabulary: int) -> dict[str, Any]:
    """The row of a run that has no loss."""
    model, _ = architectures.outline(settings.architecture, settings.depth, vocabulary, settings.context_length)
    counts, parameters = parameter_counts(model), architectures.multiplied(model)
    derived = budget(settings, parameters, math.inf)
    return {
        "name": entry["name"], "depth": entry["depth"], "seed": entry["seed"], "parameters": parameters,
        "parameters_total": counts["total"], "parameters_without_embedding": counts["without_embedding"],
        "tokens": derived.tokens, "flop": architectures.flops(model, settings.context_length, derived.tokens),
        "batch": derived.batch_tokens, "loss": "nan",
    }  # fmt: skip
