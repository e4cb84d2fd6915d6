"""Architectures on one axis: how fast the loss falls with size and data, and where in the context it is lost.

Kaplan et al. 2020, figure 7: a transformer keeps using more context, a recurrent model soon no longer does.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.model.base import LanguageModel
from groundup.model.likelihood import score
from groundup.scaling.laws import DRAWS, bootstrap_counts, with_interval
from groundup.scaling.ledger import read_ledger
from groundup.scaling.run_table import Runs, read

FEWEST = 5  # runs of a plane of three


def loss_by_position(model: LanguageModel, documents: Sequence[np.ndarray], context: int) -> list[float]:
    """Nats a token after 1, 2 to 3, 4 to 7, ... tokens of context, over the beginnings of documents that fill the context.

    Empty where no document fills it.
    """
    beginnings = [document[: context + 1] for document in documents if len(document) > context]
    if not beginnings:
        return []
    nats = -np.stack(score(model, beginnings)).mean(0, dtype=np.float64)
    return [float(part.mean()) for part in np.split(nats, 2 ** np.arange(1, (context - 1).bit_length()) - 1)]


def slopes(runs: Runs, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Exponents by which the loss falls, with 95 % intervals from resampled runs: log loss = c - n log N - d log D.

    "parameters" is n and "tokens" is d; "compute" is (n + d) / 2, for both growing alike. This plane needs fewer runs than the
    law with its floor, and says as much where the loss is far above the floor. Raises UserError for runs that leave a slope open.
    """
    x = np.stack([np.ones(len(runs)), -np.log(runs.parameters), -np.log(runs.tokens)], axis=1)
    if len(runs) < FEWEST or np.linalg.matrix_rank(x - x.mean(0) * (np.arange(3) > 0)) < 3:
        raise UserError(f"{len(runs)} runs leave a slope open: give {FEWEST} or more, of several sizes and of several lengths")
    coefficients = []
    for weights in [np.ones(len(runs)), *bootstrap_counts(len(runs), draws, seed)]:
        root = np.sqrt(weights)[:, None]
        if np.linalg.matrix_rank(root * x) == 3:  # of few runs a resampling may have one size alone
            coefficients.append(np.linalg.lstsq(root * x, root[:, 0] * np.log(runs.loss), rcond=None)[0])
    _, n, d = np.array(coefficients).T
    parts = {"parameters": n, "tokens": d, "compute": (n + d) / 2}
    return {"runs": len(runs), **{name: with_interval(values[0], values[1:]) for name, values in parts.items()}}


def compare(ladders: Mapping[str, Path]) -> dict[str, Any]:
    """For each ladder's folder: its slopes, its runs as (FLOP, loss), and the losses by position in the context of one run.

    That run is the one of the largest depth and length that all ladders have, or each ladder's run of most compute where they
    share none. Where the runs are too few for slopes, "reason" says so. Raises UserError for a folder that holds no ladder.
    """
    ledgers = {name: _with_losses(read_ledger(folder / "ledger.jsonl")) for name, folder in ladders.items()}
    if empty := [folder for name, folder in ladders.items() if not ledgers[name]]:
        raise UserError(f"{empty[0]}: no run of a ladder is done there; give a folder that `groundup scale run` wrote")
    tables = {name: read(folder / "runs.csv") for name, folder in ladders.items()}
    shared_pairs = set.intersection(*({_depth_and_tokens(row) for row in rows} for rows in ledgers.values()))
    comparison = {}
    # One depth and length for all ladders: which of two runs has more FLOP may differ from ladder to ladder.
    all_rows = (row for rows in ledgers.values() for row in rows)
    shared_run = max((row for row in all_rows if _depth_and_tokens(row) in shared_pairs), key=_flop, default=None)
    for name, runs in tables.items():
        rows = [row for row in ledgers[name] if not shared_run or _depth_and_tokens(row) == _depth_and_tokens(shared_run)]
        largest = max(rows, key=_flop)
        try:
            fitted_slopes = slopes(runs)
        except UserError as error:
            fitted_slopes = {"runs": len(runs), "reason": str(error)}
        comparison[name] = {
            **fitted_slopes, "points": sorted(zip(runs.flop.tolist(), runs.loss.tolist(), strict=True)),
            "largest": largest["name"], "by_place": largest.get("by_place", []),
        }  # fmt: skip
    return comparison


def _flop(row: dict[str, Any]) -> float:
    return float(row["flop"])


def _with_losses(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that did not diverge, or all of them where each did."""
    return [row for row in rows if math.isfinite(float(row["loss"]))] or rows


def _depth_and_tokens(row: dict[str, Any]) -> tuple[Any, Any]:
    return row.get("depth"), row["tokens"]
