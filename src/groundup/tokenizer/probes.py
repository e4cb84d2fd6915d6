"""How a tokenizer cuts difficult text: numbers, indentation, typos, scripts without spaces, words of many pieces."""

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
    """For 1 to 5 digits: mean tokens, and the share of the numbers that are cut in each way ("2+3": digits per token)."""
    rows = []
    for digits in range(1, 6):
        lowest = 10 ** (digits - 1) if digits > 1 else 0
        candidates = range(lowest, 10**digits)
        tried = list(candidates) if len(candidates) <= NUMBERS_TRIED else random.Random(digits).sample(candidates, NUMBERS_TRIED)
        ways: Counter[str] = Counter()
        total = 0
        for number in tried:
            sizes = [end - start for start, end in tokenizer.spans(str(number)) if end > start]
            ways["+".join(map(str, sizes))] += 1
            total += len(sizes)
        shares = {way: count / len(tried) for way, count in sorted(ways.items(), key=lambda item: (-item[1], item[0]))}
        rows.append({"digits": digits, "tokens": total / len(tried), "ways": shares})
    return {"rows": rows, "examples": [{"text": text, "pieces": tokenizer.pieces(text)} for text in NUMBERS]}


def indentation(tokenizer: HFTokenizer) -> dict[str, Any]:
    """The tokens of an indentation, and whether the word after it is the same token as at the start of a line."""
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
    """How many more tokens a misspelt word takes, after a space."""
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
    """The tokenizer's cuts compared with greedy longest match over the same vocabulary, on counted pre-tokens.

    None for WordPiece, which is longest match.
    """
    if tokenizer.kind == "WordPiece":
        return None
    vocabulary = {tokenizer.names[number] for number in tokenizer.ordinary}
    longest = max(map(len, vocabulary), default=1)
    suffix = getattr(tokenizer.backend.model, "end_of_word_suffix", None) or ""
    model_total = greedy_total = differ = 0
    examples: list[tuple[int, str, list[str], list[str]]] = []
    for word, count in words.items():
        model_pieces = tokenizer.model_tokens(word)
        greedy = longest_pieces(word + suffix, vocabulary, longest)
        model_total += len(model_pieces) * count
        greedy_total += len(greedy) * count
        if model_pieces != greedy:
            differ += count
            examples.append((count, word, model_pieces, greedy))
    examples.sort(key=lambda example: (-example[0], example[1]))
    total = sum(words.values())
    return {
        "pretokens": total,
        "share_that_differ": differ / max(total, 1),
        "distinct": len(words),
        "distinct_that_differ": len(examples),
        "more_tokens": greedy_total / max(model_total, 1) - 1,
        "examples": [
            {
                "times": count,
                "own": [tokenizer.written(name) for name in model_pieces],
                "greedy": [tokenizer.written(name) for name in greedy],
            }
            for count, _, model_pieces, greedy in examples[:EXAMPLES]
        ],
    }


def longest_pieces(word: str, vocabulary: set[str], longest: int) -> list[str]:
    """The longest token that the word begins with, then the longest of the rest; characters without a token alone."""
    pieces, start = [], 0
    while start < len(word):
        for end in range(min(len(word), start + longest), start, -1):
            if word[start:end] in vocabulary:
                break
        pieces.append(word[start:end])
        start = end
    return pieces


def count_words(tokenizer: HFTokenizer, texts: Iterable[str]) -> Counter[str]:
    """How often each pre-token occurs, written as the tokenizer's vocabulary writes tokens."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word in tokenizer.pretokens(text) if len(word) <= LONGEST_WORD)
    return words


def fertility(sizes: np.ndarray, words: np.ndarray, characters: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """Bytes per token and tokens per word of documents; each array has one number per document."""
    return {
        "documents": len(sizes),
        "bytes": int(sizes.sum()),
        "bytes_per_token": float(sizes.sum() / max(tokens.sum(), 1)),
        "tokens_per_word": float(tokens.sum() / max(words.sum(), 1)),
        "tokens_per_character": float(tokens.sum() / max(characters.sum(), 1)),
    }
