"""The words of a text, split once and shared: by the rules, near-duplicate search, and every classifier.

Most words of a text are those of the texts before it: what there is to know of a word by itself is worked out when it
is first seen, for many words at once, and looked up from then on.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

NOT_WORD = re.compile(r"[\W_]+")
LETTER = re.compile(r"[^\W\d_]")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
REMEMBERED = 64 << 20  # bytes of memory, about
WORD_BYTES = 250  # of what is known of a word, its characters aside


def plain(word: str) -> str:
    """In lower case, letters and digits only."""
    lower = word.lower()
    return lower if lower.isalnum() else NOT_WORD.sub("", lower)


def word_hashes(words: list[str]) -> np.ndarray:
    """uint64 [words]: equal for equal words, on any machine; none of them may be empty.

    A polynomial in the bytes of the word modulo 2^64, then mixed: all words at once, ten times faster than a digest each.
    """
    if not words:
        return np.zeros(0, dtype=np.uint64)
    encoded = [word.encode("utf-8", "surrogatepass") for word in words]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    starts = np.cumsum(lengths) - lengths
    letters = np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(np.uint64)
    powers = np.cumprod(np.full(int(lengths.max()), MULTIPLIER))
    places = np.arange(len(letters)) - np.repeat(starts, lengths)
    sums = np.add.reduceat(letters * powers[places], starts)
    sums = (sums ^ (sums >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
    return sums ^ (sums >> np.uint64(29))


def ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """Hashes of the n-grams of a sequence of hashes, in order; empty when it is shorter than n."""
    rolling = hashes[: max(0, len(hashes) - n + 1)].copy()
    for offset in range(1, n):
        rolling = rolling * MULTIPLIER + hashes[offset : offset + len(rolling)]
    return rolling


@dataclass
class Words:
    """The words of one text, split at white space; each array has an entry a word, in the order of the text."""

    raw: list[str]
    lengths: np.ndarray  # int64, characters
    letters: np.ndarray  # bool: has a letter
    hashed: np.ndarray  # uint64: equal for words that are equal when plain; 0 for pure punctuation
    as_written: np.ndarray  # uint64: equal for equal words, as long as this text is looked at

    def __len__(self) -> int:
        return len(self.raw)

    @cached_property
    def filled(self) -> np.ndarray:
        """int64 [n]: the places of the words that are not pure punctuation."""
        return np.flatnonzero(self.hashed)

    @cached_property
    def hashes(self) -> np.ndarray:
        """uint64 [n]: a hash of each plain word in the order of the text, pure punctuation left out."""
        return self.hashed[self.filled]


class _Seen(dict[str, int]):
    """The place of each word in arrays of what is known of it; those met for the first time wait in `new`."""

    def __init__(self) -> None:
        self.new: list[str] = []
        self.known = _facts([])
        self.bytes = 0

    def __missing__(self, word: str) -> int:
        self[word] = place = len(self)
        self.new.append(word)
        return place

    def look_up(self, words: list[str]) -> list[np.ndarray]:
        if self.bytes > REMEMBERED:
            self.clear()
            self.known, self.bytes = _facts([]), 0
        places = np.fromiter(map(self.__getitem__, words), np.int64, len(words))
        if self.new:
            self._learn()
        return [*(fact[places] for fact in self.known), (places + 1).astype(np.uint64) * MULTIPLIER]

    def _learn(self) -> None:
        room, size = len(self.known[0]), len(self)
        if size > room:  # twice the room, so that each fact is copied about once
            self.known = [np.concatenate([fact, np.zeros(max(room, size - room), fact.dtype)]) for fact in self.known]
        for fact, learnt in zip(self.known, _facts(self.new), strict=True):
            fact[size - len(self.new) : size] = learnt
        self.bytes += sum(map(len, self.new)) + WORD_BYTES * len(self.new)
        self.new = []


def _facts(words: list[str]) -> list[np.ndarray]:
    """Of distinct words, the arrays of `Words` up to `hashed`."""
    plain_words = [plain(word) for word in words]
    filled = np.fromiter(map(bool, plain_words), bool, len(words))
    hashed = np.zeros(len(words), np.uint64)
    hashed[filled] = word_hashes(list(filter(None, plain_words)))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    letters = np.fromiter((word.isalpha() or LETTER.search(word) is not None for word in words), bool, len(words))
    return [lengths, letters, hashed]


SEEN = _Seen()


def split(text: str) -> Words:
    words = text.split()
    return Words(words, *SEEN.look_up(words))
