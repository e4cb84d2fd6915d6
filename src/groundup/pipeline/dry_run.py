"""What a run would be, for `--dry-run`: the size, steps and work of every step that trains.

The figures of a step that is done are those of its results. torch is imported only where a model is still to be trained, for
its sizes and for the speed of this machine, so nothing else waits for it.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.core.seals import MANIFEST
from groundup.core.table import table
from groundup.pipeline import minutes
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.run import Planned, Step
from groundup.pipeline.step_times import FORWARD_PASSES, LaterStep

if TYPE_CHECKING:
    from groundup.training.forecast import Outline

Results = dict[str, Any]
TRAINING_KINDS = ("base", "long_context", "sft", "preferences", "reward", "dpo", "ppo", "grpo")
HEAD = ("step", "parameters", "tokens", "steps", "answers", "FLOP", "minutes at full rate")
SHAPE = ("layers", "width", "heads", "key_value_heads", "experts", "experts_per_token", "vocabulary", "context", "batch_tokens")
KINDS_OF_QUESTION = 5  # that are asked about an object with a docstring


class Forecast:
    """The figures of each training step of a plan by its name, and lines for a person."""

    def __init__(self, recipe: Recipe, run: Path, plan: list[Planned]) -> None:
        self.recipe, self.run = recipe, run
        self.derived: dict[str, Results] = {}
        self.lines: list[str] = []
        self.flop_per_second = 0.0  # of matrix products on this machine
        self._outlines: dict[str | Path, Outline] = {}
        names = [planned.step.name for planned in plan]
        after = plan[names.index("base") + 1 :] if "base" in names else []
        self._later = [
            LaterStep(planned.step.name, planned.step.kind or planned.step.name, planned.step.recipe or recipe)
            for planned in after
        ]
        self._done = {planned.step.name for planned in plan if planned.state == "done"}
        trained = [planned for planned in plan if (planned.step.kind or planned.step.name) in TRAINING_KINDS]
        if all(planned.state == "done" for planned in trained):
            return
        self._measure()
        for planned in trained:
            if planned.state != "done":
                self._add(planned.step, planned.step.kind or planned.step.name)
        self.lines += ["", table(HEAD, [_row(name, figures) for name, figures in self.derived.items()]), ""]
        if any("at_most" in figures for figures in self.derived.values()):
            self.lines += ["≤ at most, ~ about: how much it is follows from data that are not there yet", ""]

    def _measure(self) -> None:
        from groundup.core.device import choose
        from groundup.training.pretraining import measured_peak

        device = choose(self.recipe.threads)
        self.flop_per_second = measured_peak(device.torch_device, device.training_dtype)
        self.lines.append(
            f"minutes: of the FLOP at {self.flop_per_second / 1e9:,.0f} GFLOP/s, which matrix products reach here and now "
            f"({device.name}, measured for a fifth of a second). Training reaches a part of it, small models a tenth or less, "
            "and takes longer"
        )

    def _add(self, step: Step, kind: str) -> None:
        recipe = step.recipe or self.recipe
        figures = self._base(step, recipe) if kind == "base" else self._after_base(step, recipe, kind)
        if "flop" in figures:
            figures["minutes_at_full_rate"] = round(figures["flop"] / self.flop_per_second / 60, 2)
        if "unknown" in figures:
            self.lines.append(f"{step.name}: {figures['unknown']}")
        self.derived[step.name] = figures

    def _base(self, step: Step, recipe: Recipe) -> Results:
        from groundup.training import forecast

        vocabulary, known = self._vocabulary(step, recipe)
        available = self._available(step, recipe)
        if recipe.base.minutes:
            if "plan" in self._done:
                recipe = minutes.with_planned_sizes(recipe, self.run / "plan")
            else:
                recipe, reasons = minutes.plan_provisionally(recipe, self.run, self._done, vocabulary, self._later)
                self.lines += [f"plan: {reason}" for reason in reasons]
        figures, reasons, self._outlines[step.name] = forecast.pretraining(recipe.base, vocabulary, available)
        shape = [f"{name.replace('_', ' ')} {figures[name]:,}" for name in SHAPE if name in figures]
        self.lines += [f"{step.name}: {reason}" for reason in (", ".join(shape), *reasons)]
        at_most = [] if known else ["vocabulary", "parameters", "parameters_without_embedding"]
        if not (known and math.isfinite(available)):
            # A batch that follows from the tokens may be halved where there are a few less, and the steps be doubled.
            return {**figures, "at_most": [*at_most, "tokens", "flop"], "about": ["steps"]}
        return figures

    def _vocabulary(self, step: Step, recipe: Recipe) -> tuple[int, bool]:
        """Tokens of the tokenizer, and whether that is certain: a small corpus gives fewer than the recipe's."""
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

    def _after_base(self, step: Step, recipe: Recipe, kind: str) -> Results:
        from groundup.training import forecast

        need = "base" if kind in ("sft", "long_context") else "sft"
        outline = self._outline(step, need)
        if outline is None:
            return {"unknown": f"nothing, as long as {step.source(need)} holds no model"}
        if kind == "long_context":
            figures, self._outlines[step.name] = forecast.longer(outline, recipe.long_context)
            return {**figures, "at_most": ["tokens", "steps", "flop"]}
        if kind == "sft":
            self._outlines[step.name] = outline
        if kind == "preferences":
            prompts = recipe.preferences.prompts + recipe.preferences.held_out_prompts
            return {"answers": 2 * prompts, "at_most": ["answers"]}
        if kind in FORWARD_PASSES:
            settings = getattr(recipe, kind)
            rollouts = recipe.ppo.rollouts if kind == "ppo" else recipe.grpo.prompts * recipe.grpo.generations
            answers = settings.iterations * rollouts
            steps = settings.iterations * settings.epochs * min(settings.minibatches, rollouts)
            flop = outline.flops(answers * outline.context_length, FORWARD_PASSES[kind])
            return {"steps": steps, "answers": answers, "learning_rate": settings.learning_rate, "flop": flop,
                    "at_most": ["steps", "answers", "flop"]}  # fmt: skip
        settings = getattr(recipe, kind)
        learning_rate = {"learning_rate": settings.learning_rate}
        if settings.data:
            return {**learning_rate, "unknown": "steps: they follow from the rows of your files that can be used"}
        at_most = ["steps", "flop"]
        if kind == "sft":
            rows = KINDS_OF_QUESTION * settings.max_objects
            figures = forecast.tuning(outline, rows, settings.batch_examples, settings.epochs)
        else:  # DPO's reference reads every pair once
            passes = forecast.BACKWARD + (1 / settings.epochs if kind == "dpo" else 0)
            pairs = recipe.preferences.prompts
            figures = forecast.tuning(outline, pairs, settings.batch_pairs, settings.epochs, 2, passes)
        return {**figures, **learning_rate, "at_most": at_most}


def finished_figures(run: Path, plan: list[Planned]) -> dict[str, Results]:
    """Steps, tokens, FLOP and parameters of the training steps that are done, from their results, by the step's name."""
    from groundup.core.seals import read_manifest

    names = ("steps", "tokens", "flop")
    by_step = {}
    for planned in plan:
        folder = run / planned.step.name
        if (
            planned.state == "done"
            and (planned.step.kind or planned.step.name) in TRAINING_KINDS
            and (folder / MANIFEST).is_file()
        ):
            results = read_manifest(folder)["results"]
            by_step[planned.step.name] = {name: results[name] for name in names if name in results}
            if counts := results.get("parameters"):
                by_step[planned.step.name] |= {
                    "parameters": counts["total"], "parameters_without_embedding": counts["without_embedding"]
                }  # fmt: skip
    return {name: figures for name, figures in by_step.items() if figures}


def _row(name: str, figures: Results) -> list[str]:
    """A row of the table: a cell for each of HEAD."""
    def cell(key: str, form: str = ",") -> str:
        mark = "≤ " if key in figures.get("at_most", []) else "~ " if key in figures.get("about", []) else ""
        return f"{mark}{figures[key]:{form}}" if key in figures else ""

    return [name, cell("parameters"), cell("tokens"), cell("steps"), cell("answers"), cell("flop", ".2e"),
            cell("minutes_at_full_rate", ",.1f")]  # fmt: skip
