"""Messages, what conversations and preferences are made of: their roles, their order, and how other formats write them.

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
# Parts of a message, in the formats of OpenAI, Qwen and TRL, that would vanish: the format has no place for them.
WITHOUT_A_PLACE = (
    "tool_calls", "function_call", "tool_call_id", "reasoning_content", "reasoning", "thinking", "refusal", "audio", "images",
)  # fmt: skip
# Beside a conversation, in its row or in a message, as TRL, LLaMA-Factory, LLaVA and ms-swift have them.
BESIDE = ("tools", "functions", "images", "image", "videos", "video", "audios", "audio", "chat_template_kwargs")
WRITTEN_NOTHING = ("", "[]", "{}", "null", "none")  # where a list is written as text
OTHER_NAMES = {"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "developer": "system"}
# Whether an answer is learned, as OpenAI, axolotl and ms-swift write it in each message.
LEARNED = ("weight", "train", "training", "trainable", "loss")
# Messages as text, such as in a cell of CSV.
_LISTED = re.compile(r"\s*\[\s*\{\s*[\"'](?:role|content|from|value)[\"']\s*:")
_OF_A_MESSAGE = ({"role", "content"}, {"from", "value"})
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class BadRow(UserError):
    """Why a row cannot be used; `reason` is the kind of it, by which rows are counted."""

    def __init__(self, reason: str, said: str = "") -> None:
        super().__init__(said or reason)
        self.reason = reason


@dataclass(frozen=True)
class Message:
    role: str
    content: str  # halves of surrogate pairs, as two escapes of JSON may be, are joined
    trained: bool = True  # whether a model learns to write it, where it is the assistant's

    def __post_init__(self) -> None:
        object.__setattr__(self, "content", well_formed(self.content))

    @property
    def row(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


def refuse_beside(row: Mapping[str, Any], names: Sequence[str] = BESIDE) -> None:
    """Raises BadRow where a row or message has something that the format has no place for: without it the text would lie."""
    for name in names:
        if not _is_nothing(row.get(name)):
            raise BadRow(f"{name}: this chat format has no place for {'them' if name in BESIDE and name[-1] == 's' else 'it'}")


def _is_nothing(value: Any) -> bool:
    """Also of a column that other rows need: Arrow gives each all fields, of which those that are not there are null."""
    if isinstance(value, str):
        return value.strip().lower() in WRITTEN_NOTHING
    if isinstance(value, Mapping):
        return all(map(_is_nothing, value.values()))
    return value is None or (isinstance(value, list | tuple) and not value)


def text_of(message: Mapping[str, Any]) -> str:
    """A message's content: text as it is, a list of {"type": "text", "text": ...} joined.

    Raises UserError for anything else, and where the message holds what the format has no place for, such as tool calls.
    """
    if lost := [key for key in WITHOUT_A_PLACE if message.get(key)]:
        raise BadRow(f"{lost[0]}: this chat format has no place for it")
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
        place = f"message {number} of {len(messages)}"
        if not isinstance(message, Mapping):
            raise BadRow("no message", f"{place}: it must have a role and content, not be {type(message).__name__}")
        role = message.get("role")
        if role not in expected:
            given = repr(role[:40]) if isinstance(role, str) else str(role)[:40]
            raise BadRow("wrong role order", f"{place}: role {given}, expected {' or '.join(expected)}")
        try:
            texts.append(text_of(message))
        except BadRow as error:
            raise BadRow(error.reason, f"{place}: {error}") from None
        expected = ("assistant",) if role == "user" else ("user",)
    if not messages or messages[-1]["role"] == "system":
        raise BadRow("no message of the user", "a conversation needs at least one message of the user")
    if add_generation_prompt and messages[-1]["role"] != "user":
        said = "the last message is the assistant's: there is nothing to answer; end with one of the user"
        raise BadRow("the assistant has the last word", said)
    return texts


def read_messages(value: Any, role: str) -> tuple[Message, ...]:
    """The messages of one cell: a list in the names of OpenAI or ShareGPT (in CSV written as JSON), one message, turns as in
    HH-RLHF, or a plain text.

    A plain text is one message of `role`; system messages without text are left out. The order of the roles is not looked at.
    Raises BadRow for anything else.
    """
    if isinstance(value, str) and _LISTED.match(value):
        value = _listed(value)
    if isinstance(value, str):
        return _turns(value) or (Message(role, value),)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise BadRow("no list of messages", f"messages must be a list or text, not {type(value).__name__}")
    found = [_message(one, f"message {number} of {len(value)}") for number, one in enumerate(value, start=1)]
    return tuple(message for message in found if message.role != "system" or message.content.strip())


def read_list(value: Any) -> tuple[Message, ...]:
    """As `read_messages`, of a column that must hold a list; in CSV it is written as JSON."""
    if isinstance(value, str):
        value = _from_json(value)
    if not isinstance(value, list | tuple):
        raise BadRow("no list of messages", f"messages must be a list, not {type(value).__name__}")
    return read_messages(value, "user")


def _listed(text: str) -> Any:
    """The list that a text holds; the text, where that is no list of messages: answers may be JSON, and are learned so."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        # As Python writes it, or cut off.
        is_list = any(all(f"'{name}'" in text or f'"{name}"' in text for name in names) for names in _OF_A_MESSAGE)
        return _from_json(text) if is_list else text
    is_list = any(one.keys() >= names for one in found if isinstance(one, Mapping) for names in _OF_A_MESSAGE)
    return found if is_list else text


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow("no list of messages", "messages must be a list, not text, or a list as JSON") from None


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRow("no message", f"{place}: it must have a role and content, not be {type(value).__name__}")
    role = value["role"] if value.get("role") is not None else value.get("from")
    role = OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        given = repr(role[:40]) if isinstance(role, str) else str(role)[:40]
        raise BadRow("unknown role", f"{place}: role {given}, expected {', '.join(ROLES)}")
    content = value["content"] if value.get("content") is not None else value.get("value")
    try:
        refuse_beside(value, (*WITHOUT_A_PLACE, *BESIDE))
        text = text_of({"content": content})
    except BadRow as error:
        raise BadRow(error.reason, f"{place}: {error}") from None
    if value.get("train_detail"):
        raise BadRow("train_detail: an answer is learned as a whole, or not")
    return Message(role, text, all(_is_learned(name, value[name], place) for name in LEARNED if value.get(name) is not None))


def _is_learned(name: str, value: Any, place: str) -> bool:
    """What a flag says. OpenAI's weight is a number, the others' are true or false."""
    if (isinstance(value, bool) and name == "weight") or value not in (0, 1):
        raise BadRow("weight that is neither 0 nor 1", f"{place}: {name} {str(value)[:40]}, expected 0 or 1")
    return bool(value)


def _turns(text: str) -> tuple[Message, ...]:
    """Messages of "\\n\\nHuman: ... \\n\\nAssistant: ..." (Bai et al. 2022); none where it is not written so."""
    first = _TURN.match(text)
    if first is None or first[1] != "Human" or "\n\nAssistant:" not in text:
        return ()
    parts = _TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[name], said.strip()) for name, said in zip(parts[1::2], parts[2::2], strict=True))
