"""A user's own conversations, preferences and prompts as the rows that SFT, the reward model, DPO and PPO take.

They replace what is made of docstrings. Held out is a tenth of the prompts, by digest (`data/contracts.py`). The answers
to the other prompts are what SFT learns, and the same prompts are answered anew for preferences and PPO.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from groundup.core.errors import UserError
from groundup.data import docstring_questions
from groundup.data.contracts import Prompt, ReadResult, read_conversations, read_preferences, read_prompts, split
from groundup.data.conversations import Conversation
from groundup.data.preferences import Preference
from groundup.posttraining.config import SftConfig

Rows = list[dict[str, Any]]
Messages = list[dict[str, str]]
Log = Callable[[str], None]
T = TypeVar("T", Conversation, Preference, Prompt)


class NoQuestions(UserError):
    """There is nothing to learn answers from: a run continues without the steps that need it."""


def rows_of_sft(
    documents: Callable[[], Iterable[tuple[str, str]]], settings: SftConfig, seed: int, log: Log
) -> dict[str, Rows]:
    """Rows by side (train, preference, held_out) of `settings.data`, or of the docstrings in (url, text) documents.

    `documents` is called only where they are needed.

    Raises NoQuestions where neither is there, UserError as `conversations` does.
    """
    if settings.data:
        return conversations(settings.data, log, settings.held_out, settings.strict)
    try:
        return docstring_questions.build(documents(), settings.max_objects, seed)
    except UserError as error:
        raise NoQuestions(str(error)) from None


def conversations(files: Sequence[str], log: Log, held_out_files: Sequence[str] = (), strict: bool = False) -> dict[str, Rows]:
    """Rows of `messages`, `reference` (the last answer) and `kind`, by side as `docstring_questions.build` has them.

    What was read and dropped is logged. Without `held_out_files`, a tenth of the prompts is held out.
    Raises UserError where a file cannot be read or holds no conversation, and where `strict` if a row is dropped.
    """
    sides = _sides(read_conversations, files, held_out_files, "sft", log, strict)
    train, held_out = (list(map(_question, side)) for side in sides)
    return {"train": train, "preference": train, "held_out": held_out}


def _question(conversation: Conversation) -> dict[str, Any]:
    return {"messages": conversation.rows, "reference": conversation.messages[-1].content, "kind": "conversation"}


def preferences(
    files: Sequence[str], section: str, log: Log, held_out_files: Sequence[str] = (), strict: bool = False
) -> dict[str, Rows]:
    """Rows as TRL has them, explicit, of "train" and "held_out"; logs and raises as `conversations` does."""
    train, held_out = (
        [preference.row for preference in side] for side in _sides(read_preferences, files, held_out_files, section, log, strict)
    )
    return {"train": train, "held_out": held_out}


def prompts(
    files: Sequence[str], section: str, log: Log, held_out_files: Sequence[str] = (), strict: bool = False,
    left_out: Counter[str] | None = None,
) -> dict[str, list[Messages]]:  # fmt: skip
    """Lists of messages that end with the user, of "train" and "held_out", each once; logs and raises as `conversations` does.

    Duplicates are counted in `left_out`.
    """
    train, held_out = _sides(read_prompts, files, held_out_files, section, log, strict)
    distinct = list(dict.fromkeys(train))
    if left_out is not None and len(distinct) < len(train):
        left_out["the same as one before"] += len(train) - len(distinct)
    sides = {"train": distinct, "held_out": dict.fromkeys(held_out)}
    return {name: [[message.row for message in prompt] for prompt in side] for name, side in sides.items()}


def _sides(
    read: Callable[[Sequence[str]], ReadResult[T]], files: Sequence[str], held_out_files: Sequence[str], section: str, log: Log,
    strict: bool,
) -> tuple[list[T], list[T]]:  # fmt: skip
    loaded = read(files)
    log(f"{section} data: {loaded}")
    if strict and loaded.dropped:
        raise UserError(f"{section} data: refused, as strict says: {loaded.dropped.total():,} dropped ({loaded.dropped})")
    if held_out_files:
        held_out = read(held_out_files)
        log(f"{section} held out: {held_out}")
        if shared := len({*loaded.rows} & {*held_out.rows}):
            log(f"{section} held out: {shared:,} rows are among those to learn from: what is measured was trained on")
        return loaded.rows, held_out.rows
    train, unseen = split(loaded.rows)
    if train == unseen:
        log(f"{section} data: all rows have one prompt, so nothing can be held out: what is measured was trained on")
    return train, unseen
