"""The words of a text, split once and shared: by the rules, near-duplicate search, contamination and every classifier.

Words are separated by white space where a script has it. Han, kana and the scripts of South-East Asia and Tibet have none:
Unicode's word boundaries (UAX 29) leave those to dictionaries, one per language. Here each character is a unit of its own
with its marks and the punctuation after it, as in BERT's basic tokenization of Chinese: no dictionary, and the same cut
in any context, so a copy is recognised where only its surroundings differ. Thresholds stay in words: `Words.count`
takes two characters for a word of Chinese or Japanese, three clusters for one of Thai and its neighbours. n-grams that
are compared within one text, or with benchmarks, are as many times longer (`per_word`); shingles are not.

Most words of a text occurred in earlier texts: the properties of a word by itself are computed when it is first seen, for
many words at once, and looked up from then on.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import regex

ASCII_NOT_WORD = re.compile(r"[\W_]+")
# Marks are part of a word (Hindi's vowels, Arabic's), variation selectors, as behind emoji, are not.
NOT_WORD = regex.compile(r"(?:[^\p{L}\p{M}\p{N}]|\p{Variation_Selector})+")
HAS_BASE = regex.compile(r"[\p{L}\p{N}]")
LETTER = re.compile(r"[^\W\d_]")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
TABLE_BYTES = 64 << 20  # of memory, about, for the properties of words
WORD_BYTES = 250  # for the properties of a word, its characters aside
FIRST_UNSPACED = 0x0E00  # Thai: no script before it is written without spaces
EAST_ASIAN = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}ーｰ"
SOUTH_EAST_ASIAN = (
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}"
)
IS_UNSPACED = regex.compile(rf"(?=[\p{{L}}\p{{N}}])[{EAST_ASIAN}{SOUTH_EAST_ASIAN}]")
# A character with its marks and the punctuation after it, which belongs to a word between spaces too.
UNIT = regex.compile(rf"(?=[\p{{L}}\p{{N}}])(?:([{EAST_ASIAN}])|[{SOUTH_EAST_ASIAN}])\p{{M}}*+[^\p{{L}}\p{{N}}\s]*+")
EAST_ASIAN_UNIT = regex.compile(rf"(?=[\p{{L}}\p{{N}}])[{EAST_ASIAN}]")
# Units of a word, as whole numbers. The prose of tests/corpus/languages.json, the same sentences in ten languages, has
# for one English word 1.5 characters of Chinese, 2.0 of Japanese and 2.9 clusters of Thai.
EAST_ASIAN_UNITS, SOUTH_EAST_ASIAN_UNITS = 2, 3


def plain(word: str) -> str:
    """In lower case, letters and digits only."""
    lower = word.lower()
    if lower.isalnum():
        return lower
    if lower.isascii():
        return ASCII_NOT_WORD.sub("", lower)
    bare = NOT_WORD.sub("", unicodedata.normalize("NFC", lower))  # one word, however its accents are encoded
    return bare if HAS_BASE.search(bare) else ""


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
    offsets = np.arange(len(letters)) - np.repeat(starts, lengths)
    sums = np.add.reduceat(letters * powers[offsets], starts)
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
    """The words of one text, or characters of scripts without spaces; each array has an entry per word, in order."""

    raw: list[str]
    lengths: np.ndarray  # int64, characters
    letters: np.ndarray  # bool: has a letter
    hashed: np.ndarray  # uint64: equal for words that are equal when plain; 0 for pure punctuation
    as_written: np.ndarray  # uint64: equal for equal words of this text
    count: int  # of words, as thresholds mean it
    per_word: int = 1  # entries of most of the text's words: more than one where most of it is of scripts without spaces

    def __len__(self) -> int:
        return len(self.raw)

    @cached_property
    def filled(self) -> np.ndarray:
        """int64 [n]: the indices of the words that are not pure punctuation."""
        return np.flatnonzero(self.hashed)

    @cached_property
    def hashes(self) -> np.ndarray:
        """uint64 [n]: a hash of each plain word in the order of the text, pure punctuation left out."""
        return self.hashed[self.filled]


class _WordTable(dict[str, int]):
    """The index of each word in the arrays of properties; words met for the first time wait in `new`."""

    def __init__(self) -> None:
        self.new: list[str] = []
        self.properties = _properties([])
        self.bytes = 0

    def __missing__(self, word: str) -> int:
        self[word] = index = len(self)
        self.new.append(word)
        return index

    def look_up(self, words: list[str]) -> list[np.ndarray]:
        if self.bytes > TABLE_BYTES:
            self.clear()
            self.properties, self.bytes = _properties([]), 0
        indices = np.fromiter(map(self.__getitem__, words), np.int64, len(words))
        if self.new:
            self._compute_new()
        return [*(array[indices] for array in self.properties), (indices + 1).astype(np.uint64) * MULTIPLIER]

    def _compute_new(self) -> None:
        capacity, size = len(self.properties[0]), len(self)
        if size > capacity:  # the capacity doubles, so that each entry is copied about once
            self.properties = [
                np.concatenate([array, np.zeros(max(capacity, size - capacity), array.dtype)]) for array in self.properties
            ]
        for array, computed in zip(self.properties, _properties(self.new), strict=True):
            array[size - len(self.new) : size] = computed
        self.bytes += sum(map(len, self.new)) + WORD_BYTES * len(self.new)
        self.new = []


def _properties(words: list[str]) -> list[np.ndarray]:
    """Of distinct words, the arrays of `Words` up to `hashed`."""
    plain_words = [plain(word) for word in words]
    filled = np.fromiter(map(bool, plain_words), bool, len(words))
    hashed = np.zeros(len(words), np.uint64)
    hashed[filled] = word_hashes(list(filter(None, plain_words)))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    letters = np.fromiter((word.isalpha() or LETTER.search(word) is not None for word in words), bool, len(words))
    return [lengths, letters, hashed]


WORD_TABLE = _WordTable()


def split(text: str) -> Words:
    words, count, per_word = _cut(text)
    return Words(words, *WORD_TABLE.look_up(words), count, per_word)


def count(text: str) -> int:
    """The number of words, as `Words.count`."""
    return _cut(text)[1]


def _cut(text: str) -> tuple[list[str], int, int]:
    """The entries of `Words`, its `count` and its `per_word`."""
    if not _has_unspaced(text):
        spaced = text.split()
        return spaced, len(spaced), 1
    cut, units = UNIT.subn(r" \g<0> ", text)
    words = cut.split()
    east = len(EAST_ASIAN_UNIT.findall(text))
    south = units - east
    estimate = len(words) - units + east / EAST_ASIAN_UNITS + south / SOUTH_EAST_ASIAN_UNITS
    per_word = 1
    if 2 * units > len(words):
        per_word = EAST_ASIAN_UNITS if east >= south else SOUTH_EAST_ASIAN_UNITS
    return words, max(1, round(estimate)), per_word


def _has_unspaced(text: str) -> bool:
    if text.isascii():
        return False
    points = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), dtype="<u2")
    late = points[points >= FIRST_UNSPACED]  # few in most texts: arithmetic finds them faster than a pattern
    return bool(len(late)) and IS_UNSPACED.search(late.tobytes().decode("utf-16-le", "surrogatepass")) is not None
