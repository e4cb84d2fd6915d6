"""Robustness: whether a model is still right when a question is written otherwise (HELM, Liang et al. 2022).

Each perturbation is a task of its own with the examples that it changes; for the others the clean result counts. The worst case
counts an example as right only if it is right clean and under every perturbation.
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
    """From the file; else from `typos*` in the folder of the data, a file or a folder with one; else slips of the keyboard."""
    if file is None and data is not None and data.is_dir():
        entries = sorted(data.glob("typos*"))
        file = next((path for entry in entries for path in (sorted(entry.iterdir()) if entry.is_dir() else [entry])), None)
    return read_misspellings(file)


def variants(task: Task, examples: Examples, misspelled: Misspellings) -> list[Variant]:
    """The task under each perturbation that changes any of its examples, with the changed examples.

    None for texts whose form itself is tested, such as minimal pairs of grammar, and where nothing is right or wrong.
    """
    settings = task.settings
    if settings.kind not in KINDS or (settings.kind == "pairs" and not settings.target):
        logger.warning("%s: not perturbed: nothing is right or wrong in it, or the very form of its texts is asked", task.name)
        return []
    task_variants = []
    originals = examples.part(0, examples.count)
    for kind in PERTURBATIONS:
        changed = [perturb(original, kind, misspelled, SEED, alternatives=settings.kind == "pairs") for original in originals]
        rows = [new for new, old in zip(changed, originals, strict=True) if new != old]
        if rows:
            source = f"{kind} {misspelled.source} {SEED}" if kind == "typos" else f"{kind} {SEED}"
            variant = replace(task, name=f"{task.name}.{kind}", perturbation=source)
            task_variants.append((variant, Examples(rows, count=len(rows))))
    return task_variants


def figures(clean_rights: Rights, variants: Sequence[Variant], rights: Sequence[Rights]) -> dict[str, Any]:
    """{"skipped", "clean", one for each perturbation, "mean", "worst"}: accuracies with intervals; a perturbation also has
    `changed`, how many examples it changed, and `difference` to clean.

    `rights`: for each variant, which of its examples are right. An example that could not be scored under one of them, because
    it became too long, is skipped in every figure.
    """
    by_kind = {task.perturbation.split()[0]: of_variant for (task, _), of_variant in zip(variants, rights, strict=True)}
    skipped = {
        row.number
        for (_, examples), of_variant in zip(variants, rights, strict=True)
        for row in examples.rows
        if row.number not in of_variant
    }
    scored = sorted(clean_rights.keys() - skipped)
    clustered = bool(variants and variants[0][0].settings.group)
    groups = [clean_rights[number][1] for number in scored] if clustered else None
    clean_values = [clean_rights[number][0] for number in scored]
    result: dict[str, Any] = {"skipped": len(clean_rights.keys() & skipped), "clean": metrics.mean_interval(clean_values, groups)}
    if not scored:
        return result
    columns = [clean_values]
    for kind, perturbed_rights in by_kind.items():
        perturbed_values = [perturbed_rights.get(number, clean_rights[number])[0] for number in scored]
        columns.append(perturbed_values)
        result[kind] = metrics.mean_interval(perturbed_values, groups) | {
            "changed": len(perturbed_rights.keys() & clean_rights.keys()),
            "difference": metrics.compare(perturbed_values, clean_values, groups),
        }
    if by_kind:
        means = [sum(row) / len(row) for row in zip(*columns[1:], strict=True)]
        result["mean"] = metrics.mean_interval(means, groups)
        result["worst"] = metrics.mean_interval([min(row) for row in zip(*columns, strict=True)], groups)
    return result


def rows_of_table(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each model, in per cent: every accuracy, and its difference to the clean one."""
    kinds = [
        kind for kind in ("clean", *PERTURBATIONS, "mean", "worst") if any(kind in result["robustness"] for result in results)
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
