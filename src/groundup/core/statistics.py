"""Intervals: no figure without its uncertainty.

Every interval is two-sided at 95 %, and treats its values as independent draws.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

Z95 = 1.96  # deviations of the normal distribution around its mean that hold 95 %
_RESAMPLED_VALUES = 10_000_000  # values held at once while resampling: 80 MB of float64


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Wilson's (1927) score interval for a proportion, within [0, 1]; (0, 1) when n is 0.

    Unlike the textbook p ± z·sqrt(p(1-p)/n) it keeps its coverage near 0 and 1 and for small n.
    """
    if n == 0:
        return 0.0, 1.0
    share, z = successes / n, Z95
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the bound is the proportion itself, which rounding would miss by 1e-17.
    return (0.0 if successes == 0 else max(centre - half, 0.0)), (1.0 if successes == n else min(centre + half, 1.0))


def proportion(successes: float, n: int) -> dict[str, float]:
    """{"accuracy", "low", "high", "n"} with Wilson's interval."""
    low, high = wilson(successes, n)
    return {"accuracy": successes / n if n else math.nan, "low": low, "high": high, "n": n}


def bootstrap(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[..., Any] = np.mean,
    seed: int = 0,
    draws: int = 2000,
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of a statistic of values [n, ...] resampled with replacement.

    `statistic` is called as `statistic(resampled, axis=1)` on [draws, n, ...], some draws at once, and gives a number per draw.
    The interval of one value, of which every draw is the same, is infinite. Raises ValueError without values.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("bootstrap needs at least one value")
    if len(array) == 1:
        return -math.inf, math.inf
    generator = np.random.default_rng(seed)
    draws_at_once = max(1, _RESAMPLED_VALUES // array.size)
    estimates = [
        statistic(array[generator.integers(len(array), size=(min(draws_at_once, draws - start), len(array)))], axis=1)
        for start in range(0, draws, draws_at_once)
    ]
    low, high = np.percentile(np.concatenate(estimates), [2.5, 97.5])
    return float(low), float(high)


def difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Of two measures of the same items, the mean of ours less theirs: {"difference", "low", "high", "n"}.

    The bootstrap draws pairs, so items that are hard or easy for both alike add nothing to the interval. Of right and wrong the
    interval is Bonett and Price's, as a few pairs without a difference prove no equality. Without pairs the difference is NaN;
    with fewer than two the interval is infinite. Raises ValueError for sequences of different lengths.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"difference takes pairs, not {len(ours)} and {len(theirs)} values")
    if not len(ours):
        return {"difference": math.nan, "low": -math.inf, "high": math.inf, "n": 0}
    values = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if len(values) > 1 and set(np.unique(values)) <= {-1.0, 0.0, 1.0}:
        centre, error = paired_shares(int((values > 0).sum()), int((values < 0).sum()), len(values))
        low, high = max(-1.0, centre - Z95 * error), min(1.0, centre + Z95 * error)
    else:
        low, high = bootstrap(values, seed=seed)
    return {"difference": float(values.mean()), "low": low, "high": high, "n": len(values)}


def paired_shares(wins: int, losses: int, n: int) -> tuple[float, float]:
    """The difference of two shares of n paired items and its standard error (Bonett and Price 2012): one pair is added to the
    wins and one to the losses, so the error is above zero where all pairs are equal."""
    centre = (wins - losses) / (n + 2)
    return centre, math.sqrt(((wins + losses + 2) / (n + 2) - centre**2) / (n + 2))


def win_rate(outcomes: Sequence[float]) -> dict[str, float]:
    """Of paired comparisons, 1 for a win, 0.5 for a tie and 0 for a loss: {"win_rate", "low", "high", "n", "ties"}.

    A tie counts half a win. The interval is Wilson's over the decided pairs, as in a sign test, rescaled: with a
    share d of pairs decided, and p of those won, the win rate is 1/2 + d (p - 1/2). Where all are ties, d is the highest share
    that Wilson's interval of none of n holds: few ties do not show that the sides are equal.
    """
    if any(outcome not in (0, 0.5, 1) for outcome in outcomes):
        raise ValueError("win_rate takes outcomes of 0 (loss), 0.5 (tie) and 1 (win)")
    n, wins, ties = len(outcomes), sum(outcome == 1 for outcome in outcomes), sum(outcome == 0.5 for outcome in outcomes)
    if not n:
        return {"win_rate": math.nan, "low": 0.0, "high": 1.0, "n": 0, "ties": 0}
    decided = (n - ties) / n if ties < n else wilson(0, n)[1]
    low, high = (0.5 + decided * (bound - 0.5) for bound in wilson(wins, n - ties))
    return {"win_rate": sum(outcomes) / n, "low": low, "high": high, "n": n, "ties": ties}


def students_tail(t: float, freedom: int) -> float:
    """Probability that Student's t with `freedom` degrees of freedom is at least `t`, accurate for small tails too (1e-300).

    Half of the regularised incomplete beta function of freedom / (freedom + t^2), by its continued fraction (Lentz 1976).
    Raises ValueError for no degree of freedom.
    """
    if freedom < 1:
        raise ValueError("Student's t has one degree of freedom at least")
    if not math.isfinite(t):
        return math.nan if math.isnan(t) else float(t < 0)
    a, b, x = freedom / 2, 0.5, freedom / (freedom + t * t)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    turned = x > (a + 1) / (a + b + 2)  # where the fraction of the other side needs fewer terms
    if turned:
        a, b, x = b, a, t * t / (freedom + t * t)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a if 0 < x < 1 else 0.0
    share = front / _lentz(a, b, x) if front else float(x == 1)
    half = (1 - share if turned else share) / 2
    return half if t > 0 else 1 - half


@cache
def students_z95(freedom: int) -> float:
    """Deviations of Student's t around its mean that hold 95 %: 12.71 with one degree of freedom, the normal's 1.96 with many."""
    low, high = 1.9, 13.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if students_tail(middle, freedom) > 0.025 else (low, middle)
    return high


def _lentz(a: float, b: float, x: float) -> float:
    """The continued fraction 1 + d1 / (1 + d2 / (1 + ...)) of the incomplete beta function."""
    value, c, d = 1.0, 1.0, 0.0
    for term in range(1, 300):
        m = term // 2
        if term % 2:
            step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + step * d)
        c = 1 + step / c
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
