"""pydoc's pages as `help()` prints them: documentation laid out with nested tables."""

import re
from collections.abc import Callable

from resiliparse.parse.html import DOMContext, ElementNode, HTMLTree, NodeType, traverse_dom

BREAKS = {"p", "div", "table", "tr", "td", "dl", "dt", "dd", "li", "pre", "hr"}
SPACED = {"p", "hr", "pre"}
SPACES = re.compile(r"[ \t\r\n]+")  # but not the no-break space: pydoc indents code and docstrings with it


def _outermost(root: ElementNode, wanted: Callable[[ElementNode], bool]) -> list[ElementNode]:
    """The wanted elements that are not inside another wanted one, in document order."""
    elements: list[ElementNode] = []
    inside = -1

    def enter(context: DOMContext) -> None:
        nonlocal inside
        if inside >= 0 and context.depth > inside:
            return
        inside = -1
        if wanted(context.node):
            inside = context.depth
            elements.append(context.node)

    # Iterating over query_selector_all repeats the query at every step: seconds for a page with a thousand matches.
    traverse_dom(root, enter, elements_only=True)
    return elements


def _is_not_documentation(element: ElementNode) -> bool:
    """Whether it is a menu, a path of the machine that served the page, or the list of imports, which `help()` does not print."""
    tag, kind = element.tag, element.class_name or ""
    if tag == "table" and kind == "section":
        heading = element.query_selector("strong.bigsection")
        return heading is not None and heading.text == "Modules"
    floats = tag == "div" and (element.get_attribute("style") or "").startswith("float:")
    return floats or tag in ("script", "style", "form") or (tag == "td" and kind == "extra")


def pydoc_text(html: str) -> str:
    """A pydoc page as lines: sections and classes flush left, members indented by 4, their docstrings by 8."""
    body = HTMLTree.parse(html).body
    if body is None:
        return ""
    for element in _outermost(body, _is_not_documentation):
        element.decompose()
    lines: list[str] = []
    line: list[str] = []
    indents = [0]
    opened: list[tuple[str, bool]] = []  # the elements around: tag, and whether it set an indent

    def end_line() -> None:
        text = "".join(line).rstrip(" \u00a0")
        line.clear()
        if text:
            lines.append(" " * indents[-1] + text)

    def blank_line() -> None:
        if lines and lines[-1]:
            lines.append("")

    def break_line() -> None:
        before = len(lines)
        end_line()
        if len(lines) == before:
            blank_line()

    def enter(context: DOMContext) -> None:
        node = context.node
        if node.type == NodeType.TEXT:
            if opened and opened[-1][0] == "pre":
                first, *others = (node.value or "").split("\n")
                line.append(first)
                for other in others:
                    break_line()
                    line.append(other)
            else:
                text = SPACES.sub(" ", node.value or "")
                line.append(text if line else text.lstrip(" "))
            return
        tag, kind = node.tag or "", node.get_attribute("class") or ""
        if tag == "br":
            break_line()
            return
        if tag in BREAKS:
            end_line()
        body_cell = tag == "td" and (kind == "singlecolumn" or node.get_attribute("colspan") == "2")
        members = tag == "dl" and not any(name == "dd" for name, _ in opened)
        if tag in SPACED or kind == "singlecolumn" or members:
            blank_line()
        indent = None
        if tag == "table" and kind == "section":
            indent = 0
        elif body_cell:
            indent = 4
        elif tag == "dd":
            indent = indents[-1] + 4
        if indent is not None:
            indents.append(indent)
        opened.append((tag, indent is not None))

    def leave(context: DOMContext) -> None:
        if context.node.type == NodeType.TEXT or context.node.tag == "br":
            return
        tag, indented = opened.pop()
        if tag in BREAKS:
            end_line()
        if indented:
            indents.pop()

    traverse_dom(body, enter, leave)
    end_line()
    return "\n".join(lines)
