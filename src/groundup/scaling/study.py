"""What a ladder's table tells: the law, how far it can be trusted, and what it predicts of other runs.

Sensitivity: the exponents move with the runs that are fitted, so the law is fitted again without the smallest and without those
of few tokens a parameter, and under each way of counting parameters. Extrapolation: the runs of most compute are held out,
and the law of the rest is scored on them. Batch: where the residuals depend on the batch, a law that leaves the batch out
cannot be trusted.
"""

from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.scaling import isoflop, laws
from groundup.scaling.run_table import Runs

HELD_OUT = 0.1  # of the runs
FEW_TOKENS = (1.0, 5.0)  # a parameter
SENSITIVITY_DRAWS = 100
SAME_BATCH = 1e-3  # doublings: batches that differ by less are the same


def study(runs: Runs, draws: int = laws.DRAWS, seed: int = 0) -> dict[str, Any]:
    """The fit of the runs and every check, as plain data. Raises UserError for too few runs."""
    fitted = laws.fit(runs, draws, seed)
    fitted.log_outliers(runs)
    return {
        "runs": len(runs),
        "diverged": runs.diverged,
        "flop": [float(runs.flop.min()), float(runs.flop.max())],
        "parameters": [float(runs.parameters.min()), float(runs.parameters.max())],
        "tokens": [float(runs.tokens.min()), float(runs.tokens.max())],
        "law": fitted.summary(),
        "residuals": {
            "typical": float(np.median(np.abs(fitted.residuals))), "largest": float(np.abs(fitted.residuals).max())
        },
        "approach1": isoflop.approach1(runs, draws, seed).summary(),
        "approach2": isoflop.approach2(runs, draws, seed).summary(),
        "sensitivity": sensitivity(runs, seed),
        "conventions": conventions(runs, seed),
        "held_out": held_out(runs, draws=draws, seed=seed),
        "batch": batch_effect(runs, fitted, seed),
    }  # fmt: skip


def sensitivity(runs: Runs, seed: int = 0) -> list[dict[str, Any]]:
    """The law of parts of the runs: {"runs_kept", "n", "law"}, or "reason" where a part is too small for one."""
    per_parameter = runs.tokens / runs.parameters
    parts = {
        "all": np.ones(len(runs), bool),
        "without the smallest quarter": runs.parameters > np.quantile(runs.parameters, 0.25),
        "without the quarter of least compute": runs.flop > np.quantile(runs.flop, 0.25),
        **{f"over {limit:g} tokens a parameter": per_parameter > limit for limit in FEW_TOKENS},
    }
    return [{"runs_kept": name, **_law_of(runs.where(mask), seed)} for name, mask in parts.items()]


def conventions(runs: Runs, seed: int = 0) -> list[dict[str, Any]]:
    """The law under each way of counting parameters: column by column of the table."""
    counted = {"parameters": runs, **{name: runs.counted_by(name) for name in runs.counts}}
    return [{"counted": name, **_law_of(recounted, seed)} for name, recounted in counted.items()]


def _law_of(runs: Runs, seed: int) -> dict[str, Any]:
    try:
        return {"n": len(runs), "law": laws.fit(runs, SENSITIVITY_DRAWS, seed).summary()}
    except UserError as error:
        return {"n": len(runs), "reason": str(error)}


def held_out(runs: Runs, share: float = HELD_OUT, draws: int = laws.DRAWS, seed: int = 0) -> dict[str, Any]:
    """The runs of most compute, at least two, predicted from the others: each with its error, and whether it was covered."""
    count = max(2, round(share * len(runs)))
    order = np.argsort(runs.flop, kind="stable")
    smaller, largest = runs.where(order[:-count]), runs.where(order[-count:])
    try:
        fitted = laws.fit(smaller, draws, seed)
    except UserError as error:
        return {"n": count, "reason": str(error)}
    rows = []
    for n, d, loss in zip(largest.parameters, largest.tokens, largest.loss, strict=True):
        predicted = fitted.predict(n, d)
        rows.append(
            {
                "parameters": float(n), "tokens": float(d), "loss": float(loss), "predicted": predicted,
                "error": predicted["value"] / float(loss) - 1, "covered": bool(predicted["low"] <= loss <= predicted["high"]),
            }
        )  # fmt: skip
    errors = np.abs([row["error"] for row in rows])
    return {
        "n": count,
        "compute_beyond": float(largest.flop.max() / smaller.flop.max()),
        "mean_error": float(errors.mean()),
        "largest_error": float(errors.max()),
        "covered": sum(row["covered"] for row in rows),
        "rows": rows,
    }


def batch_effect(runs: Runs, fitted: laws.Fit, seed: int = 0) -> dict[str, Any] | None:
    """The change of loss per doubling of the batch that the law does not explain, with its interval; None without batches."""
    if runs.batch is None or np.ptp(np.log2(runs.batch)) < SAME_BATCH:
        return None
    x, y = np.log2(runs.batch), fitted.residuals

    def slope(weights: np.ndarray) -> float:
        middle, mean = np.average(x, weights=weights), np.average(y, weights=weights)
        spread = np.average((x - middle) ** 2, weights=weights)
        return float(np.average((x - middle) * (y - mean), weights=weights) / spread) if spread > 1e-12 else float("nan")

    slopes = np.array([slope(weights) for weights in laws.bootstrap_counts(len(runs), laws.DRAWS, seed)])
    effect = laws.with_interval(slope(np.ones(len(x))), slopes[np.isfinite(slopes)])
    return effect | {"matters": not effect["low"] <= 0 <= effect["high"]}


def predict(
    fitted: laws.Fit, runs: Runs, parameters: float | None, tokens: float | None, flop: float | None
) -> dict[str, Any]:
    """The loss of one run, or the best size for `flop`, with intervals, and how far beyond the runs that is.

    Raises UserError for other than two of size, tokens and operations, or operations alone.
    """
    given = {"parameters": parameters, "tokens": tokens, "flop": flop}
    known = {name: value for name, value in given.items() if value is not None}
    if known.keys() == {"flop"}:
        assert flop is not None
        sizes = fitted.draws.optimal_size(flop)
        size = laws.with_interval(fitted.law.optimal_size(flop), sizes)
        prediction: dict[str, Any] = {
            "parameters": size, "tokens": laws.with_interval(flop / 6 / size["value"], flop / 6 / sizes),
            "tokens_a_parameter": laws.with_interval(flop / 6 / size["value"] ** 2, flop / 6 / sizes**2),
            "flop": flop, "loss": fitted.predict(size["value"], flop / 6 / size["value"]),
        }  # fmt: skip
        return prediction | {"times_the_largest_run": flop / float(runs.flop.max())}
    if len(known) != 2:
        raise UserError("give two of parameters, tokens and FLOP, or FLOP alone for the best size")
    run_size = known.get("parameters") or known["flop"] / 6 / known["tokens"]
    run_tokens = known.get("tokens") or known["flop"] / 6 / run_size
    run_flop = 6 * run_size * run_tokens
    prediction = {
        "parameters": run_size, "tokens": run_tokens, "flop": run_flop, "loss": fitted.predict(run_size, run_tokens)
    }  # fmt: skip
    return prediction | {"times_the_largest_run": run_flop / float(runs.flop.max())}


def inference_aware(law: laws.Law, loss: float, answered: float) -> dict[str, float]:
    """The size that reaches this loss at the least cost over a lifetime of `answered` tokens (Sardana et al. 2024).

    Training is 6 N D operations and answering 2 N for each token; D is what the loss takes at N. Returns {"parameters",
    "tokens", "flop" (of training and answering), "smaller" (size over that of least training), "saved" (of all operations)}.
    Raises UserError for a loss that the law never reaches.
    """
    if not loss > law.E:
        raise UserError(f"no size reaches a loss of {loss:g}: the law's floor is {law.E:.4g} at any size and number of tokens")
    # Below this size no number of tokens is enough.
    above = (loss - law.E) ** (1 / law.gamma)
    min_size = (law.A / above) ** (1 / law.alpha)
    sizes = min_size * np.exp(np.linspace(1e-3, 15, 20_000))
    with np.errstate(over="ignore"):
        tokens = (law.B / (above - law.A / sizes**law.alpha)) ** (1 / law.beta)
        training, lifetime = 6 * sizes * tokens, 6 * sizes * tokens + 2 * sizes * answered
    best, best_trained = int(np.argmin(lifetime)), int(np.argmin(training))
    return {
        "parameters": float(sizes[best]), "tokens": float(tokens[best]), "flop": float(lifetime[best]),
        "smaller": float(sizes[best] / sizes[best_trained]), "saved": float(1 - lifetime[best] / lifetime[best_trained]),
    }  # fmt: skip


def with_intervals(fitted: laws.Fit, loss: float, answered: float) -> dict[str, Any]:
    """`inference_aware` of the law, with intervals from its draws that reach this loss."""
    optimum = inference_aware(fitted.law, loss, answered)
    draws = []
    for values in zip(*(getattr(fitted.draws, name) for name in laws.NAMES[:5]), strict=True):
        law = laws.Law(*values)
        if loss > law.E:
            draws.append(inference_aware(law, loss, answered))
    intervals = {name: laws.with_interval(value, np.array([draw[name] for draw in draws])) for name, value in optimum.items()}
    return intervals | {"loss": loss, "answered": answered, "draws_that_reach_it": len(draws)}


def figure_points(runs: Runs, fitted: laws.Fit) -> dict[str, Any]:
    """For figures: each run's (flop, loss, residual), and (flop, loss, low, high) of the best size of each budget."""
    budgets = np.geomspace(runs.flop.min(), runs.flop.max() * 10, 40)
    frontier = []
    for flop in budgets:
        best, sizes = fitted.law.optimal_size(flop), fitted.draws.optimal_size(flop)
        low, high = laws.percentiles(fitted.draws.loss(sizes, flop / 6 / sizes))
        frontier.append((float(flop), float(fitted.law.loss(best, flop / 6 / best)), low, high))
    points = zip(runs.flop.tolist(), runs.loss.tolist(), fitted.residuals.tolist(), strict=True)
    return {"points": list(points), "frontier": frontier}
