"""Answer keys: which of the choices a row says is right, in whatever way its benchmark writes it.

A key that can be read in two ways is not guessed at: of `["2", "4", "6", "8"]` the key "2" is the first choice or the third, and
either reading gives a figure that looks like one.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from groundup.core.errors import UserError
from groundup.data.messages import BadRow

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def index(value: Any, texts: Sequence[str]) -> int:
    """Of an answer key: an index from 0, a letter, or one of the texts. Raises BadRow for what is none, or two at once."""
    place, named = position(value), None
    if isinstance(value, str):
        key = value.strip()
        if place is None and len(key) == 1 and key.upper() in LETTERS:
            place = LETTERS.index(key.upper())
        named = next((texts.index(text) for text in (value, key) if text in texts), None)
        if place is not None and named is not None and place != named:
            raise BadRow("an answer key that is one choice's place and another's text: write choices.index(key), or key | int")
    found = named if named is not None else place
    if found is None:
        raise BadRow("an answer key that is neither index, letter nor choice")
    if not 0 <= found < len(texts):
        raise BadRow("an answer key out of range")
    return found


def position(value: Any) -> int | None:
    """The number that a key is, also as tables with gaps write it: 2, "2", 2.0 and "2.0"."""
    if isinstance(value, str):
        key = value.strip().removesuffix(".0")
        return int(key) if key.isascii() and key.isdigit() and len(key) < 4 else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def require_from_zero(keys: Iterable[tuple[int, int, str]], where: str, advice: str) -> None:
    """Raises UserError where keys (position, number of choices, row) count from 1: none is 0, and some are one too many.

    Only those would be out of range, and the others silently be the next choice's. `advice`: what to do.
    """
    beyond = ""
    for place, count, row in keys:
        if place == 0:
            return
        if place == count:
            beyond = beyond or row
    if beyond:
        raise UserError(f"{where}: answers count from 1, as {beyond} shows, and none is 0; an index is from 0: {advice}")
