"""Elements that a reader does not see: hidden ones, and the numbers beside lines of code.

Hidden elements are dialogs, notes to other browsers, menus for later. But some are content that is shown later: behind a tab,
under a question, streamed by the server. On 1,497 real pages, removing all hidden elements costs 0.003 of word F1, removing none
gains nothing, and removing all but those shown later gains 0.002. `visibility: hidden` alone removes short elements only:
removing all of them costs 0.003 of the snippets' F1 in four languages and gains no word F1. Elements that are transparent,
without height, off the screen, or of font size 0 are content by half to seven tenths, which a script shows as the reader
scrolls; they stay.
"""

import re
from functools import cached_property

from selectolax.lexbor import LexborNode

# Classes that syntax highlighters give to line numbers.
GUTTERS = frozenset([
    "lineno", "linenos", "linenumber", "linenumbers", "line-number", "line-numbers", "lineNumber", "lnum", "lnt", "ln",
    "gutter", "rouge-gutter", "blob-num", "hljs-ln-n", "hljs-ln-numbers", "react-syntax-highlighter-line-number",
])  # fmt: skip
# Shown over the text when the pointer is on a word: a note, the card of a person. Not the word itself, which some style
# sheets call a tooltip as well.
CARDS = frozenset(["tooltiptext", "tooltip-content", "popover-content", "popover-body", "hovercard", "rollover-block"])
SELECTORS = '[hidden],[style*="none" i],[style*="visibility" i],[role=tooltip],[popover]'
NAMES = ("noscript", "pre")
# Not among SELECTORS: to look for each of these in each element takes 0.33 ms per page. 17 of 1,497 pages have one, 5 of them
# outside of what is removed anyway.
KNOWN_CLASSES = GUTTERS | CARDS
CLASS_SELECTORS = ",".join(sorted(f".{name}" for name in KNOWN_CLASSES))
UNSEEN = {"display": ("none",), "visibility": ("hidden", "collapse")}
LITTLE = 300  # characters: a script shows longer elements with `visibility: hidden` once the page is laid out
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
WAITS = re.compile(r"tab|panel|accordion|collaps|expan|faq|answer", re.IGNORECASE)  # in a class or id: shown by a click
NUMBERS = re.compile(r"[\d\s.:|]+")
WITHOUT_TEXT = "script,style,template,svg,textarea"
MUCH = 1000  # characters: an element with these and half of the page is one that a script will show


class Hidden:
    """Which of the elements that NAMES and the selectors match are hidden; called for inner ones first, as they may be removed
    meanwhile."""

    def __init__(self, body: LexborNode) -> None:
        self.body = body

    def __call__(self, node: LexborNode, name: str, attributes: dict[str, str | None]) -> bool:
        """Whether a reader does not see this element."""
        classes = (attributes.get("class") or "").split()
        if attributes.get("role") == "tooltip" or "popover" in attributes or not CARDS.isdisjoint(classes):
            return len(node.text()) < MUCH
        if not GUTTERS.isdisjoint(classes) and NUMBERS.fullmatch(node.text()):
            return not _in_code(node, name)
        if name == "pre" and _is_gutter(node):
            return True
        hidden_by = "noscript" if name == "noscript" else _hidden_by(attributes)
        if not hidden_by or (name != "noscript" and _waits(attributes)):
            return False
        size = len(node.text())
        return size < LITTLE if hidden_by == "visibility" else size < MUCH or 2 * size < self.size

    @cached_property
    def size(self) -> int:
        """Characters of the page's text."""
        return len(self.body.text()) - sum(len(node.text()) for node in self.body.css(WITHOUT_TEXT))


def _hidden_by(attributes: dict[str, str | None]) -> str:
    """The attribute or the property of its style that hides an element; "" for none."""
    if "hidden" in attributes:
        return "hidden"
    style = (attributes.get("style") or "").lower()
    if "none" not in style and "visib" not in style:
        return ""
    stated: dict[str, str] = {}
    for declaration in COMMENT.sub("", style).split(";"):
        name, _, value = declaration.partition(":")
        value, _, important = value.partition("!")
        if important or not stated.get(name.strip(), "").endswith("!"):  # the last one counts, an important one over others
            stated[name.strip()] = value.strip() + ("!" if important else "")
    return next((name for name, values in UNSEEN.items() if stated.get(name, "").rstrip("!") in values), "")


def _waits(attributes: dict[str, str | None]) -> bool:
    """Whether it is shown later: by a click, a search in the page, or a script that moves it to its place (React's streaming)."""
    name = attributes.get("id") or ""
    if (attributes.get("hidden") or "").lower() == "until-found" or ("hidden" in attributes and name.startswith("S:")):
        return True
    if attributes.get("role") in ("tabpanel", "region") or attributes.get("aria-labelledby"):
        return True
    return WAITS.search(f"{attributes.get('class') or ''} {name}") is not None


def _in_code(node: LexborNode, name: str) -> bool:
    """Whether it is part of a line of a <pre>, from which `blocks.code` removes it."""
    outer = node.parent if name in ("span", "a", "i", "b", "em", "code") else None
    while outer is not None and outer.tag not in ("pre", "td", "div", "body"):
        outer = outer.parent
    return outer is not None and outer.tag == "pre"


def _is_gutter(pre: LexborNode) -> bool:
    """Whether it holds the numbers of the lines of another <pre> in the same row of a table."""
    numbers = pre.text(separator=" ").split()
    if not numbers or not all(number.isascii() and number.isdigit() and len(number) < 7 for number in numbers):
        return False
    if [int(number) for number in numbers] != list(range(int(numbers[0]), int(numbers[0]) + len(numbers))):
        return False
    row: LexborNode | None = pre.parent
    while row is not None and row.tag != "tr":
        row = row.parent if row.tag not in ("body", "table") else None
    others = [other for other in row.css("pre,code") if other.mem_id != pre.mem_id] if row else []
    return any(_line_count(other) == len(numbers) and not NUMBERS.fullmatch(other.text()) for other in others)


def _line_count(code: LexborNode) -> int:
    """The number of lines of text, or of elements that are one line each."""
    return max(len(code.text().strip("\n").split("\n")), len(code.css("br,.line,div")))
