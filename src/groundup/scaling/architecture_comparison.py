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
from groundup.scaling.laws import DRAWS, resampled, valued
from groundup.scaling.ledger import read_ledger
from groundup.scaling.run_table import Runs, read

FEWEST = 5  # runs of a plane of three


def loss_by_place(model: LanguageModel, documents: Sequence[np.ndarray], context: int) -> list[float]:
    """Nats a token after 1, 2 to 3, 4 to 7, ... tokens of context, over the beginnings of documents that fill it.

    Empty where no document does.
    """
    long = [one[: context + 1] for one in documents if len(one) > context]
    if not long:
        return []
    nats = -np.stack(score(model, long)).mean(0, dtype=np.float64)
    return [float(part.mean()) for part in np.split(nats, 2 ** np.arange(1, (context - 1).bit_length()) - 1)]


def slopes(runs: Runs, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Shares by which the loss falls, with 95 % intervals from resampled runs: log loss = c - n log N - d log D.

    "parameters" is n and "tokens" d; "compute" is (n + d) / 2, of both growing alike. A plane needs fewer runs than the law with
    its floor, and says as much where the loss is far above that. Raises UserError for runs that leave a slope open.
    """
    x = np.stack([np.ones(len(runs)), -np.log(runs.parameters), -np.log(runs.tokens)], axis=1)
    if len(runs) < FEWEST or np.linalg.matrix_rank(x - x.mean(0) * (np.arange(3) > 0)) < 3:
        raise UserError(f"{len(runs)} runs leave a slope open: give {FEWEST} or more, of several sizes and of several lengths")
    found = []
    for weights in [np.ones(len(runs)), *resampled(len(runs), draws, seed)]:
        root = np.sqrt(weights)[:, None]
        if np.linalg.matrix_rank(root * x) == 3:  # of few runs a resampling may have one size alone
            found.append(np.linalg.lstsq(root * x, root[:, 0] * np.log(runs.loss), rcond=None)[0])
    _, n, d = np.array(found).T
    parts = {"parameters": n, "tokens": d, "compute": (n + d) / 2}
    return {"runs": len(runs), **{name: valued(values[0], values[1:]) for name, values in parts.items()}}


def compare(ladders: Mapping[str, Path]) -> dict[str, Any]:
    """Of each ladder's folder its slopes, its runs as (FLOP, loss), and the losses by place of one run.

    That is the largest depth and length that all ladders have, each one's run of most compute where there is none. Of too few
    runs for slopes "reason" says so. Raises UserError for a folder that holds no ladder.
    """
    ledgers = {name: _with_losses(read_ledger(folder / "ledger.jsonl")) for name, folder in ladders.items()}
    if empty := [folder for name, folder in ladders.items() if not ledgers[name]]:
        raise UserError(f"{empty[0]}: no run of a ladder is done there; give a folder that `groundup scale run` wrote")
    tables = {name: read(folder / "runs.csv") for name, folder in ladders.items()}
    shared = set.intersection(*({_what(row) for row in rows} for rows in ledgers.values()))
    found = {}
    # One for all: which of two is the larger may differ from ladder to ladder.
    same = max((row for rows in ledgers.values() for row in rows if _what(row) in shared), key=_flop, default=None)
    for name, runs in tables.items():
        rows = [row for row in ledgers[name] if not same or _what(row) == _what(same)]
        largest = max(rows, key=_flop)
        try:
            rates = slopes(runs)
        except UserError as error:
            rates = {"runs": len(runs), "reason": str(error)}
        found[name] = {
            **rates, "points": sorted(zip(runs.flop.tolist(), runs.loss.tolist(), strict=True)),
            "largest": largest["name"], "by_place": largest.get("by_place", []),
        }  # fmt: skip
    return found


def _flop(row: dict[str, Any]) -> float:
    return float(row["flop"])


def _with_losses(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that did not diverge, or all where each did."""
    return [row for row in rows if math.isfinite(float(row["loss"]))] or rows


def _what(row: dict[str, Any]) -> tuple[Any, Any]:
    return row.get("depth"), row["tokens"]
