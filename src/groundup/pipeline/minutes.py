"""A run for a number of minutes: what its base model may be, measured and decided once, and written down as the step `plan`.

What the steps before took is known, this machine's rate is measured on real steps of training, and what comes after is counted
in tokens' worth of training. From what is left of the minutes the ladder's law chooses (`scaling/time_budget.py`). The step is
done when its file is written, so a run that is resumed or repeated goes by the file and by no second measurement.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from groundup.core.errors import UserError
from groundup.core.files import read_object, write_json
from groundup.core.machine import machine
from groundup.core.progress import duration
from groundup.core.seals import MANIFEST, read_manifest
from groundup.data.config import MixtureConfig
from groundup.pipeline.artifacts import Results, device_of, documents_of, tokenizer_of
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.run import StepContext
from groundup.pipeline.step_times import TRAINING_PASSES, LaterStep, Questions, Work, guessed, measured, taken, work_of
from groundup.training.config import PretrainingConfig

if TYPE_CHECKING:
    import numpy as np

    from groundup.core.device import Device
    from groundup.model.base import LanguageModel
    from groundup.scaling.time_budget import CandidateResult
    from groundup.tokenizer.tokenizer import Tokenizer

PLAN = "plan.json"
SIZES = ("depth", "tokens", "batch_tokens")
BEFORE = ("pages", "annotations", "corpus", "tokenizer", "tokens")
DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
SAMPLED_ROWS = 200  # of conversations, for their mean length
PILOT_SHARE = 0.05  # of the minutes, at most, for the pilot
ROWS_AN_OBJECT, ROW_TOKENS, ANSWER_TOKENS = 2, 80, 22  # of SFT's questions that are not there yet: laptop recipe
DRY_SHARE = 0.2  # of the minutes, taken for steps before that are not done yet


def applied(recipe: Recipe, folder: Path | None) -> Recipe:
    """The recipe with the sizes of the plan in `folder`, where there is one. Raises UserError for a file that is none."""
    if folder is None:
        return recipe
    try:
        sizes = _read(folder)["chosen"]
        base = PretrainingConfig(**{**recipe.base.model_dump(), **{name: sizes[name] for name in SIZES}, "minutes": 0.0})
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / PLAN}: not the plan of a run; delete its folder, and it is made again") from None
    return recipe.model_copy(update={"base": base})


def chosen(path: Path) -> str | None:
    """The digest of what a plan decides: the time and the rates that it was decided by are nobody's input."""
    if path.name != PLAN:
        return None
    return hashlib.blake2b(json.dumps(_read(path.parent)["chosen"]).encode(), digest_size=16).hexdigest()


def _read(folder: Path) -> Results:
    return read_object(folder / PLAN)


def outcome(folder: Path, model: "LanguageModel", tokens: Path, log: Callable[[str], None]) -> Results:
    """What the plan expected of the base model, and what it is: {"expected", "loss"}, None where nothing is held out."""
    from groundup.scaling.ladder import held_out_documents, held_out_loss

    expected = _read(folder)["expected"]["loss"]
    try:
        loss = held_out_loss(model, held_out_documents(tokens))
    except UserError:
        return {"expected": expected, "loss": None}
    if expected:
        inside = "inside" if expected["low"] <= loss <= expected["high"] else "outside"
        log(f"held-out loss {loss:.3f}; planned {_interval(expected)}: {inside}")
    return {"expected": expected, "loss": loss}


def plan(context: StepContext, later: Sequence[LaterStep] = ()) -> Results:
    """Minutes -> depth, tokens and batch of the base model, with the reasons and the loss to expect."""
    begun, run = time.monotonic(), context.work.parent
    spent = {name: read_manifest(run / name)["seconds"] for name in BEFORE if (run / name / MANIFEST).is_file()}
    tokens, tokenizer = context.inputs["tokens"], tokenizer_of(context)
    trained = read_manifest(tokens)["results"]["train"] if (tokens / MANIFEST).is_file() else {"tokens": 0, "bytes": 0}
    asked = _questions(context, later)
    work = work_of(later, asked, trained["tokens"], trained["bytes"])
    found = decide(context.recipe, tokens, tokenizer, device_of(context), spent, work, asked, begun)
    for reason in found["reasons"]:
        context.log(reason)
    write_json(context.work / PLAN, {**found, "made": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()})
    return found


def decide(
    recipe: Recipe, tokens: Path, tokenizer: "Tokenizer", device: "Device", spent: dict[str, float], work: Work,
    asked: Questions, begun: float, whole: bool = True,
) -> Results:  # fmt: skip
    """The plan, as data: "chosen", "candidates", "expected", "reasons" and what they follow from.

    begun: on the monotonic clock, from which on deciding counts; whole: the tokens are all of the run's text, so that they bound
    the training, and a pilot on them says its loss. Raises UserError where nothing fits the minutes.
    """
    from groundup.scaling import time_budget
    from groundup.training.pretraining import TrainingTokens, available_tokens

    minutes, law = recipe.base.minutes, time_budget.shipped()
    mixture = recipe.mixture if whole else MixtureConfig()
    data = TrainingTokens.open(tokens, tokenizer.begin_of_text, tokenizer.size)
    held_out = _held_out(tokens) if whole else []
    available = available_tokens(data.table, mixture) if whole else math.inf
    besides = _observed(recipe.base.context_length, int(data.files["held_out"].lengths.sum()) if whole else 10**9)
    work = work._replace(scored=work.scored + sum(map(len, held_out)))  # when the base model is done
    budget = 60 * minutes * time_budget.AIM - sum(spent.values())
    factor, told = 1.0, ""
    seen: list[CandidateResult] = []
    best: CandidateResult | None = None

    def tried(depth: int, guess: int) -> "CandidateResult":
        """At the batch of the tokens that fit: smaller ones are slower a token. `guess`: of these."""
        nonlocal factor, told
        speed = _speed(recipe, depth, guess, tokenizer, tokens, mixture, device)
        if not seen and not told:
            factor, told = _pilot(recipe, tokens, tokenizer, device, speed, held_out, available)
        speeds = measured(recipe, depth, speed, tokenizer, device, held_out, asked) if whole else guessed(speed, asked)
        left = budget - (time.monotonic() - begun)
        one = _weighed(recipe, depth, speed, tokenizer.size, left, available, besides, taken(work, speeds), factor, device)
        if one.tokens and _batch(recipe, depth, one.tokens, available) != _batch(recipe, depth, guess, available):
            speed = _speed(recipe, depth, one.tokens, tokenizer, tokens, mixture, device)
            left = budget - (time.monotonic() - begun)
            one = _weighed(recipe, depth, speed, tokenizer.size, left, available, besides, taken(work, speeds), factor, device)
        return one

    for depth in DEPTHS:
        one = tried(depth, best.tokens if best else min(time_budget.PILOTS))
        seen.append(one)
        if best and one.loss >= best.loss:
            break  # larger ones read fewer tokens still
        if best and one.tokens >= available - 1 and one.tokens < one.parameters:
            break  # more parameters than there is text, over and over: of that the law knows nothing
        if not one.tokens:
            break
        best = one
    batch = _batch(recipe, best.depth, best.tokens, available) if best and best.tokens else 0
    if best is None or best.tokens < max(batch, recipe.base.context_length):
        measuring = time.monotonic() - begun + besides / seen[0].tokens_per_second
        raise UserError(_too_short(minutes, spent, seen[0], measuring))
    measuring = time.monotonic() - begun
    expected = {
        "loss": time_budget.predicted_loss(best.parameters, best.tokens, factor) if told else None,
        "seconds": {"before": sum(spent.values()), "plan": measuring, "base": best.seconds, "after": best.after,
                    "all": sum(spent.values()) + measuring + best.seconds + best.after},
    }  # fmt: skip
    return {
        "minutes": minutes,
        "chosen": {"depth": best.depth, "tokens": best.tokens, "batch_tokens": batch},
        "expected": expected,
        "candidates": [one.row() for one in seen],
        "law": law.about | {"file": time_budget.FILE.name},
        "factor": factor,
        "spent": spent,
        "device": device.name,
        "reasons": _reasons(minutes, spent, best, seen, expected, law.named, told, work, available),
    }


def _speed(
    recipe: Recipe, depth: int, guess: int, tokenizer: "Tokenizer", tokens: Path, mixture: MixtureConfig, device: "Device"
) -> float:
    from groundup.training import rate

    return rate.tokens_per_second(tokenizer, tokens, _tried(recipe, depth, guess), mixture, device, f"plan: depth {depth}")


def _held_out(tokens: Path) -> "list[np.ndarray]":
    """What the base model will be scored on; empty where nothing is held out."""
    from groundup.scaling.ladder import held_out_documents

    try:
        return held_out_documents(tokens)
    except UserError:
        return []


def _interval(one: dict[str, float]) -> str:
    return f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def provisional(
    recipe: Recipe, run: Path, done: set[str], vocabulary: int, later: Sequence[LaterStep]
) -> tuple[Recipe, list[str]]:
    """The recipe as it would be planned now, and why. What no step has made yet is unsure, and that is said.

    Raises UserError as `decide` does.
    """
    from groundup.core.device import choose

    begun = time.monotonic()
    spent = {name: read_manifest(run / name)["seconds"] for name in BEFORE if name in done and (run / name / MANIFEST).is_file()}
    unsure = [] if {"tokens", "tokenizer"} <= done else ["random text of the recipe's vocabulary was trained on to measure"]
    if recipe.pages and "tokens" not in done:
        spent["not made yet"] = DRY_SHARE * 60 * recipe.base.minutes
        unsure.append(f"the steps before the base model are taken as {DRY_SHARE:.0%} of the minutes")
    rows = Questions()
    if recipe.sft.data or (recipe.pages and any(one.source.startswith("stdlib:") for one in recipe.pages.sources)):
        asked = recipe.preferences
        rows = Questions(
            ROWS_AN_OBJECT * recipe.sft.max_objects, asked.prompts, asked.held_out_prompts, ROW_TOKENS, ANSWER_TOKENS
        )
        unsure.append("there are as many questions as the recipe takes at most")
    with TemporaryDirectory() as made:
        if unsure and unsure[0].startswith("random"):
            tokens = _random_tokens(Path(made), vocabulary)
            tokenizer: Any = Blank(vocabulary)
        else:
            from groundup.tokenizer.load import of_model

            tokens, tokenizer = run / "tokens", of_model(run / "tokenizer")
        work = work_of(later, rows, 0, 0)
        found = decide(recipe, tokens, tokenizer, choose(recipe.threads), spent, work, rows, begun, whole=False)
    base = PretrainingConfig(**{**recipe.base.model_dump(), **found["chosen"], "minutes": 0.0})
    last = f"for now: {'; '.join(unsure)}" if unsure else ""
    said = "the run itself measures once, when its text is there, writes the plan down and keeps to it"
    return recipe.model_copy(update={"base": base}), [*found["reasons"], *filter(None, [last]), said]


class Blank:
    """In place of a tokenizer that is not trained yet: as many tokens."""

    def __init__(self, size: int) -> None:
        import numpy as np

        self.size, self.begin_of_text, self.bytes_per_token = size, 0, np.ones(size, dtype=np.int64)


def _random_tokens(folder: Path, vocabulary: int) -> Path:
    """Token files of text that says nothing."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from groundup.data import token_files

    drawn, table = np.random.default_rng(0), []
    for split, count in (("train", 200), ("held_out", 2)):
        texts = [drawn.integers(0, vocabulary, 1000) for _ in range(count)]
        token_files.write(folder / split, texts, token_files.dtype_for(vocabulary))
        table += [{"split": split, "place": n, "domain": "text", "best": True, "tokens": len(texts[n])} for n in range(count)]
    pq.write_table(pa.Table.from_pylist(table), folder / "documents.parquet")
    return folder


def _tried(recipe: Recipe, depth: int, tokens: int) -> PretrainingConfig:
    return PretrainingConfig(**{**recipe.base.model_dump(), "depth": depth, "tokens": max(1, tokens), "minutes": 0.0})


def _weighed(
    recipe: Recipe, depth: int, speed: float, vocabulary: int, left: float, available: float, besides: int, after: float,
    factor: float, device: "Device",
) -> "CandidateResult":  # fmt: skip
    import torch

    from groundup import kernels
    from groundup.core.device import COMPILE_PAYS_FROM_FLOPS
    from groundup.model import architectures
    from groundup.scaling import time_budget

    base = recipe.base
    model, _ = architectures.outline(
        base.architecture, depth, vocabulary, base.context_length, base.experts, base.experts_per_token
    )
    those = kernels.library_or_reason if device.training_dtype == torch.bfloat16 else kernels.float32_or_reason
    by_kernels = device.torch_device.type == "cpu" and not isinstance(those(), str)
    compiles = device.compiling_pays(float("inf"))[0] and base.architecture == "dense" and not by_kernels
    one = time_budget.Candidate(
        depth, architectures.multiplied(model), architectures.flops(model, base.context_length, 1), speed, after
    )
    compiled_from = COMPILE_PAYS_FROM_FLOPS if compiles else float("inf")
    return time_budget.candidate_result(one, left, available, besides, compiled_from, factor)


def _observed(context_length: int, held_out: int) -> int:
    """Tokens' worth of training of what is measured while the base model trains."""
    from groundup.training.pretraining import OBSERVATIONS, PROBE_ROWS

    return OBSERVATIONS * min(PROBE_ROWS * context_length, held_out) // TRAINING_PASSES


def _batch(recipe: Recipe, depth: int, tokens: int, available: float) -> int:
    from groundup.training.budget import budget

    return budget(_tried(recipe, depth, tokens), 1, available).batch_tokens


def _pilot_tokens(minutes: float, speed: float, available: float) -> int:
    """Of the longest pilot that its share of the minutes allows, and the text; the shortest needs time alone. 0 of none."""
    from groundup.scaling.time_budget import PILOTS

    affordable = (one for one in PILOTS if one <= 60 * minutes * PILOT_SHARE * speed)
    return next((one for one in affordable if one <= available or one == min(PILOTS)), 0)


def _pilot(
    recipe: Recipe, tokens: Path, tokenizer: "Tokenizer", device: "Device", speed: float, held_out: "list[np.ndarray]",
    available: float,
) -> tuple[float, str]:  # fmt: skip
    """What losses of this text are of the ladder's, and how that is known; "" where it is not."""
    from groundup.model import architectures
    from groundup.scaling import time_budget
    from groundup.scaling.ladder import held_out_loss
    from groundup.training.pretraining import pretrain
    from groundup.training.runtime import Runtime

    length = _pilot_tokens(recipe.base.minutes, speed, available)
    if not held_out or not length:
        return 1.0, ""
    settings = _tried(recipe, DEPTHS[0], length).model_copy(
        update={"batch_tokens": time_budget.PILOTS[length], "anneal_data_fraction": 0.0}
    )
    with TemporaryDirectory() as folder:
        runtime = Runtime(device, Path(folder), "plan: pilot", recipe.seed, lambda text: None)
        model, results = pretrain(tokenizer, tokens, settings, runtime, recipe.mixture)
        loss = held_out_loss(model, held_out)
    factor = time_budget.pilots_factor(loss, architectures.multiplied(model), results["tokens"])
    told = f"a pilot of {results['tokens']:,} tokens has {loss:.2f} nats per token"
    return factor, f"losses of this text are {factor:.2f} of the ladder's: {told}"


def _questions(context: StepContext, later: Sequence[LaterStep]) -> Questions:
    """Those that SFT will have; none where it will be skipped."""
    recipe = next((one.recipe for one in later if one.kind == "sft"), None)
    if recipe is None:
        return Questions()
    from groundup.posttraining.tokenize_rows import conversation
    from groundup.posttraining.user_data import NoQuestions, rows_of_sft

    begun = time.monotonic()
    try:
        rows = rows_of_sft(
            lambda: ((row["url"], row["text"]) for row in documents_of(context)), recipe.sft, recipe.seed, lambda text: None
        )
    except NoQuestions:
        return Questions()
    seconds, tokenizer = time.monotonic() - begun, tokenizer_of(context)
    some = rows["train"][:SAMPLED_ROWS]
    read = [conversation(tokenizer, row) for row in some]
    length = sum(len(ids) for ids, _ in read) / len(read)
    answer = sum(sum(spoken) for _, spoken in read) / len(read)
    counts = {side: len(found) for side, found in rows.items()}
    return Questions(**counts, length=length, answer=answer, some=tuple(some), seconds=seconds)


def _too_short(minutes: float, spent: dict[str, float], one: "CandidateResult", measuring: float) -> str:
    from groundup.scaling.time_budget import AIM

    # A minute for the base model, and a margin for what was estimated.
    before = sum(spent.values())
    needed = max((before + measuring + 1.15 * one.after + 60) / AIM / 60, minutes)
    return (
        f"minutes = {minutes:g}: too short for this run here: the steps before the base model take {duration(before)}, "
        f"those after the smallest about {duration(one.after)}, measuring {duration(measuring)}; "
        f"give {math.floor(needed) + 1} or more"
    )


def _reasons(
    minutes: float, spent: dict[str, float], best: "CandidateResult", seen: Sequence["CandidateResult"], expected: dict[str, Any],
    law: str, told: str, work: Work, available: float,
) -> list[str]:  # fmt: skip
    seconds = expected["seconds"]
    tried = "; ".join(
        f"depth {one.depth}: {one.tokens_per_second:,.0f} tokens/s, {one.tokens:,} tokens"
        + (f", loss {one.loss:.3f}" if one.tokens else ", no time left")
        for one in seen
    )
    found = [
        f"{minutes:g} minutes: {duration(seconds['before'])} before, {duration(seconds['plan'])} to measure, "
        f"{duration(seconds['base'])} to train the base model, about {duration(seconds['after'])} after it",
        f"measured here: {tried}",
        f"depth {best.depth} and {best.tokens:,} tokens: the least loss in that time by {law}",
    ]
    if best.tokens >= available - 1:
        found.append(f"{best.tokens:,} tokens are all that the mixture gives; the run ends before its minutes")
    if told:
        found += [told, f"loss to expect on held-out text: {_interval(expected['loss'])} nats per token"]
    else:
        found.append("no loss is predicted: a pilot on this text would take too much of the minutes, or nothing is held out")
    if work.unknown:
        found.append(f"not counted: {', '.join(work.unknown)}, whose time is not known before")
    return found
