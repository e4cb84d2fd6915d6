"""Conversations that people bring, in the formats of TRL, OpenAI, Alpaca, ShareGPT and OASST, told apart by their columns.

    messages                       TRL, and OpenAI's chat fine-tuning: role and content, a `weight` of 0 or 1 for each
    prompt, completion             TRL: texts or messages; only the completion is learned, and rows with a false `label` are bad.
                                   Also `question` or `query` for the one, `response` or `answer` for the other
    instruction, output            Alpaca; also `input`, `history`; Dolly's `context` and `response` for `input` and `output`
    conversations                  ShareGPT: from and value
    prompt, with text and replies  OASST: a tree; the best ranked reply to each message is used

Each may have a column `system` or `system_prompt`, for messages that have no system message.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from groundup.data.messages import BadRow, Message, checked, from_json, read_list, read_messages, refuse_unsupported

# Values of `label`, also as CSV and columns with nulls give them.
GOOD_LABELS, BAD_LABELS = ("none", "", "true", "1", "1.0"), ("false", "0", "0.0")
PLACEHOLDERS = ("<noinput>", "<nooutput>")  # in Alpaca's first file, in a few of its 52,000 rows
# In order of precedence; the first of each are TRL's.
QUESTIONS, ANSWERS = ("prompt", "question", "query"), ("completion", "response", "answer")
KNOWN_COLUMNS = "messages; prompt, completion; question, answer; instruction, output; conversations; prompt with replies"


@dataclass(frozen=True)
class Conversation:
    """One optional system message, then user and assistant in turn, the assistant last."""

    messages: tuple[Message, ...]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last answer."""
        return self.messages[:-1]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The messages; where only some answers are learned, each of the others has OpenAI's `weight` of 0."""
        return [message.row if message.trained else {**message.row, "weight": 0} for message in self.messages]

    @property
    def row(self) -> dict[str, Any]:
        """The row in TRL's format: where only the last answer is learned, it is a completion."""
        answers = [message.trained for message in self.messages if message.role == "assistant"]
        if len(answers) > 1 and answers[-1] and not any(answers[:-1]):
            rows = [message.row for message in self.messages]
            return {"prompt": rows[:-1], "completion": rows[-1:]}
        return {"messages": self.rows}


def format_of(row: Mapping[str, Any]) -> str:
    """The format of a row with a conversation, "" for none; a column of nulls does not count.

    An empty column counts only where the others make no format: a table of rows of several formats has empty cells.
    """
    return format_by(filled_columns(row), row) or format_by(given_columns(row), row)


def filled_columns(row: Mapping[str, Any]) -> set[str]:
    """The names of the columns that hold anything; an empty cell of CSV is what null is elsewhere."""
    return {name for name in given_columns(row) if not is_empty(row[name])}


def given_columns(row: Mapping[str, Any]) -> set[str]:
    return {name for name, value in row.items() if value is not None}


def is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list | tuple) and not value)


def format_by(columns: set[str], row: Mapping[str, Any]) -> str:
    """The format that these columns of a row make, "" for none."""
    if "messages" in columns:
        return "TRL messages"
    if "conversations" in columns:
        return "ShareGPT"
    if {"prompt", "completion"} <= columns:
        return "TRL prompt and completion"
    if isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]:
        return "OASST tree"
    if "instruction" in columns and columns & {"output", "response"}:
        return "Alpaca"
    return "question and answer" if columns & {*QUESTIONS} and columns & {*ANSWERS} else ""


def named(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of the columns that the row has, "" for none; of nulls none counts, and empty ones count as in `format_of`."""
    for columns in (filled_columns(row), given_columns(row)):
        if name := next((name for name in names if name in columns), ""):
            return name
    return ""


def conversation_of(row: Mapping[str, Any]) -> Conversation:
    """The conversation of a row in one of the formats above. Raises BadRow for others, and where no answer is last."""
    refuse_unsupported(row)
    row_format = format_of(row)
    if row_format == "TRL messages":
        messages = read_list(row["messages"])
    elif row_format == "ShareGPT":
        messages = read_list(row["conversations"])
    elif row_format in ("TRL prompt and completion", "question and answer"):
        label = str(row.get("label")).strip().lower()  # TRL's unpaired preference
        if label in BAD_LABELS:
            raise BadRow("an answer that was found bad (label false)")
        if label not in GOOD_LABELS:
            hint = f"label {label[:40]!r}, where TRL's rows say whether an answer is good; leave the column out if it is another"
            raise BadRow("label that is neither true nor false", hint)
        prompt, completion = read_prompt(row[named(row, QUESTIONS)]), read_messages(row[named(row, ANSWERS)], "assistant")
        messages = tuple(replace(message, trained=False) for message in prompt) + completion
    elif row_format == "OASST tree":
        messages = best_of_tree(row["prompt"])
    elif row_format == "Alpaca":
        answer = row["response" if is_empty(row.get("output")) and row.get("response") is not None else "output"]
        if not isinstance(answer, str):
            raise BadRow("content that is no text", f"the answer must be text, not {type(answer).__name__}")
        messages = (*instruction(row), Message("assistant", "" if answer.strip().lower() in PLACEHOLDERS else answer))
    else:
        raise BadRow("missing column", f"no columns of a conversation; it has {columns_of(row)}; known: {KNOWN_COLUMNS}")
    messages = with_system(row, messages)
    require_order(messages)
    if messages[-1].role != "assistant":
        raise BadRow("the last message is not the assistant's")
    if not any(message.trained for message in messages if message.role == "assistant"):
        raise BadRow("no answer is learned: every weight is 0")
    return Conversation(
        tuple(replace(message, trained=message.trained or message.role != "assistant") for message in messages)
    )


def best_of_tree(root: Any) -> tuple[Message, ...]:
    """The path from the first message through the best ranked reply to each, without deleted ones, to the last answer.

    Replies without a rank come after those with one, in their order.
    """
    path: list[dict[str, Any]] = []
    node = root
    while node is not None:
        if not isinstance(node, dict) or not isinstance(node.get("replies"), list | None):
            raise BadRow("no tree of messages", "each message of a tree must have text, role and a list of replies")
        path.append({"role": node.get("role"), "content": node.get("text")})
        replies = [reply for reply in node.get("replies") or () if not (isinstance(reply, dict) and reply.get("deleted"))]
        node = min(replies, key=_rank, default=None)
    while len(path) > 1 and path[-1]["role"] != "assistant":
        path.pop()
    return read_list(path)


def _rank(reply: Any) -> float:
    rank = reply.get("rank") if isinstance(reply, dict) else None
    return rank if isinstance(rank, int | float) and rank == rank else float("inf")


def require_order(messages: tuple[Message, ...], add_generation_prompt: bool = False) -> None:
    """Raises BadRow unless the messages are in the order of a conversation."""
    checked([message.row for message in messages], add_generation_prompt)


def read_prompt(value: Any) -> tuple[Message, ...]:
    """The messages before an answer; HH-RLHF's prompts end with "Assistant:", which is dropped."""
    messages = read_messages(value, "user")
    named = messages and messages[-1].role == "assistant" and not messages[-1].content
    return messages[:-1] if named and isinstance(value, str) else messages


def instruction(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The prompt of Alpaca's row: earlier pairs of `history`, then `instruction` and `input` (or `context`), a line apart."""
    texts = []
    for name in ("instruction", "context" if is_empty(row.get("input")) else "input"):
        text = row.get(name)
        if text is not None and not isinstance(text, str):
            raise BadRow("content that is no text", f"{name} must be text, not {type(text).__name__}")
        texts += [text] if text and text.strip().lower() not in PLACEHOLDERS else []
    messages: list[Message] = []
    history = () if is_empty(row.get("history")) else row["history"]
    if isinstance(history, str):  # in CSV
        history = from_json(history)
    if not isinstance(history, list | tuple):
        raise BadRow("no list of messages", f"history must be a list of pairs, not {type(history).__name__}")
    for pair in history:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadRow("no list of messages", "history must be a list of pairs of texts")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return (*messages, Message("user", "\n".join(texts)))


def with_system(row: Mapping[str, Any], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, after a system message from the column `system` or `system_prompt`, unless they begin with that text."""
    system = row.get("system") or row.get("system_prompt") or ""
    if not isinstance(system, str):
        raise BadRow("content that is no text", f"system must be text, not {type(system).__name__}")
    if not system.strip() or (messages and messages[0].role == "system" and messages[0].content == system):
        return messages
    return (Message("system", system), *messages)


def columns_of(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name)[:30] for name in list(row)[:8])[:80] or "none"
