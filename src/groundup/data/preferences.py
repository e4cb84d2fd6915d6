"""Preferences that people bring: of two answers to one prompt the better and the worse, told apart by their columns.

    prompt, chosen, rejected       TRL, explicit: texts or messages; also `margin`
    chosen, rejected               TRL, implicit: whole conversations, which part at their last message; HH-RLHF as text
    instruction, chosen, rejected  Alpaca; also `input`, `history`
    conversations, chosen, rejected            ShareGPT: answers as from and value
    input, preferred_output, non_preferred_output          OpenAI: `input` holds messages
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from groundup.data.conversations import (
    columns_of,
    conversation_of,
    format_of,
    in_order,
    instruction,
    read_prompt,
    with_system,
)
from groundup.data.messages import BadRow, Message, read_list, read_messages, refuse_beside

KNOWN = "chosen, rejected (and prompt, instruction or conversations); input, preferred_output, non_preferred_output"
MOST = 1_000  # of a margin: Llama 2 went to 3, and float32 has few digits left for the rewards beside much more


@dataclass(frozen=True)
class Preference:
    """The answer `chosen` is better than `rejected` after `prompt`, which ends with the user."""

    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    margin: float = 0.0  # by which the rewards must differ, at least

    @property
    def row(self) -> dict[str, Any]:
        """As TRL has it, explicit."""
        sides = {"chosen": [self.chosen.row], "rejected": [self.rejected.row]}
        return {"prompt": [message.row for message in self.prompt], **sides, "margin": self.margin}


def preference_format_of(row: Mapping[str, Any]) -> str:
    """Whose format a row of a preference has, "" for none; a column of nulls is none."""
    columns = {name for name, value in row.items() if value is not None}
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
    return "HH-RLHF" if isinstance(row["chosen"], str) else "TRL implicit preference"


def preference_of(row: Mapping[str, Any]) -> Preference:
    """Raises BadRow, saying what is wrong, unless the row is a preference of a format above between two answers."""
    refuse_beside(row)
    form = preference_format_of(row)
    sides = ("chosen", "rejected")
    if form == "OpenAI preference":
        sides = ("preferred_output", "non_preferred_output")
        given = row["input"]
        refuse_beside(given if isinstance(given, Mapping) else {})
        prompt = read_list(given.get("messages") if isinstance(given, Mapping) else given)
    elif form == "TRL preference":
        prompt = read_prompt(row["prompt"])
    elif form == "ShareGPT preference":
        prompt = read_list(row["conversations"])
    elif form == "Alpaca preference":
        prompt = instruction(row)
    elif form:
        prompt = ()
    else:
        raise BadRow("missing column", f"no columns of a preference; it has {columns_of(row)}; known: {KNOWN}")
    chosen, rejected = (read_messages(row[name], "assistant") for name in sides)
    prompt, chosen, rejected = _apart(prompt, chosen, rejected)
    if len(chosen) != 1 or len(rejected) != 1:
        raise BadRow("chosen and rejected part before their last message", _ONE.format(len(chosen), len(rejected)))
    if not prompt:
        raise BadRow("no prompt", "chosen and rejected are texts without turns: give a column prompt")
    prompt = with_system(row, prompt)
    in_order(prompt, add_generation_prompt=True)
    for name, [answer] in zip(sides, (chosen, rejected), strict=True):
        if answer.role != "assistant":
            raise BadRow("wrong role order", f"{name} is a message of the {answer.role}, expected assistant")
    margin = row.get("margin")
    if margin is None:
        margin = 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not -MOST <= margin <= MOST:
        raise BadRow(f"margin must be a number from {-MOST:,} to {MOST:,}")
    return Preference(prompt, chosen[0], rejected[0], float(margin))


_ONE = "chosen and rejected must be one message each after the prompt they share, not {} and {}"


def _apart(
    prompt: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Prompt and answers, where the answers are whole conversations that begin with their prompt."""
    if not chosen or not rejected:
        raise BadRow("empty answer", "chosen or rejected has no message")
    if chosen[0].role == rejected[0].role == "assistant":
        return prompt, chosen, rejected
    if "assistant" in (chosen[0].role, rejected[0].role):
        raise BadRow("wrong role order", "of chosen and rejected one begins with the assistant, the other does not")
    shared = 0
    most = min(len(chosen), len(rejected)) - 1  # what is the same to its end is said to be so
    while shared < most and chosen[shared] == rejected[shared]:
        shared += 1
    whole = chosen[:shared]
    if prompt and whole[-len(prompt) :] != prompt:
        raise BadRow("chosen does not begin with the prompt", "chosen and rejected are whole conversations of another prompt")
    return whole, chosen[shared:], rejected[shared:]


def prompt_of(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages of a row that lead to an answer: those of a prompt alone, a preference, or a conversation but its last.

    Raises BadRow where there is none.
    """
    if preference_format_of(row):
        return preference_of(row).prompt
    name = next((name for name in ("messages", "prompt") if row.get(name) is not None), "")
    if name and format_of(row) in ("", "TRL messages"):
        refuse_beside(row)
        messages = read_list(row[name]) if name == "messages" else read_prompt(row[name])
        if name == "messages" and messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        messages = with_system(row, messages)
        in_order(messages, add_generation_prompt=True)
        return messages
    return conversation_of(row).prompt
