"""What a run would be, for `--dry-run`: the size, steps and work of every step that trains.

A step that is done has its own figures. torch is imported where a model is still to be trained, for its sizes and for the rate
of this machine; without that nothing waits for it.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.core.seals import MANIFEST
from groundup.core.table import table
from groundup.pipeline import minutes
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.run import Planned, Step
from groundup.pipeline.step_times import PASSES, LaterStep

if TYPE_CHECKING:
    from groundup.training.forecast import Outline

Results = dict[str, Any]
TRAINS = ("base", "long_context", "sft", "preferences", "reward", "dpo", "ppo", "grpo")
HEAD = ("step", "parameters", "tokens", "steps", "answers", "FLOP", "minutes at full rate")
SHAPE = ("layers", "width", "heads", "key_value_heads", "experts", "experts_per_token", "vocabulary", "context", "batch_tokens")
KINDS_OF_QUESTION = 5  # about an object that has a docstring


class Forecast:
    """The figures of each training step of a plan by its name, and lines for a person."""

    def __init__(self, recipe: Recipe, run: Path, plan: list[Planned]) -> None:
        self.recipe, self.run = recipe, run
        self.derived: dict[str, Results] = {}
        self.lines: list[str] = []
        self.rate = 0.0  # FLOP/s
        self._outlines: dict[str | Path, Outline] = {}
        names = [one.step.name for one in plan]
        after = plan[names.index("base") + 1 :] if "base" in names else []
        self._later = [LaterStep(one.step.name, one.step.kind or one.step.name, one.step.recipe or recipe) for one in after]
        self._done = {one.step.name for one in plan if one.state == "done"}
        trained = [one for one in plan if (one.step.kind or one.step.name) in TRAINS]
        if all(one.state == "done" for one in trained):
            return
        self._measure()
        for one in trained:
            if one.state != "done":
                self._add(one.step, one.step.kind or one.step.name)
        self.lines += ["", table(HEAD, [_row(name, found) for name, found in self.derived.items()]), ""]
        if any("at_most" in found for found in self.derived.values()):
            self.lines += ["≤ at most, ~ about: how much it is follows from data that are not there yet", ""]

    def _measure(self) -> None:
        from groundup.core.device import choose
        from groundup.training.pretraining import measured_peak

        device = choose(self.recipe.threads)
        self.rate = measured_peak(device.torch_device, device.training_dtype)
        self.lines.append(
            f"minutes: of the FLOP at {self.rate / 1e9:,.0f} GFLOP/s, which matrix products reach here and now ({device.name}, "
            "measured for a fifth of a second). Training reaches a part of it, small models a tenth or less, and takes longer"
        )

    def _add(self, step: Step, kind: str) -> None:
        recipe = step.recipe or self.recipe
        found = self._base(step, recipe) if kind == "base" else self._tuned(step, recipe, kind)
        if "flop" in found:
            found["minutes_at_full_rate"] = round(found["flop"] / self.rate / 60, 2)
        if "unknown" in found:
            self.lines.append(f"{step.name}: {found['unknown']}")
        self.derived[step.name] = found

    def _base(self, step: Step, recipe: Recipe) -> Results:
        from groundup.training import forecast

        vocabulary, known = self._vocabulary(step, recipe)
        available = self._available(step, recipe)
        if recipe.base.minutes:
            if "plan" in self._done:
                recipe = minutes.applied(recipe, self.run / "plan")
            else:
                recipe, reasons = minutes.provisional(recipe, self.run, self._done, vocabulary, self._later)
                self.lines += [f"plan: {reason}" for reason in reasons]
        found, reasons, self._outlines[step.name] = forecast.pretraining(recipe.base, vocabulary, available)
        shape = [f"{name.replace('_', ' ')} {found[name]:,}" for name in SHAPE if name in found]
        self.lines += [f"{step.name}: {reason}" for reason in (", ".join(shape), *reasons)]
        at_most = [] if known else ["vocabulary", "parameters", "parameters_without_embedding"]
        if not (known and math.isfinite(available)):
            # A batch that follows from the tokens may be halved where there are a few less, and the steps be doubled.
            return {**found, "at_most": [*at_most, "tokens", "flop"], "about": ["steps"]}
        return found

    def _vocabulary(self, step: Step, recipe: Recipe) -> tuple[int, bool]:
        """Tokens of the tokenizer, and whether that is known: a small corpus gives fewer than were asked for."""
        from groundup.tokenizer.load import of_model

        source = step.source("tokenizer")
        folder = source if isinstance(source, Path) else self.run / source if source in self._done else None
        folder = folder or (Path(recipe.tokenizer.folder) if recipe.tokenizer.folder else None)
        return (of_model(folder).size, True) if folder else (recipe.tokenizer.vocabulary, False)

    def _available(self, step: Step, recipe: Recipe) -> float:
        source = step.source("tokens")
        folder = source if isinstance(source, Path) else self.run / source
        if not (isinstance(source, Path) or source in self._done):
            return math.inf
        import pyarrow.parquet as pq

        from groundup.training.pretraining import available_tokens

        table = pq.read_table(folder / "documents.parquet").to_pylist()
        return available_tokens([row for row in table if row["split"] == "train"], recipe.mixture)

    def _outline(self, step: Step, need: str) -> "Outline | None":
        """The model that a step begins with; None where the step before was skipped, so that there is none."""
        from groundup.training import forecast

        source = step.source(need)
        folder = source if isinstance(source, Path) else self.run / source
        if source not in self._outlines and (folder / "config.json").is_file():
            self._outlines[source] = forecast.of_folder(folder)
        return self._outlines.get(source)

    def _tuned(self, step: Step, recipe: Recipe, kind: str) -> Results:
        from groundup.training import forecast

        need = "base" if kind in ("sft", "long_context") else "sft"
        outline = self._outline(step, need)
        if outline is None:
            return {"unknown": f"nothing, as long as {step.source(need)} holds no model"}
        if kind == "long_context":
            found, self._outlines[step.name] = forecast.longer(outline, recipe.long_context)
            return {**found, "at_most": ["tokens", "steps", "flop"]}
        if kind == "sft":
            self._outlines[step.name] = outline
        if kind == "preferences":
            prompts = recipe.preferences.prompts + recipe.preferences.held_out_prompts
            return {"answers": 2 * prompts, "at_most": ["answers"]}
        if kind in PASSES:
            one = getattr(recipe, kind)
            rollouts = recipe.ppo.rollouts if kind == "ppo" else recipe.grpo.prompts * recipe.grpo.generations
            answers = one.iterations * rollouts
            steps = one.iterations * one.epochs * min(one.minibatches, rollouts)
            flop = outline.flops(answers * outline.context_length, PASSES[kind])
            return {"steps": steps, "answers": answers, "learning_rate": one.learning_rate, "flop": flop,
                    "at_most": ["steps", "answers", "flop"]}  # fmt: skip
        settings = getattr(recipe, kind)
        rate = {"learning_rate": settings.learning_rate}
        if settings.data:
            return {**rate, "unknown": "steps: they follow from the rows of your files that can be used"}
        bound = ["steps", "flop"]
        if kind == "sft":
            rows = KINDS_OF_QUESTION * settings.max_objects
            found = forecast.tuning(outline, rows, settings.batch_examples, settings.epochs)
        else:  # DPO's reference reads every pair once
            passes = forecast.BACKWARD + (1 / settings.epochs if kind == "dpo" else 0)
            pairs = recipe.preferences.prompts
            found = forecast.tuning(outline, pairs, settings.batch_pairs, settings.epochs, 2, passes)
        return {**found, **rate, "at_most": bound}


def finished(run: Path, plan: list[Planned]) -> dict[str, Results]:
    """Of the training steps that are done, what they said of their size."""
    from groundup.core.seals import read_manifest

    names = ("steps", "tokens", "flop")
    found = {}
    for one in plan:
        folder = run / one.step.name
        if one.state == "done" and (one.step.kind or one.step.name) in TRAINS and (folder / MANIFEST).is_file():
            results = read_manifest(folder)["results"]
            found[one.step.name] = {name: results[name] for name in names if name in results}
            if counts := results.get("parameters"):
                found[one.step.name] |= {
                    "parameters": counts["total"], "parameters_without_embedding": counts["without_embedding"]
                }  # fmt: skip
    return {name: figures for name, figures in found.items() if figures}


def _row(name: str, found: Results) -> list[str]:
    """Of the table: a cell for each of HEAD."""
    def cell(key: str, form: str = ",") -> str:
        mark = "≤ " if key in found.get("at_most", []) else "~ " if key in found.get("about", []) else ""
        return f"{mark}{found[key]:{form}}" if key in found else ""

    return [name, cell("parameters"), cell("tokens"), cell("steps"), cell("answers"), cell("flop", ".2e"),
            cell("minutes_at_full_rate", ",.1f")]  # fmt: skip
