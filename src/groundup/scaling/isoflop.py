"""Chinchilla's approaches 1 and 2: the best size for each amount of compute, read off the runs, and a line through these.

Both end in N_opt = G C^a, with an interval from resampled runs. Approach 2 is biased even without noise: a parabola over
log N is no section through the law unless alpha = beta, so its lowest point is off by an amount that depends on the grid's
width and middle (arXiv 2603.22339); the tests show that on simulated runs. Both are for comparison; plan with `laws.fit`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from groundup.scaling.laws import DRAWS, bootstrap_counts, with_interval
from groundup.scaling.run_table import Runs

SAME_COMPUTE = 0.1  # of the operations: runs that differ by less share a budget
FEWEST_SIZES = 4  # of a parabola


@dataclass(frozen=True)
class Line:
    """log N = log G + a log C. optima: (compute, size) of each budget that the line goes through."""

    a: dict[str, float] | None  # value and interval, None where it cannot be known
    factor: float
    optima: list[tuple[float, float]]
    skipped: int  # budgets without a lowest point inside
    reason: str = ""

    def summary(self) -> dict[str, Any]:
        return {"a": self.a, "budgets": len(self.optima), "skipped": self.skipped, "reason": self.reason}


def approach1(runs: Runs, draws: int = DRAWS, seed: int = 0) -> Line:
    """The envelope: the runs that have less loss than every run of no more compute."""
    return _line(runs, lambda sample: (_envelope(sample), 0), draws, seed)


def approach2(runs: Runs, draws: int = DRAWS, seed: int = 0) -> Line:
    """The lowest point of a parabola of loss over log N for each budget of operations."""
    return _line(runs, _lowest_points, draws, seed)


def budgets(flop: np.ndarray) -> list[np.ndarray]:
    """Indices of the runs of each budget, from the smallest: those within SAME_COMPUTE of their first."""
    order, groups = np.argsort(flop, kind="stable"), []
    for index in order:
        if groups and flop[index] <= flop[groups[-1][0]] * (1 + SAME_COMPUTE):
            groups[-1].append(index)
        else:
            groups.append([index])
    return [np.array(group) for group in groups]


def _line(runs: Runs, find_optima: Callable[[Runs], tuple[list[tuple[float, float]], int]], draws: int, seed: int) -> Line:
    optima, skipped = find_optima(runs)
    slope, factor = _regressed(optima)
    if not np.isfinite(slope):
        return Line(None, float("nan"), optima, skipped, f"{len(optima)} budgets with a best size inside; a line needs 3")
    slopes = []
    for weights in bootstrap_counts(len(runs), draws, seed):
        resampled_optima, _ = find_optima(runs.where(np.repeat(np.arange(len(runs)), weights.astype(int))))
        slopes.append(_regressed(resampled_optima)[0])
    finite_slopes = np.array([value for value in slopes if np.isfinite(value)])
    if len(finite_slopes) < 0.9 * draws:
        reason = f"only {len(finite_slopes)} of {draws} resamplings have 3 budgets with a best size: no interval, so no exponent"
        return Line(None, float("nan"), optima, skipped, reason)
    return Line(with_interval(slope, finite_slopes), factor, optima, skipped)


def _regressed(optima: list[tuple[float, float]]) -> tuple[float, float]:
    if len(optima) < 3:
        return float("nan"), float("nan")
    x, y = np.log(np.array(optima)).T
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return float(slope), float(np.exp(y.mean() - slope * x.mean()))


def _envelope(runs: Runs) -> list[tuple[float, float]]:
    optima, lowest = [], np.inf
    for index in np.lexsort((runs.loss, runs.flop)):
        if runs.loss[index] < lowest:
            lowest = runs.loss[index]
            optima.append((float(runs.flop[index]), float(runs.parameters[index])))
    return optima


def _lowest_points(runs: Runs) -> tuple[list[tuple[float, float]], int]:
    """(compute, size) of each budget, and how many budgets with enough sizes have no lowest point among them."""
    optima, skipped = [], 0
    for group in budgets(runs.flop):
        x = np.log(runs.parameters[group])
        if len(np.unique(np.round(x, 3))) < FEWEST_SIZES:
            continue
        middle = x.mean()
        curvature, gradient, _ = np.polyfit(x - middle, runs.loss[group], 2)
        lowest = middle - gradient / (2 * curvature) if curvature > 0 else np.inf
        if x.min() <= lowest <= x.max():
            optima.append((float(np.exp(np.log(runs.flop[group]).mean())), float(np.exp(lowest))))
        else:
            skipped += 1
    return optima, skipped
