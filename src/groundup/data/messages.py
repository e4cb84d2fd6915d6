"""Messages, of which conversations and preferences consist: their roles, their order, and how other formats write them.

A conversation is one optional message of the system, then user and assistant in turn. Content is text, or a list of
`{"type": "text", "text": ...}`, which is joined.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groundup.core.errors import UserError
from groundup.core.text import well_formed

ROLES = ("system", "user", "assistant")
# Parts of a message in the formats of OpenAI, Qwen and TRL that this format cannot hold: they would be lost silently.
UNSUPPORTED_PARTS = (
    "tool_calls", "function_call", "tool_call_id", "reasoning_content", "reasoning", "thinking", "refusal", "audio", "images",
)  # fmt: skip
# Columns beside a conversation, in its row or in a message, in TRL, LLaMA-Factory, LLaVA and ms-swift.
UNSUPPORTED_COLUMNS = ("tools", "functions", "images", "image", "videos", "video", "audios", "audio", "chat_template_kwargs")
EMPTY_LISTS = ("", "[]", "{}", "null", "none")  # as text
OTHER_NAMES = {  # in any case
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "developer": "system",
}  # fmt: skip
# Names of the flag for whether an answer is learned, in messages of OpenAI, axolotl and ms-swift.
LEARNED_FLAGS = ("weight", "train", "training", "trainable", "loss")
# A list of messages as text, such as in a cell of CSV.
_LIST_AS_TEXT = re.compile(r"\s*\[\s*\{\s*[\"'](?:role|content|from|value)[\"']\s*:")
_MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class BadRow(UserError):
    """Why a row cannot be used; rows are counted by `reason`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


@dataclass(frozen=True)
class Message:
    role: str
    content: str  # halves of surrogate pairs, which two escapes of JSON may be, are joined
    trained: bool = True  # whether a model learns to write it, if it is the assistant's

    def __post_init__(self) -> None:
        object.__setattr__(self, "content", well_formed(self.content))

    @property
    def row(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


def refuse_unsupported(row: Mapping[str, Any], names: Sequence[str] = UNSUPPORTED_COLUMNS) -> None:
    """Raises BadRow where a row or message has a part that the format cannot hold: without it the text would mislead."""
    for name in names:
        if not _is_nothing(row.get(name)):
            raise BadRow(
                f"{name}: this chat format has no place for {'them' if name in UNSUPPORTED_COLUMNS and name[-1] == 's' else 'it'}"
            )


def _is_nothing(value: Any) -> bool:
    """Also true of a column that only other rows fill: Arrow gives each row all fields, as null where they are missing."""
    if isinstance(value, str):
        return value.strip().lower() in EMPTY_LISTS
    if isinstance(value, Mapping):
        return all(map(_is_nothing, value.values()))
    return value is None or (isinstance(value, list | tuple) and not value)


def text_of(message: Mapping[str, Any]) -> str:
    """A message's content: text as it is, a list of {"type": "text", "text": ...} joined.

    Raises UserError for anything else, and where the message has a part that the format cannot hold, such as tool calls.
    """
    if unsupported := [key for key in UNSUPPORTED_PARTS if message.get(key)]:
        raise BadRow(f"{unsupported[0]}: this chat format has no place for it")
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise BadRow("content that is no text", f"content must be text, not {type(content).__name__}")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise BadRow("content that is no text", f"content has a part of type {str(kind)[:40]!r}; only text is read")
        texts.append(text)
    return "".join(texts)


def checked(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> list[str]:
    """The text of each message.

    Raises UserError unless it is one optional system message, then user and assistant in turn, each with text as content,
    and, for a generation prompt, the user last.
    """
    if not isinstance(messages, list | tuple):
        raise BadRow("no list of messages", f"a conversation is a list of messages, not {type(messages).__name__}")
    texts = []
    expected = ("system", "user")
    for number, message in enumerate(messages, start=1):
        position = f"message {number} of {len(messages)}"
        if not isinstance(message, Mapping):
            raise BadRow("no message", f"{position}: it must have a role and content, not be {type(message).__name__}")
        role = message.get("role")
        if role not in expected:
            shown_role = repr(role[:40]) if isinstance(role, str) else str(role)[:40]
            raise BadRow("wrong role order", f"{position}: role {shown_role}, expected {' or '.join(expected)}")
        try:
            texts.append(text_of(message))
        except BadRow as error:
            raise BadRow(error.reason, f"{position}: {error}") from None
        expected = ("assistant",) if role == "user" else ("user",)
    if not messages or messages[-1]["role"] == "system":
        raise BadRow("no message of the user", "a conversation needs at least one message of the user")
    if add_generation_prompt and messages[-1]["role"] != "user":
        detail = "the last message is the assistant's: there is nothing to answer; end with one of the user"
        raise BadRow("the assistant has the last word", detail)
    return texts


def read_messages(value: Any, role: str) -> tuple[Message, ...]:
    """The messages of one cell: a list in the names of OpenAI or ShareGPT (in CSV written as JSON), one message, turns as in
    HH-RLHF, or a plain text.

    A plain text is one message of `role`; system messages without text are left out. The order of the roles is not checked.
    Raises BadRow for anything else.
    """
    if isinstance(value, str) and _LIST_AS_TEXT.match(value):
        value = _list_in_text(value)
    if isinstance(value, str):
        return _turns(value) or (Message(role, value),)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise BadRow("no list of messages", f"messages must be a list or text, not {type(value).__name__}")
    messages = [_message(item, f"message {number} of {len(value)}") for number, item in enumerate(value, start=1)]
    return tuple(message for message in messages if message.role != "system" or message.content.strip())


def read_list(value: Any) -> tuple[Message, ...]:
    """As `read_messages`, for a column that must hold a list (in CSV written as JSON)."""
    if isinstance(value, str):
        value = from_json(value)
    if not isinstance(value, list | tuple):
        raise BadRow("no list of messages", f"messages must be a list, not {type(value).__name__}")
    return read_messages(value, "user")


def _list_in_text(text: str) -> Any:
    """The list of messages that a text holds, else the text itself: an answer may be JSON, and is learned as text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        # A list in Python's notation, or one that is cut off.
        is_list = any(all(f"'{name}'" in text or f'"{name}"' in text for name in names) for names in _MESSAGE_KEYS)
        return from_json(text) if is_list else text
    is_list = any(item.keys() >= names for item in value if isinstance(item, Mapping) for names in _MESSAGE_KEYS)
    return value if is_list else text


def from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow("no list of messages", "messages must be a list, not text, or a list as JSON") from None


def _message(value: Any, position: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRow("no message", f"{position}: it must have a role and content, not be {type(value).__name__}")
    stated = value["role"] if value.get("role") is not None else value.get("from")
    name = stated.strip().lower() if isinstance(stated, str) else ""
    role = OTHER_NAMES.get(name, name)
    if role not in ROLES:
        shown_role = repr(stated[:40]) if isinstance(stated, str) else str(stated)[:40]
        raise BadRow("unknown role", f"{position}: role {shown_role}, expected {', '.join(ROLES)}")
    content = value["content"] if value.get("content") is not None else value.get("value")
    try:
        refuse_unsupported(value, (*UNSUPPORTED_PARTS, *UNSUPPORTED_COLUMNS))
        text = text_of({"content": content})
    except BadRow as error:
        raise BadRow(error.reason, f"{position}: {error}") from None
    if value.get("train_detail"):
        raise BadRow("train_detail: an answer is learned as a whole, or not")
    return Message(
        role, text, all(_is_learned(name, value[name], position) for name in LEARNED_FLAGS if value.get(name) is not None)
    )


def _is_learned(name: str, value: Any, position: str) -> bool:
    """The value of a flag. OpenAI's weight is a number; the others are true or false."""
    if (isinstance(value, bool) and name == "weight") or value not in (0, 1):
        raise BadRow("weight that is neither 0 nor 1", f"{position}: {name} {str(value)[:40]}, expected 0 or 1")
    return bool(value)


def _turns(text: str) -> tuple[Message, ...]:
    """Messages of "\\n\\nHuman: ... \\n\\nAssistant: ..." (Bai et al. 2022); none where the text is not in this form."""
    first = _TURN.match(text)
    if first is None or first[1] != "Human" or "\n\nAssistant:" not in text:
        return ()
    parts = _TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[name], content.strip()) for name, content in zip(parts[1::2], parts[2::2], strict=True))
