"""Drafts for greedy decoding, looked up in the text itself: prompt-lookup decoding (Saxena 2023).

Text repeats itself: if its last tokens occurred before, the tokens that followed them are a draft of those that follow now. A
pass over a few tokens costs little more than over one, since most of it is reading the weights. Each drafted token that is the
model's own choice saves a pass, and the result is what the model alone would write (Leviathan et al. 2023).
"""

from collections.abc import Sequence

NGRAM_SIZES = (3, 2)  # last tokens that must have occurred before; the longest n-gram that did is used
MIN_DRAFT, MAX_DRAFT = 2, 31  # tokens of a draft
BATCH_TOKENS = 96  # tokens of a pass over several rows


class PromptLookup:
    """Drafts for one row; `text` grows by the accepted part of each draft and one token more."""

    def __init__(self, text: list[int]) -> None:
        self.text = text
        self.indexed = 0  # tokens of the text that are in `last_seen`
        self.last_seen: dict[tuple[int, ...], int] = {}  # n-gram -> the position after its last occurrence
        self.drafted, self.length = 0, MIN_DRAFT

    def promising(self) -> int:
        """The length of a draft that is worth its cost: 0 if the text's end did not occur before.

        Otherwise as long as the accepted part of the last draft, or twice as long if all of it was accepted.
        """
        text, end = self.text, len(self.text)
        if self.drafted:
            accepted = end - self.indexed - 1
            self.length = min(MAX_DRAFT, max(MIN_DRAFT, 2 * accepted if accepted == self.drafted else accepted))
        for position in range(self.indexed, end):
            for size in NGRAM_SIZES:
                self.last_seen[tuple(text[max(0, position - size) : position])] = position
        self.indexed = end
        starts = (self.last_seen.get(tuple(text[-size:])) for size in NGRAM_SIZES)
        self.start = next((position for position in starts if position is not None), None)
        return self.length if self.start else 0

    def propose(self, count: int) -> list[int]:
        """The tokens that followed, from the start again at the text's end. If the end did not occur before, any tokens."""
        self.drafted = count if self.start else 0
        start = self.start or 0
        return [self.text[start + number % (self.indexed - start)] for number in range(count)]


def drafts(rows: Sequence[PromptLookup], max_length: int) -> list[list[int]]:
    """A draft for each row, all of one length: the mean of the rows' `promising`, at most `max_length`."""
    max_length = min(max_length, BATCH_TOKENS // len(rows) - 1)
    if max_length < 1:
        return [[]] * len(rows)
    count = min(max_length, sum(row.promising() for row in rows) // len(rows))
    return [row.propose(count) for row in rows]
