"""How far annotators agree, with one another and with known answers, and how biased they are.

`ratings` is an array of integers [items, raters]: a category, or -1 where a rater did not judge an item. A figure that is not
defined, as the agreement of one rater, or any chance-corrected one where all say the same, is nan.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from groundup.core.statistics import wilson

Ratings = np.ndarray


def ratings_table(votes: Sequence[tuple[str, str, str]]) -> tuple[Ratings, list[str], list[str]]:
    """(ratings, raters, categories) of votes (item, rater, category), each in the order of the names."""
    items, raters, categories = (sorted({vote[column] for vote in votes}) for column in range(3))
    indices = [{name: index for index, name in enumerate(names)} for names in (items, raters, categories)]
    ratings = np.full((len(items), len(raters)), -1, dtype=np.int64)
    for item, rater, category in votes:
        ratings[indices[0][item], indices[1][rater]] = indices[2][category]
    return ratings, raters, categories


def raw_agreement(ratings: Ratings) -> float:
    """Share of pairs of judgements of one item that are equal."""
    counts = _counts(ratings)
    sizes = counts.sum(1)
    possible = (sizes * (sizes - 1)).sum()
    return float((counts * (counts - 1)).sum() / possible) if possible else math.nan


def cohen_kappa(first: Ratings, second: Ratings) -> float:
    """Of two raters ([items] each), over the items that both judged (Cohen 1960)."""
    both = (first >= 0) & (second >= 0)
    x, y = first[both], second[both]
    if not len(x):
        return math.nan
    categories = np.arange(max(x.max(), y.max()) + 1)
    chance = sum(float((x == category).mean() * (y == category).mean()) for category in categories)
    return _beyond_chance(float((x == y).mean()), chance)


def fleiss_kappa(ratings: Ratings) -> float:
    """Of any number of raters (Fleiss 1971), over the items with two judgements at least, which may differ in how many."""
    counts = _counts(ratings)
    counts = counts[counts.sum(1) >= 2]
    if not len(counts):
        return math.nan
    sizes = counts.sum(1)
    agreed = (counts * (counts - 1)).sum(1) / (sizes * (sizes - 1))
    shares = (counts / sizes[:, None]).mean(0)
    return _beyond_chance(float(agreed.mean()), float((shares**2).sum()))


def krippendorff_alpha(ratings: Ratings) -> float:
    """For nominal categories (Krippendorff 2011), over the items with two judgements at least.

    1 less the observed share of unequal pairs over the share where all judgements are paired whatever their item.
    """
    counts = _counts(ratings)
    counts = counts[counts.sum(1) >= 2]
    n = int(counts.sum())
    if not n:
        return math.nan
    sizes = counts.sum(1)
    unequal = ((sizes[:, None] - counts) * counts / (sizes[:, None] - 1)).sum() / n
    totals = counts.sum(0)
    expected = float((totals * (n - totals)).sum()) / (n * (n - 1))
    return 1 - float(unequal) / expected if expected else math.nan


def _counts(ratings: Ratings) -> np.ndarray:
    """[items, categories]: how many raters chose each category."""
    categories = int(ratings.max(initial=-1)) + 1
    return np.stack([(ratings == code).sum(1) for code in range(categories)], 1) if categories else np.zeros((0, 1), np.int64)


def _beyond_chance(observed: float, chance: float) -> float:
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def share(hits: Sequence[bool]) -> dict[str, float]:
    """{"share", "low", "high", "n"} with Wilson's interval at 95 %."""
    low, high = wilson(sum(hits), len(hits))
    return {"share": sum(hits) / len(hits) if hits else math.nan, "low": low, "high": high, "n": len(hits)}


def longer_chosen(judgements: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How often the answer with more words was chosen, of those judged better whose lengths differ: 0.5 is no bias."""
    longer_was_chosen = []
    for event in judgements:
        a, b = len(event["a"].split()), len(event["b"].split())
        if event["choice"] in ("a", "b") and a != b:
            longer_was_chosen.append((event["choice"] == "a") == (a > b))
    return share(longer_was_chosen)


def left_chosen(judgements: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How often the answer on the left was chosen, where either was: 0.5 is no bias, since sides are random."""
    return share([event["choice"] == event["shown_left"] for event in judgements if event["choice"] in ("a", "b")])


def agrees_with_gold(judgements: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of judgements of pairs whose answer is known."""
    return share([event["choice"] == event["gold"] for event in judgements if event.get("gold")])


def summary(judgements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All figures, of judgements as the labelling log has them; skips do not count."""
    judged = [event for event in judgements if event["choice"] != "skip"]
    ratings, raters, _ = ratings_table([(event["pair_id"], event["annotator"], event["choice"]) for event in judged])
    columns = list(enumerate(raters))
    by_annotator = {name: [event for event in judged if event["annotator"] == name] for name in raters}
    return {
        "raw_agreement": raw_agreement(ratings),
        "cohen_kappa": {f"{x}, {y}": cohen_kappa(ratings[:, i], ratings[:, j]) for (i, x), (j, y) in combinations(columns, 2)},
        "fleiss_kappa": fleiss_kappa(ratings),
        "krippendorff_alpha": krippendorff_alpha(ratings),
        **_biases(judged),
        "annotators": {name: {"judgements": len(own), **_biases(own)} for name, own in by_annotator.items()},
    }


def _biases(judgements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "gold": agrees_with_gold(judgements), "longer_chosen": longer_chosen(judgements), "left_chosen": left_chosen(judgements)
    }  # fmt: skip
