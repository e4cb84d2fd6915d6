"""Quality as likeness to some domains of the corpus (the positives): a classifier per language, and each document's percentile.

One classifier for all languages would learn which language the positive domains are written in. So each language has its own,
trained on its documents alone, and a document's percentile is among the documents of its domain and language. A language with
fewer than 20 chunks of positives, or of other domains, has no classifier: its documents have no quality.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from groundup.core.executor import Pool
from groundup.core.words import split
from groundup.corpus.classify import linear, quality
from groundup.corpus.tables import read_working

CHUNKS = 20_000  # of each class; DCLM trains on 400,000 documents, but 2^18 weights are learnt from far fewer
MIN_CHUNKS = 20  # of each class
CHUNK_BYTES = 1600  # of memory, while a classifier is trained on them: about 200 features
SEED = 0


def train(
    shards: list[Path], starts: np.ndarray, documents: np.ndarray, is_positive: np.ndarray, language: np.ndarray,
    words: np.ndarray, languages: list[str], out: Path, memory_mb: int,
) -> dict[str, int]:
    """Write `out/quality-<language>.npz` for each language that has enough chunks; returns how many of each class.

    starts: int64 [shards + 1], the first document of each. documents: int64, those to train on, in order of preference.
    is_positive: bool [documents], those of the positive domains. language: [documents], indices into `languages`.
    """
    groups = {}
    for number in np.unique(language[documents]).tolist():
        of_language = documents[language[documents] == number]
        classes = [
            _training_sample(of_language[is_positive[of_language]], words),
            _training_sample(of_language[~is_positive[of_language]], words),
        ]
        if all(map(len, classes)):
            groups[languages[number]] = classes
    counts = {}
    for batch in _batches(groups, words, memory_mb):
        batch_documents = np.sort(np.concatenate([group for code in batch for group in groups[code]]))
        document_chunks: dict[int, list[np.ndarray]] = {}
        for shard, shard_documents, rows in rows_by_shard(shards, starts, batch_documents):
            texts = read_working(shard, ["text"])["text"]
            for document, row in zip(shard_documents.tolist(), rows.tolist(), strict=True):
                document_chunks[document] = linear.chunks(split(texts[row].as_py()))
        for code in batch:
            class_chunks = [
                [chunk for document in group.tolist() for chunk in document_chunks[document]] for group in groups[code]
            ]
            count = min(CHUNKS, *map(len, class_chunks))
            if count >= MIN_CHUNKS:
                labels = np.repeat([True, False], count)[:, None]
                classifier = linear.train(class_chunks[0][:count] + class_chunks[1][:count], labels, ["quality"], SEED)
                classifier.save(_classifier_path(out, code))
                counts[code] = count
    return counts


def percentiles(
    shards: list[Path], usable: np.ndarray, domain: np.ndarray, language: np.ndarray, languages: list[str],
    chunk_counts: dict[str, int], folder: Path, pool: Pool,
) -> np.ndarray:
    """float64 [documents]: the percentile of each in its domain and language, 0..1; NaN where the language has no classifier.

    An absolute score would favour the documents that the classifier was trained on.
    """  # fmt: skip
    values = np.full(len(language), np.nan)
    scored = usable[np.isin(language[usable], [languages.index(code) for code in chunk_counts])]
    if len(scored):
        raw_scores = np.concatenate(list(pool.spread(_score, ((shard, sorted(chunk_counts), folder) for shard in shards))))
        groups = domain[scored].astype(np.int64) * len(languages) + language[scored]
        for number in np.unique(groups):
            group = scored[groups == number]
            values[group] = quality.percentiles(raw_scores[group])
    return values


def rows_by_shard(shards: list[Path], starts: np.ndarray, documents: np.ndarray) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """Each shard that holds some of the documents, these documents, and their rows in the shard."""
    borders = np.searchsorted(documents, starts)
    for shard, start, (first, last) in zip(shards, starts, pairwise(borders), strict=False):
        if last > first:
            yield shard, documents[first:last], documents[first:last] - start


def _training_sample(documents: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The first documents that hold enough chunks together."""
    counts = _chunk_counts(documents, words)
    return documents[np.cumsum(counts) - counts < CHUNKS]


def _chunk_counts(documents: np.ndarray, words: np.ndarray) -> np.ndarray:
    return np.maximum(1, words[documents] // linear.CHUNK_WORDS)


def _batches(groups: dict[str, list[np.ndarray]], words: np.ndarray, memory_mb: int) -> Iterator[list[str]]:
    """Languages whose chunks fit in memory together, as the shards are read once for each batch."""
    batch: list[str] = []
    size = 0
    for code, classes in groups.items():
        language_bytes = CHUNK_BYTES * sum(int(_chunk_counts(documents, words).sum()) for documents in classes)
        if batch and size + language_bytes > memory_mb << 20:
            yield batch
            batch, size = [], 0
        batch.append(code)
        size += language_bytes
    if batch:
        yield batch


def _score(shard: Path, languages: list[str], folder: Path) -> np.ndarray:
    """float64 [documents of the shard]; NaN where the language has no classifier."""
    table = read_working(shard, ["text", "spoken"])
    codes = table["spoken"].to_pylist()
    classifiers = {code: linear.Classifier.load(_classifier_path(folder, code)) for code in languages if code in codes}
    texts = table["text"]
    scores = np.full(len(codes), np.nan)
    for row, code in enumerate(codes):
        if code in classifiers:
            scores[row] = quality.raw_score(classifiers[code], split(texts[row].as_py()))
    return scores


def _classifier_path(folder: Path, language: str) -> Path:
    return folder / f"quality-{language}.npz"
