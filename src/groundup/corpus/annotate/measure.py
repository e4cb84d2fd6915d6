"""Annotate first, thresholds late: every page becomes a row of text and measurements, and nothing is dropped.

As in dolma (attributes beside documents) and RedPajama v2 (signals as columns): trying another threshold costs no new
computation. Pass 1 is per shard and parallel: extraction and what can be measured on one document. Pass 2 measures what needs
all documents together (`corpus_pass.py`).
"""

import gc
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from groundup.core.errors import UserError
from groundup.core.executor import pool as workers_pool
from groundup.core.files import digest
from groundup.core.progress import Progress
from groundup.core.seals import is_sealed, seal
from groundup.core.words import Words, split, word_hashes
from groundup.corpus import languages
from groundup.corpus.annotate import corpus_pass, personal, rules
from groundup.corpus.archive.content_type import HTML_TYPES
from groundup.corpus.archive.warc import Losses, Page, read_pages
from groundup.corpus.classify import domains, linear, quality, toxicity
from groundup.corpus.config import AnnotationsConfig
from groundup.corpus.dedup import boilerplate_lines, duplicates
from groundup.corpus.extract.page_text import extract
from groundup.corpus.tables import working_schema, write_working
from groundup.corpus.urls import split_url

SHARD_BYTES = 8 << 20  # of page bodies: the unit of work, so that a few files of uneven size keep all workers busy
SHARD_PAGES = 2000
MAX_PIPE_BYTES = 4 << 20  # of page bodies: so many pass through a pipe in 8 ms; more go through a file
CODE_SUFFIXES = {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts", ".sh", ".sql"}
PROSE_TYPES = {"text/x-rst", "text/x-markdown", "text/x-web-markdown"}
ADDRESS = re.compile(r"at 0x(?<!\w.{5})[0-9a-fA-F]{6,16}\b")
HANDLE = re.compile(r"handle (?<!\w.{7})(?=[a-f]*\d)[0-9a-f]{8,16}\b")

SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("type", pa.string())])
MEASURED_COLUMNS = [
    *((name, pa.string()) for name in ("id", "url", "host", "domain", "kind", "title", "text", "language")),
    ("language_score", pa.float32()),
    ("language_share", pa.float32()),
    ("memory_addresses", pa.int32()),
    ("replacement_characters", pa.int32()),
    *((name, pa.int32() if name in rules.COUNTS else pa.float32()) for name in rules.COLUMNS),
    ("toxic_words", pa.int32()),
    # Null where no classifier is given for them.
    *((name, pa.float32()) for name in ("toxicity", "worst_toxicity", "calibrated_quality", "domain_score")),
    ("domain_class", pa.string()),
    ("personal", pa.list_(SPAN)),
]
PASS_1 = pa.schema(MEASURED_COLUMNS + corpus_pass.WORKING)
SCHEMA = pa.schema(MEASURED_COLUMNS + corpus_pass.COLUMNS)


def annotate(
    pages: list[tuple[Path, str]],
    out: Path,
    settings: AnnotationsConfig,
    workers: int,
    label: str = "annotate",
    ray: str | None = None,
    memory_mb: int = 256,
) -> dict[str, Any]:
    """Write `out/annotations-<warc>-<NNNNN>.parquet` for WARC files, each with its domain; returns counts.

    The shards are the same bytes for any number of workers, here or on the Ray cluster at address `ray`. After an
    interruption the finished shards of pass 1 are used again.
    Raises UserError when there are no pages, a language is unknown, or two files have the same name, which the shards are
    called after.
    """
    languages.require_known(settings.languages)
    stems = [_stem(path) for path, _ in pages]
    if repeated_stems := [name for name, count in Counter(stems).items() if count > 1]:
        raise UserError(f"two WARC files are called {repeated_stems[0]!r}; rename one: shards are called after them")
    working = out / "pass1"
    working.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob("near-duplicates-*"):
        shutil.rmtree(leftover)  # by a run that was killed
    losses = Losses()
    shards: list[Path] = []
    jobs = _jobs(pages, working, settings, losses, shards)
    with workers_pool(workers, ray) as pool:
        with Progress(label, unit="pages") as progress:
            for count in pool.spread(_measure, jobs, _with_bodies_in_file):
                progress.advance(count)
        if not shards:
            raise UserError(f"no page in {', '.join(str(path) for path, _ in pages) or 'no WARC file'}; crawl again")
        counts = corpus_pass.join(shards, settings, SCHEMA.names, out, pool, memory_mb) | asdict(losses)
    shutil.rmtree(working)
    return counts


def scrub_addresses(text: str) -> tuple[str, int]:
    """Replace the digits of memory addresses, as in `<object at 0x7f3c8386ca90>`, by `0x…`; also returns their number.

    They differ each time the documented program runs: they would teach noise, and give the same page another id, and so
    another position in every shuffle, on each run.
    """
    text, addresses = ADDRESS.subn("at 0x…", text)  # patterns that start with a constant are fast to search
    text, handles = HANDLE.subn("handle 0x…", text)
    return text, addresses + handles


def kind_of(content_type: str, url: str) -> str:
    """`html`, `code` or `text`. Prose rules do not fit code, and only web pages have menus."""
    if content_type in HTML_TYPES:
        return "html"
    is_code = content_type.startswith("text/x-") and content_type not in PROSE_TYPES
    parts = split_url(url)
    suffix = PurePosixPath(parts.path if parts else "").suffix.lower()
    return "code" if is_code or suffix in CODE_SUFFIXES else "text"


def host_of(url: str) -> str:
    """The host without port; of a `file:///name/...` resource the first part of its path; of a malformed URL ""."""
    parts = split_url(url)
    return (parts.hostname or parts.path.strip("/").partition("/")[0]) if parts else ""


def measure(page: Page, domain: str, settings: AnnotationsConfig) -> dict[str, Any]:
    """One row of pass 1: the text of a page and what is measured on it alone."""
    page = replace(page, url=page.url.encode("utf-8", "replace").decode())
    extracted = extract(page, settings.comments)
    text, addresses = scrub_addresses(extracted.text)
    words = split(text)
    language, score, share = languages.identify_document(text, settings.wanted_languages)
    kind = kind_of(page.content_type, page.url)
    # Outside of prose a language is identified by chance only.
    spoken = settings.languages[0] if kind == "code" or language == languages.UNKNOWN else language
    host, lines = host_of(page.url), boilerplate_lines.line_hashes(text)
    return {
        "id": blake2b(f"{page.url}\n{text}".encode(), digest_size=16).hexdigest(),
        "url": page.url,
        "host": host,
        "domain": domain,
        "kind": kind,
        # A title may hold halves of surrogate pairs, which UTF-8 cannot; the text has none.
        "title": (extracted.title or "").encode("utf-8", "replace").decode(),
        "text": text,
        "language": language,
        "language_score": score,
        "language_share": share,
        "memory_addresses": addresses,
        "replacement_characters": extracted.replaced,
        **rules.measure(text, words, spoken),
        **_classified(words, settings, spoken),
        "personal": [span._asdict() for span in personal.find(text, spoken)],
        "text_key": duplicates.text_key(words),
        "url_hash": duplicates.url_hash(page.url, text),
        "host_hash": word_hashes([host or "-"])[0],
        "spoken": languages.UNKNOWN if spoken == "all" else spoken,
        "length": len(text),
        "signed": len(words.filled) > 0,
        "line_count": len(lines),
        "lines": lines,
        "signature": duplicates.signature(words, settings.near_duplicate_permutations),
    }


def _classified(words: Words, settings: AnnotationsConfig, language: str) -> dict[str, Any]:
    """Columns of the word list and the user's classifiers; none where these do not know the language."""
    row: dict[str, Any] = {}
    if settings.toxic_words:
        row["toxic_words"] = toxicity.word_list(Path(settings.toxic_words)).count(words)
    elif language in toxicity.LISTED_LANGUAGES:
        row["toxic_words"] = toxicity.shipped_list(language).count(words)
    toxicity_path, quality_path, domain_path = (
        settings.toxicity_classifier, settings.quality_classifier, settings.domain_classifier
    )  # fmt: skip
    if toxicity_path and language in (model := _classifier(toxicity_path)).languages:
        row["toxicity"], row["worst_toxicity"] = toxicity.score(model, words)
    if quality_path and (language_model := _language_classifier(quality_path, language)):
        row["calibrated_quality"] = quality.score(language_model, words)
    if domain_path and language in (model := _classifier(domain_path)).languages:
        row["domain_class"], row["domain_score"] = domains.classify(model, words)
    return row


@cache  # loaded once per process
def _classifier(path: str) -> linear.Classifier:
    loaded = linear.Classifier.load(Path(path))
    if not loaded.languages:
        raise UserError(f"{path}: does not name the languages that it knows; train the classifier again")
    return loaded


@cache
def _language_classifier(path: str, language: str) -> linear.Classifier | None:
    return _classifier(path).of_language(language)


def _classifier_digests(settings: AnnotationsConfig) -> str:
    """Digests of the files that pass 1 reads besides the pages. Raises UserError when one is missing."""
    for name, path in settings.classifiers.items():
        if path and not Path(path).is_file():
            raise UserError(f"annotations.{name}: {path}: no such file")
    return " ".join(digest(Path(path)) if path else "" for path in settings.classifiers.values())


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".warc")


def _jobs(
    pages: list[tuple[Path, str]], working: Path, settings: AnnotationsConfig, losses: Losses, shards: list[Path]
) -> Iterator[tuple]:
    """Jobs for the shards of pass 1 that are not finished yet; appends all shards to `shards`.

    The pages are read by one process only, so the losses are counted once.
    """
    inputs = f"{_classifier_digests(settings)} {' '.join(PASS_1.names)}"
    for path, domain in pages:
        warc_digest = digest(path)
        for number, batch in enumerate(_batches(read_pages(path, losses))):
            shard = working / f"{_stem(path)}-{number:05d}.arrow"
            shards.append(shard)
            extent = f"{number} {len(batch)} {sum(len(page.body) for page in batch)}"
            parameters = f"{domain} {settings.languages} {settings.near_duplicate_permutations} {settings.comments} {inputs}"
            made_from = f"{warc_digest} {extent} {parameters}".encode()
            if _made_from(shard) != made_from:
                yield batch, domain, settings, shard, made_from


def _made_from(shard: Path) -> bytes | None:
    """What a shard was made from; None when there is no such shard or it is damaged: then it is made again."""
    return (working_schema(shard).metadata or {}).get(b"made_from") if is_sealed(shard) else None


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


def _with_bodies_in_file(job: tuple) -> tuple:
    """The job with the bodies of its pages in a file, if they are many: a pipe takes 4 % of the time of measuring them."""
    batch, domain, settings, shard, made_from = job
    if sum(len(page.body) for page in batch) < MAX_PIPE_BYTES:
        return job
    with shard.with_suffix(".bodies").open("wb") as file:
        file.writelines(page.body for page in batch)
    bodiless = [replace(page, body=b"") for page in batch]
    return bodiless, domain, settings, shard, made_from, [len(page.body) for page in batch]


def _measure(
    batch: list[Page], domain: str, settings: AnnotationsConfig, shard: Path, made_from: bytes, sizes: list[int] | None = None
) -> int:
    """Write the rows of a batch; returns how many. `sizes`: the lengths of the bodies, where these are in a file."""
    bodies = shard.with_suffix(".bodies")
    if sizes:
        with bodies.open("rb") as file:
            batch = [replace(page, body=file.read(size)) for page, size in zip(batch, sizes, strict=True)]
    gc.disable()  # a shard makes many objects and hardly any cycles: searching for these takes a tenth of the time
    try:
        rows = [measure(page, domain, settings) for page in batch]
        table = pa.Table.from_pylist(rows, schema=PASS_1).replace_schema_metadata({"made_from": made_from})
        write_working(table, shard)
        seal(shard)
    finally:
        gc.enable()
    bodies.unlink(missing_ok=True)
    return len(rows)
