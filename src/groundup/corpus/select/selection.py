"""Selection: the only place with thresholds. Every dropped document stays on file with its reason.

Filters say why they drop (datatrove's `(False, reason)`), and are tried one after the other over the annotations, so
another threshold is tried in seconds. Then the text is changed (personal data redacted, template lines out),
documents are held out for evaluation, and training documents that repeat them are dropped.

Documents pass in the order of their ids, which are digests: they are first dealt out to files by them, and then read
file by file. Of those that are left some 40 bytes each stay in memory, and the 13-grams of the held-out ones.
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

PART_BYTES = 16 << 20  # of annotations that are looked at together
MOST_PARTS = 256  # files that are open at a time
ROWS_AT_ONCE = 2000
MOST_SHOWN = 4  # steps in a message
LEAST_DOCUMENTS_TO_HOLD_OUT = 10  # of a domain, for it to be sure of two held-out ones
KEYS = [(name, pa.string()) for name in ("id", "url", "host", "domain", "kind", "language", "title", "text")]
DOCUMENTS = pa.schema(
    [*KEYS, ("quality", pa.float32()), ("best", pa.bool_()), ("split", pa.string()), ("cluster", pa.string())]
)
WHY = [(name, pa.string()) for name in ("cluster", "reason", "detail")]
DROPPED = pa.schema([*KEYS, ("words", pa.int32()), ("quality", pa.float32()), *WHY])


def steps_of(settings: SelectionConfig, languages: Sequence[str]) -> list[FunnelStep]:
    """What each document goes through by itself, in order."""

    def inside(column: str, least: float, most: float, code_exempt: bool = False, name: str = "") -> FunnelStep:
        return FunnelStep(name or column.replace("_", " "), lambda row: _outside(row, column, least, most), code_exempt)

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
        # Spans count characters of the whole text and a placeholder has no line break: redact first, then remove lines.
        FunnelStep("personal data redacted", change=_redact),
        FunnelStep("template lines removed", change=_remove_template_lines),
        inside("words", settings.min_words, 10**12, name="length without template lines"),
    ]


def select(annotations: Path, out: Path, settings: SelectionConfig, languages: Sequence[str], seed: int) -> dict[str, Any]:
    """Write `documents.parquet`, `dropped.parquet` and `funnel.json` in `out`; returns what the funnel says.

    languages: codes of those that are kept; empty: any.

    Raises UserError when there are no annotations, or when no document is left for training.
    """
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob("select-*"):
        shutil.rmtree(left)  # by a run that was killed
    steps, every, published = steps_of(settings, languages), Sizes(), _Published()
    with tempfile.TemporaryDirectory(prefix="select-", dir=out) as folder:
        parts, numbers = [], []
        for dealt in _deal_out(annotations, Path(folder)):
            table = pa.ipc.open_stream(dealt).read_all()
            dealt.unlink()
            published.count(table)
            rows = sorted(table.to_pylist(), key=lambda row: row["id"])
            for row in rows:
                row["bytes"], row["reason"], row["detail"] = len(row["text"].encode()), None, None
                if settings.domain_by_language and row["kind"] != "code":
                    row["domain"] = f"{row['domain']}-{row['language']}"
                every.add(row)
                all(step.keeps(row) for step in steps)
            numbers.append(_numbers([row for row in rows if row["reason"] is None], seed))
            parts.append(dealt.with_suffix(".arrow"))
            write_working(_table(rows, DROPPED), parts[-1])
        left = Left(*map(np.concatenate, zip(*numbers, strict=True)))
        del numbers
        _hold_out(left, settings.held_out)
        late = [FunnelStep("contaminates held-out")]
        _drop_contaminated(parts, left, settings.max_contamination)
        benchmarks: list[dict[str, Any]] = []
        if settings.benchmarks:
            late.append(FunnelStep("contains benchmark"))
            benchmarks = _drop_benchmarks(parts, left, [Path(name) for name in settings.benchmarks])
        _mark_best(left, settings.best_share)
        sizes = _write(parts, left, late, out)
    result = {
        "steps": report(steps + late, every),
        **{name: size.as_dict() for name, size in sizes.items()},
        "published_thresholds": published.rows(),
        "benchmarks": benchmarks,
    }
    files.write_json(out / "funnel.json", result)
    if not sizes["train"]:
        dropped = sorted(((step["dropped"], step["step"]) for step in result["steps"] if step.get("dropped")), reverse=True)
        why = ", ".join(f"{name}: {count}" for count, name in dropped[:MOST_SHOWN]) or "all are held out"
        raise UserError(f"no document is left for training (dropped by {why}); see {out / 'funnel.json'}")
    return result


def _deal_out(annotations: Path, folder: Path) -> list[Path]:
    """The rows of all shards in files of about `PART_BYTES`, each with the ids between two bounds, in order of these."""
    shards = sorted(annotations.glob("annotations-*.parquet"))
    if not shards:
        raise UserError(f"{annotations}: no annotations-*.parquet; annotate pages first")
    if "language_share" not in pq.read_schema(shards[0]).names:
        raise UserError(f"{shards[0]}: no column 'language_share': an earlier version wrote it; annotate the pages again")
    size = 0
    for shard in shards:
        metadata = pq.read_metadata(shard)
        size += sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    parts = [folder / f"{part:03d}.arrows" for part in range(min(MOST_PARTS, -(-size // PART_BYTES)) or 1)]
    with ExitStack() as stack:
        schema = pq.read_schema(shards[0])
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        writers = [stack.enter_context(pa.ipc.new_stream(part, schema, options=options)) for part in parts]
        for shard in shards:
            with pq.ParquetFile(shard) as file:
                for batch in file.iter_batches(ROWS_AT_ONCE, use_threads=False):
                    part = np.array([int(name[:8], 16) * len(parts) >> 32 for name in batch["id"].to_pylist()])
                    for number in np.unique(part).tolist():
                        writers[number].write_batch(batch.filter(pa.array(part == number)))
    return parts


@dataclass
class Left:
    """The documents that their own annotations did not drop, in order of id."""

    domain: np.ndarray  # uint64: equal for equal domains
    quality: np.ndarray  # float64, NaN where its language has no classifier
    place: np.ndarray  # uint64 [documents, 2]: their order for being held out
    held_out: np.ndarray  # bool
    best: np.ndarray  # bool
    dropped_by: np.ndarray  # int8: which of the late steps; -1: none
    share: np.ndarray  # float64: of its 13-grams, where the first of them did
    of: np.ndarray  # int32: which of the texts below
    texts: list[str] = field(default_factory=list)  # addresses of held-out documents and examples of benchmarks

    def here(self) -> np.ndarray:
        """bool: those not dropped since."""
        return self.dropped_by < 0

    def detail(self, place: int) -> str:
        of = self.texts[self.of[place]]
        return f"words of {of}" if self.dropped_by[place] else f"{self.share[place]:.2f} of its 13-grams shared with {of}"

    def by_domain(self, chosen: np.ndarray) -> list[np.ndarray]:
        """The places of the chosen documents, of one domain after another."""
        places = np.flatnonzero(chosen)
        return [places[self.domain[places] == name] for name in np.unique(self.domain[places])]


def _numbers(rows: list[Row], seed: int) -> tuple[np.ndarray, ...]:
    """The choice of the held-out depends on the cluster alone, so another threshold elsewhere moves few across."""
    names = [blake2b(row["domain"].encode(), digest_size=8).digest() for row in rows]
    places = [blake2b(f"{seed} {row['cluster']}".encode(), digest_size=16).digest() for row in rows]
    none = np.zeros(len(rows), dtype=bool)
    return (
        np.frombuffer(b"".join(names), ">u8").astype(np.uint64),
        np.array([row["quality"] for row in rows], dtype=np.float64),
        np.frombuffer(b"".join(places), ">u8").astype(np.uint64).reshape(-1, 2),
        none,
        none.copy(),
        np.full(len(rows), -1, dtype=np.int8),
        np.zeros(len(rows), dtype=np.float64),
        np.zeros(len(rows), dtype=np.int32),
    )


def _hold_out(left: Left, share: float) -> None:
    for group in left.by_domain(left.here()):
        least = 2 if share and len(group) >= LEAST_DOCUMENTS_TO_HOLD_OUT else 0
        order = group[np.lexsort((left.place[group, 1], left.place[group, 0]))]
        left.held_out[order[: max(least, round(share * len(group)))]] = True


def _mark_best(left: Left, share: float) -> None:
    """The top share of each domain's training documents by quality; of equal ones, the least id.

    Of those without a quality the same share, the least by id: the best have no other languages than the rest.
    """
    train, known = left.here() & ~left.held_out, ~np.isnan(left.quality)
    for chosen in (train & known, train & ~known):
        for group in left.by_domain(chosen):
            order = group[np.argsort(-left.quality[group], kind="stable")]
            left.best[order[: round(share * len(group))]] = True


def _of_left(parts: list[Path], column: str, chosen: np.ndarray) -> Iterator[str]:
    """A column of the chosen ones of the documents that are left."""
    start = 0
    for part in parts:
        table = read_working(part, [column, "reason"])
        table = table.filter(table["reason"].is_null())
        yield from table.filter(pa.array(chosen[start : start + len(table)]))[column].to_pylist()
        start += len(table)


def _drop_contaminated(parts: list[Path], left: Left, most: float) -> None:
    held_out, train = np.flatnonzero(left.held_out), np.flatnonzero(~left.held_out)
    texts = (_of_left(parts, "text", chosen) for chosen in (left.held_out, ~left.held_out))
    for row, (share, nearest) in zip(train, contamination(*texts), strict=True):
        if share > most:
            left.dropped_by[row], left.share[row], left.of[row] = 0, share, held_out[nearest]
    dropped = ~left.here()
    named = np.zeros(len(dropped), dtype=bool)
    named[left.of[dropped]] = True
    left.of[dropped] = np.searchsorted(np.flatnonzero(named), left.of[dropped])
    left.texts += _of_left(parts, "url", named)


def _drop_benchmarks(parts: list[Path], left: Left, paths: list[Path]) -> list[dict[str, Any]]:
    chosen = left.here()
    named, found = contains_benchmark(_of_left(parts, "text", chosen), read_benchmarks(paths))
    numbers: dict[str, int] = {}
    for row, name in zip(np.flatnonzero(chosen), named, strict=True):
        if name:
            left.dropped_by[row], left.of[row] = 1, len(left.texts) + numbers.setdefault(name, len(numbers))
    left.texts += numbers
    return found


def _write(parts: list[Path], left: Left, late: list[FunnelStep], out: Path) -> dict[str, Sizes]:
    """Both tables; returns the sizes of what is in the first."""
    sizes = {name: Sizes() for name in ("left", "train", "held_out", "best")}
    place = 0
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
                    if left.dropped_by[place] >= 0:
                        late[left.dropped_by[place]].drop(row, left.detail(place))
                    else:
                        row["split"] = "held_out" if left.held_out[place] else "train"
                        row["best"] = bool(left.best[place])
                        for name in ("left", row["split"], *["best"] * row["best"]):
                            sizes[name].add(row)
                    place += 1
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


def _toxic_words(row: Row, most: float) -> Reason:
    if row["toxic_words"] is None:  # no list of this language
        return None
    share = row["toxic_words"] / max(1, row["words"])
    return f"share of toxic words {share:.4g} > {most:g}" if share > most else None


def _outside(row: Row, column: str, least: float, most: float) -> Reason:
    value = row[column]
    name = column.replace("_", " ")
    if value is None:  # no classifier was given for it, or the rule does not know the language
        return None
    shown = f"{value:.4g}" if isinstance(value, float) else value
    if value < least:
        return f"{name} {shown} < {least:g}"
    return f"{name} {shown} > {most:g}" if value > most else None


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


class _Published:
    """What each paper's threshold alone would drop of all documents with text: for comparison, nothing is dropped."""

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
