"""The steps of a recipe, and running them: the standard ones whose inputs are there, those it adds, and the report on all."""

import logging
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from groundup.core import log, toml
from groundup.core.errors import UserError
from groundup.core.plain_files import expanded
from groundup.core.text import printable
from groundup.pipeline import minutes, preflight
from groundup.pipeline.dry_run import Forecast, finished
from groundup.pipeline.recipe import MODELS, PLANNED, Recipe, StepSettings, config_of, with_settings
from groundup.pipeline.run import Run, Step, StepContext
from groundup.pipeline.step_kinds import CORPUS_STEPS, KINDS, OPTIONAL, PLAN, STANDARD
from groundup.pipeline.step_times import LaterStep
from groundup.pipeline.summary import summary

Results = dict[str, Any]
# The kinds of steps that an input may come from; of others the kind that is called like it.
MODEL_KINDS = (*MODELS, "long_context")
TAKEN = {"base": MODEL_KINDS, "sft": MODEL_KINDS, "model": MODEL_KINDS, "tokenizer": ("tokenizer", *MODEL_KINDS)}
ENCODED = ("base", "sft", "tokens", "reward")  # inputs that are of one tokenizer, and no use with another


def steps_of(recipe: Recipe) -> tuple[Step, ...]:
    """The steps of a recipe, in order: the standard ones whose inputs are there, those it adds, and the report on all.

    Raises UserError for a step that cannot be: of an unknown kind, of a name that is taken, without one of its inputs.
    """
    given = {name: expanded(folder) for name, folder in recipe.given.items()}
    for name in [*given, *(recipe.standard or ())]:
        if name not in (known := [step.name for step in (*STANDARD[:-1], *OPTIONAL)]):
            raise UserError(f"{name}: no standard step has this name; known: {', '.join(known)}")
    if models := [given[name] for name in MODELS if name in given]:
        given.setdefault("tokenizer", models[0])  # a model is used with the tokenizer that it was trained with
    if "tokens" in given and "tokenizer" not in given and not recipe.tokenizer.folder:
        raise UserError("given.tokens: say which tokenizer made them: add given.tokenizer, its folder")
    at_hand: dict[str, str | Path] = dict(given)  # what steps can take, by name: a step, or a folder
    steps = _standard_steps(recipe, at_hand)
    for number, one in enumerate(recipe.steps, start=1):
        steps.append(_added_step(recipe, one, f"steps {number} ({one.name})", at_hand, {step.name: step for step in steps}))
        at_hand[one.name] = one.name
    steps = [_with_its_tokenizer_checked(step) for step in steps]
    if recipe.base.minutes:
        later = [LaterStep(one.name, one.kind or one.name, one.recipe or recipe) for one in _after_base(steps)]
        steps = [replace(one, make=partial(minutes.plan, later=later)) if one.name == PLAN.name else one for one in steps]
    if not steps:
        raise UserError("no step can run: give [pages], or in [given] what the steps before would make")
    return (*steps, replace(STANDARD[-1], needs=tuple(step.name for step in steps)))


def _after_base(steps: list[Step]) -> list[Step]:
    names = [one.name for one in steps]
    return steps[names.index("base") + 1 :] if "base" in names else []


def _standard_steps(recipe: Recipe, at_hand: dict[str, str | Path]) -> list[Step]:
    steps, replaced = [], set(at_hand)
    if recipe.pages is None:
        replaced.add("pages")
    if "corpus" in at_hand:
        replaced |= {"pages", "annotations"}
    for step in (*STANDARD[:-1], *OPTIONAL):
        name = step.name
        listed = step not in OPTIONAL if recipe.standard is None else name in recipe.standard
        if name in replaced or not listed:
            continue
        if name == "preferences" and recipe.standard is None and recipe.reward.data and recipe.dpo.data:
            continue  # nothing would be trained on those of the simulated annotator
        if name == "base" and recipe.base.minutes and all(need in at_hand for need in PLAN.needs):
            steps.append(replace(PLAN, bound={need: at_hand[need] for need in PLAN.needs if at_hand[need] != need}))
            at_hand[PLAN.name] = PLAN.name
        needs = _needs(step, recipe)
        if missing := [need for need in needs if need not in at_hand]:
            if recipe.standard is not None:
                raise UserError(f"standard: step {name} needs {missing[0]}, which is neither among the steps nor given")
            continue
        steps.append(replace(step, needs=needs, bound={need: at_hand[need] for need in needs if at_hand[need] != need}))
        at_hand[name] = name
    return steps


def _added_step(
    recipe: Recipe, one: StepSettings, where: str, at_hand: dict[str, str | Path], before: dict[str, Step]
) -> Step:
    if one.kind not in KINDS:
        raise UserError(f"{where}: no kind of step is called {one.kind!r}; known: {', '.join(KINDS)}")
    if one.name in at_hand or one.name in [step.name for step in STANDARD]:
        raise UserError(f"{where}: there is a step of this name already; choose another")
    if one.name in (*KINDS, PLAN.name) and one.name != one.kind:
        raise UserError(f"{where}: {one.name} is what steps of another kind are called; choose another name")
    if one.kind == "base" and (recipe.base.minutes or "minutes" in one.settings):
        raise UserError(f"{where}: base.minutes is for a run of one base model; give depth and tokens in its place")
    own = with_settings(recipe, one.kind, one.settings, where) if one.settings else recipe
    needs, bound = _needs(KINDS[one.kind], own), {}
    for need, source in one.inputs.items():
        if need not in needs:
            raise UserError(f"{where}: {one.kind} has no input {need!r}; its inputs are {', '.join(needs)}")
        if source.startswith(("/", "./", "../", "~")):
            bound[need] = expanded(source)
        elif source in at_hand:
            bound[need] = at_hand[source]
            _check_kind(one.kind, need, source, before, where)
        else:
            raise UserError(f"{where}: no step {source!r} comes before it; a folder is written ./{source}")
    # A model, and tokens, are used with the tokenizer that they were made with.
    made_with = [found for need in ENCODED if need in bound and (found := _made_with(need, bound[need], before))]
    if made_with and "tokenizer" in needs:
        bound.setdefault("tokenizer", made_with[0])
    for need in needs:
        if need not in bound and need not in at_hand:
            raise UserError(f"{where}: its input {need} is neither made nor given: add inputs.{need} = \"STEP or ./FOLDER\"")
        bound.setdefault(need, at_hand.get(need, need))
    for need in ENCODED if "tokenizer" in needs else ():
        made, tokenizer = _made_with(need, bound.get(need), before), _made_with("tokenizer", bound["tokenizer"], before)
        if isinstance(bound.get(need), str) and made and made != tokenizer:
            said = f"{where}: its input {need} is of the tokenizer {made}, not of {tokenizer}"
            raise UserError(f"{said}: add inputs.{need} or inputs.tokenizer, so that all are of one")
    folders = {need: str(bound[need]) for need in ("base", "sft") if isinstance(bound.get(need), Path)}
    for source in (bound.get(need) for need in ("base", "sft")):  # what continues a model keeps its chat template
        folders |= before[source].recipe.given if source in before and before[source].recipe else {}
    bound = {need: source for need, source in bound.items() if source != need}
    own = own.model_copy(update={"given": {**folders, **recipe.given}})
    return replace(KINDS[one.kind], name=one.name, needs=needs, kind=one.kind, bound=bound, recipe=own)


def _check_kind(kind: str, need: str, source: str, before: dict[str, Step], where: str) -> None:
    """Raises UserError for a step that makes no such thing, which would show when it is read."""
    made_by = before[source].kind or source if source in before else source
    takes = ("sft",) if (kind, need) == ("preferences", "sft") else TAKEN.get(need, (need,))
    if made_by not in takes:
        raise UserError(f"{where}: its input {need} cannot be {source!r}, a step of kind {made_by}; it is of {', '.join(takes)}")


def _made_with(need: str, source: str | Path | None, before: dict[str, Step]) -> str | Path | None:
    """The tokenizer of what a step made, or the folder of a model, which holds its own; None where nobody can tell."""
    if isinstance(source, Path):
        return None if need == "tokens" else source
    step = before.get(source or "")
    if step is None or (step.kind or step.name) == "tokenizer":
        return source
    return _made_with("tokenizer", step.source("tokenizer"), before) if "tokenizer" in step.needs else None


def _with_its_tokenizer_checked(step: Step) -> Step:
    """Where a model comes from a folder and its tokenizer from elsewhere, they are compared as soon as both are there."""
    folders = [need for need in ENCODED if need != "tokens" and need in step.needs and isinstance(step.source(need), Path)]
    apart = [need for need in folders if step.source(need) != step.source("tokenizer")] if "tokenizer" in step.needs else []
    return replace(step, ahead=(*step.ahead, ("tokenizer", partial(preflight.of_one_tokenizer, apart)))) if apart else step


def _needs(step: Step, recipe: Recipe) -> tuple[str, ...]:
    """A step's inputs, without those whose place files of the user's own take."""
    kind = step.kind or step.name
    if kind == "base" and recipe.base.minutes:
        return (*step.needs, PLAN.name)
    if kind in ("ppo", "grpo") and getattr(recipe, kind).reward:
        return tuple(need for need in step.needs if need != "reward")
    spared = {"sft": "corpus", "reward": "preferences", "dpo": "preferences"}.get(kind)
    return tuple(need for need in step.needs if need != spared) if spared and getattr(recipe, kind).data else step.needs


def dry(recipe: Recipe, folder: Path, steps: tuple[Step, ...]) -> Results:
    """The resolved recipe, what follows from it and the plan of a run, printed; nothing is written."""
    if _rank() > 0:
        sys.exit(0)
    plan = Run(folder, recipe, steps).plan()
    forecast = Forecast(recipe, folder, plan)
    lines = [_resolved(recipe, steps), *forecast.lines]
    lines += [f"{one.state:>5}  {one.step.name:<12} {one.reason}" for one in plan]
    print(printable("\n".join(lines)), file=sys.stderr)
    derived = {**finished(folder, plan), **forecast.derived}
    rate = {"gflop_per_second": round(forecast.rate / 1e9, 1)} if forecast.rate else {}
    return {"run": str(folder), "plan": {one.step.name: one.state for one in plan}, "derived": derived, **rate}


def _resolved(recipe: Recipe, steps: tuple[Step, ...]) -> str:
    """Every setting of these steps, as TOML."""
    used = {section for step in steps for section in step.sections or (step.kind or step.name,)}
    content = {
        name: value
        for name, value in recipe.model_dump().items()
        if (name in used or config_of(name) is None) and value not in ({}, [])
    }
    if recipe.base.minutes and "base" in content:
        content["base"] = {name: value for name, value in content["base"].items() if name not in PLANNED}
    return toml.dumps(content)


def execute(recipe: Recipe, folder: Path, steps: tuple[Step, ...]) -> dict[str, dict[str, Any]]:
    """Run every step that is not done; the manifest of every step. Of torchrun's processes the first returns."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Run(folder, recipe, steps).execute()
    from groundup.training import parallel

    if _rank() > 0:
        _assist(recipe, folder, steps)
    manifests = Run(folder, recipe, steps).execute()
    parallel.call("")  # where every model was there already, the others wait still
    return manifests


def run(recipe: Recipe, folder: Path) -> Results:
    """Run every step that is not done; the main figures of the whole run, of each step under its name."""
    steps = steps_of(recipe)
    manifests = execute(recipe, folder, steps)
    seconds = {name: manifest["seconds"] for name, manifest in manifests.items()}
    by_step = {step.name: main_figures(step.kind or step.name, manifests[step.name]["results"]) for step in steps}
    figures: Results = {}
    for step in steps:
        if found := by_step[step.name]:
            figures |= {step.name: found} if step.kind else found
    preferred = {name: figures.pop(name) for name in ("dpo", "ppo", "grpo") if name in figures}
    report = str(folder / manifests["report"]["results"]["report"])
    skipped = {name: one["results"]["skipped"] for name, one in manifests.items() if "skipped" in one["results"]}
    said = {name: {"skipped": reason} for name, reason in skipped.items()} | {"report": {"": report}}
    show(seconds, by_step | said)
    return {
        "run": str(folder),
        "report": report,
        "seconds": {**seconds, "all": round(sum(seconds.values()), 1)},
        "figures": figures | ({"preferred_over_sft": preferred} if preferred else {}) | ({"skipped": skipped} if skipped else {}),
    }


def show(seconds: dict[str, float], figures: dict[str, Results]) -> None:
    """The table at the end, for people, unless they want it quiet."""
    if (log.terminal_level() or 0) <= logging.INFO:
        print(printable(f"\n{summary(seconds, figures)}\n"), file=sys.stderr, flush=True)


def main_figures(kind: str, results: Results) -> Results:
    """The main figures of one step."""
    if "skipped" in results:
        return {}
    if kind == "corpus":
        return {"documents": results["left"]["documents"]}
    if kind == "plan":
        return {**results["chosen"], "expected_minutes": results["expected"]["seconds"]["all"] / 60}
    if kind == "base" and "planned" in results:
        planned = results["planned"]
        losses = {"expected_loss": (planned["expected"] or {}).get("value"), "held_out_loss": planned["loss"]}
        return {"training_tokens": results["tokens"], "parameters": results["parameters"]["total"], **losses}
    if kind == "base":
        return {"training_tokens": results["tokens"], "parameters": results["parameters"]["total"]}
    if kind == "long_context":
        return {"context_length": results["context"]["after"], "training_tokens": results["tokens"]}
    if kind == "vocabulary_sweep":
        return {"vocabulary": results["recommended"]}
    if kind == "benchmarks":
        from groundup.evaluation.leaderboard import headline

        return {one["task"]: headline(one)[1]["value"] for one in results["results"][: len(results["tasks"])]}
    if kind == "evaluation":
        return {
            "bits_per_byte": results["bits_per_byte"]["overall"],
            "sentence_pairs": results["sentence_pairs"]["all"]["accuracy"] if results["sentence_pairs"] else None,
            "multiple_choice": {
                how: one["accuracy"] for how, one in (results["multiple_choice"] or {}).items() if isinstance(one, dict)
            },
        }
    if kind == "sft":
        found = results["held_out"]
        overlap = {name: one["overlap"] for name, one in found["overlap"].items()}
        return {"sft_overlap": overlap, "sft_answer_loss": found["answer_loss"]}
    if kind == "reward":
        return {"reward_accuracy": results["accuracy"]["accuracy"]}
    if kind in ("dpo", "ppo", "grpo"):
        if not (found := results["against_sft"]):
            return {}
        return {kind: {
            **{key: found[key] for key in ("win_rate", "low", "high", "mean_words")},
            "sft_mean_words": found["baseline_mean_words"],
        }}  # fmt: skip
    return {}


def run_to_corpus(recipe: Recipe, folder: Path) -> Results:
    """Pages, annotations and corpus, as in a whole run, which can resume from here; the figures of the funnel.

    With weights, also the mixture that they give over as many words as there are in the training documents.
    """
    from groundup.data import mixture

    manifests = execute(recipe, folder, CORPUS_STEPS)
    results = manifests["corpus"]["results"]
    seconds = {name: manifest["seconds"] for name, manifest in manifests.items()}
    sizes = {name: results[name] for name in ("left", "train", "held_out")}
    show(seconds, {"corpus": {name: {"documents": one["documents"]} for name, one in sizes.items()}})
    found = {
        "out": str(folder),
        "documents": str(folder / "corpus" / "documents.parquet"),
        "seconds": seconds,
        "pages": manifests["annotations"]["results"]["pages"],
        "dropped": {step["step"]: step["dropped"] for step in results["steps"] if "dropped" in step},
        "changed": {step["step"]: step["changed"] for step in results["steps"] if "changed" in step},
        **{name: results[name] for name in ("left", "train", "held_out", "benchmarks")},
    }
    if recipe.mixture.weights:
        words = {domain: sizes["words"] for domain, sizes in results["train"]["by_domain"].items()}
        found["mixture"] = mixture.report(
            mixture.plan(words, recipe.mixture.weights, sum(words.values()), recipe.mixture.max_repeats)
        )
    return found


def _rank() -> int:
    """This process's number among torchrun's, 0 without it; as `parallel.rank`, without torch."""
    return int(os.environ.get("RANK", 0)) if "WORLD_SIZE" in os.environ else 0


def _assist(recipe: Recipe, folder: Path, steps: tuple[Step, ...]) -> NoReturn:
    """What torchrun's other processes do: wait for the first to train, help it each time, and say nothing."""
    from groundup.training import parallel

    logging.disable()
    by_name = {step.name: step for step in steps}
    while work := parallel.called():
        step = by_name[work]
        try:
            step.make(StepContext(step.recipe or recipe, folder / f"{work}.partial", step.inputs(folder), work))
        except UserError:
            sys.exit(2)  # the first process has met it too, and says it
    sys.exit(0)
