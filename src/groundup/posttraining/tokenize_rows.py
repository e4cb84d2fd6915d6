"""Conversations and preferences as token ids; rows that cannot be trained on are counted, by reason.

Every method reads its rows here, so none trains on what the chat format would lose or the context cannot hold. A row that is
too long is left out whole: cut, it would have no end to learn, or an answer to another question.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from groundup.core.errors import UserError
from groundup.data.conversations import conversation_of
from groundup.data.messages import BadRow
from groundup.data.preferences import preference_of
from groundup.posttraining.batches import Row
from groundup.posttraining.data_checks import no_answer, same_answer
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer

Given, Read = TypeVar("Given"), TypeVar("Read")


def conversation(tokenizer: Tokenizer, row: Mapping[str, Any]) -> Row:
    """A conversation in a format of `data/conversations.py`. Answers that it marks as not trained are masked out.

    Raises UserError when it is none, or does not end with an answer.
    """
    parsed = conversation_of(row)
    ids, spoken = render(tokenizer, [message.row for message in parsed.messages])
    answers = [message.trained for message in parsed.messages if message.role == "assistant"]
    return ids, spoken if all(answers) else _of_answers(spoken, answers)


def _of_answers(spoken: Sequence[int], learned: Sequence[bool]) -> list[int]:
    """The mask without the answers that are not learned. Between two answers the user speaks, so each is a run of ones."""
    mask, answer = [], -1
    for before, is_spoken in zip((0, *spoken), spoken, strict=False):
        answer += is_spoken and not before
        mask.append(int(is_spoken and learned[answer]))
    if answer + 1 != len(learned):
        raise BadRow(f"the chat template marks {answer + 1} of {len(learned)} answers")
    return mask


def longest_answer(row: Row) -> int:
    """Tokens of the longest answer that is learned, its end included."""
    longest = length = 0
    for is_spoken in row[1]:
        length = length + 1 if is_spoken else 0
        longest = max(longest, length)
    return longest


def pair(tokenizer: Tokenizer, row: Mapping[str, Any]) -> tuple[Row, Row, float]:
    """(chosen, rejected, margin) of a preference in a format of `data/preferences.py`, its whole history rendered.

    Only the last answers are learned. Raises UserError when it is none.
    """
    preference = preference_of(row)
    prompt = [message.row for message in preference.prompt]
    start = len(render(tokenizer, prompt, add_generation_prompt=True)[0])
    sides = []
    for answer in (preference.chosen, preference.rejected):
        ids, _ = render(tokenizer, [*prompt, answer.row])
        sides.append((ids, [0] * start + [1] * (len(ids) - start)))
    return sides[0], sides[1], preference.margin


def usable_rows(
    rows: Iterable[Given],
    read: Callable[[Given], Read],
    unfit: Callable[[Read], str | None],
    left_out: Counter[str] | None,
) -> list[Read]:
    """The results of `read` for the rows that can be used.

    Counted in `left_out`, by reason: rows that `read` refuses, and those for which `unfit` returns a reason.
    """
    counted = Counter() if left_out is None else left_out
    usable = []
    for row in rows:
        try:
            value = read(row)
        except UserError as error:
            counted[error.reason if isinstance(error, BadRow) else str(error)] += 1
            continue
        if reason := unfit(value):
            counted[reason] += 1
        else:
            usable.append(value)
    return usable


def too_long(longest: int, *rows: Row) -> str | None:
    """The reason to leave out rows of which one is longer than `longest` tokens."""
    return f"longer than {longest} tokens" if any(len(ids) > longest for ids, _ in rows) else None


def unfit_pair(longest: int, chosen: Row, rejected: Row) -> str | None:
    """The reason to leave out a pair of which nothing can be learned."""
    return too_long(longest, chosen, rejected) or no_answer(chosen, rejected) or same_answer(chosen, rejected)


def usable_pairs(
    tokenizer: Tokenizer, pairs: Sequence[Mapping[str, Any]], longest: int, stage: str, left_out: Counter[str] | None = None
) -> tuple[list[tuple[Row, Row]], list[float]]:
    """(chosen, rejected) of the preference rows that can be read and have at most `longest` tokens, and their margins.

    Raises UserError when none is left.
    """
    counted = Counter() if left_out is None else left_out
    if not pairs:
        raise UserError(f"{stage}: no preference pairs; every comparison was a tie")
    usable = usable_rows(pairs, lambda row: pair(tokenizer, row), lambda answers: unfit_pair(longest, *answers[:2]), counted)
    if not usable:
        raise UserError(f"{stage}: none of {len(pairs)} preference pairs can be trained on: {top_reasons(counted)}; give others")
    return [(chosen, rejected) for chosen, rejected, _ in usable], [margin for *_, margin in usable]


def top_reasons(left_out: Counter[str]) -> str:
    """The three commonest reasons with their counts, in one line; the only one to its end, which says what to do."""
    longest = 200 if len(left_out) == 1 else 60
    return ", ".join(f"{count:,} {reason[:longest]}" for reason, count in left_out.most_common(3))
