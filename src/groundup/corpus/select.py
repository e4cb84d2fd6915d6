"""Selection: the only place with thresholds. Every dropped document stays on file with its reason.

Filters say why they drop (datatrove's `(False, reason)`), and are tried one after the other over the annotations, so
another threshold is tried in seconds. Then the text is changed (personal data redacted, template lines out),
documents are held out for evaluation, and training documents that repeat them are dropped. All documents are held in
memory.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from groundup import files
from groundup.corpus import personal, rules, template_lines
from groundup.corpus.contamination import contains_benchmark, contamination, read_benchmarks
from groundup.errors import UserError
from groundup.recipe import Corpus

Row = dict[str, Any]
Reason = str | None  # why a document is dropped; None: it is kept
SAMPLES = 3
LEAST_DOCUMENTS_TO_HOLD_OUT = 10  # of a domain, for it to be sure of two held-out ones
KEYS = [(name, pa.string()) for name in ("id", "url", "host", "domain", "kind", "language", "title", "text")]
DOCUMENTS = pa.schema(
    [*KEYS, ("quality", pa.float32()), ("best", pa.bool_()), ("split", pa.string()), ("cluster", pa.string())]
)
DROPPED = pa.schema(
    [
        *KEYS,
        ("words", pa.int32()),
        ("quality", pa.float32()),
        ("cluster", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


def filters(settings: Corpus, language: str) -> list[tuple[str, bool, Callable[[Row], Reason]]]:
    """In order: the name of each filter, whether code is exempt from it, and its reason for dropping a document."""
    return [
        ("empty", False, lambda row: None if row["text"].strip() else "no text"),
        ("exact duplicate", False, lambda row: _copy_of(row["duplicate_of"])),
        ("same address", False, lambda row: _copy_of(row["same_url_as"])),
        ("near duplicate", False, lambda row: _copy_of(row["near_duplicate_of"])),
        ("language", True, lambda row: _language(row, language, settings.min_language_score)),
        ("length", False, lambda row: _outside(row, "words", settings.min_words, settings.max_words)),
        ("alphabetic words", True, lambda row: _outside(row, "alphabetic_words", settings.min_alphabetic_words, 1)),
        ("repeated lines", True, lambda row: _outside(row, "duplicate_lines", 0, settings.max_duplicate_line_share)),
        ("toxic words", False, lambda row: _toxic_words(row, settings.max_toxic_word_share)),
        ("toxicity", False, lambda row: _outside(row, "toxicity", 0, settings.max_toxicity)),
        (
            "calibrated quality",
            True,
            lambda row: _outside(row, "calibrated_quality", settings.min_calibrated_quality, 1),
        ),
        ("quality", True, lambda row: _outside(row, "quality", settings.min_quality, 1)),
    ]


def select(annotations: Path, out: Path, settings: Corpus, language: str, seed: int) -> dict[str, Any]:
    """Write `documents.parquet`, `dropped.parquet` and `funnel.json` in `out`; returns what the funnel says.

    Raises UserError when there are no annotations, or when no document is left for training.
    """
    rows = _read(annotations)
    funnel = Funnel(rows)
    for name, code_exempt, why in filters(settings, language):
        funnel.drop(name, why, code_exempt)
    published = _published(rows)
    # Spans count characters of the whole text and a placeholder has no line break: redact first, then remove lines.
    funnel.change("personal data redacted", _redact)
    funnel.change("template lines removed", _remove_template_lines)
    funnel.drop("length without template lines", lambda row: _outside(row, "words", settings.min_words, 10**12), False)
    _hold_out(funnel.rows, settings.held_out, seed)
    held_out = [row for row in funnel.rows if row["split"] == "held_out"]
    train = [row for row in funnel.rows if row["split"] == "train"]
    overlaps = contamination([row["text"] for row in held_out], [row["text"] for row in train])
    too_near = {
        row["id"]: f"{share:.2f} of its 13-grams shared with {held_out[nearest]['url']}"
        for row, (share, nearest) in zip(train, overlaps, strict=True)
        if share > settings.max_contamination
    }
    funnel.drop("contaminates held-out", lambda row: too_near.get(row["id"]), False)
    benchmarks = _drop_benchmarks(funnel, [Path(name) for name in settings.benchmarks])
    held_out = [row for row in funnel.rows if row["split"] == "held_out"]
    _mark_best(funnel.rows, settings.best_share)
    _write(funnel.rows, DOCUMENTS, out / "documents.parquet")
    _write(funnel.dropped, DROPPED, out / "dropped.parquet")
    result = {
        "steps": funnel.steps,
        "left": _sizes(funnel.rows),
        "train": _sizes([row for row in funnel.rows if row["split"] == "train"]),
        "held_out": _sizes(held_out),
        "best": _sizes([row for row in funnel.rows if row["best"]]),
        "published_thresholds": published,
        "benchmarks": benchmarks,
    }
    files.write_json(out / "funnel.json", result)
    if not any(row["split"] == "train" for row in funnel.rows):
        raise UserError(f"no document is left for training; {out / 'funnel.json'} says which step dropped them")
    return result


class Funnel:
    """The documents that are left, those that were dropped, and a record of each step."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.dropped: list[Row] = []
        self.steps: list[dict[str, Any]] = []

    def drop(self, name: str, why: Callable[[Row], Reason], code_exempt: bool) -> None:
        before = _sizes(self.rows)
        kept, dropped = [], []
        for row in self.rows:
            reason = None if code_exempt and row["kind"] == "code" else why(row)
            if reason is None:
                kept.append(row)
            else:
                dropped.append({**row, "reason": name, "detail": reason})
        exempt = sum(row["kind"] == "code" for row in self.rows) if code_exempt else 0
        # Rows are in order of id, a digest: the first are a random sample, the same each time.
        samples = [
            {"url": row["url"], "detail": row["detail"], "text": personal.redact(row["text"], _spans(row))[:200]}
            for row in dropped[:SAMPLES]
        ]
        self.rows = kept
        self.dropped += dropped
        self.steps.append(
            {"step": name, "dropped": len(dropped), "code_exempt": exempt, "before": before}
            | {"after": _sizes(kept), "samples": samples}
        )

    def change(self, name: str, function: Callable[[Row], Counter]) -> None:
        """Change the texts in place; `function` counts what it did to one."""
        before = _sizes(self.rows)
        done: Counter[str] = Counter()
        for row in self.rows:
            done.update(function(row))
        self.steps.append(
            {"step": name, "changed": dict(sorted(done.items())), "before": before, "after": _sizes(self.rows)}
        )


def _read(annotations: Path) -> list[Row]:
    shards = sorted(annotations.glob("annotations-*.parquet"))
    if not shards:
        raise UserError(f"{annotations}: no annotations-*.parquet; annotate pages first")
    return sorted((row for shard in shards for row in pq.read_table(shard).to_pylist()), key=lambda row: row["id"])


def _copy_of(other: str | None) -> Reason:
    return f"of {other}" if other else None


def _language(row: Row, wanted: str, least: float) -> Reason:
    if row["language"] != wanted:
        return f"language {row['language']}, not {wanted}"
    return f"language score {row['language_score']:.2f} < {least:g}" if row["language_score"] < least else None


def _toxic_words(row: Row, most: float) -> Reason:
    share = row["toxic_words"] / max(1, row["words"])
    return f"share of toxic words {share:.4g} > {most:g}" if share > most else None


def _outside(row: Row, column: str, least: float, most: float) -> Reason:
    value = row[column]
    name = column.replace("_", " ")
    if value is None:  # no classifier was given for it
        return None
    if value < least:
        return f"{name} {value:.4g} < {least:g}" if isinstance(value, float) else f"{name} {value} < {least:g}"
    if value > most:
        return f"{name} {value:.4g} > {most:g}" if isinstance(value, float) else f"{name} {value} > {most:g}"
    return None


def _spans(row: Row) -> list[personal.Span]:
    return [personal.Span(**span) for span in row["personal"]]


def _redact(row: Row) -> Counter:
    spans, title_spans = _spans(row), personal.find(row["title"])
    row["text"] = personal.redact(row["text"], spans)
    row["title"] = personal.redact(row["title"], title_spans)
    row["personal"] = []
    return Counter(span.type for span in spans + title_spans)


def _remove_template_lines(row: Row) -> Counter:
    before = len(row["text"].encode())
    row["text"] = template_lines.remove(row["text"], row["template_lines"])
    row["words"] = len(row["text"].split())
    lines = len(row["template_lines"])
    return Counter({"documents": int(lines > 0), "lines": lines, "bytes": before - len(row["text"].encode())})


def _published(rows: list[Row]) -> list[dict[str, Any]]:
    """What each paper's threshold alone would drop of all documents with text: for comparison, nothing is dropped."""
    filled = [row for row in rows if row["text"].strip()]
    return [
        {
            **{key: value for key, value in threshold._asdict().items() if value != rules.ANY},
            "would_drop": sum(not threshold.minimum <= row[threshold.column] <= threshold.maximum for row in filled),
            "of": len(filled),
        }
        for threshold in rules.THRESHOLDS
    ]


def _by_domain(rows: list[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["domain"]].append(row)
    return dict(sorted(groups.items()))


def _hold_out(rows: list[Row], share: float, seed: int) -> None:
    """Set `split`. The choice hangs on the cluster alone, so another threshold elsewhere moves few documents across."""
    for group in _by_domain(rows).values():
        least = 2 if share and len(group) >= LEAST_DOCUMENTS_TO_HOLD_OUT else 0
        count = max(least, round(share * len(group)))
        order = sorted(group, key=lambda row: blake2b(f"{seed} {row['cluster']}".encode(), digest_size=16).digest())
        for place, row in enumerate(order):
            row["split"] = "held_out" if place < count else "train"


def _drop_benchmarks(funnel: Funnel, paths: list[Path]) -> list[dict[str, Any]]:
    if not paths:
        return []
    named, found = contains_benchmark((row["text"] for row in funnel.rows), read_benchmarks(paths))
    holds = {row["id"]: f"words of {name}" for row, name in zip(funnel.rows, named, strict=True) if name}
    funnel.drop("contains benchmark", lambda row: holds.get(row["id"]), False)
    return found


def _mark_best(rows: list[Row], share: float) -> None:
    """Set `best` on the top share of each domain's training documents by quality; of equal ones, the least id."""
    for group in _by_domain(rows).values():
        train = sorted((row for row in group if row["split"] == "train"), key=lambda row: (-row["quality"], row["id"]))
        best = {row["id"] for row in train[: round(share * len(train))]}
        for row in group:
            row["best"] = row["id"] in best


def _sizes(rows: list[Row]) -> dict[str, Any]:
    def size(group: list[Row]) -> dict[str, int]:
        return {
            "documents": len(group),
            "bytes": sum(len(row["text"].encode()) for row in group),
            "words": sum(row["words"] for row in group),
        }

    return size(rows) | {"by_domain": {domain: size(group) for domain, group in _by_domain(rows).items()}}


def _write(rows: list[Row], schema: pa.Schema, path: Path) -> None:
    ordered = sorted(rows, key=lambda row: row["id"])
    plain = [{name: row[name] for name in schema.names} for row in ordered]
    with files.replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(plain, schema=schema), temporary, compression="zstd")
