"""A ladder: runs of several sizes and lengths for a budget of time, through the ordinary training loop.

The plan is a file that is written once and may be edited. Each run that is done is a line of `ledger.jsonl`, so that a killed
ladder resumes: done runs are kept, and an interrupted one resumes from its last checkpoint. `runs.csv` is the
table that the laws are fitted to.

The lengths of one size are branches of one run at a constant rate (`training/branches.py`), which saves a good part of it.

Sizes are depths of the one dial, lengths double from one that all sizes have, and every size goes as far as about the same
operations: so the runs of one length differ in size alone, those of one size in tokens alone, and the law can tell its two
exponents apart. The smallest, which costs least, is repeated with other seeds, which show the noise. All have one batch.
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
from groundup.scaling.architecture_comparison import loss_by_place
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
OF_LARGEST, MOST_LENGTHS = 2, 6  # lengths of the largest size; of any
# Of the shortest run: before, size says nothing. Of textbooks depths 1, 2 and 3 have 5.05, 5.00 and 5.04 nats at 264,192 tokens.
LEAST_TOKENS, LEAST_PER_PARAMETER = 1_000_000, 1 / 4
MOST_PER_PARAMETER = 20  # of the largest size's longest run: a budget for more than all sizes is not filled
REPEATED = 2  # further seeds of the smallest
UTILISATION = 0.25  # of the peak of matrix products; what small models reach by PyTorch
UTILISATION_BY_KERNELS = 0.6  # dense ones by our kernels: 0.65 to 0.81 at depths 1 to 5 on an AMD EPYC with AVX-512 for bfloat16
HELD_OUT_TOKENS = 100_000  # at most, that each run is scored on
LEAST_OF_A_DOCUMENT = 256  # tokens of each held-out document that is scored
BEGINNINGS = 200  # of held-out documents, for the loss by place in the context


@dataclass(frozen=True)
class Rate:
    """FLOP/s that training gets, and where that is from."""

    flop_per_second: float
    source: str


def measured_rate(architecture: str) -> Rate:
    device = choose()
    peak = measured_peak(device.torch_device, device.training_dtype)
    by_kernels = architecture == "dense" and kernels.are_there(device.torch_device, device.training_dtype)
    share = UTILISATION_BY_KERNELS if by_kernels else UTILISATION
    return Rate(share * peak, f"{share:.0%} of {peak / 1e9:,.0f} GFLOP/s, the best of matrix products, measured")


def rented_rate(gpu: str) -> tuple[Rate, float]:
    """That of a GPU, and its dollars an hour. Raises UserError for unknown hardware."""
    kind = training_cost.hardware(gpu)
    source = f"{UTILISATION:.0%} of {kind.flop_per_second / 1e12:g} TFLOP/s ({kind.source}), ${kind.price:g} an hour"
    return Rate(UTILISATION * kind.flop_per_second, source), kind.price


def plan(
    minutes: float | None, flop: float | None, vocabulary: int, context: int, architecture: str = "dense", seed: int = 0,
    rate: Rate | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The runs of a ladder that together take `minutes` at `rate`, this machine's if not given, or `flop`, smallest first.

    Raises UserError for neither or both, under a minute, or a budget too small for three sizes.
    """
    if (minutes is None) == (flop is None):
        raise UserError("give minutes or FLOP, one of them")
    if minutes is not None and minutes < 1:
        raise UserError(f"{minutes:g} minutes are too few for a ladder: give 1 or more")
    rate = rate or measured_rate(architecture)
    affordable = flop if flop is not None else 60 * (minutes or 0) * rate.flop_per_second
    chosen: list[dict[str, Any]] = []
    for count in range(FEWEST_DEPTHS, len(DEPTHS) + 1):
        sizes = _sizes(DEPTHS[:count], vocabulary, context, architecture)
        largest = sizes[-1].parameters
        least = max(LEAST_TOKENS, LEAST_PER_PARAMETER * largest)
        most = MOST_PER_PARAMETER * largest / 2 ** (OF_LARGEST - 1)
        shortest = affordable / _work(_grid(sizes, 1.0, seed))
        if shortest < least:
            break
        chosen = _grid(sizes, min(shortest, max(most, least)), seed)
    if not chosen:
        needed = least * _work(_grid(sizes, 1.0, seed))
        raise UserError(
            f"{affordable:.2g} FLOP are too few for {FEWEST_DEPTHS} sizes with a vocabulary of {vocabulary:,}: they take "
            f"{needed:.2g}, {needed / rate.flop_per_second / 60:.1f} minutes here; give that, or a smaller vocabulary"
        )
    batch, warmup = _batch_and_warmup(chosen, context)
    for run in chosen:
        run["tokens"], run["batch_tokens"], run["warmup_steps"] = round(run["tokens"]), batch, warmup
        run["seconds"] = run["flop"] * run.pop("share") / rate.flop_per_second
    seconds = sum(run["seconds"] for run in chosen)
    return {
        "architecture": architecture, "context_length": context, "vocabulary": vocabulary, "minutes": minutes,
        "flop": seconds * rate.flop_per_second, "seconds": seconds,
        "flop_per_second": rate.flop_per_second, "rate": rate.source, "runs": sorted(chosen, key=lambda run: run["flop"]),
    }  # fmt: skip


def _batch_and_warmup(runs: list[dict[str, Any]], context: int) -> tuple[int, int]:
    """One for the whole ladder, so that its law is of size and tokens alone: those of the geometric mean of the lengths.

    A warm-up of the longest of six lengths would last until the shortest one's decay.
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
    found = []
    for depth in depths:
        model, _ = architectures.outline(architecture, depth, vocabulary, context)  # type: ignore[arg-type]
        found.append(Size(depth, architectures.multiplied(model), architectures.flops(model, context, 1_000_000) / 1e6))
    return found


def _grid(sizes: list[Size], shortest: float, seed: int) -> list[dict[str, Any]]:
    """Lengths that double from `shortest`, of each size as many as the largest size's longest run has FLOP for."""
    runs: list[dict[str, Any]] = []
    most = shortest * 2 ** (OF_LARGEST - 1) * sizes[-1].flop
    for size in sizes:
        count = min(MOST_LENGTHS, 1 + int(math.log2(most / size.flop / shortest) + 1e-9))
        lengths = [shortest * 2**number for number in range(count)]
        shares = share_of_work(lengths, PretrainingConfig().decay_fraction)
        wanted = [(number, seed, share) for number, share in enumerate(shares)]
        if size is sizes[0]:
            wanted += [(1, seed + 1 + further, 1.0) for further in range(REPEATED)]
        runs += [
            {
                "name": f"depth{size.depth}-{2**number}x-seed{of_run}", "trunk": f"depth{size.depth}-seed{of_run}",
                "depth": size.depth, "tokens": lengths[number], "seed": of_run, "parameters": size.parameters,
                "flop": size.flop * lengths[number], "share": share,
            } for number, of_run, share in wanted
        ]  # fmt: skip
    return runs


def run(path: Path, tokens: Path, tokenizer: Tokenizer, out: Path, threads: int = 0) -> dict[str, Any]:
    """Do the runs of a plan that are not done, and write `out`/runs.csv.

    Raises UserError for a plan that is none, or an `out` that holds the ladder of another plan or other tokens, or where another
    process works.
    """
    planned = read_plan(path)
    _check_tokens(tokens, max(settings.tokens for _, settings in planned))
    if (size := read_object(path).get("vocabulary", tokenizer.size)) != tokenizer.size:
        told = "%s: planned for a vocabulary of %s, this tokenizer has %s: the runs take other times than planned"
        logger.warning(told, path, size, tokenizer.size)
    with alone(out):
        _claim(out, {"plan": digest(path), "tokens": digest(tokens / "train.idx"), "held_out": digest(tokens / "held_out.idx")})
        return _run(planned, tokens, tokenizer, out, threads)


def _run(
    planned: list[tuple[dict[str, Any], PretrainingConfig]], tokens: Path, tokenizer: Tokenizer, out: Path, threads: int
) -> dict[str, Any]:
    device, ledger = choose(threads), out / "ledger.jsonl"
    done = read_ledger(ledger)
    names, held_out = {row["name"] for row in done}, held_out_documents(tokens)
    beginnings = TokenFile(tokens / "held_out")
    longest: dict[str, int] = {}
    for one, settings in planned:
        if trunk := one.get("trunk"):
            longest[trunk] = max(settings.tokens, longest.get(trunk, 0))
    for number, (one, settings) in enumerate(planned, 1):
        if one["name"] in names:
            continue
        begun = time.monotonic()
        label = f"ladder {number}/{len(planned)} {one['name']}"
        runtime = Runtime(device, out / "runs" / one["name"], label, one["seed"], lambda text: None)
        try:
            if trunk := one.get("trunk"):
                warmup = one.get("warmup_steps", 0)
                model, results = branch(tokenizer, tokens, settings, runtime, longest[trunk], out / "trunks" / trunk, warmup)
            else:
                model, results = pretrain(tokenizer, tokens, settings, runtime)
            row = _row(one, model, results, held_out)
            places = [np.array(beginnings[number]) for number in range(min(len(beginnings), BEGINNINGS))]
            row["by_place"] = loss_by_place(model, places, settings.context_length)
        except Diverged as error:
            logger.warning("%s; it diverged, and the law is fitted without it", error)
            row = _diverged(one, settings, tokenizer.size)
        row |= {"seconds": time.monotonic() - begun, "predicted_seconds": one.get("seconds")}
        done.append(row)
        write_jsonl(ledger, done)
        write_table(out / "runs.csv", done)  # so that a law can be fitted before the last
        checkpoint.clear(runtime.training)
        logger.info("  %s: loss %s after %s tokens, %.0f s", one["name"], row["loss"], f"{row['tokens']:,}", row["seconds"])
    write_table(out / "runs.csv", done)
    return {
        "runs": len(done), "diverged": sum(not math.isfinite(float(row["loss"])) for row in done),
        "seconds": sum(row["seconds"] for row in done), "table": str(out / "runs.csv"),
    }  # fmt: skip


def read_plan(path: Path) -> list[tuple[dict[str, Any], PretrainingConfig]]:
    """The runs of a plan and the settings of each. Raises UserError, naming the run, where one cannot be."""
    found = read_object(path)
    runs = found.get("runs")
    if not isinstance(runs, list) or not runs:
        raise UserError(f"{path}: no runs; `groundup scale plan` writes such a file")
    planned, names = [], set()
    trunks: dict[str, tuple[int, int, int, int]] = {}
    for number, one in enumerate(runs, 1):
        if not isinstance(one, dict):
            raise UserError(f"{path}: run {number} cannot be: no object with name, depth, tokens and seed")
        try:
            name, seed, warmup = one["name"], one["seed"], one.get("warmup_steps", 0)
            settings = PretrainingConfig(
                architecture=found.get("architecture", "dense"), depth=one["depth"], tokens=one["tokens"],
                context_length=found["context_length"], anneal_data_fraction=0.0,
                batch_tokens=one.get("batch_tokens", 0),
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
        alike = (settings.depth, seed, settings.batch_tokens, warmup)
        if "trunk" in one and not (
            _is_name(str(one["trunk"])) and settings.batch_tokens and trunks.setdefault(str(one["trunk"]), alike) == alike
        ):
            raise UserError(f"{path}: run {number}: the runs of a trunk have a name for it, one depth, seed, batch and warm-up")
        names.add(name)
        planned.append((one, settings))
    return planned


def _check_tokens(tokens: Path, longest: int) -> None:
    """Raises UserError where the longest run asks for more than the files give, repeats and all; repeats are logged."""
    there, repeats = int(TokenFile(tokens / "train").lengths.sum()), MixtureConfig().max_repeats
    if longest > repeats * there:
        raise UserError(
            f"{tokens}: the longest run has {longest:,} tokens, and {repeats:g} passes over these give {repeats * there:,.0f}; "
            "plan a smaller ladder, or take more text"
        )
    if longest > there:
        times = longest / there
        logger.warning("%s: the longest run reads its %s tokens %.1f times: repeats teach less", tokens, f"{there:,}", times)


def _is_name(text: str) -> bool:
    return text.replace("-", "").isalnum() and len(text) <= 100


def _claim(out: Path, key: dict[str, str]) -> None:
    path = out / "ladder.json"
    require_made_with(path, out / "ledger.jsonl", out / "runs.csv")
    begun = any((out / name).exists() for name in ("ledger.jsonl", "runs", "trunks"))  # else the plan was refused, and is mended
    if begun and path.exists() and read_object(path) != key:
        raise UserError(f"{out}: holds the ladder of another plan or of other tokens; choose another folder")
    write_json(path, key)


def held_out_documents(tokens: Path) -> list[np.ndarray]:
    """Beginnings of documents from all over the held-out text, HELD_OUT_TOKENS at most, alike long where they can be.

    Raises UserError where nothing is held out. Whole documents would be few: the losses of two seeds of depth 1 on textbooks are
    0.021 nats apart on the first 17 of them, and 0.002 on the beginnings of all 163.
    """
    file = TokenFile(tokens / "held_out")
    chosen = np.linspace(0, len(file) - 1, min(len(file), HELD_OUT_TOKENS // LEAST_OF_A_DOCUMENT), dtype=np.int64)
    lengths = np.sort(file.lengths[chosen])
    # With the n shortest whole, what is left over is shared by the others.
    shares = (HELD_OUT_TOKENS - np.cumsum(lengths) + lengths) // np.arange(len(lengths), 0, -1)
    cut = next((int(share) for share, length in zip(shares, lengths, strict=True) if length > share), HELD_OUT_TOKENS)
    some = [np.array(file[number])[:cut] for number in chosen]
    if sum(map(len, some)) <= len(some):
        raise UserError(f"{tokens}: no held-out text to judge the runs by")
    return some


def held_out_loss(model: LanguageModel, held_out: list[np.ndarray]) -> float:
    """Nats a token, over whole documents."""
    nats = -sum(float(found.sum()) for found in score(model, held_out))
    return nats / sum(max(0, len(sequence) - 1) for sequence in held_out)


def _row(one: dict[str, Any], model: LanguageModel, results: dict[str, Any], held_out: list[np.ndarray]) -> dict[str, Any]:
    loss = held_out_loss(model, held_out)
    return {
        "name": one["name"], "depth": one["depth"], "seed": one["seed"],
        "parameters": architectures.multiplied(model), "parameters_total": results["parameters"]["total"],
        "parameters_without_embedding": results["parameters"]["without_embedding"], "tokens": results["tokens"],
        "flop": results["flop"], "batch": results["tokens"] // results["steps"],
        "loss": loss if math.isfinite(loss) else "nan",
    }  # fmt: skip


def _diverged(one: dict[str, Any], settings: PretrainingConfig, vocabulary: int) -> dict[str, Any]:
    """The row of a run that has no loss."""
    model, _ = architectures.outline(settings.architecture, settings.depth, vocabulary, settings.context_length)
    counts, parameters = parameter_counts(model), architectures.multiplied(model)
    derived = budget(settings, parameters, math.inf)
    return {
        "name": one["name"], "depth": one["depth"], "seed": one["seed"], "parameters": parameters,
        "parameters_total": counts["total"], "parameters_without_embedding": counts["without_embedding"],
        "tokens": derived.tokens, "flop": architectures.flops(model, settings.context_length, derived.tokens),
        "batch": derived.batch_tokens, "loss": "nan",
    }  # fmt: skip
