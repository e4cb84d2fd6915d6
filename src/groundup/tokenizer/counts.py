"""How often each pre-token occurs: all that BPE training needs to see of a corpus.

Counts of shards add up, in any order; a mixture is a weighted sum of the counts of its domains; what does not fit into
memory is pruned from the rare end, and what was pruned is reported. All numbers are 64-bit.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import regex

from groundup.core.errors import UserError
from groundup.core.text import well_formed
from groundup.tokenizer.patterns import PATTERNS, Pattern
from groundup.tokenizer.presplit import cut

BATCH_BYTES = 4 << 20  # of text, cut at once
PIECES_HELD = 1_000_000  # distinct pieces before the pattern is applied to them
PIECES_AT_ONCE = 2_000
LONGEST_PRETOKEN = 1 << 14  # bytes
BYTES_PER_CELL = 100  # of memory during merging, for each byte of each distinct pre-token


@dataclass(frozen=True)
class Counts:
    """Distinct pre-tokens in the order of their bytes, and how often each occurs (int64)."""

    pretokens: pa.LargeBinaryArray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.pretokens)

    def as_dict(self) -> dict[bytes, int]:
        return dict(zip(self.pretokens.to_pylist(), self.numbers.tolist(), strict=True))

    @classmethod
    def of(cls, counts: Mapping[bytes, int]) -> "Counts":
        return add([cls(pa.array(list(counts), pa.large_binary()), np.array(list(counts.values()), np.int64))])


@dataclass(frozen=True)
class Pruned:
    """What pruning left out: distinct pre-tokens and their occurrences; `total`: all occurrences before it."""

    distinct: int
    occurrences: int
    total: int

    def __str__(self) -> str:
        share = self.occurrences / max(self.total, 1)
        return f"{self.distinct:,} rare or overlong pre-tokens left out, {share:.3%} of {self.total:,} occurrences"


def count_pretokens(texts: Iterable[str], pattern: Pattern = PATTERNS["qwen2"]) -> Counts:
    """Counts over texts; each is split by itself. Lone surrogates count as U+FFFD, which is what they encode to."""
    return count(arrow_batches(texts), pattern)


def count(batches: Iterable[pa.Array], pattern: Pattern) -> Counts:
    """Counts over batches of documents (Arrow arrays of strings)."""
    tally = Tally(pattern)
    for batch in batches:
        tally.add(batch)
    return tally.counts()


class Tally:
    """Counts documents batch by batch. It holds the distinct pieces: the pattern is applied to each only once."""

    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern
        self._counted: list[Counts] = []
        self._pending: list[Counts] = []

    def add(self, documents: pa.Array) -> None:
        """Count one more batch of documents (an Arrow array of strings)."""
        value_counts = cut(documents)[0].value_counts()
        # 32 bits: no batch holds more.
        self._pending.append(Counts(value_counts.field(0), value_counts.field(1).to_numpy().astype(np.int32)))
        if sum(map(len, self._pending)) > PIECES_HELD:
            self._cut()

    def counts(self) -> Counts:
        """The counts so far."""
        self._cut()
        return add(self._counted)

    def _cut(self) -> None:
        pending, self._pending = self._pending, []
        pa.default_memory_pool().release_unused()  # of reading
        self._counted.append(_apply(self._pattern, _sum(pending)))


def add(parts: Sequence[Counts], factors: Sequence[int] | None = None) -> Counts:
    """The sum of counts, each times its integer factor. Raises UserError when a sum would not fit 64 bits."""
    factors = factors or [1] * len(parts)
    largest_sum = sum(float(part.numbers.sum(dtype=np.float64)) * factor for part, factor in zip(parts, factors, strict=True))
    if largest_sum >= 2**63:
        raise UserError(f"the counts add up to {largest_sum:.1e}, more than 64 bits hold; use smaller mixture weights")
    total = _sum([Counts(part.pretokens, part.numbers * factor) for part, factor in zip(parts, factors, strict=True)])
    order = pc.sort_indices(total.pretokens)
    return Counts(total.pretokens.take(order), total.numbers[order.to_numpy()])


def prune(counts: Counts, memory: int) -> tuple[Counts, Pruned]:
    """Keep the most frequent pre-tokens that can be merged within `memory` bytes; equally frequent ones are dropped together.

    Pre-tokens longer than LONGEST_PRETOKEN are dropped first: a file in one line is not a word. The result depends on the
    counts alone, not on how they were added up.
    """
    sizes = pc.binary_length(counts.pretokens).to_numpy().astype(np.int64)
    fits = sizes <= LONGEST_PRETOKEN
    order = np.argsort(-counts.numbers[fits], kind="stable")
    cells = np.cumsum(sizes[fits][order] + 1)
    first_over = np.searchsorted(cells, memory // BYTES_PER_CELL, "right")
    threshold = 0 if first_over == len(cells) else int(counts.numbers[fits][order[first_over]]) + 1
    kept = fits & (counts.numbers >= threshold)
    lost = counts.numbers[~kept]
    pruned = Pruned(len(lost), int(lost.sum()), int(counts.numbers.sum()))
    return Counts(counts.pretokens.filter(pa.array(kept)), counts.numbers[kept]), pruned


def arrow_batches(texts: Iterable[str]) -> Iterator[pa.Array]:
    """Texts in Arrow arrays of about BATCH_BYTES."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(well_formed(text))
        size += len(text)
        if size >= BATCH_BYTES:
            yield pa.array(held, pa.large_string())
            held, size = [], 0
    if held:
        yield pa.array(held, pa.large_string())


def content(strings: pa.LargeBinaryArray) -> np.ndarray:
    """The bytes of all strings, concatenated."""
    _, offsets, data = strings.buffers()
    ends = np.frombuffer(offsets, np.int64)[strings.offset :][: len(strings) + 1]
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]] if data else np.empty(0, np.uint8)


def _sum(parts: Sequence[Counts]) -> Counts:
    """One entry for each distinct string, in no particular order."""
    if not parts:
        return Counts(pa.array([], pa.large_binary()), np.empty(0, np.int64))
    coded = pa.concat_arrays([part.pretokens for part in parts]).dictionary_encode()
    numbers = np.zeros(len(coded.dictionary), np.int64)
    np.add.at(numbers, coded.indices.to_numpy(), np.concatenate([part.numbers for part in parts]))
    return Counts(coded.dictionary, numbers)


def _apply(pattern: Pattern, pieces: Counts) -> Counts:
    """Counts of the pre-tokens in the pieces."""
    plain, full = _compiled(pattern)

    def sizes(text: str) -> Iterable[int]:
        return map(len, plain(text)) if text.isascii() else [len(part.encode()) for part in full(text)]

    parts = []
    for start in range(0, len(pieces), PIECES_AT_ONCE):
        strings = pieces.pretokens[start : start + PIECES_AT_ONCE]
        lengths = [[*sizes(text)] for text in strings.cast(pa.large_string()).to_pylist()]
        ends = np.cumsum([0, *chain.from_iterable(lengths)])  # a pattern leaves no byte out
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(content(strings))]
        pretokens = pa.Array.from_buffers(pa.large_binary(), len(ends) - 1, buffers)
        numbers = np.repeat(pieces.numbers[start : start + PIECES_AT_ONCE], [*map(len, lengths)])
        parts.append(_sum([Counts(pretokens, numbers)]))
    return _sum(parts)


@cache
def _compiled(pattern: Pattern) -> tuple[Callable[[str], list[str]], Callable[[str], list[str]]]:
    return re.compile(pattern.ascii_pattern, re.ASCII).findall, regex.compile(pattern.regex).findall
