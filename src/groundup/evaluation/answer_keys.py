"""Answer keys: which of the choices a row says is right, in whatever way its benchmark writes it.

A key that can be read in two ways is refused: of `["2", "4", "6", "8"]` the key "2" is the first choice or the third, and either
reading gives a plausible figure.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from groundup.core.errors import UserError
from groundup.data.messages import BadRow

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def index(value: Any, texts: Sequence[str]) -> int:
    """The index of the choice that an answer key names: the key is an index from 0, a letter, or one of the texts.

    Raises BadRow for a key that is none of these, or two different ones.
    """
    number, text_index = position(value), None
    if isinstance(value, str):
        key = value.strip()
        if number is None and len(key) == 1 and key.upper() in LETTERS:
            number = LETTERS.index(key.upper())
        text_index = next((texts.index(text) for text in (value, key) if text in texts), None)
        if number is not None and text_index is not None and number != text_index:
            raise BadRow("an answer key that is one choice's index and another's text: write choices.index(key), or key | int")
    choice = text_index if text_index is not None else number
    if choice is None:
        raise BadRow("an answer key that is neither index, letter nor choice")
    if not 0 <= choice < len(texts):
        raise BadRow("an answer key out of range")
    return choice


def position(value: Any) -> int | None:
    """The number that a key is, also as tables with missing values write it: 2, "2", 2.0 and "2.0"."""
    if isinstance(value, str):
        key = value.strip().removesuffix(".0")
        return int(key) if key.isascii() and key.isdigit() and len(key) < 4 else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def require_from_zero(keys: Iterable[tuple[int, int, str]], where: str, advice: str) -> None:
    """Raises UserError where keys (number, number of choices, row) count from 1: none is 0, and some are one too large.

    Only those would be out of range; the others would silently name the next choice. `advice`: what to do.
    """
    example_row = ""
    for number, count, row in keys:
        if number == 0:
            return
        if number == count:
            example_row = example_row or row
    if example_row:
        raise UserError(f"{where}: answers count from 1, as {example_row} shows, and none is 0; an index is from 0: {advice}")
