"""Contamination: documents that hold what a model will be examined on, found by shared word 13-grams.

As in GPT-3 (Brown et al. 2020, appendix C): words in lower case without punctuation; an n-gram that many documents hold
is a licence or a heading and tells nothing. In scripts without spaces 13 words are 26 characters of Chinese or Japanese,
39 clusters of Thai (`words.py`). Against the held-out documents the share that is common counts, since pages
of one site quote each other. Against benchmarks one common 13-gram is enough, since their examples are short.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.core.words import Words, split
from groundup.corpus.dedup.duplicates import shingles
from groundup.data.file_kinds import is_page, kind_of
from groundup.data.readers import Refused, csv_lists, records, texts

BOILERPLATE_DOCUMENTS = 20  # an n-gram in more documents than this is a licence or a heading, not a copy
BENCHMARK_BOILERPLATE = 10  # GPT-3's figure
LEAST_WORDS = 8  # of a benchmark's example: GPT-3 takes no shorter n-grams, and what they match by chance is much


def contamination(held_out: Iterable[str], train: Iterable[str], n: int = 13) -> Iterator[tuple[float, int]]:
    """For each training text: the overlap with the held-out text it is nearest to, and that text's place (-1: none).

    The overlap is the larger of two shares of distinct word n-grams: of the held-out text's, those the training text
    contains; and of the training text's, those the held-out text contains. So a long page that quotes a short held-out
    one counts, and so does an excerpt. N-grams in more than 20 documents are boilerplate and count on neither side.
    """
    grams, held_sizes = _joined((_word_ngrams(split(text), n) for text in held_out), np.uint64)
    index, places = np.unique(grams, return_inverse=True)  # from here on an n-gram is its place in the index
    frequency = np.bincount(places, minlength=len(index))
    sizes = array("q")

    def known(text: str) -> np.ndarray:
        grams = _word_ngrams(split(text), n)
        found = _found(grams, index)
        frequency[found] += 1
        rare = found[frequency[found] <= BOILERPLATE_DOCUMENTS]  # the others will not become rare again
        sizes.append(len(grams) - len(found) + len(rare))
        return rare

    shared, counts = _joined(map(known, train), np.int32)
    telling = frequency <= BOILERPLATE_DOCUMENTS
    owners = np.repeat(np.arange(len(held_sizes), dtype=np.int32), held_sizes)
    held_sizes = np.maximum(1, np.bincount(owners[telling[places]], minlength=len(held_sizes)))
    owners = owners[np.argsort(places, kind="stable")]
    starts = np.append(0, np.cumsum(np.bincount(places, minlength=len(index))))
    for count, end, size in zip(counts, np.cumsum(counts), sizes, strict=True):
        some = shared[end - count : end]
        here = telling[some]
        yield _nearest(some[here], owners, starts, held_sizes, size - int((~here).sum()))


def _joined(parts: Iterable[np.ndarray], kind: type) -> tuple[np.ndarray, np.ndarray]:
    """Arrays one behind the other, and the length of each, int64: a small array takes 112 bytes beside its numbers."""
    joined, sizes = bytearray(), array("q")
    for part in parts:
        joined += part.astype(kind).tobytes()
        sizes.append(len(part))
    return np.frombuffer(joined, kind), np.array(sizes, dtype=np.int64)


def _found(grams: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The places in `index`, sorted, of those of the n-grams that are there."""
    if not len(index):
        return np.zeros(0, dtype=np.int64)
    places = np.minimum(np.searchsorted(index, grams), len(index) - 1)
    return places[index[places] == grams]


def _word_ngrams(words: Words, n: int) -> np.ndarray:
    """Shingles of n words, of as many times more characters where most of the text is of scripts without spaces."""
    return shingles(words, n * words.per_word)


def _nearest(
    places: np.ndarray, owners: np.ndarray, starts: np.ndarray, held_sizes: np.ndarray, size: int
) -> tuple[float, int]:
    if not len(places):
        return 0.0, -1
    holders = np.concatenate([owners[starts[place] : starts[place + 1]] for place in places.tolist()])
    near, counts = np.unique(holders, return_counts=True)  # these alone, or time is held-out texts times training texts
    shares = counts / np.minimum(held_sizes[near], max(1, size))  # the larger of the two has the smaller denominator
    nearest = int(shares.argmax())
    return float(shares[nearest]), int(near[nearest])


@dataclass
class Benchmarks:
    """The n-grams of all examples of some benchmark files."""

    names: list[str]  # of the files
    examples: list[tuple[int, int]]  # file and number of each example that is long enough
    too_short: Counter[int]  # examples by file
    lengths: list[int]  # of the n-grams
    grams: np.ndarray  # uint64, sorted, unique
    starts: np.ndarray  # int64 [grams + 1], into `owners`
    owners: np.ndarray  # int64: the examples that hold a gram


def read_benchmarks(paths: list[Path], n: int = 13) -> Benchmarks:
    """Index benchmark files: JSON, CSV, Parquet, or text with an example a paragraph; what they are is told by content.

    All texts of a row are one example. One of 8 to 12 words is a single n-gram; a shorter one cannot be told from
    ordinary language and is counted only.
    Raises UserError for a file that is missing, of another kind, or damaged, be it in one row.
    """
    def rows() -> Iterator[tuple[int, int, Sequence[str]]]:
        for file, path in enumerate(paths):
            refused = Refused()
            for number, text in enumerate(_examples(path, refused), start=1):
                yield file, number, [text]
            if refused:  # an example that is not read would never be found
                raise UserError(f"{path}: a damaged benchmark file ({refused}): mend it or get it again")

    return index([str(path) for path in paths], rows(), n)


def index(names: list[str], rows: Iterable[tuple[int, int, Sequence[str]]], n: int = 13) -> Benchmarks:
    """Index examples: the place of the file's name in `names`, the example's own number, and the texts that it may stand as
    in a document, of which the longest decides whether it is too short to look for."""
    examples: list[tuple[int, int]] = []
    too_short: Counter[int] = Counter()
    lengths: set[int] = set()
    grams, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for file, number, forms in rows:
        some = [words for words in map(split, forms) if len(words.hashes) >= LEAST_WORDS * words.per_word]
        if not some:
            too_short[file] += 1
            continue
        lengths.update(min(n * words.per_word, len(words.hashes)) for words in some)
        grams.append(np.unique(np.concatenate([_word_ngrams(words, n) for words in some])))
        owners.append(np.full(len(grams[-1]), len(examples)))
        examples.append((file, number))
    every, owner = np.concatenate(grams), np.concatenate(owners)
    order = np.argsort(every, kind="stable")
    distinct, starts = np.unique(every[order], return_index=True)
    starts = np.append(starts, len(every))
    return Benchmarks(names, examples, too_short, sorted(lengths), distinct, starts, owner[order])


def contains_benchmark(
    texts: Iterable[str], benchmarks: Benchmarks
) -> tuple[list[str | None], list[dict[str, str | int]]]:
    """For each text the first example that it shares an n-gram with, as `file:number`, or None; and a row of each file.

    N-grams in more than ten of the texts count for nothing. The rows say how many examples of a file were looked for,
    how many were found in some text, and how many are too short to look for.
    """
    hits, counts = _joined((places_of(split(text), benchmarks) for text in texts), np.int64)
    frequency = np.bincount(hits, minlength=len(benchmarks.grams))
    named: list[str | None] = []
    touched: set[int] = set()
    for end, count in zip(np.cumsum(counts).tolist(), counts.tolist(), strict=True):
        places = hits[end - count : end]
        telling = places[frequency[places] <= BENCHMARK_BOILERPLATE].tolist()
        owners = [benchmarks.owners[benchmarks.starts[place] : benchmarks.starts[place + 1]] for place in telling]
        held = np.unique(np.concatenate(owners)).tolist() if owners else []
        touched.update(held)
        file, number = benchmarks.examples[held[0]] if held else (-1, 0)
        named.append(f"{benchmarks.names[file]}:{number}" if held else None)
    wanted = Counter(file for file, _ in benchmarks.examples)
    found = Counter(benchmarks.examples[example][0] for example in touched)
    return named, [
        {"file": name, "examples": wanted[file], "found": found[file], "too_short": benchmarks.too_short[file]}
        for file, name in enumerate(benchmarks.names)
    ]


def places_of(words: Words, benchmarks: Benchmarks) -> np.ndarray:
    """Which of the benchmarks' n-grams a text holds, int64, unique."""
    if not benchmarks.lengths:
        return np.zeros(0, dtype=np.int64)
    return _found(np.unique(np.concatenate([shingles(words, length) for length in benchmarks.lengths])), benchmarks.grams)


def _examples(path: Path, refused: Refused) -> Iterator[str]:
    """The text of each example of a file."""
    kind = kind_of(path)
    if kind.form == "archive":
        raise UserError(f"{path}: a web archive, not a benchmark file: give *.jsonl, *.csv, *.txt (also .gz) or *.parquet")
    if kind.form == "text" and is_page(path, kind):
        raise UserError(f"{path}: a web page, not a benchmark file: was it downloaded from an address that shows one?")
    if kind.form == "text":
        body = b"".join(texts(path, refused, kind)).decode("utf-8", "replace")
        yield from re.split(r"\n\s*\n", body)
    elif kind.form == "csv":
        yield from ("\n".join(row) for row in csv_lists(path, refused, kind))
    else:
        yield from ("\n".join(_strings(row)) for _, row in records(path, refused, kind))


def _strings(value: Any) -> Iterator[str]:
    """The texts inside a row of JSON, in order."""
    waiting = [value]  # no recursion: somebody else decides how deep it is
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict | list):
            waiting += reversed(part.values() if isinstance(part, dict) else part)
