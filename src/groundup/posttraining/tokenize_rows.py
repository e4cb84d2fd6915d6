"""Conversations and preferences as token ids; what cannot be trained on is counted, by reason.

Every method reads its rows here, so none trains on what the chat format would lose or the context cannot hold. A row too
long is left out whole: cut, it would have no end to learn, or an answer to another question.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from groundup.core.errors import UserError
from groundup.data.conversations import conversation_of
from groundup.data.messages import BadRow
from groundup.data.preferences import preference_of
from groundup.posttraining.batches import Row
from groundup.posttraining.data_checks import no_answer, same
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer

Given, Read = TypeVar("Given"), TypeVar("Read")


def conversation(tokenizer: Tokenizer, row: Mapping[str, Any]) -> Row:
    """A conversation in a format of `data/conversations.py`, of which the answers that it says are learned: of `messages` all.

    Raises UserError when it is none, or does not end with an answer.
    """
    found = conversation_of(row)
    ids, spoken = render(tokenizer, [message.row for message in found.messages])
    answers = [message.trained for message in found.messages if message.role == "assistant"]
    return ids, spoken if all(answers) else _of_answers(spoken, answers)


def _of_answers(spoken: Sequence[int], learned: Sequence[bool]) -> list[int]:
    """The mask without the answers that are not learned. Between two answers the user speaks, so each is a run of ones."""
    mask, answer = [], -1
    for before, says in zip((0, *spoken), spoken, strict=False):
        answer += says and not before
        mask.append(int(says and learned[answer]))
    if answer + 1 != len(learned):
        raise BadRow(f"the chat template marks {answer + 1} of {len(learned)} answers")
    return mask


def longest_answer(row: Row) -> int:
    """Tokens of the longest answer that is learned, its end included."""
    longest = length = 0
    for says in row[1]:
        length = length + 1 if says else 0
        longest = max(longest, length)
    return longest


def pair(tokenizer: Tokenizer, row: Mapping[str, Any]) -> tuple[Row, Row, float]:
    """(chosen, rejected, margin) of a preference in a format of `data/preferences.py`, its whole history rendered.

    Only the last answers are learned. Raises UserError when it is none.
    """
    found = preference_of(row)
    prompt = [message.row for message in found.prompt]
    start = len(render(tokenizer, prompt, add_generation_prompt=True)[0])
    sides = []
    for answer in (found.chosen, found.rejected):
        ids, _ = render(tokenizer, [*prompt, answer.row])
        sides.append((ids, [0] * start + [1] * (len(ids) - start)))
    return sides[0], sides[1], found.margin


def kept(
    rows: Iterable[Given],
    read: Callable[[Given], Read],
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
            counted[error.reason if isinstance(error, BadRow) else str(error)] += 1
            continue
        if reason := fits(one):
            counted[reason] += 1
        else:
            found.append(one)
    return found


def too_long(longest: int, *rows: Row) -> str | None:
    """The reason to leave out what is longer than `longest` tokens, if one of the rows is."""
    return f"longer than {longest} tokens" if any(len(ids) > longest for ids, _ in rows) else None


def unfit_pair(longest: int, chosen: Row, rejected: Row) -> str | None:
    """The reason to leave out a pair of which nothing can be learned."""
    return too_long(longest, chosen, rejected) or no_answer(chosen, rejected) or same(chosen, rejected)


def kept_pairs(
    tokenizer: Tokenizer, pairs: Sequence[Mapping[str, Any]], longest: int, stage: str, left_out: Counter[str] | None = None
) -> tuple[list[tuple[Row, Row]], list[float]]:
    """(chosen, rejected) of the preference rows that can be read and have at most `longest` tokens, and their margins.

    Raises UserError when none is left.
    """
    counted = Counter() if left_out is None else left_out
    if not pairs:
        raise UserError(f"{stage}: no preference pairs; every comparison was a tie")
    found = kept(pairs, lambda row: pair(tokenizer, row), lambda one: unfit_pair(longest, *one[:2]), counted)
    if not found:
        raise UserError(f"{stage}: none of {len(pairs)} preference pairs can be trained on: {said(counted)}; give others")
    return [(chosen, rejected) for chosen, rejected, _ in found], [margin for *_, margin in found]


def said(left_out: Counter[str]) -> str:
    """The commonest reasons with their counts, in one line."""
    return ", ".join(f"{count:,} {reason[:60]}" for reason, count in left_out.most_common(3))
