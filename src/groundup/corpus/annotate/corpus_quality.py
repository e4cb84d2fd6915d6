"""Quality by likeness to some of the corpus' own domains: a classifier for each language, and what it says of every document.

One classifier for all languages would learn which language the good domains are written in. So each language has its own, learnt
from its documents alone, and a document's place is one among those of its domain and language. A language of which the domains
to look for, or the others, have fewer than 20 chunks has none: its documents have no quality.
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
LEAST_CHUNKS = 20  # of each class
CHUNK_BYTES = 1600  # of memory, while a classifier learns from them: about 200 features
SEED = 0


def train(
    shards: list[Path], starts: np.ndarray, learnt: np.ndarray, good: np.ndarray, language: np.ndarray, words: np.ndarray,
    names: list[str], out: Path, memory_mb: int,
) -> dict[str, int]:
    """Write `out/quality-<language>.npz` for each language that has enough chunks; returns how many of each class it learnt from.

    starts: int64 [shards + 1], the first document of each. learnt: int64, the documents to learn from, the first ones
    first. good: bool [documents], those of the domains to look for. language: [documents], places in `names`.
    """
    wanted = {}
    for number in np.unique(language[learnt]).tolist():
        own = learnt[language[learnt] == number]
        groups = [_enough(own[good[own]], words), _enough(own[~good[own]], words)]
        if all(map(len, groups)):
            wanted[names[number]] = groups
    counts = {}
    for batch in _batches(wanted, words, memory_mb):
        every = np.sort(np.concatenate([group for name in batch for group in wanted[name]]))
        found: dict[int, list[np.ndarray]] = {}
        for shard, chosen, places in parts(shards, starts, every):
            texts = read_working(shard, ["text"])["text"]
            for row, place in zip(chosen.tolist(), places.tolist(), strict=True):
                found[row] = linear.chunks(split(texts[place].as_py()))
        for name in batch:
            classes = [[part for row in group.tolist() for part in found[row]] for group in wanted[name]]
            count = min(CHUNKS, *map(len, classes))
            if count >= LEAST_CHUNKS:
                labels = np.repeat([True, False], count)[:, None]
                classifier = linear.train(classes[0][:count] + classes[1][:count], labels, ["quality"], SEED)
                classifier.save(_file(out, name))
                counts[name] = count
    return counts


def places(
    shards: list[Path], usable: np.ndarray, domain: np.ndarray, language: np.ndarray, names: list[str], trained: dict[str, int],
    folder: Path, pool: Pool,
) -> np.ndarray:
    """float64 [documents]: the place of each among those of its domain and language, 0..1; NaN where that has no classifier.

    An absolute score would favour the documents learnt from.
    """  # fmt: skip
    result = np.full(len(language), np.nan)
    known = usable[np.isin(language[usable], [names.index(name) for name in trained])]
    if len(known):
        raw = np.concatenate(list(pool.spread(_score, ((shard, sorted(trained), folder) for shard in shards))))
        together = domain[known].astype(np.int64) * len(names) + language[known]
        for number in np.unique(together):
            group = known[together == number]
            result[group] = quality.percentiles(raw[group])
    return result


def parts(shards: list[Path], starts: np.ndarray, chosen: np.ndarray) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """Each shard that holds some of the chosen documents, these, and their places in it."""
    bounds = np.searchsorted(chosen, starts)
    for shard, start, (first, last) in zip(shards, starts, pairwise(bounds), strict=False):
        if last > first:
            yield shard, chosen[first:last], chosen[first:last] - start


def _enough(group: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The first documents of the group that hold enough chunks together."""
    chunks = _chunks(group, words)
    return group[np.cumsum(chunks) - chunks < CHUNKS]


def _chunks(group: np.ndarray, words: np.ndarray) -> np.ndarray:
    return np.maximum(1, words[group] // linear.CHUNK_WORDS)


def _batches(wanted: dict[str, list[np.ndarray]], words: np.ndarray, memory_mb: int) -> Iterator[list[str]]:
    """Languages whose chunks fit in memory together, as the shards are read once for each batch."""
    batch: list[str] = []
    size = 0
    for name, groups in wanted.items():
        own = CHUNK_BYTES * sum(int(_chunks(group, words).sum()) for group in groups)
        if batch and size + own > memory_mb << 20:
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += own
    if batch:
        yield batch


def _score(shard: Path, trained: list[str], folder: Path) -> np.ndarray:
    """float64 [documents of the shard]; NaN where the language has no classifier."""
    table = read_working(shard, ["text", "spoken"])
    spoken = table["spoken"].to_pylist()
    models = {name: linear.Classifier.load(_file(folder, name)) for name in trained if name in spoken}
    texts = table["text"]
    scores = np.full(len(spoken), np.nan)
    for row, name in enumerate(spoken):
        if name in models:
            scores[row] = quality.raw_score(models[name], split(texts[row].as_py()))
    return scores


def _file(folder: Path, language: str) -> Path:
    return folder / f"quality-{language}.npz"
