"""The words of a text, split once and shared: by the rules, near-duplicate search, and every classifier."""

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np

NOT_WORD = re.compile(r"[\W_]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class Words:
    """The words of one text, split at white space. `codes[i]` is the place of word i in `vocabulary`."""

    vocabulary: list[str]
    codes: np.ndarray  # int64 [words]

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def plain(self) -> list[str]:
        """The vocabulary in lower case, letters and digits only; "" for pure punctuation."""
        return [NOT_WORD.sub("", word.lower()) for word in self.vocabulary]

    def in_order(self) -> list[str]:
        """The plain words in the order of the text."""
        return [self.plain[code] for code in self.codes]

    @cached_property
    def filled(self) -> np.ndarray:
        """int64 [n]: the codes in the order of the text, pure punctuation left out."""
        kept = np.array([bool(word) for word in self.plain], dtype=bool)
        return self.codes[kept[self.codes]]

    @cached_property
    def hashes(self) -> np.ndarray:
        """uint64 [n]: a hash of each plain word in the order of the text, pure punctuation left out."""
        digests = b"".join(blake2b(word.encode(), digest_size=8).digest() for word in self.plain)
        return np.frombuffer(digests, dtype="<u8")[self.filled]


def split(text: str) -> Words:
    number: dict[str, int] = {}
    words = text.split()
    codes = np.fromiter((number.setdefault(word, len(number)) for word in words), np.int64, len(words))
    return Words(list(number), codes)


def ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """Hashes of the n-grams of a sequence of hashes, in order; empty when it is shorter than n."""
    rolling = hashes[: max(0, len(hashes) - n + 1)].copy()
    for offset in range(1, n):
        rolling = rolling * MULTIPLIER + hashes[offset : offset + len(rolling)]
    return rolling
