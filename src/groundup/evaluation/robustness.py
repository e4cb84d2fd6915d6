"""Robustness: whether a model is still right when a question is written otherwise (HELM, Liang et al. 2022).

Each perturbation is a task of its own beside the clean one, of the examples that it changes; of the others the clean result
holds. The worst case counts an example as right only if it is right clean and under every perturbation.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from groundup.evaluation import metrics
from groundup.evaluation.perturbations import Misspellings, perturb, read_misspellings
from groundup.evaluation.tasks import Examples, Task

logger = logging.getLogger(__name__)

PERTURBATIONS = ("typos", "case", "spaces", "contracted", "expanded", "order")
KINDS = ("choices", "pairs", "last word", "generation")
SEED = 0
Variant = tuple[Task, Examples]
Rights = dict[int, tuple[float, str]]  # by example: whether it is right, and its cluster


def misspellings(file: Path | None, data: Path | None) -> Misspellings:
    """Of the file; else of `typos` in the folder of the data, if there is such a file or a folder of one; else the keyboard's."""
    if file is None and data is not None and data.is_dir():
        within = sorted(data.glob("typos*"))
        file = next((path for one in within for path in (sorted(one.iterdir()) if one.is_dir() else [one])), None)
    return read_misspellings(file)


def variants(task: Task, examples: Examples, known: Misspellings) -> list[Variant]:
    """The task under each perturbation that changes any of its examples, with those that it changes.

    None for texts that are judged for their very form, as minimal pairs of grammar, and where nothing is right or wrong.
    """
    settings = task.settings
    if settings.kind not in KINDS or (settings.kind == "pairs" and not settings.target):
        logger.warning("%s: not perturbed: nothing is right or wrong in it, or the very form of its texts is asked", task.name)
        return []
    found = []
    asked = examples.part(0, examples.count)
    for kind in PERTURBATIONS:
        changed = [perturb(one, kind, known, SEED, alternatives=settings.kind == "pairs") for one in asked]
        rows = [new for new, old in zip(changed, asked, strict=True) if new != old]
        if rows:
            source = f"{kind} {known.source} {SEED}" if kind == "typos" else f"{kind} {SEED}"
            found.append((replace(task, name=f"{task.name}.{kind}", perturbation=source), Examples(rows, count=len(rows))))
    return found


def figures(clean: Rights, some: Sequence[Variant], rights: Sequence[Rights]) -> dict[str, Any]:
    """{"skipped", "clean", one for each perturbation, "mean", "worst"}: accuracies with intervals, of a perturbation with
    `changed`, how many examples it changed, and `difference` to the clean ones.

    `rights`: for each variant how its examples came out. An example that could not be scored under one of them, since it
    became too long, is skipped in every figure.
    """
    perturbed = {task.perturbation.split()[0]: one for (task, _), one in zip(some, rights, strict=True)}
    skipped = {
        row.number for (_, asked), one in zip(some, rights, strict=True) for row in asked.rows if row.number not in one
    }
    scored = sorted(clean.keys() - skipped)
    clustered = bool(some and some[0][0].settings.group)
    groups = [clean[number][1] for number in scored] if clustered else None
    before = [clean[number][0] for number in scored]
    found: dict[str, Any] = {"skipped": len(clean.keys() & skipped), "clean": metrics.mean_interval(before, groups)}
    if not scored:
        return found
    columns = [before]
    for kind, found_rights in perturbed.items():
        values = [found_rights.get(number, clean[number])[0] for number in scored]
        columns.append(values)
        found[kind] = metrics.mean_interval(values, groups) | {
            "changed": len(found_rights.keys() & clean.keys()),
            "difference": metrics.compare(values, before, groups),
        }
    if perturbed:
        means = [sum(row) / len(row) for row in zip(*columns[1:], strict=True)]
        found["mean"] = metrics.mean_interval(means, groups)
        found["worst"] = metrics.mean_interval([min(row) for row in zip(*columns, strict=True)], groups)
    return found


def rows_of_table(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each model, in per cent: every accuracy, and how far it is from the clean one."""
    kinds = [
        kind for kind in ("clean", *PERTURBATIONS, "mean", "worst") if any(kind in one["robustness"] for one in results)
    ]
    rows = [["perturbed", *kinds]]
    for result in results:
        cells = []
        for kind in kinds:
            figure = result["robustness"].get(kind)
            cells.append(
                f"{100 * figure['accuracy']:.1f} ±{50 * (figure['high'] - figure['low']):.1f}" if figure else ""
            )
            if figure and "difference" in figure:
                cells[-1] += f" ({100 * figure['difference']['difference']:+.1f})"
        rows.append([result["label"], *cells])
    return rows
