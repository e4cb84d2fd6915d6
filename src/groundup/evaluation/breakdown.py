"""Figures of parts of the examples, such as the categories of a bias or the gender of a pronoun, and the gap between two."""

import math
from collections.abc import Sequence
from typing import Any

from groundup.core.statistics import wilson
from groundup.evaluation import metrics


def figures(labels: Sequence[dict[str, str]], rights: Sequence[float], groups: Sequence[str] | None) -> dict[str, Any]:
    """`labels`: for each example {name: value}. For each name {"parts": {value: figure}}; where it has two values, also
    `difference`, of the first in the alphabet less the second.
    """
    breakdown: dict[str, Any] = {}
    for name in sorted({name for example_labels in labels for name in example_labels}):
        indices_of: dict[str, list[int]] = {}
        for index, example_labels in enumerate(labels):
            if name in example_labels:
                indices_of.setdefault(example_labels[name], []).append(index)
        figure_by_value = {
            value: metrics.mean_interval([rights[n] for n in indices], groups and [groups[n] for n in indices])
            for value, indices in sorted(indices_of.items())
        }
        breakdown[name] = {"parts": figure_by_value}
        if len(figure_by_value) == 2:
            difference = gap(*([rights[n] for n in indices_of[value]] for value in figure_by_value))
            breakdown[name]["difference"] = difference | {"of": [*figure_by_value]}
    return breakdown


def gap(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """{"difference", "low", "high"} of two proportions, on different questions (Newcombe 1998, method 10).

    For the same questions in two wordings it is wider than necessary: `metrics.compare` is for pairs.
    """
    (p, p_low, p_high), (q, q_low, q_high) = ((sum(v) / len(v), *wilson(sum(v), len(v))) for v in (ours, theirs))
    return {
        "difference": p - q,
        "low": p - q - math.hypot(p - p_low, q_high - q),
        "high": p - q + math.hypot(p_high - p, q - q_low),
    }


def rows_of_table(name: str, results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each model, in per cent, with a column for each part. A model may lack some parts."""
    breakdowns = [result.get("by", {}).get(name, {"parts": {}}) for result in results]
    parts = sorted({part for breakdown in breakdowns for part in breakdown["parts"]})
    has_difference = all("difference" in breakdown for breakdown in breakdowns)
    rows = [[f"by {name}", *parts, *(["difference"] if has_difference else [])]]
    for result, breakdown in zip(results, breakdowns, strict=True):
        cells = []
        for part in parts:
            figure = breakdown["parts"].get(part)
            cells.append(f"{100 * figure['accuracy']:.1f} ±{50 * (figure['high'] - figure['low']):.1f}" if figure else "")
        if has_difference:
            delta = breakdown["difference"]
            cells.append(f"{100 * delta['difference']:+.1f} ({100 * delta['low']:+.1f} to {100 * delta['high']:+.1f})")
        rows.append([result["label"], *cells])
    return rows
