"""What each threshold would keep, from the annotations alone. The values: `corpus/config.py`; `selection.py` applies them.

For every published rule (`rules.THRESHOLDS`) and every classifier's score: the share of documents and words that it
keeps by itself, the values over the documents, and texts just on either side, which say more than any share.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from groundup.core.errors import UserError
from groundup.core.seals import verify
from groundup.corpus.annotate import personal, rules

SHOWN = 160  # characters of a sample
CUTS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SCORES = ("quality", "calibrated_quality", "toxicity", "worst_toxicity", "language_score", "language_share")
SCORE_NOTE = "no paper's threshold: the least tenth is shown"


def tune(folder: Path, columns: list[str], samples: int) -> dict[str, Any]:
    """Print the table; returns its rows. `columns` limits it, `samples` texts are shown on each side.

    Raises UserError when there are no annotations there, or a column is unknown.
    """
    shards = sorted(folder.glob("annotations-*.parquet")) or sorted(folder.glob("annotations/annotations-*.parquet"))
    if not shards:
        raise UserError(f"{folder}: no annotations-*.parquet; annotate pages first")
    verify(shards[0].parent, "annotations-*.parquet")
    known = pq.read_schema(shards[0]).names
    wanted = [threshold for threshold in rules.THRESHOLDS if threshold.column in known]
    wanted += [rules.Threshold(name, -np.inf, np.inf, "score", SCORE_NOTE) for name in SCORES if name in known]
    if unknown := set(columns) - {threshold.column for threshold in wanted}:
        raise UserError(f"no threshold on {min(unknown)!r}; there are: {', '.join(sorted({t.column for t in wanted}))}")
    wanted = [threshold for threshold in wanted if not columns or threshold.column in columns]
    values = _columns(shards, list(dict.fromkeys(["words", *(threshold.column for threshold in wanted)])))
    rows = [_row(threshold, values[threshold.column], values["words"]) for threshold in wanted]
    rows = [row for row in rows if row]
    texts = _texts(shards, sorted({place for row in rows for side in row["places"] for place in side[:samples]}))
    for row in rows:
        sides = [[texts[place] for place in side[:samples]] for side in row.pop("places")]
        row["samples"] = dict(zip(("kept", "dropped"), sides, strict=True))
    return {"documents": len(values["words"]), "thresholds": rows}


def _columns(shards: list[Path], names: list[str]) -> dict[str, np.ndarray]:
    """float64 [documents] of each column, NaN where it is null."""
    tables = [pq.read_table(shard, columns=names) for shard in shards]
    return {name: np.concatenate([table[name].to_numpy().astype(np.float64) for table in tables]) for name in names}


def _row(threshold: rules.Threshold, values: np.ndarray, words: np.ndarray) -> dict[str, Any] | None:
    """What the threshold keeps, and the documents nearest to it that are kept and dropped; None without a value."""
    there = ~np.isnan(values)
    if not there.any():
        return None
    minimum, maximum = threshold.minimum, threshold.maximum
    if threshold.paper == "score":
        minimum = float(np.quantile(values[there], 0.1))
    kept = there & (values >= minimum) & (values <= maximum)
    # A bound that no document is beyond, as 0 of a share, has no other side to show.
    bounds = [minimum] * bool((values < minimum).any()) + [maximum] * bool((values > maximum).any())
    distance = np.min([np.abs(values - bound) for bound in bounds or [0.0]], axis=0)
    sides = [np.flatnonzero(side)[np.argsort(distance[side], kind="stable")] for side in (kept, there & ~kept)]
    return {
        "column": threshold.column,
        "paper": threshold.paper,
        "minimum": minimum if np.isfinite(minimum) else None,
        "maximum": maximum if np.isfinite(maximum) else None,
        "note": threshold.note,
        "kept_documents": float(kept.sum() / there.sum()),
        "kept_words": float(words[kept].sum() / max(1.0, words[there].sum())),
        "quantiles": dict(zip(map(str, CUTS), np.quantile(values[there], CUTS).tolist(), strict=True)),
        "places": [side[:10].tolist() for side in sides],
    }


def _texts(shards: list[Path], places: list[int]) -> dict[int, str]:
    """The beginning of the documents at `places`, personal data redacted, in one line."""
    found: dict[int, str] = {}
    start = 0
    for shard in shards:
        rows = pq.ParquetFile(shard).metadata.num_rows
        here = [place for place in places if start <= place < start + rows]
        if here:
            table = pq.read_table(shard, columns=["url", "text"]).take([place - start for place in here])
            for place, row in zip(here, table.to_pylist(), strict=True):
                # Redacted before it is cut: what spans the cut must not survive as a part.
                text = " ".join(personal.redact(row["text"], personal.find(row["text"])).split())[:SHOWN]
                found[place] = f"{row['url']}  {text}"
        start += rows
    return found


def described(row: dict[str, Any]) -> list[str]:
    """A threshold for people: what it keeps, quantiles, and documents on either side."""
    low, high = ("" if row[side] is None else f"{row[side]:.4g}" for side in ("minimum", "maximum"))
    return [
        f"{row['column']} {low}..{high} ({row['paper']})" + (f": {row['note']}" if row["note"] else ""),
        f"  keeps {row['kept_documents']:.2%} of documents, {row['kept_words']:.2%} of words",
        "  " + "  ".join(f"{float(cut):.0%}: {value:.4g}" for cut, value in row["quantiles"].items()),
        *(f"  {name:<7} {text}" for name, texts in row["samples"].items() for text in texts),
    ]
