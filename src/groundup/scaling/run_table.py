"""The table of a ladder, a CSV: one run a row, with its size, tokens and loss; runs of others are read from the same form.

Columns: `parameters`, `tokens`, `loss` (nats per token), and where known `flop`, `batch` (tokens a step) and other ways of
counting parameters, named `parameters_...`. N, D, L and C are taken as names too. Without `flop` it is 6 N D.
"""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from groundup.core.errors import UserError
from groundup.core.text import shown
from groundup.data.csv_table import csv_table

logger = logging.getLogger(__name__)

NAMES = {"n": "parameters", "params": "parameters", "d": "tokens", "l": "loss", "c": "flop", "flops": "flop"}
NEEDED = ("parameters", "tokens", "loss")
LARGEST = 1e40  # above any run; products of two of these are still numbers
MOST_RUNS = 100_000
# A number below these is in millions or billions, and the law's A, B and predictions would be in other units.
FEWEST_PARAMETERS, FEWEST_PER_PARAMETER = 1000, 1e-5
MOST_LOSS = 15.0  # nats; guessing among a million tokens costs 13.8, so more is a perplexity, or a run that blew up
FEWEST_FOR_UNITS = 8  # runs, whose median shows a wrong unit: as many as a law takes
OTHER_UNIT = 100.0  # flop this many times above or below 6 N D is in another unit


@dataclass(frozen=True)
class Runs:
    """Arrays (runs,), positive and finite. counts: other ways of counting parameters, by name."""

    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    flop: np.ndarray
    batch: np.ndarray | None = None
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    diverged: int = 0

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, chosen: np.ndarray) -> "Runs":
        """The runs of a mask or of indices."""
        batch = None if self.batch is None else self.batch[chosen]
        counts = {name: values[chosen] for name, values in self.counts.items()}
        return Runs(
            self.parameters[chosen], self.tokens[chosen], self.loss[chosen], self.flop[chosen], batch, counts, self.diverged
        )

    def counted_by(self, name: str) -> "Runs":
        """The same runs, their size counted another way."""
        return Runs(self.counts[name], self.tokens, self.loss, self.flop, self.batch, {}, self.diverged)


def runs_of(parameters: np.ndarray, tokens: np.ndarray, loss: np.ndarray, flop: np.ndarray | None = None) -> Runs:
    return Runs(parameters, tokens, loss, 6 * parameters * tokens if flop is None else flop)


def read(path: Path) -> Runs:
    """The runs of a CSV. A diverged one (its loss is nan or inf, or above MOST_LOSS) is left out, and that is logged.

    Raises UserError for a file that is not such a table, and with the line for an entry that is missing, no number, not
    positive or in another unit than the others.
    """
    lines = csv_table(path)
    head, rows = _head(path, lines[0][1] if lines else []), lines[1:]
    if len(rows) > MOST_RUNS:
        raise UserError(f"{path}: {len(rows):,} runs; {MOST_RUNS:,} are the most that are fitted")
    columns: dict[str, list[float]] = {name: [] for name in head if name}
    diverged: list[int] = []
    duplicate_lines: list[int] = []
    kept_lines: list[int] = []
    seen_rows: set[tuple[str, ...]] = set()
    for number, row in rows:
        if len(row) > len(head) or len(row) < len(head):
            raise UserError(f"{path}:{number}: {len(row)} entries, where the head has {len(head)} columns; mend that line")
        values = {name: _number(path, number, name, text) for name, text in zip(head, row, strict=True) if name}
        if not math.isfinite(values["loss"]):
            diverged.append(number)
            continue
        if (key := tuple(row)) in seen_rows:  # of another seed, its loss would have other digits
            duplicate_lines.append(number)
            continue
        seen_rows.add(key)
        kept_lines.append(number)
        for name, value in values.items():
            columns[name].append(value)
    arrays = {name: np.array(values, dtype=float) for name, values in columns.items()}
    if len(kept_lines) >= FEWEST_FOR_UNITS:
        _require_units(path, arrays, kept_lines)
        plausible = arrays["loss"] <= MOST_LOSS
        diverged += [line for line, ok in zip(kept_lines, plausible, strict=True) if not ok]
        arrays = {name: values[plausible] for name, values in arrays.items()}
    divergence = f"diverged, their loss is no number or above {MOST_LOSS:g} nats per token"
    for left_out, what in ((sorted(diverged), divergence), (duplicate_lines, "stand there twice")):
        if left_out:
            where = ", ".join(map(str, left_out[:5])) + (", ..." if len(left_out) > 5 else "")
            logger.warning("%s: %d %s: left out (line %s)", path, len(left_out), what, where)
    counts = {name.removeprefix("parameters_"): values for name, values in arrays.items() if name.startswith("parameters_")}
    n, d, loss = (arrays[name] for name in NEEDED)
    return Runs(n, d, loss, arrays.get("flop", 6 * n * d), arrays.get("batch"), counts, len(diverged))


def _require_units(path: Path, columns: dict[str, np.ndarray], lines: list[int]) -> None:
    """Raises UserError for columns that are not in plain numbers, or of which a line is in another unit than the others."""
    n, d, loss = (columns[name] for name in NEEDED)
    flop_ratio, per_parameter = columns.get("flop", 6 * n * d) / (6 * n * d), d / n
    middle = float(np.median(flop_ratio))
    if not 1 / OTHER_UNIT <= middle <= OTHER_UNIT:
        raise UserError(f"{path}: flop is {middle:.2g} times 6 N D, so a column is in another unit; give plain numbers")
    if (typical_ratio := float(np.median(per_parameter))) < FEWEST_PER_PARAMETER:
        raise UserError(f"{path}: {typical_ratio:.2g} tokens a parameter: in billions? Give plain numbers, such as 2e9")
    if (typical_loss := float(np.median(loss))) > MOST_LOSS:
        raise UserError(f"{path}: a loss of {typical_loss:.3g} is no nats per token: a perplexity? Give its logarithm")
    other_unit = np.abs(np.log(flop_ratio / middle)) > np.log(OTHER_UNIT)
    for line, n_, d_, wrong in zip(lines, n, d, other_unit | (per_parameter < FEWEST_PER_PARAMETER), strict=True):
        if wrong:
            flop = ", or its flop" if "flop" in columns else ""
            raise UserError(
                f"{path}:{line}: {n_:g} parameters and {d_:g} tokens: one of them{flop} is in another unit than in the other "
                "lines; give plain numbers, such as 2e9"
            )


def _head(path: Path, given: list[str]) -> list[str]:
    """The name of each column, "" for a column that is not used."""
    names = [NAMES.get(name.strip().lower(), name.strip().lower()) for name in given]
    if missing := [name for name in NEEDED if name not in names]:
        raise UserError(
            f"{path}: no column {' or '.join(missing)}; a table of runs has the columns parameters, tokens, loss, and where "
            f"known flop and batch; this one has {shown(', '.join(given)[:80]) if given else 'none'}"
        )
    known = [name if name in (*NEEDED, "flop", "batch") or name.startswith("parameters_") else "" for name in names]
    if twice := [name for name in known if name and known.count(name) > 1]:
        raise UserError(f"{path}: two columns are {twice[0]}; leave one")
    return known


def _number(path: Path, line: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        what = "is missing" if not text.strip() else f"{shown(text)} is no number"
        raise UserError(f"{path}:{line}: {name} {what}; give a number, or leave the run out") from None
    if name == "loss" and not math.isfinite(value):
        return value
    if not 0 < value <= LARGEST:
        message = f"{name} {text.strip()[:40]} is not between 0 and {LARGEST:g}"
        raise UserError(f"{path}:{line}: {message}; mend it, or leave the run out")
    if name == "parameters" and value < FEWEST_PARAMETERS:
        message = f"{text.strip()[:40]} parameters are no model: in millions?"
        raise UserError(f"{path}:{line}: {message} Give plain numbers, such as 7e7")
    return value
