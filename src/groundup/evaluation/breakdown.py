"""Figures of parts of the examples, such as the categories of a bias or the gender of a pronoun, and the gap between two."""

import math
from collections.abc import Sequence
from typing import Any

from groundup.core.statistics import wilson
from groundup.evaluation import metrics


def figures(marks: Sequence[dict[str, str]], rights: Sequence[float], groups: Sequence[str] | None) -> dict[str, Any]:
    """For each name in the marks of the examples, {value: figure}; where it has two values, also `difference` of the first
    in the alphabet less the second.
    """
    found: dict[str, Any] = {}
    for name in sorted({name for one in marks for name in one}):
        places: dict[str, list[int]] = {}
        for place, one in enumerate(marks):
            if name in one:
                places.setdefault(one[name], []).append(place)
        parts = {
            value: metrics.mean_interval([rights[n] for n in some], groups and [groups[n] for n in some])
            for value, some in sorted(places.items())
        }
        found[name] = {"parts": parts}
        if len(parts) == 2:
            found[name]["difference"] = gap(*([rights[n] for n in places[value]] for value in parts)) | {"of": [*parts]}
    return found


def gap(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """{"difference", "low", "high"} of two proportions, of different questions (Newcombe 1998, method 10).

    For the same questions in two wordings it is wider than it need be: `metrics.compare` is for pairs.
    """
    (p, low, high), (q, low_of_q, high_of_q) = ((sum(v) / len(v), *wilson(sum(v), len(v))) for v in (ours, theirs))
    return {
        "difference": p - q,
        "low": p - q - math.hypot(p - low, high_of_q - q),
        "high": p - q + math.hypot(high - p, q - low_of_q),
    }


def rows_of_table(name: str, results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each model, in per cent, with a column for each part. Not every model has been scored on every part."""
    given = [one.get("by", {}).get(name, {"parts": {}}) for one in results]
    parts = sorted({part for one in given for part in one["parts"]})
    two = all("difference" in one for one in given)
    rows = [[f"by {name}", *parts, *(["difference"] if two else [])]]
    for result, found in zip(results, given, strict=True):
        cells = []
        for part in parts:
            figure = found["parts"].get(part)
            cells.append(f"{100 * figure['accuracy']:.1f} ±{50 * (figure['high'] - figure['low']):.1f}" if figure else "")
        if two:
            one = found["difference"]
            cells.append(f"{100 * one['difference']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})")
        rows.append([result["label"], *cells])
    return rows
