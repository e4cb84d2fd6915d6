"""Conversations that people bring: TRL's rows, OpenAI's, Alpaca's, ShareGPT's and OASST's, told apart by their columns.

    messages                       TRL, and OpenAI's chat fine-tuning: role and content, a `weight` of 0 or 1 for each
    prompt, completion             TRL: texts or messages; only the completion is learned, and none whose `label` is false
    instruction, output            Alpaca; also `input`, `history`; Dolly's `context` and `response` for `input` and `output`
    conversations                  ShareGPT: from and value
    prompt, with text and replies  OASST: a tree, of which the best ranked reply to each message is taken

Each may have a column `system` or `system_prompt`, where the messages have no system message of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from groundup.data.messages import BadRow, Message, checked, read_list, read_messages, refuse_beside

# A `label` also as it comes out of CSV and of columns with nulls.
FOUND_GOOD, FOUND_BAD = ("none", "", "true", "1", "1.0"), ("false", "0", "0.0")
NOTHING = ("<noinput>", "<nooutput>")  # in Alpaca's first file, of a few of its 52,000 rows
KNOWN = "messages; prompt, completion; instruction, output; conversations; prompt with replies"


@dataclass(frozen=True)
class Conversation:
    """One optional system message, then user and assistant in turn, the assistant last."""

    messages: tuple[Message, ...]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All that comes before the last answer."""
        return self.messages[:-1]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The messages; where only some answers are learned, each of the others has OpenAI's `weight` of 0."""
        return [message.row if message.trained else {**message.row, "weight": 0} for message in self.messages]

    @property
    def row(self) -> dict[str, Any]:
        """As TRL has it: where only the last answer is learned, it is a completion."""
        answers = [message.trained for message in self.messages if message.role == "assistant"]
        if len(answers) > 1 and answers[-1] and not any(answers[:-1]):
            whole = [message.row for message in self.messages]
            return {"prompt": whole[:-1], "completion": whole[-1:]}
        return {"messages": self.rows}


def format_of(row: Mapping[str, Any]) -> str:
    """Whose format a row of a conversation has, "" for none; a column of nulls is none."""
    columns = {name for name, value in row.items() if value is not None}
    if "messages" in columns:
        return "TRL messages"
    if "conversations" in columns:
        return "ShareGPT"
    if {"prompt", "completion"} <= columns:
        return "TRL prompt and completion"
    if isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]:
        return "OASST tree"
    return "Alpaca" if "instruction" in columns and columns & {"output", "response"} else ""


def conversation_of(row: Mapping[str, Any]) -> Conversation:
    """Raises BadRow, saying what is wrong, unless the row is a conversation of a format above that ends with an answer."""
    refuse_beside(row)
    form = format_of(row)
    if form == "TRL messages":
        messages = read_list(row["messages"])
    elif form == "ShareGPT":
        messages = read_list(row["conversations"])
    elif form == "TRL prompt and completion":
        label = str(row.get("label")).strip().lower()  # TRL's unpaired preference
        if label in FOUND_BAD:
            raise BadRow("an answer that was found bad (label false)")
        if label not in FOUND_GOOD:
            said = f"label {label[:40]!r}, where TRL's rows say whether an answer is good; leave the column out if it is another"
            raise BadRow("label that is neither true nor false", said)
        prompt, completion = read_prompt(row["prompt"]), read_messages(row["completion"], "assistant")
        messages = tuple(replace(message, trained=False) for message in prompt) + completion
    elif form == "OASST tree":
        messages = best_of_tree(row["prompt"])
    elif form == "Alpaca":
        answer = row["output"] if row.get("output") is not None else row["response"]
        if not isinstance(answer, str):
            raise BadRow("content that is no text", f"the answer must be text, not {type(answer).__name__}")
        messages = (*instruction(row), Message("assistant", "" if answer.strip().lower() in NOTHING else answer))
    else:
        raise BadRow("missing column", f"no columns of a conversation; it has {columns_of(row)}; known: {KNOWN}")
    messages = with_system(row, messages)
    in_order(messages)
    if messages[-1].role != "assistant":
        raise BadRow("the last message is not the assistant's")
    if not any(message.trained for message in messages if message.role == "assistant"):
        raise BadRow("no answer is learned: every weight is 0")
    return Conversation(tuple(replace(m, trained=m.trained or m.role != "assistant") for m in messages))


def best_of_tree(root: Any) -> tuple[Message, ...]:
    """From the first message by the best ranked reply to each, those that were deleted left out, to the last answer.

    A reply without a rank comes after those that have one, as they stand.
    """
    path: list[dict[str, Any]] = []
    node = root
    while node is not None:
        if not isinstance(node, dict) or not isinstance(node.get("replies"), list | None):
            raise BadRow("no tree of messages", "each message of a tree must have text, role and a list of replies")
        path.append({"role": node.get("role"), "content": node.get("text")})
        replies = [one for one in node.get("replies") or () if not (isinstance(one, dict) and one.get("deleted"))]
        node = min(replies, key=_rank, default=None)
    while len(path) > 1 and path[-1]["role"] != "assistant":
        path.pop()
    return read_list(path)


def _rank(reply: Any) -> float:
    rank = reply.get("rank") if isinstance(reply, dict) else None
    return rank if isinstance(rank, int | float) and rank == rank else float("inf")


def in_order(messages: tuple[Message, ...], add_generation_prompt: bool = False) -> None:
    """Raises BadRow unless the messages stand in the order of a conversation."""
    checked([message.row for message in messages], add_generation_prompt)


def read_prompt(value: Any) -> tuple[Message, ...]:
    """The messages that lead to an answer; HH-RLHF's prompts end with the name of who answers."""
    messages = read_messages(value, "user")
    named = messages and messages[-1].role == "assistant" and not messages[-1].content
    return messages[:-1] if named and isinstance(value, str) else messages


def instruction(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The prompt of Alpaca's row: earlier pairs of `history`, then `instruction` and `input` (or `context`), a line apart."""
    texts = []
    for name in ("instruction", "context" if row.get("input") is None else "input"):
        text = row.get(name)
        if text is not None and not isinstance(text, str):
            raise BadRow("content that is no text", f"{name} must be text, not {type(text).__name__}")
        texts += [text] if text and text.strip().lower() not in NOTHING else []
    messages: list[Message] = []
    history = row.get("history") or ()
    if not isinstance(history, list | tuple):
        raise BadRow("no list of messages", f"history must be a list of pairs, not {type(history).__name__}")
    for pair in history:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadRow("no list of messages", "history must be a list of pairs of texts")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return (*messages, Message("user", "\n".join(texts)))


def with_system(row: Mapping[str, Any], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages after that of the column `system` or `system_prompt`, if it has text that does not stand there already."""
    system = row.get("system") or row.get("system_prompt") or ""
    if not isinstance(system, str):
        raise BadRow("content that is no text", f"system must be text, not {type(system).__name__}")
    if not system.strip() or (messages and messages[0].role == "system" and messages[0].content == system):
        return messages
    return (Message("system", system), *messages)


def columns_of(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name)[:30] for name in list(row)[:8])[:80] or "none"
