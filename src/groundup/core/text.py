"""Text that UTF-8 can hold, and text for a terminal, a log or a message."""

import re
from typing import Any

MESSAGE_CHARACTERS = 300  # longest message; nobody reads more, and it hides what to do

# C0 and C1 controls (ESC, CSI), line separators, marks that turn the order of text around, halves of surrogate pairs.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
# Harmless to a terminal, but invisible: soft hyphen, zero-width space, a vowel separator, noncharacters.
_UNSEEN = re.compile("[\xad\u180e\u200b\ufffe\uffff]")


def printable(text: str) -> str:
    """`text` with every character that could control a terminal, or could not be encoded, as its escape: `\\x1b`.

    Line ends and tabs stay. The escapes are Python's, four or eight hexadecimal digits beyond U+00FF.
    """
    return _UNPRINTABLE.sub(lambda match: _escape(ord(match[0])), text)


def visible(value: Any) -> Any:
    """Text, or data with texts in it, as `printable` and with other invisible characters escaped too: for pages."""
    if isinstance(value, str):
        return _UNSEEN.sub(lambda match: _escape(ord(match[0])), printable(value))
    if isinstance(value, dict):
        return {visible(key): visible(item) for key, item in value.items()}
    return [visible(item) for item in value] if isinstance(value, list) else value


def message(text: str) -> str:
    """One printable line of at most 300 characters: a longer one loses its middle, so the end, what to do, stays."""
    line = printable(" ".join(text.split()))
    if len(line) <= MESSAGE_CHARACTERS:
        return line
    budget = MESSAGE_CHARACTERS - len(" ... ")
    return f"{line[: budget // 2]} ... {line[-(budget - budget // 2) :]}"


def json_printable(line: str) -> str:
    """A line of JSON with every unprintable character as JSON's own escape; it parses to the same value."""
    return _UNPRINTABLE.sub(lambda match: _json_escape(ord(match[0])), line)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(code: int) -> str:
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def shown(value: Any) -> str:
    """A value for a message, at most 80 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python refuses to write a number of thousands of digits
        return f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def well_formed(text: str) -> str:
    """Text that UTF-8 can hold: surrogate pairs joined, each lone surrogate replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
