"""A run for a number of minutes: the step `plan` measures and decides once what its base model is, and writes it down.

The time of the steps before is known. The speed of this machine is measured on real steps of training, and the work of the
steps after is counted and timed (`step_times.py`). For the minutes that remain the ladder's law chooses a size
(`scaling/time_budget.py`). The step is done when its file is written, so a run that is resumed or repeated reads the file and
measures nothing again.
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
from groundup.pipeline.step_times import (
    TRAINING_PASSES,
    LaterStep,
    Questions,
    Work,
    guess_speeds,
    measure_speeds,
    total_seconds,
    work_of,
)
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
ROWS_AN_OBJECT, ROW_TOKENS, ANSWER_TOKENS = 2, 80, 22  # of SFT's questions that are not made yet: as of the laptop recipe
DRY_SHARE = 0.2  # of the minutes, assumed for the steps before that are not done yet


def with_planned_sizes(recipe: Recipe, folder: Path | None) -> Recipe:
    """The recipe with the sizes of the plan in `folder`, unless that is None. Raises UserError where the file is no plan."""
    if folder is None:
        return recipe
    try:
        sizes = _read_plan(folder)["chosen"]
        base = PretrainingConfig(**{**recipe.base.model_dump(), **{name: sizes[name] for name in SIZES}, "minutes": 0.0})
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / PLAN}: not the plan of a run; delete its folder, and it is made again") from None
    return recipe.model_copy(update={"base": base})


def digest_of_chosen(path: Path) -> str | None:
    """The digest of the sizes that a plan chose. No step depends on the time and the rates that they were chosen by."""
    if path.name != PLAN:
        return None
    return hashlib.blake2b(json.dumps(_read_plan(path.parent)["chosen"]).encode(), digest_size=16).hexdigest()


def _read_plan(folder: Path) -> Results:
    return read_object(folder / PLAN)


def outcome(folder: Path, model: "LanguageModel", tokens: Path, log: Callable[[str], None]) -> Results:
    """The loss that the plan expected of the base model, and its loss: {"expected", "loss"}. None where nothing is held out."""
    from groundup.scaling.ladder import held_out_documents, held_out_loss

    expected = _read_plan(folder)["expected"]["loss"]
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
    start, run = time.monotonic(), context.work.parent
    spent = {name: read_manifest(run / name)["seconds"] for name in BEFORE if (run / name / MANIFEST).is_file()}
    tokens, tokenizer = context.inputs["tokens"], tokenizer_of(context)
    trained = read_manifest(tokens)["results"]["train"] if (tokens / MANIFEST).is_file() else {"tokens": 0, "bytes": 0}
    questions = _questions(context, later)
    work = work_of(later, questions, trained["tokens"], trained["bytes"])
    decision = decide(context.recipe, tokens, tokenizer, device_of(context), spent, work, questions, start)
    for reason in decision["reasons"]:
        context.log(reason)
    write_json(context.work / PLAN, {**decision, "made": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()})
    return decision


def decide(
    recipe: Recipe, tokens: Path, tokenizer: "Tokenizer", device: "Device", spent: dict[str, float], work: Work,
    questions: Questions, start: float, full_text: bool = True,
) -> Results:  # fmt: skip
    """The plan, as data: "chosen", "candidates", "expected", "reasons" and what they follow from.

    start: on the monotonic clock; the time since then counts as spent. full_text: the tokens are all of the run's text, so they
    limit the training, and a pilot on them predicts its loss. Raises UserError where nothing fits the minutes.
    """
    from groundup.scaling import time_budget
    from groundup.training.pretraining import TrainingTokens, available_tokens

    minutes, law = recipe.base.minutes, time_budget.shipped()
    mixture = recipe.mixture if full_text else MixtureConfig()
    data = TrainingTokens.open(tokens, tokenizer.begin_of_text, tokenizer.size)
    held_out = _held_out(tokens) if full_text else []
    available = available_tokens(data.table, mixture) if full_text else math.inf
    observed = _observation_tokens(
        recipe.base.context_length, int(data.files["held_out"].lengths.sum()) if full_text else 10**9
    )
    work = work._replace(scored=work.scored + sum(map(len, held_out)))  # when the base model is done
    budget = 60 * minutes * time_budget.AIM - sum(spent.values())
    factor, pilot_note = 1.0, ""
    candidates: list[CandidateResult] = []
    best: CandidateResult | None = None

    def weigh(depth: int, speed: float, after: float) -> "CandidateResult":
        seconds_left = budget - (time.monotonic() - start)
        return _weigh(recipe, depth, speed, tokenizer.size, seconds_left, available, observed, after, factor, device)

    def measure(depth: int, token_guess: int) -> "CandidateResult":
        """At the batch that follows from the tokens that fit, as a smaller one takes longer per token. `token_guess`: of them."""
        nonlocal factor, pilot_note
        speed = _speed(recipe, depth, token_guess, tokenizer, tokens, mixture, device)
        if not candidates and not pilot_note:
            factor, pilot_note = _pilot(recipe, tokens, tokenizer, device, speed, held_out, available)
        measured = (recipe, depth, speed, tokenizer, device, held_out, questions)
        after = total_seconds(work, measure_speeds(*measured) if full_text else guess_speeds(speed, questions))
        candidate = weigh(depth, speed, after)
        batches = {_batch_tokens(recipe, depth, number, available) for number in (candidate.tokens, token_guess) if number}
        if candidate.tokens and len(batches) > 1:
            candidate = weigh(depth, _speed(recipe, depth, candidate.tokens, tokenizer, tokens, mixture, device), after)
        return candidate

    for depth in DEPTHS:
        candidate = measure(depth, best.tokens if best else min(time_budget.PILOTS))
        candidates.append(candidate)
        if best and candidate.loss >= best.loss:
            break  # larger ones read fewer tokens still
        if best and candidate.tokens >= available - 1 and candidate.tokens < candidate.parameters:
            break  # more parameters than tokens, all of the text read as often as allowed: the law was fitted to no such runs
        if not candidate.tokens:
            break
        best = candidate
    batch = _batch_tokens(recipe, best.depth, best.tokens, available) if best and best.tokens else 0
    if best is None or best.tokens < max(batch, recipe.base.context_length):
        measuring = time.monotonic() - start + observed / candidates[0].tokens_per_second
        raise UserError(_too_short(minutes, spent, candidates[0], measuring))
    measuring = time.monotonic() - start
    expected = {
        "loss": time_budget.predicted_loss(best.parameters, best.tokens, factor) if pilot_note else None,
        "seconds": {"before": sum(spent.values()), "plan": measuring, "base": best.seconds, "after": best.after,
                    "all": sum(spent.values()) + measuring + best.seconds + best.after},
    }  # fmt: skip
    return {
        "minutes": minutes,
        "chosen": {"depth": best.depth, "tokens": best.tokens, "batch_tokens": batch},
        "expected": expected,
        "candidates": [candidate.row() for candidate in candidates],
        "law": law.about | {"file": time_budget.FILE.name},
        "factor": factor,
        "spent": spent,
        "device": device.name,
        "reasons": _reasons(minutes, spent, best, candidates, expected, law.named, pilot_note, work, available),
    }


def _speed(
    recipe: Recipe, depth: int, token_guess: int, tokenizer: "Tokenizer", tokens: Path, mixture: MixtureConfig, device: "Device"
) -> float:
    from groundup.training import rate

    return rate.tokens_per_second(
        tokenizer, tokens, _base_settings(recipe, depth, token_guess), mixture, device, f"plan: depth {depth}"
    )


def _held_out(tokens: Path) -> "list[np.ndarray]":
    """The documents that the base model will be scored on; empty where none is held out."""
    from groundup.scaling.ladder import held_out_documents

    try:
        return held_out_documents(tokens)
    except UserError:
        return []


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def plan_provisionally(
    recipe: Recipe, run: Path, done: set[str], vocabulary: int, later: Sequence[LaterStep]
) -> tuple[Recipe, list[str]]:
    """The recipe with the sizes that would be planned now, and the reasons, which name what is unsure as no step made it yet.

    Raises UserError as `decide` does.
    """
    from groundup.core.device import choose

    start = time.monotonic()
    spent = {name: read_manifest(run / name)["seconds"] for name in BEFORE if name in done and (run / name / MANIFEST).is_file()}
    unsure = [] if {"tokens", "tokenizer"} <= done else ["random text of the recipe's vocabulary was trained on to measure"]
    if recipe.pages and "tokens" not in done:
        spent["not made yet"] = DRY_SHARE * 60 * recipe.base.minutes
        unsure.append(f"the steps before the base model are taken as {DRY_SHARE:.0%} of the minutes")
    questions = Questions()
    if recipe.sft.data or (recipe.pages and any(source.source.startswith("stdlib:") for source in recipe.pages.sources)):
        preferences = recipe.preferences
        questions = Questions(
            ROWS_AN_OBJECT * recipe.sft.max_objects, preferences.prompts, preferences.held_out_prompts, ROW_TOKENS, ANSWER_TOKENS
        )
        unsure.append("there are as many questions as the recipe takes at most")
    with TemporaryDirectory() as folder:
        if unsure and unsure[0].startswith("random"):
            tokens = _random_tokens(Path(folder), vocabulary)
            tokenizer: Any = PlaceholderTokenizer(vocabulary)
        else:
            from groundup.tokenizer.load import of_model

            tokens, tokenizer = run / "tokens", of_model(run / "tokenizer")
        work = work_of(later, questions, 0, 0)
        decision = decide(recipe, tokens, tokenizer, choose(recipe.threads), spent, work, questions, start, full_text=False)
    base = PretrainingConfig(**{**recipe.base.model_dump(), **decision["chosen"], "minutes": 0.0})
    caveat = f"for now: {'; '.join(unsure)}" if unsure else ""
    outlook = "the run itself measures once, when its text is there, writes the plan down and keeps to it"
    return recipe.model_copy(update={"base": base}), [*decision["reasons"], *filter(None, [caveat]), outlook]


class PlaceholderTokenizer:
    """In place of a tokenizer that is not trained yet: one of as many tokens."""

    def __init__(self, size: int) -> None:
        import numpy as np

        self.size, self.begin_of_text, self.bytes_per_token = size, 0, np.ones(size, dtype=np.int64)


def _random_tokens(folder: Path, vocabulary: int) -> Path:
    """Token files of random text."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from groundup.data import token_files

    generator, table = np.random.default_rng(0), []
    for split, count in (("train", 200), ("held_out", 2)):
        texts = [generator.integers(0, vocabulary, 1000) for _ in range(count)]
        token_files.write(folder / split, texts, token_files.dtype_for(vocabulary))
        table += [{"split": split, "place": n, "domain": "text", "best": True, "tokens": len(texts[n])} for n in range(count)]
    pq.write_table(pa.Table.from_pylist(table), folder / "documents.parquet")
    return folder


def _base_settings(recipe: Recipe, depth: int, tokens: int) -> PretrainingConfig:
    return PretrainingConfig(**{**recipe.base.model_dump(), "depth": depth, "tokens": max(1, tokens), "minutes": 0.0})


def _weigh(
    recipe: Recipe, depth: int, speed: float, vocabulary: int, seconds_left: float, available: float, observed: int,
    after: float, factor: float, device: "Device",
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
    check_kernels = kernels.library_or_reason if device.training_dtype == torch.bfloat16 else kernels.float32_or_reason
    uses_kernels = device.torch_device.type == "cpu" and not isinstance(check_kernels(), str)
    compiles = device.compiling_pays(float("inf"))[0] and base.architecture == "dense" and not uses_kernels
    candidate = time_budget.Candidate(
        depth, architectures.multiplied(model), architectures.flops(model, base.context_length, 1), speed, after
    )
    return time_budget.candidate_result(
        candidate, seconds_left, available, observed, COMPILE_PAYS_FROM_FLOPS if compiles else float("inf"), factor
    )


def _observation_tokens(context_length: int, held_out: int) -> int:
    """The work of measuring the held-out loss while the base model trains, in tokens of training."""
    from groundup.training.pretraining import OBSERVATIONS, PROBE_ROWS

    return OBSERVATIONS * min(PROBE_ROWS * context_length, held_out) // TRAINING_PASSES


def _batch_tokens(recipe: Recipe, depth: int, tokens: int, available: float) -> int:
    from groundup.training.budget import budget

    return budget(_base_settings(recipe, depth, tokens), 1, available).batch_tokens


def _pilot_tokens(minutes: float, speed: float, available: float) -> int:
    """The longest pilot that its share of the minutes and the text allow; the shortest only needs the time. 0: none fits."""
    from groundup.scaling.time_budget import PILOTS

    affordable = (length for length in PILOTS if length <= 60 * minutes * PILOT_SHARE * speed)
    return next((length for length in affordable if length <= available or length == min(PILOTS)), 0)


def _pilot(
    recipe: Recipe, tokens: Path, tokenizer: "Tokenizer", device: "Device", speed: float, held_out: "list[np.ndarray]",
    available: float,
) -> tuple[float, str]:  # fmt: skip
    """By what factor losses on this text differ from the ladder's, and a line on the pilot that says so; 1 and "" without one."""
    from groundup.model import architectures
    from groundup.scaling import time_budget
    from groundup.scaling.ladder import held_out_loss
    from groundup.training.pretraining import pretrain
    from groundup.training.runtime import Runtime

    length = _pilot_tokens(recipe.base.minutes, speed, available)
    if not held_out or not length:
        return 1.0, ""
    settings = _base_settings(recipe, DEPTHS[0], length).model_copy(
        update={"batch_tokens": time_budget.PILOTS[length], "anneal_data_fraction": 0.0}
    )
    with TemporaryDirectory() as folder:
        runtime = Runtime(device, Path(folder), "plan: pilot", recipe.seed, lambda text: None)
        model, results = pretrain(tokenizer, tokens, settings, runtime, recipe.mixture)
        loss = held_out_loss(model, held_out)
    factor = time_budget.pilots_factor(loss, architectures.multiplied(model), results["tokens"])
    measurement = f"a pilot of {results['tokens']:,} tokens has {loss:.2f} nats per token"
    return factor, f"losses of this text are {factor:.2f} of the ladder's: {measurement}"


def _questions(context: StepContext, later: Sequence[LaterStep]) -> Questions:
    """The questions that SFT will have; none where it will be skipped."""
    recipe = next((step.recipe for step in later if step.kind == "sft"), None)
    if recipe is None:
        return Questions()
    from groundup.posttraining.tokenize_rows import conversation
    from groundup.posttraining.user_data import NoQuestions, rows_of_sft

    start = time.monotonic()
    try:
        rows = rows_of_sft(
            lambda: ((row["url"], row["text"]) for row in documents_of(context)), recipe.sft, recipe.seed, lambda text: None
        )
    except NoQuestions:
        return Questions()
    seconds, tokenizer = time.monotonic() - start, tokenizer_of(context)
    sample = rows["train"][:SAMPLED_ROWS]
    tokenized = [conversation(tokenizer, row) for row in sample]
    length = sum(len(ids) for ids, _ in tokenized) / len(tokenized)
    answer = sum(sum(answer_mask) for _, answer_mask in tokenized) / len(tokenized)
    counts = {side: len(side_rows) for side, side_rows in rows.items()}
    return Questions(**counts, length=length, answer=answer, sample=tuple(sample), seconds=seconds)


def _too_short(minutes: float, spent: dict[str, float], smallest: "CandidateResult", measuring: float) -> str:
    from groundup.scaling.time_budget import AIM

    # A minute for the base model, and a margin for what was estimated.
    before = sum(spent.values())
    needed = max((before + measuring + 1.15 * smallest.after + 60) / AIM / 60, minutes)
    return (
        f"minutes = {minutes:g}: too short for this run here: the steps before the base model take {duration(before)}, "
        f"those after the smallest about {duration(smallest.after)}, measuring {duration(measuring)}; "
        f"give {math.floor(needed) + 1} or more"
    )


def _reasons(
    minutes: float, spent: dict[str, float], best: "CandidateResult", candidates: Sequence["CandidateResult"],
    expected: dict[str, Any], law: str, pilot_note: str, work: Work, available: float,
) -> list[str]:  # fmt: skip
    seconds = expected["seconds"]
    measurements = "; ".join(
        f"depth {candidate.depth}: {candidate.tokens_per_second:,.0f} tokens/s, {candidate.tokens:,} tokens"
        + (f", loss {candidate.loss:.3f}" if candidate.tokens else ", no time left")
        for candidate in candidates
    )
    reasons = [
        f"{minutes:g} minutes: {duration(seconds['before'])} before, {duration(seconds['plan'])} to measure, "
        f"{duration(seconds['base'])} to train the base model, about {duration(seconds['after'])} after it",
        f"measured here: {measurements}",
        f"depth {best.depth} and {best.tokens:,} tokens: the least loss in that time by {law}",
    ]
    if best.tokens >= available - 1:
        reasons.append(f"{best.tokens:,} tokens are all that the mixture gives; the run ends before its minutes")
    if pilot_note:
        reasons += [pilot_note, f"loss to expect on held-out text: {_interval(expected['loss'])} nats per token"]
    else:
        reasons.append("no loss is predicted: a pilot on this text would take too much of the minutes, or nothing is held out")
    if work.unknown:
        reasons.append(f"not counted: {', '.join(work.unknown)}, whose time is not known before")
    return reasons
