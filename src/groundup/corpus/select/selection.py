"""Selection: the only module that applies thresholds. Every dropped document is written to a table with its reason.

Filters return why they drop a document (datatrove's `(False, reason)`). They run one after the other over the annotations, so
trying another threshold takes seconds. Then the text is changed (personal data redacted, template lines removed), documents
are held out for evaluation, and training documents that repeat them are dropped.

Documents are processed in the order of their ids, which are digests: they are first distributed to files by id, and then read
file by file. Of each remaining document some 40 bytes stay in memory, and of the held-out ones the 13-grams.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from groundup.core import files, words
from groundup.core.errors import UserError
from groundup.corpus.annotate import personal, rules
from groundup.corpus.config import SelectionConfig
from groundup.corpus.dedup import boilerplate_lines
from groundup.corpus.dedup.decontamination import contains_benchmark, contamination, read_benchmarks
from groundup.corpus.select.funnel import FunnelStep, Reason, Row, Sizes, report
from groundup.corpus.tables import read_working, write_working

PART_BYTES = 16 << 20  # of annotations that are read together
MAX_PARTS = 256  # files that are open at a time
BATCH_ROWS = 2000
MAX_SHOWN = 4  # steps in a message
MIN_DOCUMENTS_TO_HOLD_OUT = 10  # of a domain, from which on at least two are held out
KEY_COLUMNS = [(name, pa.string()) for name in ("id", "url", "host", "domain", "kind", "language", "title", "text")]
DOCUMENTS = pa.schema(
    [*KEY_COLUMNS, ("quality", pa.float32()), ("best", pa.bool_()), ("split", pa.string()), ("cluster", pa.string())]
)
DROP_COLUMNS = [(name, pa.string()) for name in ("cluster", "reason", "detail")]
DROPPED = pa.schema([*KEY_COLUMNS, ("words", pa.int32()), ("quality", pa.float32()), *DROP_COLUMNS])


def steps_of(settings: SelectionConfig, languages: Sequence[str]) -> list[FunnelStep]:
    """The steps that each document passes by itself, in order."""

    def inside(column: str, minimum: float, maximum: float, code_exempt: bool = False, name: str = "") -> FunnelStep:
        return FunnelStep(name or column.replace("_", " "), lambda row: _outside(row, column, minimum, maximum), code_exempt)

    return [
        FunnelStep("empty", lambda row: None if row["text"].strip() else "no text"),
        FunnelStep("exact duplicate", lambda row: _copy_of(row["duplicate_of"])),
        FunnelStep("same address", lambda row: _copy_of(row["same_url_as"])),
        FunnelStep("near duplicate", lambda row: _copy_of(row["near_duplicate_of"])),
        FunnelStep("language", lambda row: _language(row, languages, settings), code_exempt=True),
        inside("words", settings.min_words, settings.max_words, name="length"),
        inside("alphabetic_words", settings.min_alphabetic_words, 1, code_exempt=True),
        inside("duplicate_lines", 0, settings.max_duplicate_line_share, code_exempt=True, name="repeated lines"),
        FunnelStep("toxic words", lambda row: _toxic_words(row, settings.max_toxic_word_share)),
        inside("toxicity", 0, settings.max_toxicity),
        inside("calibrated_quality", settings.min_calibrated_quality, 1, code_exempt=True),
        inside("quality", settings.min_quality, 1, code_exempt=True),
        # Spans are offsets into the whole text, and a placeholder has no line break: redact first, then remove lines.
        FunnelStep("personal data redacted", change=_redact),
        FunnelStep("template lines removed", change=_remove_template_lines),
        inside("words", settings.min_words, 10**12, name="length without template lines"),
    ]


def select(annotations: Path, out: Path, settings: SelectionConfig, languages: Sequence[str], seed: int) -> dict[str, Any]:
    """Write `documents.parquet`, `dropped.parquet` and `funnel.json` in `out`; returns the content of `funnel.json`.

    languages: codes of the languages that are kept; empty: any.

    Raises UserError when there are no annotations, or when no document is left for training.
    """
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob("select-*"):
        shutil.rmtree(leftover)  # by a run that was killed
    steps, all_sizes, published = steps_of(settings, languages), Sizes(), _PublishedThresholds()
    with tempfile.TemporaryDirectory(prefix="select-", dir=out) as folder:
        parts, part_columns = [], []
        for part_file in _deal_out(annotations, Path(folder)):
            table = pa.ipc.open_stream(part_file).read_all()
            part_file.unlink()
            published.count(table)
            rows = sorted(table.to_pylist(), key=lambda row: row["id"])
            for row in rows:
                row["bytes"], row["reason"], row["detail"] = len(row["text"].encode()), None, None
                if settings.domain_by_language and row["kind"] != "code":
                    row["domain"] = f"{row['domain']}-{row['language']}"
                all_sizes.add(row)
                all(step.keeps(row) for step in steps)
            part_columns.append(_selection_columns([row for row in rows if row["reason"] is None], seed))
            parts.append(part_file.with_suffix(".arrow"))
            write_working(_table(rows, DROPPED), parts[-1])
        remaining = Remaining(*map(np.concatenate, zip(*part_columns, strict=True)))
        del part_columns
        _hold_out(remaining, settings.held_out)
        late = [FunnelStep("contaminates held-out")]
        _drop_contaminated(parts, remaining, settings.max_contamination)
        benchmarks: list[dict[str, Any]] = []
        if settings.benchmarks:
            late.append(FunnelStep("contains benchmark"))
            benchmarks = _drop_benchmarks(parts, remaining, [Path(name) for name in settings.benchmarks])
        _mark_best(remaining, settings.best_share)
        sizes = _write(parts, remaining, late, out)
    result = {
        "steps": report(steps + late, all_sizes),
        **{name: size.as_dict() for name, size in sizes.items()},
        "published_thresholds": published.rows(),
        "benchmarks": benchmarks,
    }
    files.write_json(out / "funnel.json", result)
    if not sizes["train"]:
        dropped = sorted(((step["dropped"], step["step"]) for step in result["steps"] if step.get("dropped")), reverse=True)
        reasons = ", ".join(f"{name}: {count}" for count, name in dropped[:MAX_SHOWN]) or "all are held out"
        raise UserError(f"no document is left for training (dropped by {reasons}); see {out / 'funnel.json'}")
    return result


def _deal_out(annotations: Path, folder: Path) -> list[Path]:
    """Write the rows of all shards to files of about `PART_BYTES`, each for a range of ids; returns them in order of ids."""
    shards = sorted(annotations.glob("annotations-*.parquet"))
    if not shards:
        raise UserError(f"{annotations}: no annotations-*.parquet; annotate pages first")
    if "language_share" not in pq.read_schema(shards[0]).names:
        raise UserError(f"{shards[0]}: no column 'language_share': an earlier version wrote it; annotate the pages again")
    size = 0
    for shard in shards:
        metadata = pq.read_metadata(shard)
        size += sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    parts = [folder / f"{part:03d}.arrows" for part in range(min(MAX_PARTS, -(-size // PART_BYTES)) or 1)]
    with ExitStack() as stack:
        schema = pq.read_schema(shards[0])
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        writers = [stack.enter_context(pa.ipc.new_stream(part, schema, options=options)) for part in parts]
        for shard in shards:
            with pq.ParquetFile(shard) as file:
                for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                    part = np.array([int(name[:8], 16) * len(parts) >> 32 for name in batch["id"].to_pylist()])
                    for number in np.unique(part).tolist():
                        writers[number].write_batch(batch.filter(pa.array(part == number)))
    return parts


@dataclass
class Remaining:
    """The documents that their own annotations did not drop, in order of id."""

    domain: np.ndarray  # uint64: digest of the name
    quality: np.ndarray  # float64; NaN where the language has no classifier
    order_key: np.ndarray  # uint64 [documents, 2]: documents are held out in this order
    held_out: np.ndarray  # bool
    best: np.ndarray  # bool
    dropped_by: np.ndarray  # int8: index of the late step; -1: none
    share: np.ndarray  # float64: of its 13-grams, where the first late step did
    source_index: np.ndarray  # int32: index into `sources` of what it repeats
    sources: list[str] = field(default_factory=list)  # URLs of held-out documents and examples of benchmarks

    def not_dropped(self) -> np.ndarray:
        """bool [documents]: not dropped by a late step."""
        return self.dropped_by < 0

    def detail(self, row: int) -> str:
        source = self.sources[self.source_index[row]]
        return f"words of {source}" if self.dropped_by[row] else f"{self.share[row]:.2f} of its 13-grams shared with {source}"

    def by_domain(self, chosen: np.ndarray) -> list[np.ndarray]:
        """The rows of the chosen documents, by domain."""
        rows = np.flatnonzero(chosen)
        return [rows[self.domain[rows] == name] for name in np.unique(self.domain[rows])]


def _selection_columns(rows: list[Row], seed: int) -> tuple[np.ndarray, ...]:
    """Fields of `Remaining`. The order key depends on the cluster only, so other thresholds change few held-out documents."""
    domain_digests = [blake2b(row["domain"].encode(), digest_size=8).digest() for row in rows]
    order_digests = [blake2b(f"{seed} {row['cluster']}".encode(), digest_size=16).digest() for row in rows]
    unset = np.zeros(len(rows), dtype=bool)
    return (
        np.frombuffer(b"".join(domain_digests), ">u8").astype(np.uint64),
        np.array([row["quality"] for row in rows], dtype=np.float64),
        np.frombuffer(b"".join(order_digests), ">u8").astype(np.uint64).reshape(-1, 2),
        unset,
        unset.copy(),
        np.full(len(rows), -1, dtype=np.int8),
        np.zeros(len(rows), dtype=np.float64),
        np.zeros(len(rows), dtype=np.int32),
    )


def _hold_out(remaining: Remaining, share: float) -> None:
    for group in remaining.by_domain(remaining.not_dropped()):
        minimum = 2 if share and len(group) >= MIN_DOCUMENTS_TO_HOLD_OUT else 0
        order = group[np.lexsort((remaining.order_key[group, 1], remaining.order_key[group, 0]))]
        remaining.held_out[order[: max(minimum, round(share * len(group)))]] = True


def _mark_best(remaining: Remaining, share: float) -> None:
    """The top share of each domain's training documents by quality; of equal ones, the smallest ids.

    Of those without a quality the same share, by smallest id: so the best have the same languages as the rest.
    """
    train, known = remaining.not_dropped() & ~remaining.held_out, ~np.isnan(remaining.quality)
    for chosen in (train & known, train & ~known):
        for group in remaining.by_domain(chosen):
            order = group[np.argsort(-remaining.quality[group], kind="stable")]
            remaining.best[order[: round(share * len(group))]] = True


def _column_of_remaining(parts: list[Path], column: str, chosen: np.ndarray) -> Iterator[str]:
    """A column of the remaining documents that are `chosen`."""
    start = 0
    for part in parts:
        table = read_working(part, [column, "reason"])
        table = table.filter(table["reason"].is_null())
        yield from table.filter(pa.array(chosen[start : start + len(table)]))[column].to_pylist()
        start += len(table)


def _drop_contaminated(parts: list[Path], remaining: Remaining, max_share: float) -> None:
    held_out, train = np.flatnonzero(remaining.held_out), np.flatnonzero(~remaining.held_out)
    texts = (_column_of_remaining(parts, "text", chosen) for chosen in (remaining.held_out, ~remaining.held_out))
    for row, (share, nearest) in zip(train, contamination(*texts), strict=True):
        if share > max_share:
            remaining.dropped_by[row], remaining.share[row], remaining.source_index[row] = 0, share, held_out[nearest]
    dropped = ~remaining.not_dropped()
    is_source = np.zeros(len(dropped), dtype=bool)
    is_source[remaining.source_index[dropped]] = True
    remaining.source_index[dropped] = np.searchsorted(np.flatnonzero(is_source), remaining.source_index[dropped])
    remaining.sources += _column_of_remaining(parts, "url", is_source)


def _drop_benchmarks(parts: list[Path], remaining: Remaining, paths: list[Path]) -> list[dict[str, Any]]:
    chosen = remaining.not_dropped()
    matches, benchmark_rows = contains_benchmark(_column_of_remaining(parts, "text", chosen), read_benchmarks(paths))
    numbers: dict[str, int] = {}
    for row, name in zip(np.flatnonzero(chosen), matches, strict=True):
        if name:
            remaining.dropped_by[row], remaining.source_index[row] = (
                1, len(remaining.sources) + numbers.setdefault(name, len(numbers))
            )  # fmt: skip
    remaining.sources += numbers
    return benchmark_rows


def _write(parts: list[Path], remaining: Remaining, late_steps: list[FunnelStep], out: Path) -> dict[str, Sizes]:
    """Write both tables; returns the sizes of what is in the first."""
    sizes = {name: Sizes() for name in ("left", "train", "held_out", "best")}
    row_number = 0
    with ExitStack() as stack:
        writers = []
        for name, schema in (("documents", DOCUMENTS), ("dropped", DROPPED)):
            path = stack.enter_context(files.replacing(out / f"{name}.parquet"))
            writers.append(stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd")))
        for part in parts:
            kept, dropped = [], []
            for row in read_working(part).to_pylist():
                if row["reason"] is None:
                    row["bytes"] = len(row["text"].encode())
                    if remaining.dropped_by[row_number] >= 0:
                        late_steps[remaining.dropped_by[row_number]].drop(row, remaining.detail(row_number))
                    else:
                        row["split"] = "held_out" if remaining.held_out[row_number] else "train"
                        row["best"] = bool(remaining.best[row_number])
                        for name in ("left", row["split"], *["best"] * row["best"]):
                            sizes[name].add(row)
                    row_number += 1
                (kept if row["reason"] is None else dropped).append(row)
            for writer, rows, schema in zip(writers, (kept, dropped), (DOCUMENTS, DROPPED), strict=True):
                writer.write_table(_table(rows, schema))
    return sizes


def _table(rows: Iterable[Row], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema=schema)


def _copy_of(other: str | None) -> Reason:
    return f"of {other}" if other else None


def _language(row: Row, wanted: Sequence[str], settings: SelectionConfig) -> Reason:
    if wanted and row["language"] not in wanted:
        return f"language {row['language']}, not {' or '.join(wanted)}"
    score, share = row["language_score"], row["language_share"]
    if score < settings.min_language_score:
        return f"language score {score:.2f} < {settings.min_language_score:g}"
    return f"share in its language {share:.2f} < {settings.min_language_share:g}" if share < settings.min_language_share else None


def _toxic_words(row: Row, maximum: float) -> Reason:
    if row["toxic_words"] is None:  # no list of this language
        return None
    share = row["toxic_words"] / max(1, row["words"])
    return f"share of toxic words {share:.4g} > {maximum:g}" if share > maximum else None


def _outside(row: Row, column: str, minimum: float, maximum: float) -> Reason:
    value = row[column]
    name = column.replace("_", " ")
    if value is None:  # no classifier was given for it, or the rule does not know the language
        return None
    shown = f"{value:.4g}" if isinstance(value, float) else value
    if value < minimum:
        return f"{name} {shown} < {minimum:g}"
    return f"{name} {shown} > {maximum:g}" if value > maximum else None


def _redact(row: Row) -> Counter:
    spans, title_spans = [personal.Span(**span) for span in row["personal"]], personal.find(row["title"], row["language"])
    row["text"] = personal.redact(row["text"], spans)
    row["title"] = personal.redact(row["title"], title_spans)
    row["personal"], row["bytes"] = [], len(row["text"].encode())
    return Counter(span.type for span in spans + title_spans)


def _remove_template_lines(row: Row) -> Counter:
    before, lines = row["bytes"], len(row["template_lines"])
    row["text"] = boilerplate_lines.remove(row["text"], row["template_lines"])
    row["words"], row["bytes"] = words.count(row["text"]), len(row["text"].encode())
    return Counter({"documents": int(lines > 0), "lines": lines, "bytes": before - row["bytes"]})


class _PublishedThresholds:
    """What each paper's threshold alone would drop of all documents with text. For comparison: it drops nothing."""

    def __init__(self) -> None:
        self.filled = 0
        self.would_drop = [0] * len(rules.THRESHOLDS)

    def count(self, table: pa.Table) -> None:
        filled = np.array([bool(text.strip()) for text in table["text"].to_pylist()], dtype=bool)
        self.filled += int(filled.sum())
        for number, threshold in enumerate(rules.THRESHOLDS):
            values = table[threshold.column].to_numpy().astype(np.float64)[filled]
            self.would_drop[number] += int(((values < threshold.minimum) | (values > threshold.maximum)).sum())

    def rows(self) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in threshold._asdict().items() if value != rules.ANY}
            | {"would_drop": count, "of": self.filled}
            for threshold, count in zip(rules.THRESHOLDS, self.would_drop, strict=True)
        ]
