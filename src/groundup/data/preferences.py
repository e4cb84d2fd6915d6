"""Preferences that people bring: the better and the worse of two answers to a prompt. Their columns tell the formats apart.

    prompt, chosen, rejected       TRL, explicit: texts or messages; also `margin`; `question` or `query` for `prompt`
    chosen, rejected               TRL, implicit: whole conversations that differ in their last message; HH-RLHF as text
    instruction, chosen, rejected  Alpaca; also `input`, `history`
    conversations, chosen, rejected            ShareGPT: answers as from and value
    input, preferred_output, non_preferred_output          OpenAI: `input` holds messages
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from groundup.data.conversations import (
    QUESTIONS,
    columns_of,
    conversation_of,
    filled_columns,
    format_by,
    format_of,
    given_columns,
    instruction,
    named,
    read_prompt,
    require_order,
    with_system,
)
from groundup.data.messages import BadRow, Message, read_list, read_messages, refuse_unsupported

KNOWN_COLUMNS = "chosen, rejected (and prompt, instruction or conversations); input, preferred_output, non_preferred_output"
MAX_MARGIN = 1_000  # Llama 2 went to 3; beside much larger margins float32 has few digits left for the rewards


@dataclass(frozen=True)
class Preference:
    """The answer `chosen` is better than `rejected` after `prompt`, which ends with the user."""

    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    margin: float = 0.0  # by which the rewards must differ at least

    @property
    def row(self) -> dict[str, Any]:
        """The row in TRL's explicit format."""
        sides = {"chosen": [self.chosen.row], "rejected": [self.rejected.row]}
        return {"prompt": [message.row for message in self.prompt], **sides, "margin": self.margin}


def preference_format_of(row: Mapping[str, Any]) -> str:
    """The format of a row with a preference, "" for none; columns of nulls do not count, and empty ones as in `format_of`."""
    return _format_by(filled_columns(row), row) or ("" if format_by(filled_columns(row), row) else _format_of_any(row))


def _format_of_any(row: Mapping[str, Any]) -> str:
    return _format_by(filled_columns(row), row) or _format_by(given_columns(row), row)


def _format_by(columns: set[str], row: Mapping[str, Any]) -> str:
    if {"input", "preferred_output", "non_preferred_output"} <= columns:
        return "OpenAI preference"
    if not {"chosen", "rejected"} <= columns:
        return ""
    if "prompt" in columns:
        return "TRL preference"
    if "conversations" in columns:
        return "ShareGPT preference"
    if "instruction" in columns:
        return "Alpaca preference"
    if columns & {*QUESTIONS}:
        return "question and two answers"
    return "HH-RLHF" if isinstance(row["chosen"], str) else "TRL implicit preference"


def preference_of(row: Mapping[str, Any]) -> Preference:
    """The preference of a row in one of the formats above. Raises BadRow, which says what is wrong, for any other row."""
    refuse_unsupported(row)
    row_format = _format_of_any(row)
    sides = ("chosen", "rejected")
    if row_format == "OpenAI preference":
        sides = ("preferred_output", "non_preferred_output")
        openai_input = row["input"]
        refuse_unsupported(openai_input if isinstance(openai_input, Mapping) else {})
        prompt = read_list(openai_input.get("messages") if isinstance(openai_input, Mapping) else openai_input)
    elif row_format in ("TRL preference", "question and two answers"):
        prompt = read_prompt(row[named(row, QUESTIONS)])
    elif row_format == "ShareGPT preference":
        prompt = read_list(row["conversations"])
    elif row_format == "Alpaca preference":
        prompt = instruction(row)
    elif row_format:
        prompt = ()
    else:
        raise BadRow("missing column", f"no columns of a preference; it has {columns_of(row)}; known: {KNOWN_COLUMNS}")
    chosen, rejected = (read_messages(row[name], "assistant") for name in sides)
    prompt, chosen, rejected = _without_shared_prompt(prompt, chosen, rejected)
    if len(chosen) != 1 or len(rejected) != 1:
        raise BadRow("chosen and rejected part before their last message", _ONE_MESSAGE.format(len(chosen), len(rejected)))
    if not prompt:
        raise BadRow("no prompt", "chosen and rejected are texts without turns: give a column prompt")
    prompt = with_system(row, prompt)
    require_order(prompt, add_generation_prompt=True)
    for name, [answer] in zip(sides, (chosen, rejected), strict=True):
        if answer.role != "assistant":
            raise BadRow("wrong role order", f"{name} is a message of the {answer.role}, expected assistant")
    margin = row.get("margin")
    if margin is None:
        margin = 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not -MAX_MARGIN <= margin <= MAX_MARGIN:
        raise BadRow(f"margin must be a number from {-MAX_MARGIN:,} to {MAX_MARGIN:,}")
    return Preference(prompt, chosen[0], rejected[0], float(margin))


_ONE_MESSAGE = "chosen and rejected must be one message each after the prompt they share, not {} and {}"


def _without_shared_prompt(
    prompt: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Prompt and answers, where the answers are whole conversations that begin with their prompt."""
    if not chosen or not rejected:
        raise BadRow("empty answer", "chosen or rejected has no message")
    if chosen[0].role == rejected[0].role == "assistant":
        return prompt, chosen, rejected
    if "assistant" in (chosen[0].role, rejected[0].role):
        raise BadRow("wrong role order", "of chosen and rejected one begins with the assistant, the other does not")
    shared_count = 0
    max_shared = min(len(chosen), len(rejected)) - 1  # equal ones are refused later: chosen equal to rejected
    while shared_count < max_shared and chosen[shared_count] == rejected[shared_count]:
        shared_count += 1
    shared_prompt = chosen[:shared_count]
    if prompt and _stripped(shared_prompt[-len(prompt) :]) != _stripped(prompt):
        raise BadRow("chosen does not begin with the prompt", "chosen and rejected are whole conversations of another prompt")
    return shared_prompt, chosen[shared_count:], rejected[shared_count:]


def _stripped(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    """Without the white space around texts, in which a prompt often differs from the same message in a conversation."""
    return [(message.role, message.content.strip()) for message in messages]


def prompt_of(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages before the answer, of a row with a prompt alone, a preference, or a conversation, which loses its last one.

    Raises BadRow where there is none.
    """
    if preference_format_of(row):
        return preference_of(row).prompt
    name = named(row, ("messages", *QUESTIONS))
    if name and format_of(row) in ("", "TRL messages"):
        refuse_unsupported(row)
        messages = read_list(row[name]) if name == "messages" else read_prompt(row[name])
        if name == "messages" and messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        messages = with_system(row, messages)
        require_order(messages, add_generation_prompt=True)
        return messages
    return conversation_of(row).prompt
