"""Readable text from a page.

Ordinary web pages go through Resiliparse's main-content rules (Bevendorff et al., ECIR 2018; the extractor DCLM chose),
which are fast and keep code, tables and forum posts. Formulas are put into TeX before, because they would be garbled.
pydoc's pages are documentation laid out with nested tables; they are walked here, to read as `help()` prints them.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding
from resiliparse.parse.html import DOMContext, ElementNode, HTMLTree, NodeType, traverse_dom

from groundup.corpus.warc import Page

HTML_TYPES = ("text/html", "application/xhtml+xml")
AROUND = ["nav", "header", "footer", "aside"]
MIN_MAIN_SHARE = 0.3  # of the page's words: with less, all its text has the better word F1 on WCXB's pages
MAX_DEPTH = 1000
MENU_LEVELS = 3  # lists at most this far below <body> are menus to Resiliparse
TAG = re.compile(r"<(/?)(?!br|img|input|meta|link|hr|path|source)[a-z]", re.IGNORECASE)


@dataclass
class Extracted:
    text: str
    title: str | None


def extract(page: Page) -> Extracted:
    """The text of one page; empty where there is none to be had. Never raises on account of the page."""
    if page.content_type in HTML_TYPES:
        try:
            return _from_html(decode(page))
        except Exception:  # a parser's trouble with one page in a million must not end a run over all of them
            return Extracted("", None)
    if page.content_type.startswith("text/"):
        return Extracted(_clean(decode(page)), None)
    return Extracted("", None)


def decode(page: Page) -> str:
    """The body as text: by byte-order mark, the HTTP header, the page's own <meta>, or else by its bytes."""
    body = page.body
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if body.startswith(mark):
            return body[len(mark) :].decode(encoding, "replace")
    if page.charset:
        try:
            return bytes_to_str(body, page.charset)
        except (LookupError, ValueError):  # a charset nobody knows
            pass
    try:
        # Most pages are UTF-8, and text that decodes as UTF-8 is UTF-8; the detector samples and can be wrong.
        return body.decode("utf-8")
    except UnicodeDecodeError:
        return bytes_to_str(body, detect_encoding(body, from_html_meta=page.content_type in HTML_TYPES))


def _from_html(html: str) -> Extracted:
    tree = HTMLTree.parse(html)
    title = " ".join((tree.title or "").split()) or None
    if tree.body is None:
        return Extracted("", title)
    if title and title.startswith("Pydoc: "):
        return Extracted(_clean(_pydoc_text(tree.body)), title)
    if any(mark in html for mark in FORMULA_MARKS):
        _formulas_as_tex(tree.body)
    everything = extract_plain_text(tree, alt_texts=False, skip_elements=AROUND)
    if _too_deep(html, tree.body):
        return Extracted(_clean(everything), title)
    _deepen_lists(tree, tree.body)
    text = extract_plain_text(tree, main_content=True, alt_texts=False)
    if len(text.split()) < MIN_MAIN_SHARE * len(everything.split()):
        text = everything  # the rules took the content for furniture
    return Extracted(_clean(text), title)


def _deepen_lists(tree: HTMLTree, parent: ElementNode, level: int = 1) -> None:
    """Put lists near the root into <div>s: Resiliparse takes any list there for a menu, but one without links is none.

    Pages written by hand have nothing but such lists.
    """
    child = parent.first_child
    while child is not None:
        following = child.next_sibling
        if child.type != NodeType.ELEMENT or child.tag == "nav":
            pass
        elif child.tag not in ("ul", "ol"):
            if level < MENU_LEVELS:
                _deepen_lists(tree, child, level + 1)
        elif child.query_selector("a") is None:
            outer = inner = tree.create_element("div")
            for _ in range(MENU_LEVELS - level):
                inner = inner.append_child(tree.create_element("div"))
            parent.replace_child(outer, child)
            inner.append_child(child)
        child = following


def _too_deep(html: str, body: ElementNode) -> bool:
    """Whether elements are nested so deep that the main-content rules, quadratic in depth, would take minutes."""
    depth = most = 0
    for closing in TAG.findall(html):
        depth += -1 if closing else 1
        most = max(most, depth)
    if most <= MAX_DEPTH:
        return False
    deepest = 0  # counting tags makes too much of those that need no end, such as <p> and <li>

    def enter(context: DOMContext) -> None:
        nonlocal deepest
        deepest = max(deepest, context.depth)

    traverse_dom(body, enter, elements_only=True)
    return deepest > MAX_DEPTH


CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff\ud800-\udfff]")
LINE_ENDS = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")


def _clean(text: str) -> str:
    """One kind of line end and space, no control characters, composed Unicode, at most one blank line in a row."""
    text = LINE_ENDS.sub("\n", text).replace("\u00a0", " ")
    text = unicodedata.normalize("NFC", CONTROL.sub("", text))
    text = re.sub(r"[ \t]+\n", "\n", text + "\n")
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")


def _outermost(root: ElementNode, wanted: Callable[[ElementNode], bool]) -> list[ElementNode]:
    """Elements that are wanted and not inside another one, in document order."""
    found: list[ElementNode] = []
    inside = -1

    def enter(context: DOMContext) -> None:
        nonlocal inside
        if inside >= 0 and context.depth > inside:
            return
        inside = -1
        if wanted(context.node):
            inside = context.depth
            found.append(context.node)

    # Iterating over query_selector_all asks anew at every step: seconds for a page with a thousand matches.
    traverse_dom(root, enter, elements_only=True)
    return found


FORMULA_MARKS = ("<math", "math/tex", "katex", "mwe-math")


def _is_formula(element: ElementNode) -> bool:
    if element.tag == "script":
        return (element.get_attribute("type") or "").startswith("math/tex")
    return element.tag == "math" or bool({"katex", "mwe-math-element"} & set((element.class_name or "").split()))


def _formulas_as_tex(root: ElementNode) -> None:
    """Replace rendered formulas by the TeX they carry: MathML annotations, KaTeX, MediaWiki, MathJax scripts."""
    for element in _outermost(root, _is_formula):
        if element.tag == "script":
            tex: str | None = element.text
            display = "mode=display" in (element.get_attribute("type") or "")
        else:
            math = element if element.tag == "math" else element.query_selector("math")
            if math is None:
                continue
            annotation = math.query_selector('annotation[encoding="application/x-tex"]')
            tex = annotation.text if annotation else math.get_attribute("alttext")
            display = math.get_attribute("display") == "block"
        tex = " ".join((tex or "").split())
        if tex:
            text = element.owner_document.create_text_node(f" $${tex}$$ " if display else f" ${tex}$ ")
            element.replace_with(text)


BREAKS = {"p", "div", "table", "tr", "td", "dl", "dt", "dd", "li", "pre", "hr"}
SPACED = {"p", "hr", "pre"}
SPACES = re.compile(r"[ \t\r\n]+")  # but not the no-break space: pydoc indents code and docstrings with it


def _is_pydoc_furniture(element: ElementNode) -> bool:
    """Menus, paths of the machine that served the page, and what a module imports, which `help()` does not list."""
    tag, kind = element.tag, element.class_name or ""
    if tag == "table" and kind == "section":
        heading = element.query_selector("strong.bigsection")
        return heading is not None and heading.text == "Modules"
    floats = tag == "div" and (element.get_attribute("style") or "").startswith("float:")
    return floats or tag in ("script", "style", "form") or (tag == "td" and kind == "extra")


def _pydoc_text(body: ElementNode) -> str:
    """A pydoc page as lines: sections and classes flush left, members indented by 4, their docstrings by 8."""
    for element in _outermost(body, _is_pydoc_furniture):
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
