"""Instruments of length and form: whether a reward, a preference or a training is about more than how long answers are.

Singhal et al. 2023 found that 70 to 90 % of what PPO gains in reward is length. So every comparison says how long answers
are, whether they end, how rewards go with length, and who wins at equal length.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from groundup.core.statistics import wilson, win_rate

EQUAL_LENGTH_MARGIN = 0.1  # lengths that differ by at most this share of the longer one are equal
RIDGE = 1.0  # pulls the slopes of length and difficulty to zero: scikit-learn's C = 1
# From which on `concerns` warns: the drop in the share that ends, the growth of the length, the correlation of reward and length.
ENDED_DROP, LENGTH_GROWTH, REWARD_CORRELATION = 0.2, 1.5, 0.5


def correlation(rewards: Sequence[float], lengths: Sequence[float]) -> float:
    """Pearson's, from -1 to 1; 0 where one of them does not vary."""
    x, y = np.asarray(rewards, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if len(x) < 2 or not x.std() or not y.std():
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def at_equal_length(outcomes: Sequence[float], ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """`win_rate` of the comparisons whose two answers are equally long."""
    return win_rate(
        [
            outcome
            for outcome, our_length, their_length in zip(outcomes, ours, theirs, strict=True)
            if abs(our_length - their_length) <= EQUAL_LENGTH_MARGIN * max(our_length, their_length)
        ]
    )


def length_controlled(
    outcomes: Sequence[float], ours: Sequence[float], theirs: Sequence[float], difficulty: Sequence[float] | None = None
) -> dict[str, float]:
    """The win rate if both models' answers were equally long: {"win_rate", "low", "high", "n"}.

    The generalised linear model of AlpacaEval 2 (Dubois et al. 2024):

        P(ours is preferred) = sigmoid(theta + phi tanh((ours - theirs) / std(ours - theirs)) + psi difficulty)

    outcomes: 1, 0.5 or 0, or any preference in between; ours, theirs: lengths of the two answers; difficulty: of each
    prompt, as `instruction_difficulty` finds it; without, its term is left out, as in AlpacaEval's minimal model. The
    result is the mean with the length's term at zero; its interval is Wilson's of as many comparisons as have the variance of
    the coefficients (a sandwich, so ties count) and of the prompts.
    Raises ValueError without a comparison.
    """
    y = np.asarray(outcomes, dtype=np.float64)
    n = len(y)
    if not n:
        raise ValueError("length_controlled needs at least one comparison")
    terms = [np.ones(n), _length_term(ours, theirs)]
    if difficulty is not None:
        terms.append(np.asarray(difficulty, dtype=np.float64))
    x = np.stack(terms, axis=1)
    coefficients, curvature = _logistic(x, y, unpenalised=1)
    equal = x.copy()
    equal[:, 1] = 0.0
    probabilities = _sigmoid(equal @ coefficients)
    rate = float(probabilities.mean())
    scores = x * (y - _sigmoid(x @ coefficients))[:, None]
    slope = np.linalg.solve(curvature, (equal * (probabilities * (1 - probabilities))[:, None]).mean(axis=0))
    variance = float(np.square(scores @ slope).sum() + probabilities.var() / n)
    low, high = wilson(rate * (size := rate * (1 - rate) / variance if variance > 0 else n), size)
    return {"win_rate": rate, "low": low, "high": high, "n": n}


def instruction_difficulty(
    outcomes: Sequence[Sequence[float]], ours: Sequence[Sequence[float]], theirs: Sequence[float]
) -> np.ndarray:
    """How much easier or harder each prompt is (prompts,), from several models' comparisons with one baseline.

    outcomes, ours: (models, prompts); theirs: the baseline's lengths (prompts,). It is the term gamma of a prompt in
    sigmoid(theta of the model + phi of the model x length + gamma of the prompt), with a mean of 0: above it the models
    win more often.
    """
    y = np.asarray(outcomes, dtype=np.float64)
    models, prompts = y.shape
    blocks = np.repeat(np.eye(models), prompts, axis=0)
    terms = np.concatenate([_length_term(lengths, theirs) for lengths in ours])
    x = np.concatenate((blocks, blocks * terms[:, None], np.tile(np.eye(prompts), (models, 1))), axis=1)
    gamma = _logistic(x, y.ravel(), unpenalised=models)[0][2 * models :]
    return gamma - gamma.mean()


def length_comparison(
    outcomes: Sequence[float], ours: Sequence[tuple[str, bool]], theirs: Sequence[tuple[str, bool]]
) -> dict[str, Any]:
    """All the instruments on two models' answers (text, whether it ended); outcomes: 1, 0.5 or 0 by who is preferred.

    Lengths are words. "longer_wins": how often the longer answer is the preferred one, where they differ in both.
    """
    words, baseline_words = ([len(text.split()) for text, _ in answers] for answers in (ours, theirs))
    decided = [
        float((outcome > 0.5) == (our_length > their_length))
        for outcome, our_length, their_length in zip(outcomes, words, baseline_words, strict=True)
        if outcome != 0.5 and our_length != their_length
    ]
    return {
        "win_rate_at_equal_length": at_equal_length(outcomes, words, baseline_words),
        "length_controlled": length_controlled(outcomes, words, baseline_words),
        "longer_wins": win_rate(decided),
        "ended": float(np.mean([ended for _, ended in ours])),
        "baseline_ended": float(np.mean([ended for _, ended in theirs])),
    }


def concerns(first: dict[str, float], last: dict[str, float]) -> list[str]:
    """What is wrong with the form of a training's answers, by its first and last rollout, in sentences."""
    messages = []
    if last["ended"] < first["ended"] - ENDED_DROP:
        messages.append(
            f"Answers stop ending: {last['ended']:.0%} of the last rollout ended by themselves, {first['ended']:.0%} before."
        )
    with_length = max(metrics["reward_length_correlation"] for metrics in (first, last))  # at the limit lengths do not vary
    if last["length"] > LENGTH_GROWTH * first["length"] and with_length > REWARD_CORRELATION:
        messages.append(
            f"Reward goes with length: answers grew from {first['length']:.1f} to {last['length']:.1f} tokens, and longer ones "
            f"earn more (correlation {with_length:.2f})."
        )
    return messages


def _length_term(ours: Sequence[float], theirs: Sequence[float]) -> np.ndarray:
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return np.tanh(difference / (difference.std() or 1.0))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _logistic(x: np.ndarray, y: np.ndarray, unpenalised: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of a logistic regression on outcomes from 0 to 1, by Newton's method, and the curvature of its loss there.

    All but the first `unpenalised` have a ridge of RIDGE. That of the first is 1e-6, too small to change results: without any,
    an intercept would diverge where one side always wins.
    """
    ridge = np.full(x.shape[1], RIDGE)
    ridge[:unpenalised] = 1e-6
    coefficients = np.zeros(x.shape[1])
    for _ in range(50):
        p = _sigmoid(x @ coefficients)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(curvature, x.T @ (p - y) + ridge * coefficients)
        coefficients = coefficients - np.clip(step, -2, 2)  # a full step overshoots where the loss is nearly flat
        if np.abs(step).max() < 1e-9:
            break
    return coefficients, curvature
