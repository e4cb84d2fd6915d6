"""Contamination: documents that hold what a model will be evaluated on, detected by shared word 13-grams.

As in GPT-3 (Brown et al. 2020, appendix C): words in lower case without punctuation; an n-gram that many documents hold
is a licence or a heading and is no evidence. In scripts without spaces 13 words are 26 characters of Chinese or Japanese,
39 clusters of Thai (`words.py`); of two texts the held-out one, or the benchmark's example, decides which. Against the
held-out documents the shared fraction counts, since pages of one site quote each other. Against benchmarks one shared 13-gram
is enough, since their examples are short.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
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
MIN_WORDS = 8  # of a benchmark's example: GPT-3 uses no shorter n-grams, and these match much by chance


def contamination(held_out: Iterable[str], train: Iterable[str], n: int = 13) -> Iterator[tuple[float, int]]:
    """For each training text: the overlap with the nearest held-out text, and the index of that text (-1: none).

    The overlap is the larger of two shares of distinct word n-grams: of the held-out text's, those the training text
    contains; and of the training text's, those the held-out text contains. So a long page that quotes a short held-out
    one counts, and so does an excerpt. N-grams in more than 20 documents are boilerplate and count on neither side.
    """
    lengths: set[int] = set()  # of the held-out texts' n-grams

    def held_out_grams(text: str) -> np.ndarray:
        words = split(text)
        lengths.add(n * words.per_word)
        return _word_ngrams(words, n)

    held_grams, held_sizes = _joined(map(held_out_grams, held_out), np.uint64)
    unique_grams, gram_indices = np.unique(held_grams, return_inverse=True)  # below, a gram is an index into `unique_grams`
    frequency = np.bincount(gram_indices, minlength=len(unique_grams))
    sizes = array("q")

    def rare_matches(text: str) -> Iterator[np.ndarray]:
        """For each length: a text whose script differs from the held-out one's, as a translation beside it, holds it too."""
        words, before = split(text), 0
        for length in sorted(lengths):
            reach = min(length, len(words.hashes))  # a shorter text is one n-gram, which counts once
            grams = shingles(words, length) if reach > before else np.zeros(0, np.uint64)
            before = reach
            matches = _indices_in(grams, unique_grams)
            frequency[matches] += 1
            rare_grams = matches[frequency[matches] <= BOILERPLATE_DOCUMENTS]  # counts only grow: the others stay frequent
            sizes.append(len(grams) - len(matches) + len(rare_grams))
            yield rare_grams

    documents = 0

    def all_matches() -> Iterator[np.ndarray]:
        nonlocal documents
        for text in train:
            documents += 1
            yield from rare_matches(text)

    shared, counts = _joined(all_matches(), np.int32)
    is_rare = frequency <= BOILERPLATE_DOCUMENTS
    owners = np.repeat(np.arange(len(held_sizes), dtype=np.int32), held_sizes)
    held_sizes = np.maximum(1, np.bincount(owners[is_rare[gram_indices]], minlength=len(held_sizes)))
    owners = owners[np.argsort(gram_indices, kind="stable")]
    starts = np.append(0, np.cumsum(np.bincount(gram_indices, minlength=len(unique_grams))))
    ends = np.cumsum(counts)
    for number in range(documents):
        nearest = (0.0, -1)
        for index in range(number * len(lengths), (number + 1) * len(lengths)):
            document_grams = shared[ends[index] - counts[index] : ends[index]]
            still_rare = is_rare[document_grams]
            size = sizes[index] - int((~still_rare).sum())
            nearest = max(nearest, _nearest(document_grams[still_rare], owners, starts, held_sizes, size), key=itemgetter(0))
        yield nearest


def _joined(parts: Iterable[np.ndarray], kind: type) -> tuple[np.ndarray, np.ndarray]:
    """Arrays concatenated, and the length of each, int64: kept apart, small arrays take 112 bytes each beside their numbers."""
    joined, sizes = bytearray(), array("q")
    for part in parts:
        joined += part.astype(kind).tobytes()
        sizes.append(len(part))
    return np.frombuffer(joined, kind), np.array(sizes, dtype=np.int64)


def _indices_in(grams: np.ndarray, sorted_grams: np.ndarray) -> np.ndarray:
    """The indices in `sorted_grams` of those of the n-grams that are in it."""
    if not len(sorted_grams):
        return np.zeros(0, dtype=np.int64)
    indices = np.minimum(np.searchsorted(sorted_grams, grams), len(sorted_grams) - 1)
    return indices[sorted_grams[indices] == grams]


def _word_ngrams(words: Words, n: int) -> np.ndarray:
    """Shingles of n words; of n * per_word characters where most of the text is in scripts without spaces."""
    return shingles(words, n * words.per_word)


def _nearest(
    rare_grams: np.ndarray, owners: np.ndarray, starts: np.ndarray, held_sizes: np.ndarray, size: int
) -> tuple[float, int]:
    if not len(rare_grams):
        return 0.0, -1
    holders = np.concatenate([owners[starts[gram] : starts[gram + 1]] for gram in rare_grams.tolist()])
    candidates, counts = np.unique(holders, return_counts=True)  # only these: all would take held-out texts times training texts
    shares = counts / np.minimum(held_sizes[candidates], max(1, size))  # the larger of the two has the smaller denominator
    nearest = int(shares.argmax())
    return float(shares[nearest]), int(candidates[nearest])


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
    """Index benchmark files: JSON, CSV, Parquet, or text with an example per paragraph; their content decides which.

    All texts of a row are one example. One of 8 to 12 words is a single n-gram; a shorter one would match ordinary language
    and is only counted.
    Raises UserError for a file that is missing, of another kind, or damaged, even in one row.
    """
    def rows() -> Iterator[tuple[int, int, Sequence[str]]]:
        for file, path in enumerate(paths):
            refused = Refused()
            for number, text in enumerate(_examples(path, refused), start=1):
                yield file, number, [text]
            if refused:  # an unread example would never be matched
                raise UserError(f"{path}: a damaged benchmark file ({refused}): mend it or get it again")

    return index_examples([str(path) for path in paths], rows(), n)


def index_examples(names: list[str], rows: Iterable[tuple[int, int, Sequence[str]]], n: int = 13) -> Benchmarks:
    """Index examples, given as rows: index of the file in `names`, number of the example, and the forms that it may have in a
    document, of which the longest decides whether it is too short to search for."""
    examples: list[tuple[int, int]] = []
    too_short: Counter[int] = Counter()
    lengths: set[int] = set()
    grams, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for file, number, forms in rows:
        long_enough = [words for words in map(split, forms) if len(words.hashes) >= MIN_WORDS * words.per_word]
        if not long_enough:
            too_short[file] += 1
            continue
        lengths.update(min(n * words.per_word, len(words.hashes)) for words in long_enough)
        grams.append(np.unique(np.concatenate([_word_ngrams(words, n) for words in long_enough])))
        owners.append(np.full(len(grams[-1]), len(examples)))
        examples.append((file, number))
    all_grams, all_owners = np.concatenate(grams), np.concatenate(owners)
    order = np.argsort(all_grams, kind="stable")
    unique_grams, starts = np.unique(all_grams[order], return_index=True)
    starts = np.append(starts, len(all_grams))
    return Benchmarks(names, examples, too_short, sorted(lengths), unique_grams, starts, all_owners[order])


def contains_benchmark(
    texts: Iterable[str], benchmarks: Benchmarks
) -> tuple[list[str | None], list[dict[str, str | int]]]:
    """For each text the first example that it shares an n-gram with, as `file:number`, or None; and a row for each file.

    N-grams in more than ten of the texts do not count. The rows have how many examples of a file were searched for, how many
    were found in a text, and how many are too short to search for.
    """
    hits, counts = _joined((grams_of(split(text), benchmarks) for text in texts), np.int64)
    frequency = np.bincount(hits, minlength=len(benchmarks.grams))
    matches: list[str | None] = []
    matched_examples: set[int] = set()
    for end, count in zip(np.cumsum(counts).tolist(), counts.tolist(), strict=True):
        grams = hits[end - count : end]
        rare_grams = grams[frequency[grams] <= BENCHMARK_BOILERPLATE].tolist()
        owners = [benchmarks.owners[benchmarks.starts[gram] : benchmarks.starts[gram + 1]] for gram in rare_grams]
        text_examples = np.unique(np.concatenate(owners)).tolist() if owners else []
        matched_examples.update(text_examples)
        file, number = benchmarks.examples[text_examples[0]] if text_examples else (-1, 0)
        matches.append(f"{benchmarks.names[file]}:{number}" if text_examples else None)
    searched = Counter(file for file, _ in benchmarks.examples)
    matched = Counter(benchmarks.examples[example][0] for example in matched_examples)
    return matches, [
        {"file": name, "examples": searched[file], "found": matched[file], "too_short": benchmarks.too_short[file]}
        for file, name in enumerate(benchmarks.names)
    ]


def grams_of(words: Words, benchmarks: Benchmarks) -> np.ndarray:
    """The benchmarks' n-grams that a text holds, as indices into `benchmarks.grams`, int64, unique."""
    if not benchmarks.lengths:
        return np.zeros(0, dtype=np.int64)
    return _indices_in(np.unique(np.concatenate([shingles(words, length) for length in benchmarks.lengths])), benchmarks.grams)


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
    stack = [value]  # no recursion: foreign data can be nested to any depth
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict | list):
            stack += reversed(item.values() if isinstance(item, dict) else item)
