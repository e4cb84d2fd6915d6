"""Drafts for greedy decoding, looked up in the text itself: prompt-lookup decoding (Saxena 2023).

Text repeats itself: where its last tokens stood before, what followed then is a guess at what follows now. A pass over a
few tokens costs little more than over one, since it is the weights that are read; each guess that turns out to be the
model's own choice saves a pass, and what is said is what the model alone would say (Leviathan et al. 2023).
"""

SIZES = (3, 2)  # tokens that must have stood before; the longest that did decide
LEAST, MOST = 2, 15  # tokens of a draft


class Lookup:
    """Drafts for one row, whose `text` grows by the part of each draft that was right and one token more."""

    def __init__(self, text: list[int]) -> None:
        self.text = text
        self.known = 0  # tokens of the text that `after` knows
        self.after: dict[tuple[int, ...], int] = {}  # tokens -> the place after where they last stood
        self.drafted, self.length = 0, LEAST

    def draft(self, most: int) -> list[int]:
        """A guess at the next tokens, at most `most`; none where the last ones are new.

        As long as the last one was right, or twice as long when all of it was.
        """
        if self.drafted:
            right = len(self.text) - self.known - 1
            self.length = min(MOST, max(LEAST, 2 * right if right == self.drafted else right))
        for place in range(self.known, len(self.text)):
            for size in SIZES:
                self.after[tuple(self.text[max(0, place - size) : place])] = place
        self.known = len(self.text)
        starts = (self.after.get(tuple(self.text[-size:])) for size in SIZES)
        start = next((place for place in starts if place is not None), None)
        self.drafted = 0 if start is None else min(self.length, most)
        # A text that goes round in a circle is followed around it.
        return [self.text[start + number % (self.known - start)] for number in range(self.drafted)]
