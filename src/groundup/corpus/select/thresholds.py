"""What each threshold would keep, from the annotations alone. Values are in `corpus/config.py`; `selection.py` applies them.

For every published rule (`rules.THRESHOLDS`) and every classifier's score: the share of documents and words that it
keeps by itself, quantiles of the values, and texts just on either side of it, which tell more than any share.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from groundup.core.errors import UserError
from groundup.core.seals import verify
from groundup.corpus.annotate import personal, rules

SAMPLE_CHARACTERS = 160  # characters of a sample
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SCORES = ("quality", "calibrated_quality", "toxicity", "worst_toxicity", "language_score", "language_share")
SCORE_NOTE = "no paper's threshold: the least tenth is shown"


def tune(folder: Path, columns: list[str], samples: int) -> dict[str, Any]:
    """A result for each threshold, or for those on `columns`, with `samples` texts on each side of it.

    Raises UserError when there are no annotations in the folder, or a column is unknown.
    """
    shards = sorted(folder.glob("annotations-*.parquet")) or sorted(folder.glob("annotations/annotations-*.parquet"))
    if not shards:
        raise UserError(f"{folder}: no annotations-*.parquet; annotate pages first")
    verify(shards[0].parent, "annotations-*.parquet")
    known = pq.read_schema(shards[0]).names
    thresholds = [threshold for threshold in rules.THRESHOLDS if threshold.column in known]
    thresholds += [rules.Threshold(name, -np.inf, np.inf, "score", SCORE_NOTE) for name in SCORES if name in known]
    if unknown := set(columns) - {threshold.column for threshold in thresholds}:
        raise UserError(f"no threshold on {min(unknown)!r}; there are: {', '.join(sorted({t.column for t in thresholds}))}")
    thresholds = [threshold for threshold in thresholds if not columns or threshold.column in columns]
    values = _columns(shards, list(dict.fromkeys(["words", *(threshold.column for threshold in thresholds)])))
    results = [_result(threshold, values[threshold.column], values["words"], samples) for threshold in thresholds]
    results = [result for result in results if result]
    texts = _texts(shards, sorted({document for result in results for side in result["nearest"] for document in side}))
    for result in results:
        sides = [[texts[document] for document in side] for side in result.pop("nearest")]
        result["samples"] = dict(zip(("kept", "dropped"), sides, strict=True))
    return {"documents": len(values["words"]), "thresholds": results}


def _columns(shards: list[Path], names: list[str]) -> dict[str, np.ndarray]:
    """float64 [documents] of each column, NaN where it is null."""
    tables = [pq.read_table(shard, columns=names) for shard in shards]
    return {name: np.concatenate([table[name].to_numpy().astype(np.float64) for table in tables]) for name in names}


def _result(threshold: rules.Threshold, values: np.ndarray, words: np.ndarray, samples: int) -> dict[str, Any] | None:
    """What the threshold keeps, and the nearest documents that are kept and dropped; None where no document has a value."""
    known = ~np.isnan(values)
    if not known.any():
        return None
    minimum, maximum = threshold.minimum, threshold.maximum
    if threshold.paper == "score":
        minimum = float(np.quantile(values[known], 0.1))
    kept = known & (values >= minimum) & (values <= maximum)
    # A bound that no document is beyond, such as 0 for a share, has no other side to show.
    bounds = [minimum] * bool((values < minimum).any()) + [maximum] * bool((values > maximum).any())
    distance = np.min([np.abs(values - bound) for bound in bounds or [0.0]], axis=0)
    sides = [np.flatnonzero(side)[np.argsort(distance[side], kind="stable")] for side in (kept, known & ~kept)]
    return {
        "column": threshold.column,
        "paper": threshold.paper,
        "minimum": minimum if np.isfinite(minimum) else None,
        "maximum": maximum if np.isfinite(maximum) else None,
        "note": threshold.note,
        "kept_documents": float(kept.sum() / known.sum()),
        "kept_words": float(words[kept].sum() / max(1.0, words[known].sum())),
        "quantiles": dict(zip(map(str, QUANTILES), np.quantile(values[known], QUANTILES).tolist(), strict=True)),
        "nearest": [side[:samples].tolist() for side in sides],
    }


def _texts(shards: list[Path], documents: list[int]) -> dict[int, str]:
    """URL and beginning of these documents, by index, personal data redacted, in one line."""
    texts: dict[int, str] = {}
    start = 0
    for shard in shards:
        row_count = pq.ParquetFile(shard).metadata.num_rows
        in_shard = [document for document in documents if start <= document < start + row_count]
        if in_shard:
            table = pq.read_table(shard, columns=["url", "text", "personal"]).take([document - start for document in in_shard])
            for document, row in zip(in_shard, table.to_pylist(), strict=True):
                # Redacted before it is cut: half of what spans the cut must not remain.
                spans = [personal.Span(**span) for span in row["personal"]]  # found by the rules of the text's language
                beginning = " ".join(personal.redact(row["text"], spans).split())[:SAMPLE_CHARACTERS]
                texts[document] = f"{row['url']}  {beginning}"
        start += row_count
    return texts


def described(result: dict[str, Any]) -> list[str]:
    """The result of a threshold as lines for people: what it keeps, quantiles, and documents on either side."""
    low, high = ("" if result[side] is None else f"{result[side]:.4g}" for side in ("minimum", "maximum"))
    return [
        f"{result['column']} {low}..{high} ({result['paper']})" + (f": {result['note']}" if result["note"] else ""),
        f"  keeps {result['kept_documents']:.2%} of documents, {result['kept_words']:.2%} of words",
        "  " + "  ".join(f"{float(cut):.0%}: {value:.4g}" for cut, value in result["quantiles"].items()),
        *(f"  {name:<7} {text}" for name, texts in result["samples"].items() for text in texts),
    ]
