"""Annotate first, thresholds late: every page becomes a row of text and measurements, and nothing is dropped.

As in dolma (attributes beside documents) and RedPajama v2 (signals as columns): trying another threshold costs no new
computation. Pass 1 is per shard and parallel: extraction and what one document tells of itself. Then what only all
documents together tell: duplicates, the template lines of a host, quality. That join holds 8 bytes a line and some
hundred a document in memory; texts and signatures stay on disk.
"""

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from groundup.corpus import copies, domains, duplicates, linear, personal, quality, rules, template_lines, toxicity
from groundup.corpus.extract import extract
from groundup.corpus.warc import Losses, Page, read_pages
from groundup.corpus.words import Words, split
from groundup.errors import UserError
from groundup.files import digest, replacing
from groundup.progress import Progress
from groundup.recipe import Annotations
from groundup.workers import pool as workers_pool

SHARD_BYTES = 4 << 20  # of page bodies: the unit of work, so that a few files of uneven size keep all workers busy
SHARD_PAGES = 2000
QUALITY_CHUNKS = 20_000  # of each class; DCLM trains on 400,000 documents, but 2^18 weights are learnt from far fewer
QUALITY_SEED = 0
CODE_SUFFIXES = {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts", ".sh", ".sql"}
PROSE_TYPES = {"text/x-rst", "text/x-markdown", "text/x-web-markdown"}
ADDRESS = re.compile(r"at 0x(?<!\w.{5})[0-9a-fA-F]{6,16}\b")
HANDLE = re.compile(r"handle (?<!\w.{7})(?=[a-f]*\d)[0-9a-f]{8,16}\b")

SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("type", pa.string())])
OWN = [
    *((name, pa.string()) for name in ("id", "url", "host", "domain", "kind", "title", "text", "language")),
    ("language_score", pa.float32()),
    ("memory_addresses", pa.int32()),
    *((name, pa.int32() if name in rules.COUNTS else pa.float32()) for name in rules.COLUMNS),
    ("toxic_words", pa.int32()),
    # Null without a classifier for them.
    *((name, pa.float32()) for name in ("toxicity", "worst_toxicity", "calibrated_quality", "domain_score")),
    ("domain_class", pa.string()),
    ("personal", pa.list_(SPAN)),
]
WORKING = [("text_key", pa.string()), ("lines", pa.list_(pa.uint64())), ("signature", pa.list_(pa.uint32()))]
JOINED = [
    ("template_lines", pa.list_(pa.int32())),
    *((name, pa.string()) for name in ("same_url_as", "duplicate_of", "near_duplicate_of", "cluster")),
    ("quality", pa.float32()),
]
PASS_1 = pa.schema(OWN + WORKING)
SCHEMA = pa.schema(OWN + JOINED)


def annotate(
    pages: list[tuple[Path, str]],
    out: Path,
    settings: Annotations,
    workers: int,
    label: str = "annotate",
    ray: str | None = None,
    memory_mb: int = 1024,
) -> dict[str, Any]:
    """Write `out/annotations-<warc>-<NNNNN>.parquet` for WARC files, each with its domain; returns counts.

    The shards are the same bytes for any number of workers, here or on the Ray cluster at address `ray`. When cut off,
    the shards of pass 1 are found again.
    Raises UserError when there are no pages, or two files have the same name, which the shards are called after.
    """
    names = [_stem(path) for path, _ in pages]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"two WARC files are called {twice[0]!r}; rename one: shards are called after them")
    working = out / "pass1"
    working.mkdir(parents=True, exist_ok=True)
    losses = Losses()
    shards: list[Path] = []
    jobs = _unmeasured(pages, working, settings, losses, shards)
    with workers_pool(workers, ray) as pool:
        with Progress(label, unit="pages") as progress:
            for count in pool.spread(_measure, jobs):
                progress.advance(count)
        if not shards:
            raise UserError(f"no page in {', '.join(str(path) for path, _ in pages) or 'no WARC file'}; crawl again")
        rows = _read_rows(shards)
        groups = _group(shards, rows, settings, out, memory_mb)
        groups["template_lines"] = _template_lines(rows, groups["cluster"], settings.template_line_share)
        classifier = working / "quality.npz"
        trained_on = _train_quality(shards, rows, groups["cluster"], settings.quality_positives, classifier)
        groups["quality"] = np.full(len(rows.ids), 0.5)
        if trained_on:
            jobs = ((shard, classifier) for shard in shards)
            scores = np.concatenate(list(pool.spread(_score, jobs)))
            groups["quality"] = _percentiles(scores, rows)
    for path in out.glob("annotations-*.parquet"):
        path.unlink()
    counts = {"pages": len(rows.ids), "repeated_pages": int((~rows.kept).sum()), **asdict(losses)}
    counts |= _write(shards, rows, groups, out) | {"quality_training_chunks": trained_on}
    shutil.rmtree(working)
    return counts


def scrub_addresses(text: str) -> tuple[str, int]:
    """Replace the digits of memory addresses, as in `<object at 0x7f3c8386ca90>`, by `0x…`; also their number.

    They differ each time the documented program runs: they would teach noise, and give the same page another identity
    and another place in every shuffle on each run.
    """
    text, addresses = ADDRESS.subn("at 0x…", text)  # patterns that start with a constant are found fast
    text, handles = HANDLE.subn("handle 0x…", text)
    return text, addresses + handles


def kind_of(content_type: str, url: str) -> str:
    """`html`, `code` or `text`. Prose rules do not fit code, and only web pages have menus."""
    if content_type in ("", "text/html", "application/xhtml+xml"):
        return "html"
    is_code = content_type.startswith("text/x-") and content_type not in PROSE_TYPES
    return "code" if is_code or PurePosixPath(urlsplit(url).path).suffix.lower() in CODE_SUFFIXES else "text"


def host_of(url: str) -> str:
    """The host without port; of a `file:///name/...` resource the first part of its path."""
    parts = urlsplit(url)
    return parts.hostname or parts.path.strip("/").partition("/")[0]


def measure(page: Page, domain: str, settings: Annotations) -> dict[str, Any]:
    """One row of pass 1: the text of a page and what it tells of itself."""
    extracted = extract(page)
    # Text of the web may hold halves of surrogate pairs, which UTF-8 cannot.
    text = extracted.text.encode("utf-8", "replace").decode()
    text, addresses = scrub_addresses(text)
    words = split(text)
    language, score = rules.language(text)
    return {
        "id": blake2b(f"{page.url}\n{text}".encode(), digest_size=16).hexdigest(),
        "url": page.url,
        "host": host_of(page.url),
        "domain": domain,
        "kind": kind_of(page.content_type, page.url),
        "title": (extracted.title or "").encode("utf-8", "replace").decode(),
        "text": text,
        "language": language,
        "language_score": score,
        "memory_addresses": addresses,
        **rules.measure(text, words),
        **_judged(words, settings),
        "personal": [span._asdict() for span in personal.find(text)],
        "text_key": duplicates.text_key(words),
        "lines": template_lines.line_hashes(text),
        "signature": duplicates.signature(words, settings.near_duplicate_permutations),
    }


def _judged(words: Words, settings: Annotations) -> dict[str, Any]:
    """What the word list and the user's classifiers say."""
    listed = toxicity.word_list(Path(settings.toxic_words) if settings.toxic_words else None)
    row: dict[str, Any] = {"toxic_words": listed.count(words)}
    if settings.toxicity_classifier:
        row["toxicity"], row["worst_toxicity"] = toxicity.score(_classifier(settings.toxicity_classifier), words)
    if settings.quality_classifier:
        row["calibrated_quality"] = quality.score(_classifier(settings.quality_classifier), words)
    if settings.domain_classifier:
        row["domain_class"], row["domain_score"] = domains.classify(_classifier(settings.domain_classifier), words)
    return row


@cache  # once a process
def _classifier(path: str) -> linear.Classifier:
    return linear.Classifier.load(Path(path))


def _judges(settings: Annotations) -> str:
    """Changes with every file that pass 1 reads besides the pages. Raises UserError when one is missing."""
    digests = []
    for name in ("toxic_words", "toxicity_classifier", "quality_classifier", "domain_classifier"):
        path = Path(getattr(settings, name))
        if getattr(settings, name) and not path.is_file():
            raise UserError(f"annotations.{name}: {path}: no such file")
        digests.append(digest(path) if getattr(settings, name) else "")
    return " ".join(digests)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".warc")


def _unmeasured(
    pages: list[tuple[Path, str]], working: Path, settings: Annotations, losses: Losses, shards: list[Path]
) -> Iterator[tuple]:
    """Jobs for the shards that are not there yet; `shards` is filled with all of them.

    The pages are read here, in one place, so the losses are counted once; reading costs a tenth of extracting.
    """
    judges = _judges(settings)
    for path, domain in pages:
        for number, batch in enumerate(_batches(read_pages(path, losses))):
            shard = working / f"{_stem(path)}-{number:05d}.parquet"
            shards.append(shard)
            key = blake2b(f"{domain}\n{settings.near_duplicate_permutations}\n{judges}".encode(), digest_size=16)
            for page in batch:
                key.update(f"\n{page.url}\n{page.content_type}\n{page.charset}\n{len(page.body)}\n".encode())
                key.update(page.body)
            made_from = key.hexdigest().encode()
            if not shard.exists() or (pq.read_schema(shard).metadata or {}).get(b"made_from") != made_from:
                yield batch, domain, settings, shard, made_from


def _batches(pages: Iterable[Page]) -> Iterator[list[Page]]:
    batch: list[Page] = []
    size = 0
    for page in pages:
        batch.append(page)
        size += len(page.body)
        if size >= SHARD_BYTES or len(batch) == SHARD_PAGES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _measure(batch: list[Page], domain: str, settings: Annotations, shard: Path, made_from: bytes) -> int:
    rows = [measure(page, domain, settings) for page in batch]
    table = pa.Table.from_pylist(rows, schema=PASS_1).replace_schema_metadata({"made_from": made_from})
    _write_table(table, shard)
    return len(rows)


def _read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    # One file: pq.read_table would set up a data set and its threads for each.
    with pq.ParquetFile(path) as file:
        return file.read(columns=columns, use_threads=False)


def _write_table(table: pa.Table, path: Path) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


@dataclass
class Rows:
    """What the join needs of every document, in the order of the shards."""

    ids: list[str]
    urls: list[str]
    hosts: list[str]
    domains: list[str]
    kinds: list[str]
    text_keys: list[str]
    lengths: np.ndarray  # int64 [documents], characters
    words: np.ndarray  # int64 [documents]
    lines: list[np.ndarray]
    signed: np.ndarray  # bool [documents]: has a signature, which a text of punctuation only has not
    kept: np.ndarray  # bool [documents]: false where the same URL gave the same text before


def _read_rows(shards: list[Path]) -> Rows:
    rows = Rows([], [], [], [], [], [], np.zeros(0, int), np.zeros(0, int), [], np.zeros(0, bool), np.zeros(0, bool))
    lengths, words, signed = [], [], []
    for shard in shards:
        table = _read_table(shard)
        named = {"id": rows.ids, "url": rows.urls, "host": rows.hosts, "domain": rows.domains, "kind": rows.kinds}
        for name, column in named.items():
            column += table[name].to_pylist()
        rows.text_keys += table["text_key"].to_pylist()
        lengths += [len(text) for text in table["text"].to_pylist()]
        words += table["words"].to_pylist()
        rows.lines += [lines.values.to_numpy(zero_copy_only=False).copy() for lines in table["lines"]]
        signed += table["signature"].is_valid().to_pylist()
    seen: set[str] = set()
    rows.kept = np.array([not (name in seen or seen.add(name)) for name in rows.ids], dtype=bool)
    rows.lengths, rows.words = np.array(lengths, dtype=np.int64), np.array(words, dtype=np.int64)
    rows.signed = np.array(signed, dtype=bool)
    return rows


def _group(shards: list[Path], rows: Rows, settings: Annotations, out: Path, memory_mb: int) -> dict[str, list]:
    """Columns same_url_as, duplicate_of, near_duplicate_of and cluster, of the pages with words that are kept."""
    chosen = np.array(_usable(rows), dtype=np.int64)
    places = chosen.tolist()
    new = copies.documents(
        [rows.ids[row] for row in places],
        [rows.text_keys[row] for row in places],
        rows.lengths[chosen],
        rows.signed[chosen],
    )
    permutations = settings.near_duplicate_permutations
    found = copies.find(
        new,
        (rows.urls[row] for row in places),
        lambda: _signatures(shards, chosen, permutations),
        permutations,
        settings.near_duplicate_jaccard,
        out,
        [Path(folder) for folder in settings.against],
        memory_mb,
    )
    columns: dict[str, list] = {name: [None] * len(rows.ids) for name in vars(found)}
    columns["cluster"] = list(rows.ids)
    for name, values in vars(found).items():
        for row, value in zip(places, values, strict=True):
            columns[name][row] = value
    return columns


def _signatures(shards: list[Path], chosen: np.ndarray, permutations: int) -> Iterator[np.ndarray]:
    """Of the chosen rows, a block a shard: uint32 [documents, permutations], zero where there is none."""
    start = 0
    for shard in shards:
        column = pq.read_table(shard, columns=["signature"])["signature"].combine_chunks()
        block = np.zeros((len(column), permutations), dtype=np.uint32)
        block[column.is_valid().to_numpy(zero_copy_only=False)] = column.flatten().to_numpy().reshape(-1, permutations)
        here = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, start + len(block))]
        yield block[here - start]
        start += len(block)


def _template_lines(rows: Rows, cluster: list[str], share: float) -> list[np.ndarray]:
    pages_of_host: dict[str, list[int]] = defaultdict(list)
    found = [np.zeros(0, dtype=np.int32)] * len(rows.ids)
    for row in np.flatnonzero(rows.kept).tolist():
        if rows.kinds[row] == "html" and rows.words[row]:
            pages_of_host[rows.hosts[row]].append(row)
    for members in pages_of_host.values():
        counted = [cluster[row] == rows.ids[row] for row in members]
        for row, lines in zip(
            members, template_lines.template_lines([rows.lines[row] for row in members], counted, share), strict=True
        ):
            found[row] = lines
    return found


def _train_quality(shards: list[Path], rows: Rows, cluster: list[str], positives: list[str], classifier: Path) -> int:
    """Write the classifier; returns how many chunks of each class it learnt from, 0 where there are none of one."""
    unique = [row for row in _usable(rows) if cluster[row] == rows.ids[row]]
    # Ids are digests, so the first by id are a random sample that is the same each time.
    unique.sort(key=lambda row: rows.ids[row])
    positive = [row for row in unique if rows.domains[row] in positives]
    negative = [row for row in unique if rows.domains[row] not in positives]
    chosen = _enough(positive, rows.words) | _enough(negative, rows.words)
    found: dict[int, list[np.ndarray]] = {}
    start = 0
    for shard in shards:
        texts = _read_table(shard, ["text"])["text"]
        for row in sorted(chosen & set(range(start, start + len(texts)))):
            found[row] = linear.chunks(split(texts[row - start].as_py()))
        start += len(texts)
    classes = [[part for row in group if row in chosen for part in found[row]] for group in (positive, negative)]
    count = min(QUALITY_CHUNKS, *map(len, classes))
    if count:
        labels = np.repeat([True, False], count)[:, None]
        parts = classes[0][:count] + classes[1][:count]
        linear.train(parts, labels, ["quality"], QUALITY_SEED).save(classifier)
    return count


def _usable(rows: Rows) -> list[int]:
    return np.flatnonzero(rows.kept & (rows.words > 0)).tolist()


def _percentiles(scores: np.ndarray, rows: Rows) -> np.ndarray:
    """Place of each document's score among its domain's; absolute scores would favour the documents learnt from."""
    result = np.full(len(scores), 0.5)
    members: dict[str, list[int]] = defaultdict(list)
    for row in _usable(rows):
        members[rows.domains[row]].append(row)
    for group in members.values():
        result[group] = quality.percentiles(scores[group])
    return result


def _enough(group: list[int], words: np.ndarray) -> set[int]:
    """The first documents of the group that hold enough chunks together."""
    before = np.cumsum([0] + [max(1, int(words[row]) // linear.CHUNK_WORDS) for row in group])[:-1]
    return {row for row, chunks in zip(group, before.tolist(), strict=True) if chunks < QUALITY_CHUNKS}


def _score(shard: Path, classifier: Path) -> np.ndarray:
    model = linear.Classifier.load(classifier)
    texts = _read_table(shard, ["text"])["text"].to_pylist()
    return np.array([quality.raw_score(model, split(text)) for text in texts])


def _write(shards: list[Path], rows: Rows, groups: dict[str, Any], out: Path) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    by_domain: Counter[str] = Counter()
    types: Counter[str] = Counter()
    start = 0
    for shard in shards:
        table = _read_table(shard)
        part = slice(start, start + len(table))
        start += len(table)
        for name, kind in JOINED:
            values = groups[name][part]
            table = table.append_column(pa.field(name, kind), pa.array(values, type=kind))
        table = table.filter(pa.array(rows.kept[part])).select(SCHEMA.names).replace_schema_metadata(None)
        _write_table(table, out / f"annotations-{shard.name}")
        texts = table["text"].to_pylist()
        counts["documents"] += len(table)
        counts["empty"] += sum(not text.strip() for text in texts)
        counts["bytes"] += sum(len(text.encode()) for text in texts)
        counts["words"] += sum(table["words"].to_pylist())
        counts["memory_addresses"] += sum(table["memory_addresses"].to_pylist())
        counts["same_urls"] += len(table) - table["same_url_as"].null_count
        counts["exact_duplicates"] += len(table) - table["duplicate_of"].null_count
        counts["near_duplicates"] += len(table) - table["near_duplicate_of"].null_count
        counts["template_lines"] += sum(map(len, table["template_lines"].to_pylist()))
        by_domain.update(table["domain"].to_pylist())
        types.update(span["type"] for spans in table["personal"].to_pylist() for span in spans)
    return {
        **counts,
        "documents_by_domain": dict(sorted(by_domain.items())),
        "personal": dict(sorted(types.items())),
    }
