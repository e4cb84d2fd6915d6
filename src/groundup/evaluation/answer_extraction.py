"""Whether a generated answer is right: which part of the text is the answer, and how it is compared."""

import re
from collections.abc import Sequence

import regex

from groundup.core.errors import UserError

TIMEOUT = 1.0  # seconds for one text: a task's expression that takes longer on one would on the next too


def cut(text: str, until: Sequence[str]) -> str:
    """A continuation up to the first of the texts that end it."""
    for end in until:
        text = text.split(end, 1)[0] if end else text
    return text


def require_expression(expression: str, where: str) -> None:
    """Raises UserError for what is no regular expression, before a model writes anything."""
    try:
        regex.compile(expression)
    except regex.error as error:
        raise UserError(f"{where}: {expression[:60]!r} is not a regular expression ({error})"[:250]) from None


def extract(text: str, expression: str, which: str) -> str | None:
    """The first group of the expression's first or last match, or all of it; None without one.

    Raises UserError for one that takes too long.
    """
    if not expression:
        return text.strip()
    try:
        matches = [*regex.finditer(expression, text, timeout=TIMEOUT)]
    except TimeoutError:
        raise UserError(f"extract: {expression[:60]!r} takes more than {TIMEOUT:.0f} s for one text; make it simpler") from None
    if not matches:
        return None
    match = matches[0 if which == "first" else -1]
    groups = [group for group in match.groups() if group is not None]
    return (groups[0] if groups else match[0]).strip()


def same(answer: str, target: str) -> bool:
    """Without case, and without the commas, dollars and full stop around a number: GSM8K's rule in lm-eval."""
    return _plain(answer) == _plain(target)


def _plain(text: str) -> str:
    return re.sub(r"\.$", "", text.replace(",", "").replace("$", "")).strip().lower()
