"""The parametric law of loss over size and data (Hoffmann et al. 2022, approach 3), and its intervals.

    loss = E + (A / N^alpha + B / D^beta)^gamma, gamma 1 unless asked for

N parameters, D tokens, losses in nats per token. What is minimised is Huber's loss of the log of predicted over measured
(delta 1e-3 as there, 0.1 for under 100 runs). For given alpha and beta the law is linear in E, A and B, so a grid over the two
exponents alone finds where to begin: variable projection, which needs no guess at A or B (arXiv 2603.22339). BFGS then refines
all five.
Besiroglu et al. 2024 begin at 4,500 points instead (`by_many_starts`); the tests compare the two.

The resampled runs of a bootstrap are weights on the same rows, so that all of them are fitted at once. Five parameters and
a closed-form gradient do not need scipy, which is a third of the size of all else that groundup installs: `minimise` does many
problems side by side in numpy, where scipy takes them one by one.
"""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.scaling.run_table import Runs

logger = logging.getLogger(__name__)

DELTA = 1e-3  # Hoffmann et al., and Besiroglu et al.
# Of fewer runs each size and length has one or two, and none may be passed over as an outlier: least squares, in effect.
FEW_RUNS, DELTA_OF_FEW = 100, 0.1
DRAWS = 200
FEWEST_RUNS = 8  # five parameters, and some to tell the noise by
OFF_THE_LINE = 0.05  # least spread of log tokens about a line over log sizes: 5 %
EXPONENTS = np.linspace(0.02, 1.5, 38)
# Besiroglu et al.'s starts: log A, log B, log E, alpha, beta.
STARTS = ((0, 5, 10, 15, 20, 25), (0, 5, 10, 15, 20, 25), (-1, -0.5, 0, 0.5, 1), (0, 0.5, 1, 1.5, 2), (0, 0.5, 1, 1.5, 2))
LEAST_EXPONENT, LARGEST_EXPONENT = 0.01, 3.0  # outside these, size or data has no effect on the loss, or all of it at once
LARGEST_SIZE = 1e30
# Off the law by so much of the logarithm, and by so many times the typical residual: a run that blew up, or a wrong entry.
# Of Chinchilla's 234 runs the farthest is off by 0.021, 6 times the typical.
FAR_OFF, TIMES_TYPICAL = 0.1, 10.0
MOST_SAID = 5
HIGHEST_DROPPED = 5  # losses that they leave out
_AT_ONCE = 4_000_000  # numbers held in one array while fitting
NAMES = ("A", "B", "E", "alpha", "beta", "a")
FIELDS = (*NAMES[:5], "gamma")


@dataclass(frozen=True)
class Law:
    """A, B, E, alpha, beta, gamma as arrays (draws,) or numbers."""

    A: Any
    B: Any
    E: Any
    alpha: Any
    beta: Any
    gamma: Any = 1.0

    @property
    def a(self) -> Any:
        """Of N_opt = G (C / 6)^a, the exponent; that of the tokens is 1 - a."""
        return self.beta / (self.alpha + self.beta)

    def loss(self, parameters: Any, tokens: Any) -> Any:
        return self.E + (self.A / parameters**self.alpha + self.B / tokens**self.beta) ** self.gamma

    def optimal_size(self, flop: Any) -> Any:
        """Parameters that make the least loss of so many operations, 6 N D of them."""
        ratio = np.log(self.alpha * self.A / (self.beta * self.B))
        size = (ratio + self.beta * np.log(flop / 6)) / (self.alpha + self.beta)
        return np.exp(np.clip(size, 0, np.log(LARGEST_SIZE)))  # a draw without an optimum has none to overflow with


@dataclass(frozen=True)
class Fit:
    law: Law  # of the runs as they are
    draws: Law  # of resampled runs: arrays (draws,)
    residuals: np.ndarray  # (runs,): log of measured over predicted

    def interval(self, name: str) -> tuple[float, float]:
        return percentiles(getattr(self.draws, name))

    def summary(self) -> dict[str, dict[str, float]]:
        """Each parameter with its 95 % interval."""
        return {name: with_interval(getattr(self.law, name), getattr(self.draws, name)) for name in NAMES}

    def predict(self, parameters: float, tokens: float) -> dict[str, float]:
        """The loss of one more run: {"value", "low", "high"}; the interval holds the doubt of the law and a run's own noise."""
        noise = np.resize(self.residuals - np.median(self.residuals), len(self.draws.E) * 7)  # 7: no multiple of any size
        losses = np.resize(self.draws.loss(parameters, tokens), len(noise)) * np.exp(np.sort(noise)[_shuffled(len(noise))])
        return with_interval(self.law.loss(parameters, tokens), losses)


    def log_outliers(self, runs: Runs) -> None:
        """Log the runs that are so far off that they bend the law, and are no noise."""
        distance = np.abs(self.residuals)
        far = np.flatnonzero(distance > max(FAR_OFF, TIMES_TYPICAL * float(np.median(distance))))
        for index in far[np.argsort(-distance[far])][:MOST_SAID]:
            logger.warning(
                "the run of %.4g parameters and %.4g tokens has a loss of %.4g, the law %.4g: did it blow up, or is an entry "
                "wrong? Mend it or leave it out: it bends the law", runs.parameters[index], runs.tokens[index], runs.loss[index],
                runs.loss[index] / np.exp(self.residuals[index]),
            )  # fmt: skip


def _shuffled(n: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(n)


def percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def with_interval(value: float, draws: np.ndarray) -> dict[str, float]:
    low, high = percentiles(draws)
    return {"value": float(value), "low": low, "high": high}


def fit(runs: Runs, draws: int = DRAWS, seed: int = 0, delta: float | None = None, curved: bool = False) -> Fit:
    """The law of these runs and of `draws` resamplings of them.

    delta: of Huber's loss, by the number of runs if not given. curved: with an exponent gamma of both terms together, as in
    xLSTM's laws (arXiv 2510.02228): where large models gain more from a doubling of tokens than small ones, 1 does not fit.
    Raises UserError where there are too few runs, sizes or numbers of tokens for a law.
    """
    check(runs)
    problem = Problem(runs, delta or (DELTA_OF_FEW if len(runs) < FEW_RUNS else DELTA), curved)
    weights = np.concatenate([np.ones((1, len(runs))), bootstrap_counts(len(runs), draws, seed)])
    points = problem.minimised(problem.starting_points(weights), weights)
    return _finished(problem, runs, points)


def by_many_starts(runs: Runs, draws: int = DRAWS, seed: int = 0) -> Fit:
    """The recipe of Besiroglu et al. 2024: five highest losses out, 4,500 starts; resampled ones begin at the best point."""
    check(runs)
    kept = runs.where(np.sort(np.argsort(runs.loss, kind="stable")[: len(runs) - HIGHEST_DROPPED]))
    check(kept)
    problem = Problem(kept, DELTA)
    starts = problem.centred(np.array(list(itertools.product(*STARTS)), dtype=float))
    ones = np.ones((len(starts), len(kept)))
    # After a few steps most starts are hopeless; only the others are minimised to the end.
    early, values = minimise(lambda points, at: problem.value_and_gradient(points, ones[at]), starts, 15)
    best = early[np.argsort(values)[:60]]
    late, values = minimise(lambda points, at: problem.value_and_gradient(points, ones[at]), best)
    point = late[np.argmin(values)]
    weights = np.concatenate([np.ones((1, len(kept))), bootstrap_counts(len(kept), draws, seed)])
    return _finished(problem, kept, problem.minimised(np.tile(point, (len(weights), 1)), weights))


def check(runs: Runs) -> None:
    """Raises UserError for too few runs, sizes or numbers of tokens, or tokens that are a power of the size."""
    if len(runs) < FEWEST_RUNS:
        without_diverged = f" (without {runs.diverged} diverged)" if runs.diverged else ""
        few = f"{len(runs)} runs{without_diverged}"
        raise UserError(f"{few} are too few for a law of five parameters: give {FEWEST_RUNS} or more")
    for what, values in (("sizes", runs.parameters), ("numbers of tokens", runs.tokens)):
        if len(np.unique(np.round(np.log(values), 2))) < 3:
            raise UserError(f"too few different {what} for a law: these {len(runs)} runs have under 3; add runs of others")
    if runs.loss.max() / runs.loss.min() < 1 + 1e-9:
        raise UserError(f"all {len(runs)} runs have the same loss, {runs.loss[0]:g}: that is no law")
    spread = np.polyfit(np.log(runs.parameters), np.log(runs.tokens), 1, full=True)[1] / len(runs)
    if spread.size and spread[0] < OFF_THE_LINE**2:
        raise UserError(
            f"the tokens of all {len(runs)} runs follow from their sizes, so what comes of either cannot be told apart; "
            "add runs of one size and other lengths"
        )


def bootstrap_counts(runs: int, draws: int, seed: int) -> np.ndarray:
    """How often each run is drawn in each resampling of the bootstrap: (draws, runs)."""
    return np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), draws).astype(float)


def _finished(problem: "Problem", runs: Runs, points: np.ndarray) -> Fit:
    laws = problem.laws(points)
    law = Law(*(float(values[0]) for values in laws))
    for name, value, share in (
        ("size", law.alpha, law.A * runs.parameters**-law.alpha), ("number of tokens", law.beta, law.B * runs.tokens**-law.beta)
    ):  # fmt: skip
        if not 1.05 * LEAST_EXPONENT < value < 0.95 * LARGEST_EXPONENT or np.ptp(share) < 1e-6 * runs.loss.mean():
            raise UserError(f"no law in these {len(runs)} runs: the loss does not fall with the {name}; check the table")
    residuals = np.log(runs.loss / law.loss(runs.parameters, runs.tokens))
    return Fit(law, Law(*(values[1:] for values in laws)), residuals)


class Problem:
    """Huber's loss of log(predicted / measured) over points (log A', log B', log E, alpha, beta, and log gamma where curved).

    A' = A / N0^alpha and B' = B / D0^beta, where N0 and D0 are the geometric means over the runs: around these the five unknowns
    hardly depend on each other, far from them they do.
    """

    def __init__(self, runs: Runs, delta: float, curved: bool = False) -> None:
        log_n, log_d = np.log(runs.parameters), np.log(runs.tokens)
        self.middle = np.array([log_n.mean(), log_d.mean()])
        self.log_n, self.log_d, self.log_loss = log_n - self.middle[0], log_d - self.middle[1], np.log(runs.loss)
        self.delta, self.curved = delta, curved

    def centred(self, starts: np.ndarray) -> np.ndarray:
        """(log A, log B, log E, alpha, beta) -> points."""
        points = starts.copy()
        points[:, :2] -= starts[:, 3:] * self.middle
        return points

    def laws(self, points: np.ndarray) -> list[np.ndarray]:
        scales = np.exp(points[:, :2] + points[:, 3:5] * self.middle)
        return [scales[:, 0], scales[:, 1], np.exp(points[:, 2]), points[:, 3], points[:, 4], np.exp(points[:, 5:].sum(1))]

    def value_and_gradient(self, points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """points (problems, p), weights (problems, runs) -> values (problems,), gradients (problems, p)."""
        a, b, e, alpha, beta = (points[:, [column]] for column in range(5))
        gamma = np.exp(points[:, 5:].sum(1, keepdims=True))  # 1 where it is none of the unknowns
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            parts = np.exp(a - alpha * self.log_n), np.exp(b - beta * self.log_d), np.exp(e)
            inner = parts[0] + parts[1]
            reducible = inner**gamma
            total = reducible + parts[2]
            error = np.log(total) - self.log_loss
            size = np.abs(error)
            huber = np.where(size <= self.delta, 0.5 * error * error, self.delta * (size - 0.5 * self.delta)) / self.delta
            pull = weights * np.clip(error, -self.delta, self.delta) / self.delta / total
            of_n, of_d = (pull * gamma * reducible / inner * part for part in parts[:2])
            gradient = np.stack(
                [
                    of_n.sum(1), of_d.sum(1), pull.sum(1) * parts[2][:, 0],
                    -(of_n * self.log_n).sum(1), -(of_d * self.log_d).sum(1),
                    *([(pull * reducible * gamma * np.log(inner)).sum(1)] if self.curved else []),
                ], axis=1,
            )  # fmt: skip
            runs = weights.sum(1)
            value = (weights * huber).sum(1) / runs
        exponents = points[:, 3:5]
        inside = ((exponents >= LEAST_EXPONENT) & (exponents <= LARGEST_EXPONENT)).all(1) & (np.abs(points[:, 5:]) < 3).all(1)
        value = np.where(np.isfinite(value) & inside, value, np.inf)
        return value, gradient / runs[:, None]

    def starting_points(self, weights: np.ndarray) -> np.ndarray:
        """Where to begin, for each row of weights: the best of a grid of exponents with its linear least squares.

        The squares are those of relative errors. A point of the grid where E, A or B would not be positive is left out.
        """
        grid = EXPONENTS
        u = np.exp(-grid[:, None] * self.log_n)  # (exponents, runs)
        v = np.exp(-grid[:, None] * self.log_d)
        starts = np.empty((len(weights), 5))
        for number, run_weights in enumerate(weights):
            w = run_weights / np.exp(2 * self.log_loss)  # relative errors
            y = np.exp(self.log_loss)
            shape = (len(grid), len(grid))
            total_weight, uy, vy = w.sum(), (u * w) @ y, (v * w) @ y
            normal = np.empty((*shape, 3, 3))
            normal[..., 0, 0], normal[..., 1, 1], normal[..., 2, 2] = total_weight, (u * u @ w)[:, None], (v * v @ w)[None]
            normal[..., 0, 1] = normal[..., 1, 0] = (u @ w)[:, None]
            normal[..., 0, 2] = normal[..., 2, 0] = (v @ w)[None]
            normal[..., 1, 2] = normal[..., 2, 1] = (u * w) @ v.T
            right = np.stack(np.broadcast_arrays(w @ y, uy[:, None], vy[None]), axis=-1)
            normal[..., range(3), range(3)] *= 1 + 1e-12
            theta = np.linalg.solve(normal, right[..., None])[..., 0]
            square = w @ (y * y) - (theta * right).sum(-1)
            square = np.where((theta > 0).all(-1), square, np.inf)
            best = np.unravel_index(np.argmin(square), shape)
            if np.isfinite(square[best]):
                e, a, b = np.log(theta[best])
                starts[number] = a, b, e, grid[best[0]], grid[best[1]]
            else:  # no positive law fits: from where most end
                lowest = float(self.log_loss.min())
                starts[number] = lowest - 2, lowest - 2, lowest - 0.2, 0.35, 0.35
        return np.pad(starts, ((0, 0), (0, int(self.curved))))

    def minimised(self, starts: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The best point from each start with its weights, many at a time."""
        step = max(1, _AT_ONCE // weights.shape[1])
        points_of_chunks = []
        for first in range(0, len(starts), step):
            chunk = weights[first : first + step]
            points, _ = minimise(lambda p, at, chunk=chunk: self.value_and_gradient(p, chunk[at]), starts[first : first + step])
            points_of_chunks.append(points)
        return np.concatenate(points_of_chunks)


Function = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def minimise(function: Function, starts: np.ndarray, iterations: int = 250) -> tuple[np.ndarray, np.ndarray]:
    """BFGS on many problems at once: starts (problems, p) -> points and their values.

    function(points, which) -> values and gradients of those problems. Steps are halved until the value falls (Armijo);
    a problem is done when no step makes it fall by a part in 10^10.
    """
    points = starts.copy()
    which = np.arange(len(points))
    values, slopes = function(points, which)
    inverse = np.tile(np.eye(points.shape[1]), (len(points), 1, 1))
    fresh = np.ones(len(points), bool)  # its inverse Hessian is still the identity
    alive = np.isfinite(values)
    for _ in range(iterations):
        which = np.flatnonzero(alive)
        if not len(which):
            break
        step = -np.einsum("pij,pj->pi", inverse[which], slopes[which])
        fall = (step * slopes[which]).sum(1)
        upward = fall >= 0
        inverse[which[upward]] = np.eye(points.shape[1])
        fresh[which[upward]] = True
        step[upward] = -slopes[which[upward]]
        fall = (step * slopes[which]).sum(1)
        longest = np.abs(step).max(1)
        step *= np.minimum(1, 1 / np.maximum(longest, 1e-300))[:, None]  # no unknown moves by more than 1
        fall = (step * slopes[which]).sum(1)
        length, open_ = np.ones(len(which)), np.ones(len(which), bool)
        for _ in range(18):
            at = np.flatnonzero(open_)
            trial = points[which[at]] + length[at, None] * step[at]
            value, slope = function(trial, which[at])
            good = value <= values[which[at]] + 1e-4 * length[at] * fall[at]
            _take(points, values, slopes, inverse, fresh, alive, which[at[good]], trial[good], value[good], slope[good])
            open_[at[good]] = False
            length[at[~good]] /= 3
            if not open_.any():
                break
        stuck = which[open_]
        restart = ~fresh[stuck]  # once more from the steepest way down
        inverse[stuck[restart]] = np.eye(points.shape[1])
        fresh[stuck[restart]] = True
        alive[stuck[~restart]] = False
    return points, values


def _take(
    points: np.ndarray, values: np.ndarray, slopes: np.ndarray, inverse: np.ndarray, fresh: np.ndarray, alive: np.ndarray,
    which: np.ndarray, point: np.ndarray, value: np.ndarray, slope: np.ndarray,
) -> None:  # fmt: skip
    """Move these problems to `point`, and update their inverse Hessians."""
    s, y = point - points[which], slope - slopes[which]
    product = (s * y).sum(1)
    fine = product > 1e-14 * np.sqrt((s * s).sum(1) * (y * y).sum(1))
    at = which[fine]
    s_f, y_f, rho = s[fine], y[fine], 1 / product[fine]
    eye = np.eye(points.shape[1])
    first = fresh[at]
    scale = product[fine] / np.maximum((y_f * y_f).sum(1), 1e-300)
    inverse[at[first]] = eye * scale[first, None, None]
    fresh[at] = False
    left = eye - rho[:, None, None] * s_f[:, :, None] * y_f[:, None, :]
    inverse[at] = left @ inverse[at] @ left.transpose(0, 2, 1) + rho[:, None, None] * s_f[:, :, None] * s_f[:, None, :]
    alive[which] = values[which] - value > 1e-10 * np.abs(value)
    points[which], values[which], slopes[which] = point, value, slope
