"""Which mixture of domains to train on, from a swarm of small runs over mixtures (RegMix, Liu et al. 2024).

Three laws of a loss over the weights w of the domains, each by ridge regression with its strength from cross-validation:

| law | form | source |
| --- | --- | --- |
| linear | c + t . w | RegMix |
| square-roots | c + t . sqrt(w) | a little of a domain helps more than as much again; ranks best on RegMix's own runs |
| exponential | c + k exp(t . w) | data-mixing laws, Ye et al. 2024; c from a grid, the rest is then linear |

Each target has a law of its own, and what is minimised is the mean of these. One exponential of several targets' mean loss
is least in a corner, all of one domain, whatever the runs say; a sum of laws, each of which falls with its own domain, is not.

The kind that best ranks runs that it has not seen is taken. The weights that are then proposed minimise the targets' losses plus
`pull` times the Kullback-Leibler divergence from the natural mix, with no domain repeated more often than the cap allows.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core import toml
from groundup.core.errors import UserError
from groundup.core.files import write_text
from groundup.core.text import shown
from groundup.data.csv_table import csv_table
from groundup.data.mixture import named_numbers
from groundup.scaling.laws import bootstrap_counts, percentiles

logger = logging.getLogger(__name__)

KINDS = ("linear", "square-roots", "exponential")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the ridge, where the features have unit variance
FLOORS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97)  # of the lowest loss: where the exponential law may end
FOLDS = 5
FEWEST_RUNS = 8
SHARES_ADD_UP = 0.02  # to 1, but for rounding: RegMix's own have three digits
SAME_SHARE = 1e-3  # shares that differ by less: rounding
SMALLEST = 5e-4  # of a proposed weight; what is below is left out
CANDIDATES, BEST, ROUNDS = 4000, 40, 8
DRAWS = 100


@dataclass(frozen=True)
class Swarm:
    """weights (runs, domains), of each run adding up to 1; losses (runs, targets)."""

    domains: list[str]
    targets: list[str]
    weights: np.ndarray
    losses: np.ndarray
    diverged: int = 0


def read(path: Path) -> Swarm:
    """A CSV, one run a row, with the columns `weight_DOMAIN` and `loss_TARGET`; a run whose loss is no number is left out.

    Raises UserError for another table, and with the line for an entry that is missing or negative, or weights that do not
    add up to 1.
    """
    lines = csv_table(path)
    head = [name.strip() for name in lines[0][1]] if lines else []
    columns = {kind: [n for n, name in enumerate(head) if name.startswith(kind)] for kind in ("weight_", "loss_")}
    if len(columns["weight_"]) < 2 or not columns["loss_"]:
        raise UserError(f"{path}: a table of mixtures has two or more columns weight_DOMAIN and at least one loss_TARGET")
    if len(set(head)) < len(head):
        raise UserError(f"{path}: two columns are {shown(next(name for name in head if head.count(name) > 1))}; leave one")
    weights, losses, diverged = [], [], 0
    seen_rows: set[tuple[str, ...]] = set()
    duplicate_lines: list[int] = []
    for number, row in lines[1:]:
        if len(row) != len(head):
            raise UserError(f"{path}:{number}: {len(row)} entries, where the head has {len(head)} columns; mend that line")
        mix = np.array([_number(path, number, head[n], row[n]) for n in columns["weight_"]])
        if abs(mix.sum() - 1) > SHARES_ADD_UP:
            raise UserError(f"{path}:{number}: its weights add up to {mix.sum():.4g}, not 1; mend it, or leave the run out")
        loss = [_number(path, number, head[n], row[n], loss=True) for n in columns["loss_"]]
        if tuple(row) in seen_rows:  # it would be among the runs that predict it
            duplicate_lines.append(number)
        elif np.isfinite(loss).all():
            seen_rows.add(tuple(row))
            weights.append(mix / mix.sum())
            losses.append(loss)
        else:
            diverged += 1
    if duplicate_lines:
        where = ", ".join(map(str, duplicate_lines[:5])) + (", ..." if len(duplicate_lines) > 5 else "")
        logger.warning("%s: %d stand there twice: left out (line %s)", path, len(duplicate_lines), where)
    if any(head[n] == "weight_" for n in columns["weight_"]):
        raise UserError(f"{path}: a column weight_ without the name of its domain; name it")
    domains, targets = ([head[n].partition("_")[2] for n in columns[kind]] for kind in columns)
    fewest = max(FEWEST_RUNS, len(domains) + 2)
    if len(weights) < fewest:
        without_diverged = f" (without {diverged} diverged)" if diverged else ""
        few = f"{len(weights)} runs{without_diverged}"
        raise UserError(f"{path}: {few} are too few for {len(domains)} domains: give {fewest} or more")
    if not np.ptp(np.array(weights), axis=0).any():
        raise UserError(f"{path}: all {len(weights)} runs have one mixture, so nothing can be told of others; add runs of others")
    for name in (name for name, spread in zip(domains, np.ptp(np.array(weights), axis=0), strict=True) if spread < SAME_SHARE):
        message = "%s: all %d runs have the same share of %s, and tell nothing of it: add runs of others, or leave it out"
        logger.warning(message, path, len(weights), shown(name))
    return Swarm(domains, targets, np.array(weights), np.array(losses), diverged)


def _number(path: Path, line: int, name: str, text: str, loss: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        what = "is missing" if not text.strip() else f"{shown(text)} is no number"
        raise UserError(f"{path}:{line}: {name[:60]} {what}; give a number, or leave the run out") from None
    if loss and not np.isfinite(value):
        return value
    if not 0 <= value < 1e6 or (loss and not value):
        message = f"{name[:60]} {text.strip()[:40]} is not between 0 and 1e6"
        raise UserError(f"{path}:{line}: {message}; mend it, or leave the run out")
    return value


@dataclass(frozen=True)
class MixtureLaw:
    """Of one target. coefficients: the constant first; floor: of the exponential law."""

    kind: str
    coefficients: np.ndarray
    strength: float
    floor: float

    def loss(self, weights: np.ndarray) -> np.ndarray:
        """weights (mixtures, domains) -> (mixtures,)"""
        line = _features(self.kind, weights) @ self.coefficients[1:] + self.coefficients[0]
        return self.floor + np.exp(np.minimum(line, 50)) if self.kind == "exponential" else line


@dataclass(frozen=True)
class MeanLaw:
    """Of the mean loss of several targets, each by its own law."""

    laws: list[MixtureLaw]

    def loss(self, weights: np.ndarray) -> np.ndarray:
        """weights (mixtures, domains) -> (mixtures,)"""
        return np.mean([law.loss(weights) for law in self.laws], axis=0)


def fit_targets(weights: np.ndarray, losses: np.ndarray, kind: str) -> MeanLaw:
    """losses (runs, targets)"""
    return MeanLaw([fit(weights, loss, kind) for loss in losses.T])


def fit(weights: np.ndarray, loss: np.ndarray, kind: str) -> MixtureLaw:
    """The law of one kind for one target, with the strength and floor that predict unseen runs best."""
    floors = [share * float(loss.min()) for share in FLOORS] if kind == "exponential" else [0.0]
    choices = [(strength, floor) for strength in STRENGTHS for floor in floors]
    folds = np.arange(len(loss)) % FOLDS
    errors = []
    for strength, floor in choices:
        error = 0.0
        for fold in range(FOLDS):
            law = _ridge(weights, loss, kind, strength, floor, (folds != fold).astype(float))
            error += float(((law.loss(weights) - loss) ** 2)[folds == fold].sum())
        errors.append(error)
    return _ridge(weights, loss, kind, *choices[int(np.argmin(errors))], np.ones(len(loss)))


def _features(kind: str, weights: np.ndarray) -> np.ndarray:
    return np.sqrt(weights) if kind == "square-roots" else weights


def _ridge(
    weights: np.ndarray, loss: np.ndarray, kind: str, strength: float, floor: float, counts: np.ndarray
) -> MixtureLaw:
    """counts (runs,): how often each run counts; those of a resampling, or 0 for a fold that is left out."""
    x, y, w = _features(kind, weights), loss, counts
    if kind == "exponential":
        above = loss - floor
        x, y, w = weights, np.log(above), counts * above**2  # so that an error of the log weighs as much as that of the loss
    middle, mean = np.average(x, axis=0, weights=w), np.average(y, weights=w)
    spread = np.sqrt(np.average((x - middle) ** 2, axis=0, weights=w)) + 1e-9
    z = (x - middle) / spread
    normal = (z * w[:, None]).T @ z + strength * w.sum() * np.eye(x.shape[1])
    slope = np.linalg.solve(normal, z.T @ (w * (y - mean))) / spread
    return MixtureLaw(kind, np.concatenate([[mean - middle @ slope], slope]), strength, floor)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; equal values share their mean rank; 0 where all are equal."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        return (ends - (counts - 1) / 2)[where]

    a, b = ranks(first) - ranks(first).mean(), ranks(second) - ranks(second).mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else 0.0


def unseen_rank_correlation(weights: np.ndarray, losses: np.ndarray, kind: str) -> float:
    """Of predicted and measured means of losses (runs, targets), each run predicted by laws of the runs in other folds."""
    folds, predicted = np.arange(len(losses)) % FOLDS, np.empty(len(losses))
    for fold in range(FOLDS):
        fitted = folds != fold
        predicted[~fitted] = fit_targets(weights[fitted], losses[fitted], kind).loss(weights[~fitted])
    return rank_correlation(predicted, losses.mean(1))


def capped(weights: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """weights (mixtures, domains) with none above its cap: the excess goes to the others in proportion to their weights."""
    mixed = np.maximum(weights, 1e-12)
    mixed = mixed / mixed.sum(1, keepdims=True)
    for _ in range(mixed.shape[1]):
        over = mixed >= caps
        free = 1 - np.where(over, caps, 0).sum(1, keepdims=True)
        uncapped = np.where(over, 0, mixed)
        total = uncapped.sum(1, keepdims=True)
        mixed = np.where(over, caps, uncapped * free / np.maximum(total, 1e-300))
        if (mixed <= caps * (1 + 1e-9)).all():
            break
    return mixed


def propose(
    swarm: Swarm,
    targets: Sequence[str] = (),
    available: dict[str, float] | None = None,
    tokens: float | None = None,
    max_repeats: float = 4.0,
    pull: float = 0.02,
    seed: int = 0,
) -> dict[str, Any]:
    """Weights that make the mean loss of the targets (all, if none is named) small, and the gain over the natural mix.

    available: tokens of each domain, whose shares are the natural mix; without, it is the swarm's mean. tokens: of the
    training, which with `available` and `max_repeats` caps each domain. pull: nats of loss for a nat of divergence.
    Raises UserError for unknown names, or caps that leave nothing to choose.
    """
    if unknown := [name for name in targets if name not in swarm.targets]:
        raise UserError(f"no loss of {shown(unknown[0])} in the table; it has {', '.join(swarm.targets)[:150]}")
    columns = [swarm.targets.index(name) for name in targets] or list(range(len(swarm.targets)))
    losses = swarm.losses[:, columns]
    natural, caps = _natural(swarm, available, tokens, max_repeats)
    ranks = {kind: unseen_rank_correlation(swarm.weights, losses, kind) for kind in KINDS}
    kind = max(ranks, key=lambda name: ranks[name])
    law = fit_targets(swarm.weights, losses, kind)
    weights = _search(law, natural, caps, pull, seed)
    mixtures = np.stack([natural, weights])
    gains = []
    for counts in bootstrap_counts(len(losses), DRAWS, seed):
        parts = zip(law.laws, losses.T, strict=True)
        refitted = [_ridge(swarm.weights, loss, kind, target.strength, target.floor, counts) for target, loss in parts]
        before, after = MeanLaw(refitted).loss(mixtures)
        gains.append(before - after)
    before, after = law.loss(mixtures)
    low, high = percentiles(np.array(gains))
    kept = np.where(weights < SMALLEST, 0, weights)
    proposed = {name: round(float(share), 4) for name, share in zip(swarm.domains, kept / kept.sum(), strict=True) if share}
    return {
        "weights": proposed,
        "natural": {name: round(float(share), 4) for name, share in zip(swarm.domains, natural, strict=True)},
        "left_out": [name for name in swarm.domains if name not in proposed],
        "at_their_cap": [
            name for name, share, cap in zip(swarm.domains, weights, caps, strict=True) if cap < 1 and share > cap * 0.999
        ],
        "law": kind,
        "unseen_rank_correlation": ranks,
        "runs": len(losses),
        "diverged": swarm.diverged,
        "loss_natural": float(before),
        "loss": float(after),
        "gain": {"value": float(before - after), "low": low, "high": high},
    }  # fmt: skip


def _natural(
    swarm: Swarm, available: dict[str, float] | None, tokens: float | None, max_repeats: float
) -> tuple[np.ndarray, np.ndarray]:
    """The natural mix and the cap of each domain."""
    if not available:
        if tokens:
            raise UserError("tokens cap repeats only where available says how many each domain has")
        return swarm.weights.mean(0), np.ones(len(swarm.domains))
    if available.keys() != set(swarm.domains):
        name = next(iter(set(swarm.domains) ^ available.keys()))
        raise UserError(f"available must name each domain of the table once: {shown(name)} is in one of the two alone")
    sizes = np.array([available[name] for name in swarm.domains])
    caps = np.minimum(1.0, max_repeats * sizes / tokens) if tokens else np.ones(len(sizes))
    if caps.sum() <= 1:
        max_tokens = max_repeats * sizes.sum()
        raise UserError(f"{max_repeats:g} passes over all domains give {max_tokens:g} tokens, not {tokens:g}: train on fewer")
    return sizes / sizes.sum(), caps


def _search(law: MeanLaw, natural: np.ndarray, caps: np.ndarray, pull: float, seed: int) -> np.ndarray:
    """As RegMix: many mixtures are drawn and the mean of the best is taken; then again around that mean, ever closer."""
    generator = np.random.default_rng(seed)
    start = capped(natural[None], caps)[0]
    centre = start
    for number in range(ROUNDS):
        sharpness = 4.0 * 3.0**number
        mixtures = generator.dirichlet(np.maximum(centre * sharpness, 1e-2), CANDIDATES)
        mixtures = capped(np.concatenate([mixtures, centre[None], start[None]]), caps)
        divergence = (mixtures * np.log(np.maximum(mixtures, 1e-12) / np.maximum(natural, 1e-12))).sum(1)
        score = law.loss(mixtures) + pull * divergence
        centre = mixtures[np.argsort(score, kind="stable")[:BEST]].mean(0)
    return centre


def parse_available(pairs: Sequence[str]) -> dict[str, float]:
    """["books=1e6", "code=2e6"] -> tokens. Raises UserError for anything else."""
    return named_numbers(pairs, "available", "DOMAIN=TOKENS with a number above 0, such as books=1e6", 1e30)


def write(path: Path, proposal: dict[str, Any], max_repeats: float) -> None:
    """Write `[mixture]` of a recipe, with the weights that `propose` returned."""
    gain = proposal["gain"]
    comment = (
        f"# Proposed by the {proposal['law']} law of {proposal['runs']} runs (rank correlation with unseen runs "
        f"{proposal['unseen_rank_correlation'][proposal['law']]:.3f}).\n# Predicted loss {proposal['loss']:.4f}: "
        f"{gain['value']:.4f} less than the natural mix's (95 %: {gain['low']:.4f} to {gain['high']:.4f}).\n"
    )
    write_text(path, comment + toml.dumps({"mixture": {"max_repeats": max_repeats, "weights": proposal["weights"]}}))
