"""Byte-level byte-pair encoding, trained from counts.

Sennrich et al. 2016 (arXiv 1508.07909) over bytes, as in GPT-2: a regular expression cuts text into pre-tokens, every
byte is a token to begin with, and the most frequent adjacent pair of tokens becomes a new token, again and again.

The trainer sees how often each pre-token occurs and never the text. So memory is bounded by distinct pre-tokens, counts
of many shards add up, a mixture is a weighted sum of counts, and the result does not depend on the order of documents.
The merges are those of Hugging Face's `BpeTrainer` (with 64-bit counts in place of its 32-bit ones).
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
import regex

from groundup.errors import UserError

# The pattern of Qwen2: letters with one character before them, single digits, punctuation, line ends, spaces.
# A run of spaces leaves its last one to the next word, so the indentation of code is one token.
PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRETOKENIZE = regex.compile(PRETOKENIZE)

# What a vocabulary holds beside bytes and merges; they come last.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")

# The byte of each of the first 256 ids. GPT-2 writes bytes as visible characters: visible Latin-1 as itself, the rest
# from U+0100 on. Ids follow the order of those characters, and ties between pairs follow ids.
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
ALPHABET = bytes([*VISIBLE, *(byte for byte in range(256) if byte not in VISIBLE)])

_EDGE, _INSIDE = -1, -2


def well_formed(text: str) -> str:
    """Text that UTF-8 can hold: surrogate pairs joined, each lone surrogate replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def count_pretokens(texts: Iterable[str]) -> Counter[bytes]:
    """How often each pre-token occurs. Counters of shards add up; for a mixture, scale them to whole numbers first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_PRETOKENIZE.findall(well_formed(text)))
    return Counter({pretoken.encode("utf-8"): count for pretoken, count in counts.items()})


def train(counts: Mapping[bytes, int], vocabulary: int) -> list[tuple[bytes, bytes]]:
    """Merges in order, for a vocabulary of `vocabulary` tokens: 256 bytes, the merges, and SPECIAL_TOKENS.

    The most frequent pair first; of equals, the pair of smallest ids. Fewer merges come back when no pair is left.
    Raises UserError when the vocabulary has no room for the bytes and the special tokens.
    """
    room = vocabulary - len(SPECIAL_TOKENS)
    if room < len(ALPHABET):
        smallest = len(ALPHABET) + len(SPECIAL_TOKENS)
        raise UserError(f"a vocabulary of {vocabulary} is too small: bytes and special tokens alone are {smallest}")

    # All pre-tokens lie one after the other in `symbols`, an _EDGE before and after each. A token fills as many cells
    # as it has bytes: its id stands in its first and its last cell, so both neighbours of a token are one look away.
    symbols_array, weights_array = _lay_out(counts)
    totals, places = _pairs(symbols_array, weights_array, room)
    symbols, weights = symbols_array.tolist(), weights_array.tolist()
    tokens = [bytes([byte]) for byte in ALPHABET]
    lengths = [1] * len(tokens)
    heap = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(heap)
    merges = []
    while heap and len(tokens) < room:
        negative_total, pair = heapq.heappop(heap)
        if totals[pair] <= 0:
            continue
        if totals[pair] != -negative_total:  # other merges took some of its places since it was pushed
            heapq.heappush(heap, (-totals[pair], pair))
            continue
        left, right = divmod(pair, room)
        merged = len(tokens)
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
        lengths.append(lengths[left] + lengths[right])

        fresh: defaultdict[int, list[int]] = defaultdict(list)
        for start in places.pop(pair):
            middle = start + lengths[left]
            if symbols[start] != left or symbols[middle] != right:
                continue
            end = middle + lengths[right]
            weight, before, after = weights[start], symbols[start - 1], symbols[end]
            symbols[middle - 1] = symbols[middle] = _INSIDE
            symbols[start] = symbols[end - 1] = merged
            if before >= 0:
                totals[before * room + left] -= weight
                fresh[before * room + merged].append(start - lengths[before])
                totals[before * room + merged] += weight
            if after >= 0:
                totals[right * room + after] -= weight
                fresh[merged * room + after].append(start)
                totals[merged * room + after] += weight
        del totals[pair]
        places.update(fresh)
        for pair in fresh:
            heapq.heappush(heap, (-totals[pair], pair))
    return merges


def _lay_out(counts: Mapping[bytes, int]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the bytes of all pre-tokens, each followed by _EDGE (and one at the start); and the count of each cell."""
    id_of_byte = np.empty(256, np.int64)
    id_of_byte[np.frombuffer(ALPHABET, np.uint8)] = np.arange(256)
    sizes = np.array([len(pretoken) + 1 for pretoken in counts], np.int64)
    symbols = np.full(1 + sizes.sum(), _EDGE, np.int64)
    is_byte = np.ones(len(symbols), bool)
    is_byte[0] = False
    is_byte[np.cumsum(sizes)] = False
    symbols[is_byte] = id_of_byte[np.frombuffer(b"".join(counts), np.uint8)]
    weights = np.repeat(np.array([*counts.values(), 0], np.int64), [*sizes, 1])
    return symbols, np.roll(weights, 1)


def _pairs(symbols: np.ndarray, weights: np.ndarray, room: int) -> tuple[defaultdict[int, int], dict[int, list[int]]]:
    """Total count and ascending places of every adjacent pair. A pair is written left * room + right."""
    places = np.flatnonzero((symbols[:-1] >= 0) & (symbols[1:] >= 0))
    keys = symbols[places] * room + symbols[places + 1]
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], places[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    totals: defaultdict[int, int] = defaultdict(int)
    if len(keys):
        totals.update(zip(keys[starts].tolist(), np.add.reduceat(weights[places], starts).tolist(), strict=True))
    groups = np.split(places, starts[1:])
    return totals, {pair: group.tolist() for pair, group in zip(totals, groups, strict=False)}
