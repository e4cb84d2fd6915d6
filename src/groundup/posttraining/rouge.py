"""ROUGE-L (Lin 2004): how much of two texts is one longest common subsequence of tokens; and near copies among many texts.

Of ASCII texts the tokens, so the scores, are those of the `rouge_score` package without its stemmer. That drops the letters
of all other scripts; here they count, and each character of a script without spaces is a token.
"""

import math
from collections import Counter
from collections.abc import Sequence

import regex

from groundup.core.words import EAST_ASIAN, SOUTH_EAST_ASIAN

UNSPACED = f"[{EAST_ASIAN}{SOUTH_EAST_ASIAN}]"
TOKEN = regex.compile(rf"{UNSPACED}\p{{M}}*|(?:(?!{UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])+")

Key = tuple[str, int]


def tokens(text: str) -> list[str]:
    return TOKEN.findall(text.lower())


def common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of their longest common subsequence.

    A row of the usual table is the bits of one number (Hyyrö 2004): of 10 and 23 tokens six times as fast as cell by cell.
    """
    places: dict[str, int] = {}
    for place, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << place
    whole = row = (1 << len(first)) - 1
    for token in second:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & whole
    return len(first) - row.bit_count()


def score(shared: int, first: int, second: int) -> float:
    """F1 of a subsequence of so many tokens of two texts; 0 where one has none."""
    return 2 * shared / (first + second) if first and second else 0.0


def rouge_l(first: str, second: str) -> float:
    one, other = tokens(first), tokens(second)
    return score(common(one, other), len(one), len(other))


class Distinct:
    """Texts, and which of them another is too near to: ROUGE-L of `limit` or more.

    Of m and n tokens with c in common, 2c / (m + n) reaches the limit only if c >= limit m / (2 - limit), since n >= c. So a
    near text has one of any m - c + 1 of the tokens, of which the rarest are looked up; and since a subsequence has no more
    tokens than both share in any order, few of those are compared (`compared`).
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.compared = limit, 0
        self.texts: list[list[str]] = []
        self.keys: list[set[Key]] = []
        self.having: dict[Key, list[int]] = {}  # the numbers of the texts that have it

    def add(self, text: str) -> None:
        found = tokens(text)
        self.keys.append(_keys(found))
        for key in self.keys[-1]:
            self.having.setdefault(key, []).append(len(self.texts))
        self.texts.append(found)

    def near(self, text: str) -> int | None:
        """The number of the first added text that it is too near to."""
        found = tokens(text)
        keys = _keys(found)
        least = math.ceil(self.limit * len(found) / (2 - self.limit) - 1e-9)  # a rounding error must not raise it
        rarest = sorted(len(self.having.get(key, ())) for key in keys)[: len(found) - least + 1]
        most = rarest[-1] if rarest else 0
        looked_up = [self.having[key] for key in keys if key in self.having and len(self.having[key]) <= most]
        for number in sorted(set().union(*looked_up)):
            other = self.texts[number]
            if score(len(keys & self.keys[number]), len(found), len(other)) < self.limit:
                continue
            self.compared += 1
            if score(common(found, other), len(found), len(other)) >= self.limit:
                return number
        return None


def _keys(found: Sequence[str]) -> set[Key]:
    """Each token with its how-manieth it is: two texts share as many of these as tokens."""
    seen = Counter[str]()
    keys = set()
    for token in found:
        keys.add((token, seen[token]))
        seen[token] += 1
    return keys
