"""How a tokenizer cuts what is hard to cut: numbers, indentation, typos, scripts without spaces, words of many pieces."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.data.whole_file import read_whole
from groundup.tokenizer.hf_tokenizer import HFTokenizer

NUMBERS = ("7", "42", "365", "1984", "86400", "1234567", "1,234,567", "3.14159", "-0.001", "6.02e23", "2024-02-29",
           "29/02/2024", "12:34:56", "$1,299.99", "0xDEADBEEF")  # fmt: skip
NUMBERS_TRIED = 1000  # of each length
CODE = "class Reader:\n    def read(self, path):\n        for line in path:\n            if line:\n\t\t\treturn line\n"
INDENTS = {"2 spaces": "  ", "4 spaces": " " * 4, "8 spaces": " " * 8, "12 spaces": " " * 12, "16 spaces": " " * 16,
           "1 tab": "\t", "2 tabs": "\t\t", "3 tabs": "\t\t\t"}  # fmt: skip
# The beginning of article 1 of the Universal Declaration of Human Rights, in the United Nations' translations.
ARTICLE = {
    "English": "All human beings are born free and equal in dignity and rights.",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。",
    "Japanese": "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
}
EXAMPLES = 15
LONGEST_WORD = 1000  # characters; longest match takes time that grows with the square of it


def numbers(tokenizer: HFTokenizer) -> dict[str, Any]:
    """For 1 to 5 digits: mean tokens, and on what share of the numbers the digits fall into tokens which way ("2+3")."""
    rows = []
    for digits in range(1, 6):
        least = 10 ** (digits - 1) if digits > 1 else 0
        every = range(least, 10**digits)
        some = list(every) if len(every) <= NUMBERS_TRIED else random.Random(digits).sample(every, NUMBERS_TRIED)
        ways: Counter[str] = Counter()
        total = 0
        for number in some:
            sizes = [end - start for start, end in tokenizer.spans(str(number)) if end > start]
            ways["+".join(map(str, sizes))] += 1
            total += len(sizes)
        shares = {way: count / len(some) for way, count in sorted(ways.items(), key=lambda one: (-one[1], one[0]))}
        rows.append({"digits": digits, "tokens": total / len(some), "ways": shares})
    return {"rows": rows, "examples": [{"text": text, "pieces": tokenizer.pieces(text)} for text in NUMBERS]}


def indentation(tokenizer: HFTokenizer) -> dict[str, Any]:
    """What an indentation costs in tokens, and whether the word after it is the token that begins a line."""
    plain = tokenizer.encode("x\nreturn")
    rows = []
    for name, indent in INDENTS.items():
        ids = tokenizer.encode(f"x\n{indent}return")
        rows.append({"indent": name, "tokens": len(ids) - len(plain), "same_word": ids[-1] == plain[-1]})
    return {"rows": rows, "pieces": tokenizer.pieces(CODE)}


def scripts(tokenizer: HFTokenizer) -> list[dict[str, Any]]:
    """The same sentence in scripts without spaces: tokens, and how many times those of English (Petrov et al. 2023)."""
    rows = []
    english = len(tokenizer.encode(ARTICLE["English"]))
    for language, text in ARTICLE.items():
        ids = tokenizer.encode(text)
        rows.append(
            {
                "language": language,
                "tokens": len(ids),
                "per_character": len(ids) / len(text),
                "against_english": len(ids) / max(english, 1),
                "unknown": ids.count(tokenizer.unknown) if tokenizer.unknown is not None else 0,
                "pieces": tokenizer.pieces(text),
            }
        )
    return rows


def read_typos(path: Path) -> list[tuple[str, str]]:
    """(typo, first correction) of the lines `typo->correction, other` of a file such as codespell's, .gz or plain.

    Raises UserError when there is no such line.
    """
    pairs = []
    for line in read_whole(path).splitlines():
        typo, arrow, corrections = line.partition("->")
        correction = corrections.split(",")[0].strip()
        if arrow and typo.strip() and correction:
            pairs.append((typo.strip(), correction))
    if not pairs:
        raise UserError(f"{path}: no line like `typo->correction` in it")
    return pairs


def typos(tokenizer: HFTokenizer, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """How many tokens more a misspelt word takes, as it stands after a space."""
    wrong = tokenizer.counts([f" {typo}" for typo, _ in pairs])
    right = tokenizer.counts([f" {correction}" for _, correction in pairs])
    more = wrong - right
    worst = sorted(range(len(pairs)), key=lambda i: (-more[i], right[i], pairs[i]))[:EXAMPLES]
    return {
        "pairs": len(pairs),
        "typo_tokens": float(wrong.mean()),
        "correction_tokens": float(right.mean()),
        "more": float(more.mean()),
        "share_costing_more": float((more > 0).mean()),
        "examples": [
            {
                "typo": tokenizer.pieces(f" {pairs[i][0]}"),
                "correction": tokenizer.pieces(f" {pairs[i][1]}"),
                "more": int(more[i]),
            }
            for i in worst
        ],
    }


def longest_match(tokenizer: HFTokenizer, words: Mapping[str, int]) -> dict[str, Any] | None:
    """The tokenizer's own way against greedy longest match over the same vocabulary, on counted pre-tokens.

    None for WordPiece, which is longest match.
    """
    if tokenizer.kind == "WordPiece":
        return None
    vocabulary = {tokenizer.names[number] for number in tokenizer.ordinary}
    longest = max(map(len, vocabulary), default=1)
    suffix = getattr(tokenizer.backend.model, "end_of_word_suffix", None) or ""
    own_tokens = greedy_tokens = differ = 0
    examples: list[tuple[int, str, list[str], list[str]]] = []
    for word, count in words.items():
        own = tokenizer.model_tokens(word)
        greedy = longest_pieces(word + suffix, vocabulary, longest)
        own_tokens += len(own) * count
        greedy_tokens += len(greedy) * count
        if own != greedy:
            differ += count
            examples.append((count, word, own, greedy))
    examples.sort(key=lambda one: (-one[0], one[1]))
    total = sum(words.values())
    return {
        "pretokens": total,
        "share_that_differ": differ / max(total, 1),
        "distinct": len(words),
        "distinct_that_differ": len(examples),
        "more_tokens": greedy_tokens / max(own_tokens, 1) - 1,
        "examples": [
            {
                "times": count,
                "own": [tokenizer.written(name) for name in own],
                "greedy": [tokenizer.written(name) for name in greedy],
            }
            for count, _, own, greedy in examples[:EXAMPLES]
        ],
    }


def longest_pieces(word: str, vocabulary: set[str], longest: int) -> list[str]:
    """The longest token that the word begins with, then the longest of the rest; characters without a token alone."""
    found, start = [], 0
    while start < len(word):
        for end in range(min(len(word), start + longest), start, -1):
            if word[start:end] in vocabulary:
                break
        found.append(word[start:end])
        start = end
    return found


def count_words(tokenizer: HFTokenizer, texts: Iterable[str]) -> Counter[str]:
    """How often each pre-token occurs, in the tokenizer's way of writing."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word in tokenizer.pretokens(text) if len(word) <= LONGEST_WORD)
    return words


def fertility(sizes: np.ndarray, words: np.ndarray, characters: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """Of some documents (each array one number a document): how many bytes a token is, how many tokens a word."""
    return {
        "documents": len(sizes),
        "bytes": int(sizes.sum()),
        "bytes_per_token": float(sizes.sum() / max(tokens.sum(), 1)),
        "tokens_per_word": float(tokens.sum() / max(words.sum(), 1)),
        "tokens_per_character": float(tokens.sum() / max(characters.sum(), 1)),
    }
