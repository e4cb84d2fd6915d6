"""What only all documents together tell: copies, the template lines of a host, quality; and the annotations with it.

Held in memory are numbers, at most 200 bytes a document; texts, lines and signatures are read from the shards of pass 1
as they are needed, the lines of as many hosts at a time as fit.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from groundup.core.executor import Pool
from groundup.corpus import ids
from groundup.corpus.annotate import corpus_quality
from groundup.corpus.config import AnnotationsConfig
from groundup.corpus.dedup import boilerplate_lines, resolve
from groundup.corpus.languages import UNKNOWN
from groundup.corpus.tables import read_working, write_table

logger = logging.getLogger(__name__)

MOST_SHOWN = 8  # languages in a message
LINE_BYTES = 96  # of memory, while a host's lines are counted: 85 measured
COLUMNS = [
    ("template_lines", pa.list_(pa.int32())),
    *((name, pa.string()) for name in ("same_url_as", "duplicate_of", "near_duplicate_of", "cluster")),
    ("quality", pa.float32()),
]
# What pass 1 leaves for the join, and is not kept.
WORKING = [
    ("text_key", pa.string()),
    ("url_hash", pa.uint64()),
    ("host_hash", pa.uint64()),
    ("spoken", pa.string()),  # the language; of code, and of what no language is told of, the first of those wanted
    ("length", pa.int32()),  # characters
    ("signed", pa.bool_()),
    ("line_count", pa.int32()),
    ("lines", pa.list_(pa.uint64())),
    ("signature", pa.list_(pa.uint32())),
]


@dataclass
class DocumentColumns:
    """What the join needs of every document, in the order of the shards."""

    starts: np.ndarray  # int64 [shards + 1]: the first document of each
    domains: list[str]  # of each shard
    languages: list[str]  # those that there are
    ids: np.ndarray  # uint64 [documents, 2], as in `ids.py`
    text_keys: np.ndarray  # uint64 [documents, 2]
    url_hash: np.ndarray  # uint64 [documents]
    host_hash: np.ndarray  # uint64 [documents]
    language: np.ndarray  # uint16 [documents]: places in `languages`
    html: np.ndarray  # bool [documents]
    words: np.ndarray  # int32 [documents]
    length: np.ndarray  # int32 [documents], characters
    line_count: np.ndarray  # int32 [documents]
    signed: np.ndarray  # bool [documents]: has a signature, which a text of punctuation only has not
    kept: np.ndarray  # bool [documents]: false where the same URL gave the same text before

    @property
    def usable(self) -> np.ndarray:
        """int64: the documents with words that are kept."""
        return np.flatnonzero(self.kept & (self.words > 0))

    @property
    def domain(self) -> np.ndarray:
        """The domain of each document, by number."""
        return np.repeat(np.unique(self.domains, return_inverse=True)[1], np.diff(self.starts))


def join(
    shards: list[Path], settings: AnnotationsConfig, names: list[str], out: Path, pool: Pool, memory_mb: int
) -> dict[str, Any]:
    """Write `out/annotations-<shard>` with the columns `names` for the shards of pass 1; returns counts."""
    rows = read_rows(shards)
    found = _copies(shards, rows, settings, out, memory_mb)
    counted = _stays(found, rows)
    owners, lines = _template_lines(shards, rows, counted, settings.template_line_share, memory_mb)
    trained_on = _train_quality(shards, rows, counted, settings.quality_positives, out / "pass1", memory_mb)
    qualities = corpus_quality.places(
        shards, rows.usable, rows.domain, rows.language, rows.languages, trained_on, out / "pass1", pool
    )
    for path in out.glob("annotations-*.parquet"):
        path.unlink()

    usable = rows.usable

    def jobs() -> Iterator[tuple]:
        for shard, start, end in zip(shards, rows.starts[:-1], rows.starts[1:], strict=True):
            here = slice(*np.searchsorted(owners, (start, end)))
            offsets = np.searchsorted(owners[here], np.arange(start, end + 1))
            part = slice(start, end)
            compared = slice(*np.searchsorted(usable, (start, end)))
            own = {
                name: _named(found, name, rows.ids[part], usable[compared] - start, compared)
                for name, kind in COLUMNS
                if kind == pa.string()
            }
            path = out / f"annotations-{shard.stem}.parquet"
            yield shard, path, names, rows.kept[part], own, qualities[part], offsets, lines[here]

    counts: Counter[str] = Counter()
    by_domain: Counter[str] = Counter()
    types: Counter[str] = Counter()
    for domain, (of_shard, of_types) in zip(rows.domains, pool.spread(_write, jobs()), strict=True):
        counts.update(of_shard)
        by_domain[domain] += of_shard["documents"]
        types.update(of_types)
    return {
        "pages": len(rows.ids),
        "repeated_pages": int((~rows.kept).sum()),
        **counts,
        "documents_by_domain": dict(sorted(by_domain.items())),
        "personal": dict(sorted(types.items())),
        "quality_training_chunks": trained_on,
        "without_quality": _without_quality(qualities, rows, trained_on, settings),
    }


def _train_quality(
    shards: list[Path], rows: DocumentColumns, counted: np.ndarray, positives: list[str], out: Path, memory_mb: int
) -> dict[str, int]:
    """Write a classifier for each language; returns how many chunks of each class each learnt from."""
    unique = rows.usable[counted[rows.usable]]
    # Ids are digests, so the first by id are a random sample that is the same each time.
    unique = unique[np.lexsort((rows.ids[unique, 1], rows.ids[unique, 0]))]
    good = np.repeat(np.isin(rows.domains, positives), np.diff(rows.starts))
    return corpus_quality.train(
        shards, rows.starts, unique, good, rows.language, rows.words, rows.languages, out, memory_mb
    )  # fmt: skip


def _without_quality(
    qualities: np.ndarray, rows: DocumentColumns, trained_on: dict[str, int], settings: AnnotationsConfig
) -> dict[str, int]:
    """How many documents have no quality, by language; says so of those that are wanted."""
    numbers = np.bincount(rows.language[rows.usable][np.isnan(qualities[rows.usable])], minlength=len(rows.languages))
    found = {name: int(number) for name, number in zip(rows.languages, numbers, strict=True) if number}
    told = [name for name in found if name in (settings.wanted_languages or found) and name != UNKNOWN]
    if told and np.isin(rows.domains, settings.quality_positives).any():
        shown = sorted(told, key=lambda name: (-found[name], name))[:MOST_SHOWN] + ["..."] * (len(told) > MOST_SHOWN)
        logger.warning(
            f"no quality of {sum(found[name] for name in told):,} documents in {', '.join(shown)}: of each language "
            f"{corpus_quality.LEAST_CHUNKS} chunks of positives and as many others are needed"
        )
    return found


def read_rows(shards: list[Path]) -> DocumentColumns:
    numbers: dict[str, int] = {}  # of the languages, in the order in which they come
    plain = ["url_hash", "host_hash", "words", "length", "line_count", "signed"]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("ids", "text_keys", "language", "html", *plain)}
    domains = []
    for shard in shards:
        table = read_working(shard, ["id", "text_key", "kind", "domain", "spoken", *plain])
        domains.append(table["domain"][0].as_py())
        parts["ids"].append(ids.from_hex(table["id"]))
        parts["text_keys"].append(resolve.as_numbers(table["text_key"].to_pylist()))
        spoken = [numbers.setdefault(name, len(numbers)) for name in table["spoken"].to_pylist()]
        parts["language"].append(np.array(spoken, dtype=np.uint16))
        parts["html"].append(pc.equal(table["kind"], "html").to_numpy())
        for name in plain:
            parts[name].append(table[name].to_numpy())
    starts = np.cumsum([0, *map(len, parts["ids"])])
    whole = {name: np.concatenate(parts.pop(name)) for name in list(parts)}
    order = np.lexsort((whole["ids"][:, 1], whole["ids"][:, 0]))  # of equal ones the first comes first
    kept = np.ones(len(order), dtype=bool)
    kept[order[1:]] = (whole["ids"][order[1:]] != whole["ids"][order[:-1]]).any(axis=1)
    return DocumentColumns(starts, domains, list(numbers), **whole, kept=kept)


def _copies(shards: list[Path], rows: DocumentColumns, settings: AnnotationsConfig, out: Path, memory_mb: int) -> resolve.Copies:
    """What the usable documents are copies of."""
    chosen, permutations = rows.usable, settings.near_duplicate_permutations
    names = rows.ids[chosen]
    return resolve.find(
        resolve.Documents(names, rows.text_keys[chosen], rows.length[chosen], rows.signed[chosen], names),
        rows.url_hash[chosen],
        lambda: _signatures(shards, rows.starts, chosen, permutations),
        permutations,
        settings.near_duplicate_jaccard,
        out,
        [Path(folder) for folder in settings.against],
        memory_mb,
    )


def _stays(found: resolve.Copies, rows: DocumentColumns) -> np.ndarray:
    """bool [documents]: stands for its own cluster. One without words does."""
    stays = np.ones(len(rows.ids), dtype=bool)
    stays[rows.usable] = (found.stays[found.cluster] == rows.ids[rows.usable]).all(axis=1)
    return stays


def _named(
    found: resolve.Copies, column: str, own: np.ndarray, places: np.ndarray, compared: slice
) -> tuple[np.ndarray, np.ndarray]:
    """The ids in this column of a shard's documents, uint64 [documents, 2], and bool [documents]: there is one.

    `own` are their ids, `places` those that were compared, and `compared` where these are in `found`.
    """
    rows = getattr(found, column)[compared]
    names, there = own.copy(), np.full(len(own), column == "cluster")  # what is not compared is a cluster by itself
    names[places], there[places] = found.names(column)[rows], rows >= 0
    return names, there


def _signatures(shards: list[Path], starts: np.ndarray, chosen: np.ndarray, permutations: int) -> Iterator[np.ndarray]:
    """Of the chosen rows, a block a shard: uint32 [documents, permutations], zero where there is none."""
    for shard, _, places in corpus_quality.parts(shards, starts, chosen):
        column = read_working(shard, ["signature"])["signature"].combine_chunks()
        block = np.zeros((len(column), permutations), dtype=np.uint32)
        block[column.is_valid().to_numpy(zero_copy_only=False)] = column.flatten().to_numpy().reshape(-1, permutations)
        yield block[places]


def _template_lines(
    shards: list[Path], rows: DocumentColumns, counted: np.ndarray, share: float, memory_mb: int
) -> tuple[np.ndarray, np.ndarray]:
    """The documents that have template lines, each once for each, in order; and these, int32."""
    pages = np.flatnonzero(rows.kept & rows.html & (rows.words > 0))
    _, host, sizes = np.unique(rows.host_hash[pages], return_inverse=True, return_counts=True)
    pages, host = pages[sizes[host] >= boilerplate_lines.LEAST_PAGES], host[sizes[host] >= boilerplate_lines.LEAST_PAGES]
    weight = np.cumsum(np.bincount(host, rows.line_count[pages])) * LINE_BYTES
    batch = (weight // (memory_mb << 20)).astype(np.int64)[host] if len(host) else host
    owners, found = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for number in np.unique(batch).tolist():
        chosen = np.flatnonzero(batch == number)
        chosen = chosen[np.argsort(host[chosen], kind="stable")]
        borders = np.flatnonzero(np.diff(host[chosen], prepend=-1, append=-1))
        chosen = pages[chosen]
        values, sizes = _lines(shards, rows, chosen)
        ends = np.append(0, np.cumsum(sizes))
        for first, last in pairwise(borders.tolist()):
            own = slice(first, last)
            of_page, line = boilerplate_lines.template_lines(
                values[ends[first] : ends[last]], sizes[own], counted[chosen[own]], share
            )
            owners.append(chosen[own][of_page])
            found.append(line)
    order = np.argsort(owners := np.concatenate(owners), kind="stable")
    return owners[order], np.concatenate(found)[order]


def _lines(shards: list[Path], rows: DocumentColumns, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lines of these documents, one behind the other, uint64; and how many each has, int64."""
    sizes = rows.line_count[chosen].astype(np.int64)
    values = np.empty(int(sizes.sum()), dtype=np.uint64)
    order = np.argsort(chosen)
    starts = (np.cumsum(sizes) - sizes)[order]
    at = 0
    for shard, some, places in corpus_quality.parts(shards, rows.starts, chosen[order]):
        column = read_working(shard, ["lines"])["lines"].combine_chunks()
        offsets, every = column.offsets.to_numpy(), column.values.to_numpy()
        for start, place in zip(starts[at : at + len(some)].tolist(), places.tolist(), strict=True):
            own = every[offsets[place] : offsets[place + 1]]
            values[start : start + len(own)] = own
        at += len(some)
    return values, sizes


def _write(
    shard: Path,
    path: Path,
    names: list[str],
    kept: np.ndarray,
    columns: dict[str, tuple[np.ndarray, np.ndarray]],
    qualities: np.ndarray,
    offsets: np.ndarray,
    lines: np.ndarray,
) -> tuple[Counter[str], Counter[str]]:
    """The annotations of one shard; returns counts of its documents, and of personal data by type."""
    table = read_working(shard)
    for name, kind in COLUMNS:
        if name == "template_lines":
            values = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(lines, pa.int32()))
        elif kind == pa.string():
            values = ids.to_hex(*columns[name])
        else:
            values = pa.array(qualities, kind, from_pandas=True)  # NaN is null
        table = table.append_column(pa.field(name, kind), values)
    table = table.select(names).filter(pa.array(kept)).replace_schema_metadata(None)
    write_table(table, path)
    words = table["words"].to_numpy()
    counts = Counter(
        documents=len(table),
        empty=int((words == 0).sum()),
        bytes=pc.sum(pc.binary_length(table["text"])).as_py() or 0,
        words=int(words.sum()),
        memory_addresses=int(table["memory_addresses"].to_numpy().sum()),
        replacement_characters=int(table["replacement_characters"].to_numpy().sum()),
        same_urls=len(table) - table["same_url_as"].null_count,
        exact_duplicates=len(table) - table["duplicate_of"].null_count,
        near_duplicates=len(table) - table["near_duplicate_of"].null_count,
        template_lines=pc.sum(pc.list_value_length(table["template_lines"])).as_py() or 0,
    )
    return counts, Counter(span["type"] for spans in table["personal"].to_pylist() for span in spans)
