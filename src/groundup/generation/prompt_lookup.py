"""Drafts for greedy decoding, looked up in the text itself: prompt-lookup decoding (Saxena 2023).

Text repeats itself: where its last tokens stood before, what followed then is a guess at what follows now. A pass over a
few tokens costs little more than over one, since it is the weights that are read; each guess that turns out to be the
model's own choice saves a pass, and what is said is what the model alone would say (Leviathan et al. 2023).
"""

from collections.abc import Sequence

SIZES = (3, 2)  # tokens that must have stood before; the longest that did decide
LEAST, MOST = 2, 31  # tokens of a draft
AT_ONCE = 96  # tokens of a pass over several rows


class PromptLookup:
    """Drafts for one row, whose `text` grows by the part of each draft that was right and one token more."""

    def __init__(self, text: list[int]) -> None:
        self.text = text
        self.known = 0  # tokens of the text that `after` knows
        self.after: dict[tuple[int, ...], int] = {}  # tokens -> the place after where they last stood
        self.drafted, self.length = 0, LEAST

    def promising(self) -> int:
        """How long a draft is worth its while: none where the text's end is new.

        Otherwise as long as the last draft was right, or twice as long when all of it was.
        """
        text, end = self.text, len(self.text)
        if self.drafted:
            right = end - self.known - 1
            self.length = min(MOST, max(LEAST, 2 * right if right == self.drafted else right))
        for place in range(self.known, end):
            for size in SIZES:
                self.after[tuple(text[max(0, place - size) : place])] = place
        self.known = end
        starts = (self.after.get(tuple(text[-size:])) for size in SIZES)
        self.start = next((place for place in starts if place is not None), None)
        return self.length if self.start else 0

    def propose(self, count: int) -> list[int]:
        """What followed; a text that goes round in a circle is followed around it. Where the end is new, any tokens."""
        self.drafted = count if self.start else 0
        start = self.start or 0
        return [self.text[start + number % (self.known - start)] for number in range(count)]


def drafts(rows: Sequence[PromptLookup], most: int) -> list[list[int]]:
    """A draft of each row, all of one length: the mean of what the rows promise, and none of them longer than `most`."""
    most = min(most, AT_ONCE // len(rows) - 1)
    if most < 1:
        return [[]] * len(rows)
    count = min(most, sum(row.promising() for row in rows) // len(rows))
    return [row.propose(count) for row in rows]
