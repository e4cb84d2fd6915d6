"""Figures of records with their intervals; two models on the same questions; and calibration.

Questions about one passage or subject are not independent: their errors are summed by cluster before they are squared
(Miller 2024, "Adding Error Bars to Evals"; Liang and Zeger 1986). Without clusters a proportion has Wilson's interval.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from groundup.core.statistics import Z95, paired_shares, students_tail, students_z95, wilson

BINS = 10  # of calibration
MIN_CLUSTERS = 2
POWER, SIGNIFICANCE = 0.8, 0.05


def mean_interval(values: Sequence[float], clusters: Sequence[str] | None = None) -> dict[str, float]:
    """{"accuracy", "low", "high", "n"} at 95 %, and the number of "clusters" if there are at least two.

    For right (1) and wrong (0) it is Wilson's interval, else the normal one, within [0, 1]. NaN without values.
    """
    array = np.asarray(values, np.float64)
    n = len(array)
    if not n:
        return {"accuracy": math.nan, "low": 0.0, "high": 1.0, "n": 0}
    mean, error = float(array.mean()), standard_error(array, clusters)
    result = {"accuracy": mean, "n": n} | ({"clusters": len(set(clusters or ()))} if _has_clusters(clusters) else {})
    if set(np.unique(array)) <= {0.0, 1.0}:
        # Clustered questions are worth fewer independent ones: as many as would have this error.
        effective_n = min(n, mean * (1 - mean) / error**2) if _has_clusters(clusters) and error else n
        low, high = wilson(mean * effective_n, effective_n)
    else:
        half_width = Z95 * error if n > 1 else 1.0  # of one value nothing is known
        low, high = max(0.0, mean - half_width), min(1.0, mean + half_width)
    return result | {"low": low, "high": high}


def standard_error(values: Sequence[float] | np.ndarray, clusters: Sequence[str] | None = None) -> float:
    """Of a mean. By cluster: sqrt(sum over clusters of (sum of the cluster's deviations)^2) / n. 0 for fewer than two values."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return 0.0
    deviations = array - array.mean()
    if not _has_clusters(clusters):
        return float(np.sqrt((deviations**2).sum() / (len(array) - 1) / len(array)))
    _, numbers = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(numbers, weights=deviations)
    return float(np.sqrt((sums**2).sum()) / len(array))


def _has_clusters(clusters: Sequence[str] | None) -> bool:
    return clusters is not None and MIN_CLUSTERS <= len(set(clusters)) < len(clusters)


def macro(values: Sequence[float], groups: Sequence[str]) -> float | None:
    """The mean of the groups' means, in which a small subject counts as much as a large one; None for one group."""
    if len(set(groups)) < 2:
        return None
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return float((np.bincount(numbers, weights=np.asarray(values, np.float64)) / np.bincount(numbers)).mean())


def compare(ours: Sequence[float], theirs: Sequence[float], clusters: Sequence[str] | None = None) -> dict[str, Any]:
    """Two models on the same questions: {"difference", "low", "high", "p", "n", "n_to_tell"}.

    What is hard or easy for both models does not widen the interval. For right and wrong the interval is Bonett and Price's
    (2012), which has a width even where all pairs are equal; p is two-sided, by the sign test (McNemar's, exact). With clusters
    both are by Student's t with the number of clusters, but never more certain than without clusters. For other values both are
    by Student's t; one pair proves nothing.
    `n_to_tell`: how many questions would show such a difference with a power of 80 %; None for no difference. Raises
    ValueError for different lengths or no values.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"compare takes pairs, not {len(ours)} and {len(theirs)} values")
    values = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    mean, n, clustered = float(values.mean()), len(values), _has_clusters(clusters)
    wins, losses = int((values > 0).sum()), int((values < 0).sum())
    p = sign_test(wins, losses)
    is_binary = set(np.unique(values)) <= {-1.0, 0.0, 1.0}
    centre, error, adjusted_n = mean, standard_error(values) if n > 1 else math.inf, n
    if is_binary:
        adjusted_n = n + 2
        centre, error = paired_shares(wins, losses, n)
    if clustered:
        error = max(error, standard_error(values, clusters))
    z = Z95
    if (clustered or not is_binary) and 0 < error < math.inf:
        degrees_of_freedom = len(set(clusters or ())) - 1 if clustered else n - 1
        z = students_z95(degrees_of_freedom)
        p_of_t = min(1.0, 2 * students_tail(abs(mean) / error, degrees_of_freedom))
        p = max(p, p_of_t) if is_binary else p_of_t
    low, high = centre - z * error, centre + z * error
    if np.abs(values).max() <= 1:  # differences of shares
        low, high = max(low, -1.0), min(high, 1.0)
    return {
        "difference": mean, "low": low, "high": high, "p": p, "n": n,
        "n_to_tell": questions_to_tell(mean, error * math.sqrt(adjusted_n)) if error < math.inf else None,
    }  # fmt: skip


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of so many wins among decided pairs, if wins and losses were equally likely."""
    n, fewer = wins + losses, min(wins, losses)
    if not n or wins == losses:
        return 1.0
    # Logarithms, since 2^-n underflows from 1,075 pairs on.
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def questions_to_tell(difference: float, deviation: float) -> int | None:
    """How many pairs show a difference at 5 % with a power of 80 %, if pairs have this standard deviation."""
    if not difference:
        return None
    normal = NormalDist()
    z = normal.inv_cdf(1 - SIGNIFICANCE / 2) + normal.inv_cdf(POWER)
    return max(1, math.ceil((z * deviation / difference) ** 2))


def calibration(probabilities: Sequence[Sequence[float]], right: Sequence[int], bins: int = BINS) -> dict[str, Any]:
    """{"ece", "adaptive_ece", "brier", "bins": [{"confidence", "accuracy", "n"}]} of probabilities over the choices.

    ece: bins of equal width over the confidence in the choice (Guo et al. 2017); adaptive_ece: bins of equally many questions
    (Nguyen and O'Connor 2015). brier: the mean of the squared distances to the right answer, summed over the choices, 0 to 2.
    Raises ValueError without questions.
    """
    if not len(right) or len(probabilities) != len(right):
        raise ValueError("calibration takes as many questions as right answers, one at least")
    confidences = np.array([max(row) for row in probabilities])
    hits = np.array([int(np.argmax(row)) == answer for row, answer in zip(probabilities, right, strict=True)], float)
    brier = np.mean([
        sum((p - (choice == answer)) ** 2 for choice, p in enumerate(row))
        for row, answer in zip(probabilities, right, strict=True)
    ])  # fmt: skip
    # A confidence on a border belongs to the bin below, as in Guo et al., and 0 to the first; in torchmetrics to the bin above.
    bin_numbers = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    equal_width = [bin_numbers == number for number in range(bins)]
    order = np.argsort(confidences, kind="stable")
    equal_mass = np.array_split(order, min(bins, len(order)))
    return {
        "ece": _calibration_error(confidences, hits, equal_width),
        "adaptive_ece": _calibration_error(confidences, hits, equal_mass),
        "brier": float(brier),
        "bins": [
            {"confidence": float(confidences[members].mean()), "accuracy": float(hits[members].mean()), "n": int(members.sum())}
            for members in equal_width
            if members.any()
        ],
    }


def _calibration_error(confidences: np.ndarray, hits: np.ndarray, bins: Sequence[np.ndarray]) -> float:
    gaps = [abs(float((hits[members] - confidences[members]).sum())) for members in bins if len(confidences[members])]
    return sum(gaps) / len(hits)


def softmax(nats: Sequence[float]) -> list[float]:
    """Probabilities of the choices, given that one of them comes."""
    values = np.exp(np.asarray(nats) - max(nats))
    return [float(value) for value in values / values.sum()]


def baselines(counts: Sequence[int], answers: Sequence[int], lengths: Sequence[Sequence[int]]) -> dict[str, float]:
    """Baselines without a model: {"chance", "constant", "longest"}, the accuracies of a random choice, of the index that is
    right most often, and of the longest text (the first of equals)."""
    chance = float(np.mean([1 / count for count in counts]))
    constant = max(answers.count(index) for index in set(answers)) / len(answers)
    longest = float(np.mean([int(np.argmax(row)) == answer for row, answer in zip(lengths, answers, strict=True)]))
    return {"chance": chance, "constant": constant, "longest": longest}


def mean_value(values: Sequence[float], clusters: Sequence[str] | None = None) -> dict[str, float]:
    """{"value", "low", "high", "n"}: `mean_interval` for figures other than accuracies."""
    result = mean_interval(values, clusters)
    return {"value": result.pop("accuracy"), **result}
