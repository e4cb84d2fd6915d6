"""Pass 2: what only all documents together show (copies, the template lines of a host, quality). It writes the annotations.

Only numbers are held in memory, at most 200 bytes per document. Texts, lines and signatures are read from the shards of
pass 1 as they are needed, the lines of as many hosts at a time as fit.
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

MAX_SHOWN = 8  # languages in a message
LINE_BYTES = 96  # of memory, while a host's lines are counted: 85 measured
COLUMNS = [
    ("template_lines", pa.list_(pa.int32())),
    *((name, pa.string()) for name in ("same_url_as", "duplicate_of", "near_duplicate_of", "cluster")),
    ("quality", pa.float32()),
]
# What pass 1 writes for the join; it is not kept.
WORKING = [
    ("text_key", pa.string()),
    ("url_hash", pa.uint64()),
    ("host_hash", pa.uint64()),
    ("spoken", pa.string()),  # the language; for code and text in no known language, the first of those wanted
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
    languages: list[str]  # of the documents
    ids: np.ndarray  # uint64 [documents, 2], as in `ids.py`
    text_keys: np.ndarray  # uint64 [documents, 2]
    url_hash: np.ndarray  # uint64 [documents]
    host_hash: np.ndarray  # uint64 [documents]
    language: np.ndarray  # uint16 [documents]: indices into `languages`
    html: np.ndarray  # bool [documents]
    words: np.ndarray  # int32 [documents]
    length: np.ndarray  # int32 [documents], characters
    line_count: np.ndarray  # int32 [documents]
    signed: np.ndarray  # bool [documents]: has a signature; a text of punctuation only has none
    kept: np.ndarray  # bool [documents]: false for a repeated page, of which URL and text came before

    @property
    def usable(self) -> np.ndarray:
        """int64: the kept documents that have words."""
        return np.flatnonzero(self.kept & (self.words > 0))

    @property
    def domain(self) -> np.ndarray:
        """The domain of each document, by number."""
        return np.repeat(np.unique(self.domains, return_inverse=True)[1], np.diff(self.starts))


def join(
    shards: list[Path], settings: AnnotationsConfig, names: list[str], out: Path, pool: Pool, memory_mb: int
) -> dict[str, Any]:
    """Write `out/annotations-<shard>` with the columns `names` for the shards of pass 1; returns counts."""
    columns = read_columns(shards)
    copies = _copies(shards, columns, settings, out, memory_mb)
    representative = _represents_cluster(copies, columns)
    line_documents, line_indices = _template_lines(shards, columns, representative, settings.template_line_share, memory_mb)
    chunk_counts = _train_quality(shards, columns, representative, settings.quality_positives, out / "pass1", memory_mb)
    qualities = corpus_quality.percentiles(
        shards, columns.usable, columns.domain, columns.language, columns.languages, chunk_counts, out / "pass1", pool
    )
    for path in out.glob("annotations-*.parquet"):
        path.unlink()

    usable = columns.usable

    def jobs() -> Iterator[tuple]:
        for shard, start, end in zip(shards, columns.starts[:-1], columns.starts[1:], strict=True):
            shard_lines = slice(*np.searchsorted(line_documents, (start, end)))
            offsets = np.searchsorted(line_documents[shard_lines], np.arange(start, end + 1))
            in_shard = slice(start, end)
            shard_usable = slice(*np.searchsorted(usable, (start, end)))
            id_columns = {
                name: _id_column(copies, name, columns.ids[in_shard], usable[shard_usable] - start, shard_usable)
                for name, kind in COLUMNS
                if kind == pa.string()
            }
            path = out / f"annotations-{shard.stem}.parquet"
            yield shard, path, names, columns.kept[in_shard], id_columns, qualities[in_shard], offsets, line_indices[shard_lines]

    counts: Counter[str] = Counter()
    by_domain: Counter[str] = Counter()
    personal_types: Counter[str] = Counter()
    for domain, (shard_counts, shard_types) in zip(columns.domains, pool.spread(_write, jobs()), strict=True):
        counts.update(shard_counts)
        by_domain[domain] += shard_counts["documents"]
        personal_types.update(shard_types)
    return {
        "pages": len(columns.ids),
        "repeated_pages": int((~columns.kept).sum()),
        **counts,
        "documents_by_domain": dict(sorted(by_domain.items())),
        "personal": dict(sorted(personal_types.items())),
        "quality_training_chunks": chunk_counts,
        "without_quality": _without_quality(qualities, columns, chunk_counts, settings),
    }


def _train_quality(
    shards: list[Path],
    columns: DocumentColumns,
    representative: np.ndarray,
    positive_domains: list[str],
    out: Path,
    memory_mb: int,
) -> dict[str, int]:
    """Write a classifier for each language; returns how many chunks of each class each was trained on."""
    unique = columns.usable[representative[columns.usable]]
    # Ids are digests, so the first by id are a random sample that is the same each time.
    unique = unique[np.lexsort((columns.ids[unique, 1], columns.ids[unique, 0]))]
    is_positive = np.repeat(np.isin(columns.domains, positive_domains), np.diff(columns.starts))
    return corpus_quality.train(
        shards, columns.starts, unique, is_positive, columns.language, columns.words, columns.languages, out, memory_mb
    )  # fmt: skip


def _without_quality(
    qualities: np.ndarray, columns: DocumentColumns, chunk_counts: dict[str, int], settings: AnnotationsConfig
) -> dict[str, int]:
    """How many documents have no quality, by language; a warning names the wanted languages among them."""
    counts = np.bincount(
        columns.language[columns.usable][np.isnan(qualities[columns.usable])], minlength=len(columns.languages)
    )
    missing = {name: int(count) for name, count in zip(columns.languages, counts, strict=True) if count}
    reported = [name for name in missing if name in (settings.wanted_languages or missing) and name != UNKNOWN]
    if reported and np.isin(columns.domains, settings.quality_positives).any():
        shown = sorted(reported, key=lambda name: (-missing[name], name))[:MAX_SHOWN] + ["..."] * (len(reported) > MAX_SHOWN)
        logger.warning(
            f"no quality for {sum(missing[name] for name in reported):,} documents in {', '.join(shown)}: each language needs "
            f"{corpus_quality.MIN_CHUNKS} chunks of positives and as many others"
        )
    return missing


def read_columns(shards: list[Path]) -> DocumentColumns:
    language_numbers: dict[str, int] = {}  # in the order in which the languages come
    plain_columns = ["url_hash", "host_hash", "words", "length", "line_count", "signed"]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("ids", "text_keys", "language", "html", *plain_columns)}
    domains = []
    for shard in shards:
        table = read_working(shard, ["id", "text_key", "kind", "domain", "spoken", *plain_columns])
        domains.append(table["domain"][0].as_py())
        parts["ids"].append(ids.from_hex(table["id"]))
        parts["text_keys"].append(resolve.keys_from_hex(table["text_key"].to_pylist()))
        spoken = [language_numbers.setdefault(name, len(language_numbers)) for name in table["spoken"].to_pylist()]
        parts["language"].append(np.array(spoken, dtype=np.uint16))
        parts["html"].append(pc.equal(table["kind"], "html").to_numpy())
        for name in plain_columns:
            parts[name].append(table[name].to_numpy())
    starts = np.cumsum([0, *map(len, parts["ids"])])
    columns = {name: np.concatenate(parts.pop(name)) for name in list(parts)}
    order = np.lexsort((columns["ids"][:, 1], columns["ids"][:, 0]))  # stable: of equal ids the first comes first
    kept = np.ones(len(order), dtype=bool)
    kept[order[1:]] = (columns["ids"][order[1:]] != columns["ids"][order[:-1]]).any(axis=1)
    return DocumentColumns(starts, domains, list(language_numbers), **columns, kept=kept)


def _copies(
    shards: list[Path], columns: DocumentColumns, settings: AnnotationsConfig, out: Path, memory_mb: int
) -> resolve.Copies:
    """What the usable documents are copies of."""
    usable, permutations = columns.usable, settings.near_duplicate_permutations
    usable_ids = columns.ids[usable]
    return resolve.find_copies(
        resolve.Documents(usable_ids, columns.text_keys[usable], columns.length[usable], columns.signed[usable], usable_ids),
        columns.url_hash[usable],
        lambda: _signatures(shards, columns.starts, usable, permutations),
        permutations,
        settings.near_duplicate_jaccard,
        out,
        [Path(folder) for folder in settings.against],
        memory_mb,
    )


def _represents_cluster(copies: resolve.Copies, columns: DocumentColumns) -> np.ndarray:
    """bool [documents]: represents its own cluster, as every document without words does."""
    representative = np.ones(len(columns.ids), dtype=bool)
    representative[columns.usable] = (copies.representatives[copies.cluster] == columns.ids[columns.usable]).all(axis=1)
    return representative


def _id_column(
    copies: resolve.Copies, column: str, document_ids: np.ndarray, compared_rows: np.ndarray, copies_slice: slice
) -> tuple[np.ndarray, np.ndarray]:
    """A shard's column of ids of copies, uint64 [documents, 2], and where it is not null, bool [documents].

    document_ids: of the shard's documents. compared_rows: the rows of those that were compared. copies_slice: where these
    are in `copies`.
    """
    rows = getattr(copies, column)[copies_slice]
    values, valid = document_ids.copy(), np.full(len(document_ids), column == "cluster")  # uncompared: its own cluster
    values[compared_rows], valid[compared_rows] = copies.ids_of(column)[rows], rows >= 0
    return values, valid


def _signatures(shards: list[Path], starts: np.ndarray, documents: np.ndarray, permutations: int) -> Iterator[np.ndarray]:
    """Signatures of the documents, a block per shard: uint32 [documents, permutations], zero where there is none."""
    for shard, _, rows in corpus_quality.rows_by_shard(shards, starts, documents):
        column = read_working(shard, ["signature"])["signature"].combine_chunks()
        block = np.zeros((len(column), permutations), dtype=np.uint32)
        block[column.is_valid().to_numpy(zero_copy_only=False)] = column.flatten().to_numpy().reshape(-1, permutations)
        yield block[rows]


def _template_lines(
    shards: list[Path], columns: DocumentColumns, representative: np.ndarray, share: float, memory_mb: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each template line its document, int64, in order; and its index in the document's lines, int32."""
    pages = np.flatnonzero(columns.kept & columns.html & (columns.words > 0))
    _, host, page_counts = np.unique(columns.host_hash[pages], return_inverse=True, return_counts=True)
    pages, host = pages[page_counts[host] >= boilerplate_lines.MIN_PAGES], host[page_counts[host] >= boilerplate_lines.MIN_PAGES]
    cumulative_bytes = np.cumsum(np.bincount(host, columns.line_count[pages])) * LINE_BYTES
    host_batch = (cumulative_bytes // (memory_mb << 20)).astype(np.int64)[host] if len(host) else host
    owners, line_indices = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for batch in np.unique(host_batch).tolist():
        batch_pages = np.flatnonzero(host_batch == batch)
        batch_pages = batch_pages[np.argsort(host[batch_pages], kind="stable")]
        host_bounds = np.flatnonzero(np.diff(host[batch_pages], prepend=-1, append=-1))
        batch_pages = pages[batch_pages]
        hashes, line_counts = _line_hashes(shards, columns, batch_pages)
        ends = np.append(0, np.cumsum(line_counts))
        for first, last in pairwise(host_bounds.tolist()):
            of_host = slice(first, last)
            line_pages, indices = boilerplate_lines.template_lines(
                hashes[ends[first] : ends[last]], line_counts[of_host], representative[batch_pages[of_host]], share
            )
            owners.append(batch_pages[of_host][line_pages])
            line_indices.append(indices)
    order = np.argsort(owners := np.concatenate(owners), kind="stable")
    return owners[order], np.concatenate(line_indices)[order]


def _line_hashes(shards: list[Path], columns: DocumentColumns, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The line hashes of these documents, one document after another, uint64; and how many each has, int64."""
    line_counts = columns.line_count[documents].astype(np.int64)
    hashes = np.empty(int(line_counts.sum()), dtype=np.uint64)
    order = np.argsort(documents)
    starts = (np.cumsum(line_counts) - line_counts)[order]
    done = 0
    for shard, shard_documents, rows in corpus_quality.rows_by_shard(shards, columns.starts, documents[order]):
        column = read_working(shard, ["lines"])["lines"].combine_chunks()
        offsets, shard_hashes = column.offsets.to_numpy(), column.values.to_numpy()
        for start, row in zip(starts[done : done + len(shard_documents)].tolist(), rows.tolist(), strict=True):
            document_hashes = shard_hashes[offsets[row] : offsets[row + 1]]
            hashes[start : start + len(document_hashes)] = document_hashes
        done += len(shard_documents)
    return hashes, line_counts


def _write(
    shard: Path,
    path: Path,
    names: list[str],
    kept: np.ndarray,
    columns: dict[str, tuple[np.ndarray, np.ndarray]],
    qualities: np.ndarray,
    offsets: np.ndarray,
    line_indices: np.ndarray,
) -> tuple[Counter[str], Counter[str]]:
    """The annotations of one shard; returns counts of its documents, and of personal data by type."""
    table = read_working(shard)
    for name, kind in COLUMNS:
        if name == "template_lines":
            values = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(line_indices, pa.int32()))
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
