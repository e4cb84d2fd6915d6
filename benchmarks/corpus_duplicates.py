"""Near duplicates: 300,000 documents with planted copies, in 1 GB and 5 times faster per document than datatrove.

The documents are sentences of real texts put together by a seeded generator; every fifth is a copy of an earlier one
with some words replaced. datatrove's four MinHash stages run on a part of the same documents, given as objects (ours are
read from Parquet): as they come, with spaCy's words; and, to see what spaCy costs, with words split at white space. Each
runs in a process of its own, the peer before and after ours. CPU time of all threads counts; wall time stands beside it.
"""

import gzip
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common import arguments, conclude
from groundup.core.words import split
from groundup.corpus.dedup import duplicates

DOCUMENTS, SHARD, PEER_DOCUMENTS = 300_000, 10_000, 5_000
MEMORY_MB, JACCARD, PERMUTATIONS = 256, 0.7, 128
BAR_RATIO, BAR_MB = 5.0, 1024
SOURCES = ("msdocs", "openstax", "wikipedia_mix", "movie_reviews", "c4_demo")


def sentences(data: Path) -> list[list[str]]:
    """A pool of sentences of 8 to 40 words."""
    pool = []
    for name in SOURCES:
        for text in pq.read_table(data / "text" / f"{name}.parquet")["text"].to_pylist():
            words = [sentence.split() for sentence in text[:20_000].replace("\n", " ").split(". ")]
            pool += [sentence for sentence in words if 8 <= len(sentence) <= 40]
    return pool


def generate(data: Path, folder: Path) -> None:
    """Write shards of `text` and `copy_of`, the number of the document that it was made from, or -1."""
    pool, generator = sentences(data), np.random.default_rng(0)
    vocabulary = sorted({word for sentence in pool[:20_000] for word in sentence})
    recent: list[tuple[int, list[str]]] = []
    for shard in range(DOCUMENTS // SHARD):
        rows = []
        for number in range(shard * SHARD, (shard + 1) * SHARD):
            copy_of = -1
            if number % 5 == 4:
                copy_of, words = recent[generator.integers(len(recent))]
                words = list(words)
                for position in generator.integers(0, len(words), generator.integers(1, max(2, len(words) // 20))):
                    words[position] = vocabulary[generator.integers(len(vocabulary))]
            else:
                words = [
                    word
                    for choice in generator.integers(0, len(pool), generator.integers(3, 12))
                    for word in pool[choice]
                ]
                recent = [*recent[-2000:], (number, words)] if len(recent) > 4000 else [*recent, (number, words)]
            rows.append({"text": " ".join(words), "copy_of": copy_of})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:03d}.parquet")


def texts(folder: Path) -> Iterator[list[str]]:
    for path in sorted(folder.glob("*.parquet")):
        yield pq.read_table(path, columns=["text"])["text"].to_pylist()


def signatures(texts: Iterable[str]) -> np.ndarray:
    return np.stack([duplicates.signature(split(text), PERMUTATIONS) for text in texts])


def ours(folder: Path) -> np.ndarray:
    """The cluster of each document."""
    blocks = (signatures(block) for block in texts(folder))
    return duplicates.clusters(DOCUMENTS, duplicates.near_duplicate_pairs(blocks, JACCARD, MEMORY_MB, folder))


def datatrove_as_it_comes(folder: Path) -> int:
    return datatrove(folder, "eng")


def datatrove_white_space(folder: Path) -> int:
    from datatrove.utils.word_tokenizers import WordTokenizer

    class WhiteSpace(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        sent_tokenize = span_tokenize = word_tokenize

    return datatrove(folder, WhiteSpace("eng"))


def datatrove(folder: Path, words: object) -> int:
    """The number of documents that stay."""
    import xxhash
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from loguru import logger

    logger.remove()
    sample = next(texts(folder))[:PEER_DOCUMENTS]
    with tempfile.TemporaryDirectory() as name:
        signatures, buckets, remove = (f"{name}/{part}" for part in ("signatures", "buckets", "remove"))
        first = MinhashDedupSignature(signatures, language=words)
        first._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())  # xxhash 4 takes no str any more
        first.run((Document(text=text, id=str(number)) for number, text in enumerate(sample)), 0, 1)
        for bucket in range(first.config.num_buckets):
            MinhashDedupBuckets(signatures, buckets).run(None, bucket, first.config.num_buckets)
        MinhashDedupCluster(buckets, remove).run(None, 0, 1)
        documents = (Document(text=text, id=str(number)) for number, text in enumerate(sample))
        return sum(1 for _ in MinhashDedupFilter(remove).run(documents, 0, 1))


def measured(function: Callable[[Path], object], folder: Path) -> tuple[object, float, float, float]:
    """In a process of its own: the result, CPU seconds, wall seconds, and the most memory it had, in MB."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(function, folder, queue))
    process.start()
    outcome = queue.get()
    process.join()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _measure(function: Callable[[Path], object], folder: Path, queue: multiprocessing.Queue) -> None:
    try:
        cpu, wall = time.process_time(), time.perf_counter()
        result = function(folder)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        queue.put((result, cpu, wall, peak_mb()))
    except BaseException as error:
        queue.put(error)


def peak_mb() -> float:
    """Of this process alone: what getrusage says counts what its parent had when it was forked."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def quality(folder: Path, clusters: np.ndarray) -> dict[str, float]:
    """Precision of the joined documents and recall of the planted copies, by the true Jaccard similarity of both."""
    every = [text for block in texts(folder) for text in block]
    source = np.concatenate([pq.read_table(path)["copy_of"].to_numpy() for path in sorted(folder.glob("*.parquet"))])
    groups = np.flatnonzero(clusters != np.arange(DOCUMENTS))
    roots = np.where(source >= 0, source, np.arange(DOCUMENTS))
    wrong = sum(roots[index] != roots[clusters[index]] for index in groups.tolist())
    measures = {"precision": 1 - wrong / max(1, len(groups))}
    copies = np.flatnonzero(source >= 0)
    sampled = copies[:: len(copies) // 10_000]
    similarity = np.array([jaccard(every[index], every[source[index]]) for index in sampled.tolist()])
    joined = clusters[sampled] == clusters[source[sampled]]
    for low in (0.7, 0.75, 0.8, 0.9):
        above = similarity >= low
        measures[f"recall of copies, Jaccard >= {low}"] = float(joined[above].mean())
    measures["joined below 0.6"] = float(joined[similarity < 0.6].mean()) if (similarity < 0.6).any() else 0.0
    return measures


def jaccard(first: str, second: str) -> float:
    a, b = (
        {tuple(words[start : start + 5]) for start in range(len(words) - 4)}
        for words in (first.split(), second.split())
    )
    return len(a & b) / len(a | b)


def articles(data: Path) -> tuple[float, float]:
    """Precision and recall on news articles whose near duplicates are known."""
    folder = data / "dedup"
    with gzip.open(folder / "mccormick_articles_1000.txt.gz", "rt", encoding="utf-8") as file:
        rows = dict(line.rstrip("\n").split(" ", 1) for line in file)
    truth = {
        tuple(sorted(line.split())) for line in (folder / "mccormick_articles_1000.truth").read_text().splitlines()
    }
    ids = list(rows)
    blocks = duplicates.near_duplicate_pairs([signatures(rows.values())], JACCARD)
    pairs = {tuple(sorted((ids[first], ids[second]))) for block in blocks for first, second in block.tolist()}
    return len(pairs & truth) / len(pairs), len(pairs & truth) / len(truth)


def main() -> None:
    data = arguments(__doc__).data
    if not (data / "text" / "msdocs.parquet").is_file():
        return conclude(
            "near duplicates, documents a second over datatrove's", None, "x", BAR_RATIO, None, reason="no data"
        )
    precision, recall = articles(data)
    print(f"mccormick_articles_1000: precision {precision:.3f}, recall {recall:.3f} (bar 1 and 1)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(data, folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{DOCUMENTS:,} documents, {size / 1e6:.0f} MB of Parquet", file=sys.stderr)
        reason, peers = None, []
        kinds = {"datatrove": datatrove_as_it_comes, "datatrove, white space": datatrove_white_space}
        try:
            peers = [(kind, *measured(function, folder)) for kind, function in kinds.items()]
        except (ImportError, SystemExit) as error:
            reason = f"no peer: {error}; it needs spacy"
        clusters, cpu, wall, memory = measured(ours, folder)
        if peers:
            peers += [(kind, *measured(function, folder)) for kind, function in kinds.items()]
        measures = quality(folder, clusters)
    row = "{:<24}{:>10,}{:>14.1f}{:>14.1f}{:>10.0f}"
    print(f"{'':<24}{'documents':>10}{'CPU us/doc':>14}{'wall us/doc':>14}{'peak MB':>10}")
    print(row.format("groundup", DOCUMENTS, cpu / DOCUMENTS * 1e6, wall / DOCUMENTS * 1e6, memory))
    for kind, _, peer_cpu, peer_wall, peer_mb in peers:
        print(
            row.format(kind, PEER_DOCUMENTS, peer_cpu / PEER_DOCUMENTS * 1e6, peer_wall / PEER_DOCUMENTS * 1e6, peer_mb)
        )
    print(json.dumps(measures, indent=1))
    speed = DOCUMENTS / cpu
    peer = (
        float(np.mean([PEER_DOCUMENTS / peer_cpu for kind, _, peer_cpu, *_ in peers if kind == "datatrove"]))
        if peers
        else None
    )
    holds = bool(speed >= BAR_RATIO * peer and memory <= BAR_MB and precision == recall == 1) if peer else None
    conclude(
        f"near duplicates, documents a CPU second over {DOCUMENTS:,}, 5 times datatrove's, in {memory:.0f} of {BAR_MB} MB",
        speed, "documents/s", BAR_RATIO * (peer or 0), holds, peer="datatrove", peer_figure=peer, reason=reason,
    )  # fmt: skip


if __name__ == "__main__":
    main()
