"""TRL's rows (`messages`; `prompt`, `chosen`, `rejected`) as token ids; what cannot be trained on is counted, by reason.

Every method reads its rows here, so none trains on what the chat format would lose or the context cannot hold. A row too
long is left out whole: cut, it would have no end to learn, or an answer to another question.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from groundup.core.errors import UserError
from groundup.posttraining.batches import Row
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer

MOST = 1_000  # of a margin: Llama 2 went to 3, and float32 has few digits left for the rewards beside much more
Read = TypeVar("Read")


def conversation(tokenizer: Tokenizer, row: Mapping[str, Any]) -> Row:
    """A row with `messages`, all the assistant's of which are learned.

    Raises UserError when it is no conversation of the chat format, or does not end with an answer.
    """
    _without_tools(row)
    messages = row.get("messages") or []
    ids, spoken = render(tokenizer, messages)
    if messages[-1]["role"] != "assistant":
        raise UserError("the last message is not the assistant's")
    return ids, spoken


def pair(tokenizer: Tokenizer, row: Mapping[str, Any]) -> tuple[Row, Row, float]:
    """(chosen, rejected, margin) of a preference row: whole conversations, of which only the last answer is learned.

    Raises UserError unless `prompt` ends with the user, each answer is one message of the assistant, and `margin`, where
    there is one, is a number.
    """
    _without_tools(row)
    prompt = row.get("prompt") or []
    start = len(render(tokenizer, prompt, add_generation_prompt=True)[0])
    sides = []
    for side in ("chosen", "rejected"):
        answer = row.get(side)
        if not isinstance(answer, list | tuple) or len(answer) != 1:
            raise UserError(f"{side} must be one message of the assistant")
        ids, _ = render(tokenizer, [*prompt, *answer])
        sides.append((ids, [0] * start + [1] * (len(ids) - start)))
    margin = row.get("margin")
    if margin is None:
        margin = 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not -MOST <= margin <= MOST:
        raise UserError(f"margin must be a number from {-MOST:,} to {MOST:,}")
    return sides[0], sides[1], float(margin)


def _without_tools(row: Mapping[str, Any]) -> None:
    if row.get("tools"):
        raise UserError("tools: this chat format has no place for them")


def kept(
    rows: Iterable[Mapping[str, Any]],
    read: Callable[[Mapping[str, Any]], Read],
    fits: Callable[[Read], str | None],
    left_out: Counter[str] | None,
) -> list[Read]:
    """What `read` makes of the rows. Counted in `left_out`, by reason: rows that it refuses, and those that `fits` does."""
    counted = Counter() if left_out is None else left_out
    found = []
    for row in rows:
        try:
            one = read(row)
        except UserError as error:
            text = str(error)
            counted[text.partition(": ")[2] if text.startswith("message ") else text] += 1
            continue
        if reason := fits(one):
            counted[reason] += 1
        else:
            found.append(one)
    return found


def too_long(longest: int, *rows: Row) -> str | None:
    """The reason to leave out what is longer than `longest` tokens, if one of the rows is."""
    return f"longer than {longest} tokens" if any(len(ids) > longest for ids, _ in rows) else None


def kept_pairs(
    tokenizer: Tokenizer, pairs: Sequence[Mapping[str, Any]], longest: int, stage: str, left_out: Counter[str] | None = None
) -> tuple[list[tuple[Row, Row]], list[float]]:
    """(chosen, rejected) of the preference rows that can be read and have at most `longest` tokens, and their margins.

    Raises UserError when none is left.
    """
    counted = Counter() if left_out is None else left_out
    if not pairs:
        raise UserError(f"{stage}: no preference pairs; every comparison was a tie")
    found = kept(pairs, lambda row: pair(tokenizer, row), lambda one: too_long(longest, one[0], one[1]), counted)
    if not found:
        raise UserError(f"{stage}: none of {len(pairs)} preference pairs can be trained on: {said(counted)}")
    return [(chosen, rejected) for chosen, rejected, _ in found], [margin for *_, margin in found]


def said(left_out: Counter[str]) -> str:
    """The commonest reasons with their counts, in one line."""
    return ", ".join(f"{count:,} {reason[:60]}" for reason, count in left_out.most_common(3))
