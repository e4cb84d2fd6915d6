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
from groundup.pipeline.dry_run import Forecast, finished_figures
from groundup.pipeline.recipe import MODELS, PLANNED, Recipe, StepSettings, config_of, with_settings
from groundup.pipeline.run import Run, Step, StepContext
from groundup.pipeline.step_kinds import CORPUS_STEPS, KINDS, OPTIONAL, PLAN, STANDARD
from groundup.pipeline.step_times import LaterStep
from groundup.pipeline.summary import summary

Results = dict[str, Any]
# The kinds of steps that an input may come from; any other input comes from the kind of its name.
MODEL_KINDS = (*MODELS, "long_context")
ACCEPTED_KINDS = {"base": MODEL_KINDS, "sft": MODEL_KINDS, "model": MODEL_KINDS, "tokenizer": ("tokenizer", *MODEL_KINDS)}
TOKENIZED_INPUTS = ("base", "sft", "tokens", "reward")  # inputs that belong to one tokenizer


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
    available: dict[str, str | Path] = dict(given)  # what steps can take, by name: a step, or a folder
    steps = _standard_steps(recipe, available)
    for number, added in enumerate(recipe.steps, start=1):
        steps.append(
            _added_step(recipe, added, f"steps {number} ({added.name})", available, {step.name: step for step in steps})
        )
        available[added.name] = added.name
    steps = [_with_folders_checked(step) for step in steps]
    if recipe.base.minutes:
        later = [LaterStep(step.name, step.kind or step.name, step.recipe or recipe) for step in _after_base(steps)]
        steps = [replace(step, make=partial(minutes.plan, later=later)) if step.name == PLAN.name else step for step in steps]
    if not steps:
        raise UserError("no step can run: give [pages], or in [given] what the steps before would make")
    return (*steps, replace(STANDARD[-1], needs=tuple(step.name for step in steps)))


def _after_base(steps: list[Step]) -> list[Step]:
    names = [step.name for step in steps]
    return steps[names.index("base") + 1 :] if "base" in names else []


def _standard_steps(recipe: Recipe, available: dict[str, str | Path]) -> list[Step]:
    steps, replaced = [], set(available)
    if recipe.pages is None:
        replaced.add("pages")
    if "corpus" in available:
        replaced |= {"pages", "annotations"}
    for step in (*STANDARD[:-1], *OPTIONAL):
        name = step.name
        listed = step not in OPTIONAL if recipe.standard is None else name in recipe.standard
        if name in replaced or not listed:
            continue
        if name == "preferences" and recipe.standard is None and recipe.reward.data and recipe.dpo.data:
            continue  # nothing would be trained on those of the simulated annotator
        if name == "base" and recipe.base.minutes and all(need in available for need in PLAN.needs):
            steps.append(replace(PLAN, bound={need: available[need] for need in PLAN.needs if available[need] != need}))
            available[PLAN.name] = PLAN.name
        needs = _needs(step, recipe)
        if missing := [need for need in needs if need not in available]:
            if recipe.standard is not None:
                raise UserError(f"standard: step {name} needs {missing[0]}, which is neither among the steps nor given")
            continue
        steps.append(replace(step, needs=needs, bound={need: available[need] for need in needs if available[need] != need}))
        available[name] = name
    return steps


def _added_step(
    recipe: Recipe, added: StepSettings, where: str, available: dict[str, str | Path], before: dict[str, Step]
) -> Step:
    if added.kind not in KINDS:
        raise UserError(f"{where}: no kind of step is called {added.kind!r}; known: {', '.join(KINDS)}")
    if added.name in available or added.name in [step.name for step in STANDARD]:
        raise UserError(f"{where}: there is a step of this name already; choose another")
    if added.name in (*KINDS, PLAN.name) and added.name != added.kind:
        raise UserError(f"{where}: {added.name} is what steps of another kind are called; choose another name")
    if added.kind == "base" and (recipe.base.minutes or "minutes" in added.settings):
        raise UserError(f"{where}: base.minutes is for a run of one base model; give depth and tokens in its place")
    step_recipe = with_settings(recipe, added.kind, added.settings, where) if added.settings else recipe
    needs, bound = _needs(KINDS[added.kind], step_recipe), {}
    for need, source in added.inputs.items():
        if need not in needs:
            raise UserError(f"{where}: {added.kind} has no input {need!r}; its inputs are {', '.join(needs)}")
        if source.startswith(("/", "./", "../", "~")):
            bound[need] = expanded(source)
        elif source in available:
            bound[need] = available[source]
            _check_kind(added.kind, need, source, before, where)
        else:
            raise UserError(f"{where}: no step {source!r} comes before it; a folder is written ./{source}")
    # A model, and tokens, are used with the tokenizer that they were made with.
    tokenizers = [
        tokenizer for need in TOKENIZED_INPUTS if need in bound and (tokenizer := _made_with(need, bound[need], before))
    ]
    if tokenizers and "tokenizer" in needs:
        bound.setdefault("tokenizer", tokenizers[0])
    for need in needs:
        if need not in bound and need not in available:
            raise UserError(f"{where}: its input {need} is neither made nor given: add inputs.{need} = \"STEP or ./FOLDER\"")
        bound.setdefault(need, available.get(need, need))
    for need in TOKENIZED_INPUTS if "tokenizer" in needs else ():
        own, tokenizer = _made_with(need, bound.get(need), before), _made_with("tokenizer", bound["tokenizer"], before)
        if isinstance(bound.get(need), str) and own and own != tokenizer:
            problem = f"{where}: its input {need} is of the tokenizer {own}, not of {tokenizer}"
            raise UserError(f"{problem}: add inputs.{need} or inputs.tokenizer, so that all are of one")
    folders = {need: str(bound[need]) for need in ("base", "sft") if isinstance(bound.get(need), Path)}
    for source in (bound.get(need) for need in ("base", "sft")):  # what continues a model keeps its chat template
        folders |= before[source].recipe.given if source in before and before[source].recipe else {}
    bound = {need: source for need, source in bound.items() if source != need}
    step_recipe = step_recipe.model_copy(update={"given": {**folders, **recipe.given}})
    return replace(KINDS[added.kind], name=added.name, needs=needs, kind=added.kind, bound=bound, recipe=step_recipe)


def _check_kind(kind: str, need: str, source: str, before: dict[str, Step], where: str) -> None:
    """Raises UserError where the input cannot be a step of this kind, rather than when it is read."""
    made_by = before[source].kind or source if source in before else source
    takes = ("sft",) if (kind, need) == ("preferences", "sft") else ACCEPTED_KINDS.get(need, (need,))
    if made_by not in takes:
        raise UserError(f"{where}: its input {need} cannot be {source!r}, a step of kind {made_by}; it is of {', '.join(takes)}")


def _made_with(need: str, source: str | Path | None, before: dict[str, Step]) -> str | Path | None:
    """The tokenizer of an input: the name of a step, or the folder of a model, which holds its own; None where not known."""
    if isinstance(source, Path):
        return None if need == "tokens" else source
    step = before.get(source or "")
    if step is None or (step.kind or step.name) == "tokenizer":
        return source
    return _made_with("tokenizer", step.source("tokenizer"), before) if "tokenizer" in step.needs else None


def _with_folders_checked(step: Step) -> Step:
    """Inputs that are folders from outside are checked first. Where a model is one, and the tokenizer comes from elsewhere,
    another check compares them as soon as both exist.
    """
    if outside := [need for need in step.needs if isinstance(step.source(need), Path)]:
        step = replace(step, checks=(("", partial(preflight.folders_hold_inputs, outside)), *step.checks))
    folders = [
        need for need in TOKENIZED_INPUTS if need != "tokens" and need in step.needs and isinstance(step.source(need), Path)
    ]
    others = [need for need in folders if step.source(need) != step.source("tokenizer")] if "tokenizer" in step.needs else []
    return (
        replace(step, checks=(*step.checks, ("tokenizer", partial(preflight.models_have_steps_tokenizer, others))))
        if others
        else step
    )


def _needs(step: Step, recipe: Recipe) -> tuple[str, ...]:
    """A step's inputs, without those that the user's own files replace."""
    kind = step.kind or step.name
    if kind == "base" and recipe.base.minutes:
        return (*step.needs, PLAN.name)
    documents_made = recipe.pages is not None or {"pages", "annotations", "corpus"} & {*recipe.given}
    if kind == "base" and "tokens" in recipe.given and not documents_made:  # a corpus is read for a check only
        return tuple(need for need in step.needs if need != "corpus")
    if kind in ("ppo", "grpo") and getattr(recipe, kind).reward:
        return tuple(need for need in step.needs if need != "reward")
    replaced = {"sft": "corpus", "reward": "preferences", "dpo": "preferences"}.get(kind)
    return tuple(need for need in step.needs if need != replaced) if replaced and getattr(recipe, kind).data else step.needs


def dry(recipe: Recipe, folder: Path, steps: tuple[Step, ...]) -> Results:
    """The resolved recipe, what follows from it and the plan of a run, printed; nothing is written."""
    if _rank() > 0:
        sys.exit(0)
    plan = Run(folder, recipe, steps).plan()
    forecast = Forecast(recipe, folder, plan)
    lines = [_resolved_toml(recipe, steps), *forecast.lines]
    lines += [f"{planned.state:>5}  {planned.step.name:<12} {planned.reason}" for planned in plan]
    print(printable("\n".join(lines)), file=sys.stderr)
    derived = {**finished_figures(folder, plan), **forecast.derived}
    speed = {"gflop_per_second": round(forecast.flop_per_second / 1e9, 1)} if forecast.flop_per_second else {}
    return {"run": str(folder), "plan": {planned.step.name: planned.state for planned in plan}, "derived": derived, **speed}


def _resolved_toml(recipe: Recipe, steps: tuple[Step, ...]) -> str:
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
    parallel.call("")  # where every model was there already, the others are still waiting
    return manifests


def run(recipe: Recipe, folder: Path) -> Results:
    """Run every step that is not done; the main figures of the whole run, of each step under its name."""
    steps = steps_of(recipe)
    manifests = execute(recipe, folder, steps)
    seconds = {name: manifest["seconds"] for name, manifest in manifests.items()}
    by_step = {step.name: main_figures(step.kind or step.name, manifests[step.name]["results"]) for step in steps}
    figures: Results = {}
    for step in steps:
        if step_figures := by_step[step.name]:
            figures |= {step.name: step_figures} if step.kind else step_figures
    preferred = {name: figures.pop(name) for name in ("dpo", "ppo", "grpo") if name in figures}
    report = str(folder / manifests["report"]["results"]["report"])
    skipped = {name: manifest["results"]["skipped"] for name, manifest in manifests.items() if "skipped" in manifest["results"]}
    notes = {name: {"skipped": reason} for name, reason in skipped.items()} | {"report": {"": report}}
    show_summary(seconds, by_step | notes)
    return {
        "run": str(folder),
        "report": report,
        "seconds": {**seconds, "all": round(sum(seconds.values()), 1)},
        "figures": figures | ({"preferred_over_sft": preferred} if preferred else {}) | ({"skipped": skipped} if skipped else {}),
    }


def show_summary(seconds: dict[str, float], figures: dict[str, Results]) -> None:
    """Print the table at the end for people, unless the run is quiet."""
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

        return {result["task"]: headline(result)[1]["value"] for result in results["results"][: len(results["tasks"])]}
    if kind == "evaluation":
        return {
            "bits_per_byte": results["bits_per_byte"]["overall"],
            "sentence_pairs": results["sentence_pairs"]["all"]["accuracy"] if results["sentence_pairs"] else None,
            "multiple_choice": {
                how: score["accuracy"] for how, score in (results["multiple_choice"] or {}).items() if isinstance(score, dict)
            },
        }
    if kind == "sft":
        held_out = results["held_out"]
        overlap = {name: score["overlap"] for name, score in held_out["overlap"].items()}
        return {"sft_overlap": overlap, "sft_answer_loss": held_out["answer_loss"]}
    if kind == "reward":
        return {"reward_accuracy": results["accuracy"]["accuracy"]}
    if kind in ("dpo", "ppo", "grpo"):
        if not (comparison := results["against_sft"]):
            return {}
        return {kind: {
            **{key: comparison[key] for key in ("win_rate", "low", "high", "mean_words")},
            "sft_mean_words": comparison["baseline_mean_words"],
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
    show_summary(seconds, {"corpus": {name: {"documents": size["documents"]} for name, size in sizes.items()}})
    figures = {
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
        figures["mixture"] = mixture.report(
            mixture.plan(words, recipe.mixture.weights, sum(words.values()), recipe.mixture.max_repeats)
        )
    return figures


def _rank() -> int:
    """This process's number among torchrun's, 0 without it; as `parallel.rank`, without torch."""
    return int(os.environ.get("RANK", 0)) if "WORLD_SIZE" in os.environ else 0


def _assist(recipe: Recipe, folder: Path, steps: tuple[Step, ...]) -> NoReturn:
    """What torchrun's other processes do: wait until the first trains, train with it, each time, and log nothing."""
    from groundup.training import parallel

    logging.disable()
    by_name = {step.name: step for step in steps}
    while work := parallel.called():
        step = by_name[work]
        try:
            step.make(StepContext(step.recipe or recipe, folder / f"{work}.partial", step.inputs(folder), work))
        except UserError:
            sys.exit(2)  # the first process raises the same error, and reports it
    sys.exit(0)
