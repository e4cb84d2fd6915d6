"""A page as a sequence of blocks of text, and as the tree of elements around them.

Lexbor parses and repairs the HTML in C, drops what is no text, and serializes it again. Its output is regular: every
element is closed, `<` occurs only where a tag begins, and `>` ends it. So one pass over the output walks the tree at a
fraction of the cost of visiting every node. (Two exceptions are read more slowly: raw text as in <xmp>, and `<` in the
name of an attribute, as in broken tags.)
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from selectolax.lexbor import LexborHTMLParser, LexborNode

from groundup.corpus.extract.hidden import CLASS_SELECTORS, GUTTERS, KNOWN_CLASSES, NAMES, SELECTORS, Hidden

NO_TEXT = (
    "script,style,svg,template,iframe,object,noembed,noframes,canvas,audio,video,textarea,datalist,math,"
    "img,source,input,wbr,area,embed,link,meta,param,track,col,rt,rtc,rp"  # the last three: the reading above a word
)
# Hardly ever content. In WCXB's development pages two blocks in five are navigation and footers: two of these 17,000 are content;
# of the 25,000 words of headers without a heading and of dialogs, 71 are.
NO_CONTENT_NAMES, NO_CONTENT_ROLES = ("select", "nav", "footer", "dialog", "header"), ("navigation", "dialog")
CONTENT, TITLES = ("main", "article"), ("h1", "h2", "h3")
ALWAYS_REMOVED = frozenset([*NO_TEXT.split(","), "select"])  # the others stay where they are around content
INLINE_NAMES = frozenset([
    "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins",
    "kbd", "label", "mark", "mjx-container", "nobr", "picture", "q", "rb", "ruby", "s", "samp", "small",
    "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var",
])  # fmt: skip
IGNORED = frozenset(["base", "frame"])
PARAGRAPHS = frozenset([
    "article", "aside", "blockquote", "dl", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "main",
    "ol", "p", "pre", "section", "table", "ul",
])  # fmt: skip
CELL_ENDS = frozenset(["/td", "/th"])
SPECIAL = frozenset(["/li", "/td", "/th", "/tr", "/ul", "/ol", "/pre"])
RAW_TEXT = ("xmp", "plaintext")  # elements in which `<` and `>` are not escaped
# Each selector is compared with each element: 0.27 ms per page instead of 0.44, as four elements in five have a common name.
COMMON = "a,div,span,li,p,ul,i,td,button,tr"
SEARCHED = ",".join(
    [
        f":not({COMMON}):is({','.join([NO_TEXT, *NO_CONTENT_NAMES, *CONTENT, *TITLES, *RAW_TEXT, *NAMES])})",
        *(f"[role={role}]" for role in NO_CONTENT_ROLES),
        SELECTORS,
    ]
)
ATTRIBUTE = re.compile(r' (class|id|role|itemprop|data-testid|aria-hidden|hidden|style)="([^"]*)"')
HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden")
MAX_NAMES = 6  # classes of one element that are read: utility-first style sheets give dozens
# Elements that older pages name by an id and no class. Other ids are ignored: two in three occur on one page only.
KNOWN_BY_ID = frozenset(["div", "td", "section", "article", "main", "aside", "ul", "ol", "table", "form", "center"])
MAX_TAGS = 300_000
NOTHING, OPEN, CLOSE, INLINE, LINK, LINK_END, BREAK, CODE_END = range(8)  # the action of the walk at a tag
INLINES = (INLINE, LINK)
# Inline elements of code that are one line each: by class, or by style.
LINES = frozenset([".line", ".code-line", ".token-line", ".view-line", ".cm-line", ".CodeMirror-line", ".ec-line"])
GUTTER_WORDS = frozenset(sign + name for sign in ".#<" for name in GUTTERS)
LINE_STYLE = re.compile(r"display\s*:\s*(?:block|flex|grid|table)", re.IGNORECASE)
# In the text of a <pre> whose lines may be numbered: a tag, and the start of an element that is known for line numbers.
EDGE, MARK = "\x1f", "\x1e"
NUMBERED = re.compile(rf"[ \t{EDGE}{MARK}]*(\d{{1,6}})[ \t.:|]*(?:{EDGE}+|$)")


class Tag(NamedTuple):
    """A kind of element: its name, and the words that the model sees of it, as the page's author wrote them: '<div',
    '.post-body', '#main', 'role=main', 'hidden' ..."""

    name: str
    words: tuple[str, ...]


class Arrays(NamedTuple):
    """Columns of `Blocks` as arrays; nobody writes to them."""

    kind: NDArray[np.int64]  # [elements], as the next three
    parent: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    element: NDArray[np.int64]  # [blocks], as the next
    inner: NDArray[np.int64]


@dataclass
class Blocks:
    """Blocks in page order, and the block elements around them, parents before children (element 0 is <body>)."""

    text: list[str] = field(default_factory=list)
    link_chars: list[int] = field(default_factory=list)  # characters inside links
    inner: list[int] = field(default_factory=list)  # kind of the last inline element opened before the text, or -1
    element: list[int] = field(default_factory=list)  # innermost element around it
    gap: list[int] = field(default_factory=list)  # line ends before it
    prefix: list[str] = field(default_factory=list)  # the mark of a list item, with its indent
    row: list[int] = field(default_factory=list)  # the <tr> it is in, or 0
    cell: list[int] = field(default_factory=list)  # number of the cell in the row
    kinds: list[Tag] = field(default_factory=list)  # the distinct start tags of the page
    kind: list[int] = field(default_factory=list)  # of an element: index in `kinds`
    parent: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)  # of an element: its blocks are start <= block < end
    end: list[int] = field(default_factory=list)
    cut: bool = False  # whether the page was too large or too deep to be read to its end
    title: str = ""
    stated: str = ""  # the article's text as the page states it for machines

    @cached_property
    def arrays(self) -> Arrays:
        """Once per page: four modules use them, and each list takes as long as a sum over all elements."""
        columns = (self.kind, self.parent, self.start, self.end, self.element, self.inner)
        return Arrays(*(np.fromiter(column, np.int64, len(column)) for column in columns))

    def fill(self, rows: list[tuple]) -> None:
        """Set the columns from one row per block."""
        if rows:
            columns = map(list, zip(*rows, strict=True))
            (self.text, self.link_chars, self.inner, self.element,
             self.gap, self.prefix, self.row, self.cell) = columns  # fmt: skip


def _tag(name: str, attributes: Sequence[tuple[str, str]]) -> Tag:
    words = [f"<{name}"]
    for attribute, value in attributes:
        if attribute == "class" or attribute == "data-testid":
            words += map(".".__add__, value.split(None, MAX_NAMES)[:MAX_NAMES])
        elif attribute == "style":
            if HIDDEN.search(value):
                words.append("hidden")
        elif attribute == "id":
            if name in KNOWN_BY_ID and not any(other == "class" and text.strip() for other, text in attributes):
                words += ["#" + word for word in value.split()[:1]]
        elif attribute == "aria-hidden":
            words.append(f"aria-hidden={value}")
        elif attribute == "hidden":
            words.append("hidden")
        else:  # role or itemprop
            words.append(f"{attribute}={' '.join(value.lower().split())}")
    return Tag(name, tuple(words))


def blocks_of(tree: LexborHTMLParser) -> Blocks:
    """The blocks of a parsed page."""
    blocks = Blocks()
    body = tree.body
    if body is None:
        return blocks
    nodes = body.css(SEARCHED)  # in one search: each search visits all elements
    names = [node.tag for node in nodes]
    main, titled = (
        _ancestors(node for node, name in zip(nodes, names, strict=True) if name in wanted) for wanted in (CONTENT, TITLES)
    )
    hidden = Hidden(body)
    # Inner elements first: removing an element frees those inside it.
    for node, name in zip(reversed(nodes), reversed(names), strict=True):
        if name in ALWAYS_REMOVED:
            node.decompose()
        elif node.mem_id not in main:
            attributes = node.attributes
            no_content = name in NO_CONTENT_NAMES or attributes.get("role") in NO_CONTENT_ROLES
            if (no_content and not (name == "header" and node.mem_id in titled)) or hidden(node, name, attributes):
                node.decompose()
    raw_text = not set(RAW_TEXT).isdisjoint(names)
    tags = _walk(body.html or "", raw_text, blocks)
    if tags.known_class:
        for node in reversed(body.css(CLASS_SELECTORS)):
            if node.mem_id not in main and hidden(node, node.tag or "", node.attributes):
                node.decompose()
        blocks = Blocks()
        _walk(body.html or "", raw_text, blocks)
    return blocks


def _ancestors(nodes: Iterable[LexborNode]) -> set[int]:
    """The nodes and the elements that they are in. Each is visited once; `:has()` would visit it once per element around it."""
    ancestors: set[int] = set()
    for node in nodes:
        outer: LexborNode | None = node
        while outer is not None and outer.mem_id not in ancestors:
            ancestors.add(outer.mem_id)
            outer = outer.parent
    return ancestors


class _TagTable(dict[str, tuple[int, int, str, int, bool | str]]):
    """By the text between a tag's `<` and `>`, computed where it first occurs: action, kind, the tag that closes it, line ends
    before the next block, and whether it belongs to a list, table or <pre>; of an inline element whether it is a line of code,
    or MARK for its number."""

    def __init__(self, kinds: list[Tag]) -> None:
        self._kinds = kinds
        self._entries: dict[tuple, tuple[int, int, str, int, bool | str]] = {}
        self.known_class = False  # whether any tag has one of KNOWN_CLASSES

    def __missing__(self, raw: str) -> tuple[int, int, str, int, bool | str]:
        name, _, attributes = raw.partition(" ")
        key = (name, *ATTRIBUTE.findall(raw)) if attributes else (name,)  # of 260 tags on a page 190 differ in these
        if (entry := self._entries.get(key)) is None:
            entry = self._entries[key] = self._end_tag(name) if name[:1] == "/" else self._start_tag(*key)
        self[raw] = entry
        return entry

    def _end_tag(self, name: str) -> tuple[int, int, str, int, bool | str]:
        if name == "/a":
            return LINK_END, -1, "", 0, False
        if name[1:] in INLINE_NAMES:
            return CODE_END if name == "/code" else NOTHING, -1, "", 0, False
        return CLOSE, -1, "", 1 + (name[1:] in PARAGRAPHS), name in SPECIAL

    def _start_tag(self, name: str, *attributes: tuple[str, str]) -> tuple[int, int, str, int, bool | str]:
        for attribute, value in attributes:
            if attribute == "class" and not KNOWN_CLASSES.isdisjoint(value.split()):
                self.known_class = True
        if name in IGNORED:
            return NOTHING, -1, "", 0, False
        if name in ("br", "hr"):
            return BREAK, -1, "", 2 * (name == "hr"), False
        number = len(self._kinds)
        tag = _tag(name, attributes)
        self._kinds.append(tag)
        if name not in INLINE_NAMES and name != "a":
            close = f"/{name}"
            return OPEN, number, close, 1 + (name in PARAGRAPHS), close in SPECIAL
        action = LINK if name == "a" else INLINE
        if not GUTTER_WORDS.isdisjoint(tag.words):
            return action, number, "", 0, MARK
        is_line = any(LINE_STYLE.search(value) for attribute, value in attributes if attribute == "style")
        return action, number, "", 0, action == INLINE and (is_line or not LINES.isdisjoint(tag.words))


class _OpenElements:
    """The lists, table rows and <pre> that are open, and the mark of a list item whose text is still to come."""

    __slots__ = ("cell", "lists", "pre", "prefix", "row")

    def __init__(self) -> None:
        self.lists: list[count | None] = []  # the numbering of an ordered list, None for others
        self.pre = self.row = self.cell = 0  # pre: number of open <pre>
        self.prefix = ""

    def open(self, name: str, element: int) -> None:
        """`name` is that of the tag that closes it, `element` its number."""
        if name == "/li":
            numbering = self.lists[-1] if self.lists else None
            if not self.pre:
                mark = "- " if numbering is None else f"{next(numbering)}. "
                self.prefix = "  " * (len(self.lists) - 1) + mark
        elif name == "/td" or name == "/th":
            self.cell += 1
        elif name == "/tr":
            self.row, self.cell = element, 0
        elif name == "/pre":
            self.pre += 1
        else:
            self.lists.append(None if name == "/ul" else count(1))

    def close(self, name: str) -> None:
        if name == "/tr":
            self.row = 0
        elif name == "/pre":
            self.pre -= 1
        elif (name == "/ul" or name == "/ol") and self.lists:
            self.lists.pop()


def _tags(html: str, raw_text: bool, blocks: Blocks) -> Iterator[tuple[str, str]]:
    """Each tag and the text after it, without comments; sets `blocks.cut` where there are too many."""
    first, *others = html.split("<!--")
    html = first + "".join([part.partition("-->")[2] for part in others]) if others else html
    parts = html.replace(">", "<").split("<", 2 * MAX_TAGS + 1)  # the text before all tags, then a tag and its text in turn
    if len(parts) == 2 * html.count("<") + 1 and not raw_text:
        pairs = iter(parts)
        next(pairs)
    else:
        parts = html.split("<", MAX_TAGS + 1)[1:]
        blocks.cut = len(parts) > MAX_TAGS
        pairs = chain.from_iterable([part.partition(">")[::2] for part in parts[:MAX_TAGS]])
    return zip(pairs, pairs, strict=True)


def _walk(html: str, raw_text: bool, blocks: Blocks) -> _TagTable:
    """Fill `blocks` from a body's HTML; returns its tags."""
    kind, parent, start, end = blocks.kind, blocks.parent, blocks.start, blocks.end
    tag_table = _TagTable(blocks.kinds)
    opened = _OpenElements()
    rows: list[tuple] = []
    stack, names = [0], [""]  # the body and the open elements, and the names that will close these
    pieces: list[str] = []  # text of the block that is being read
    open_links = link_chars = gap = 0
    inner, first_inner, code_end, broken = -1, -1, -1, False  # code_end: number of pieces when a <code> ended

    def flush() -> None:
        nonlocal gap, link_chars, broken
        text = _block_text(pieces, opened.pre > 0, broken)
        pieces.clear()
        if text:
            rows.append((text, link_chars, first_inner, stack[-1], gap, opened.prefix, opened.row, opened.cell))
            gap, opened.prefix = 0, ""
        link_chars, broken = 0, False

    for raw, text in _tags(html, raw_text, blocks):
        action, number, name, tag_gap, special = tag_table[raw]
        if action == OPEN:
            if pieces and not (opened.pre and _new_line(pieces, name)):
                flush()
            inner = -1
            parent.append(stack[-1])
            stack.append(len(kind))
            names.append(name)
            kind.append(number)
            start.append(len(rows))
            end.append(0)
            gap = tag_gap if tag_gap > gap else gap
            if special:
                opened.open(name, len(kind))
        elif action == CLOSE:
            if names[-1] != raw and raw not in names:
                continue
            while names[-1] != raw:  # only where raw text, such as <xmp>, looks like tags
                names.pop()
                end[stack.pop()] = len(rows)
            if pieces and not (opened.pre and (opened.pre > 1 or raw != "/pre") and _new_line(pieces, raw)):
                flush()
            names.pop()
            end[stack.pop()] = len(rows)
            inner = -1
            gap = tag_gap if tag_gap > gap else gap
            if special:
                opened.close(raw)
        elif action in INLINES:
            inner = number
            open_links += action == LINK
            if opened.pre:
                _inside_code(pieces, special, len(pieces) == code_end and raw.startswith("code"))
        elif action == CODE_END:
            code_end = len(pieces)
        elif action == LINK_END:
            open_links -= 1
        elif action == BREAK:
            if opened.pre:
                pieces.append("\n")
            elif tag_gap:
                if pieces:
                    flush()
                gap = 2
            elif pieces:
                pieces.append("\v")
                broken = True
        if text and (pieces or opened.pre or not text.isspace()):
            if not pieces:
                first_inner = inner
            pieces.append(text)
            if open_links:
                link_chars += len(text.strip())
    flush()
    if end:
        for element in stack:  # and the body: text after a </body> inside raw text belongs to it as well
            end[element] = len(rows)
    blocks.fill(rows)
    return tag_table


def _new_line(pieces: list[str], name: str) -> bool:
    """In a <pre>: start a line for the text that follows, unless a table cell ends here. Always true."""
    if pieces[-1][-1:] != "\n" and name not in CELL_ENDS:
        pieces.append("\n")
    return True


def _inside_code(pieces: list[str], special: bool | str, after_code: bool) -> None:
    """At an inline element in a <pre>. `special`: see `_TagTable`; `after_code`: a <code> directly after another."""
    if special is MARK:
        pieces.append(MARK)
    elif pieces and (special or after_code):
        _new_line(pieces, "")


def _block_text(pieces: list[str], pre: bool, broken: bool) -> str:
    """The text of a block; outside of <pre> with one space between words. `broken`: it has lines, which \\v separates."""
    if pre:
        text = code(pieces)
    elif broken:
        text = "\n".join([" ".join(line.split()) for line in "".join(pieces).split("\v")]).strip()
    else:
        text = " ".join("".join(pieces).split())
    if "&" in text:
        text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", " ").replace("&amp;", "&")
    return text


def code(pieces: list[str]) -> str:
    """The text of a <pre> from the text between its tags, without its line numbers: those in elements that are known for
    them, or consecutive ones, each in an element of its own before its line."""
    text = "".join(pieces)
    marked = MARK in text
    if marked or any(map(str.isdecimal, map(str.strip, pieces))):
        lines = EDGE.join(pieces).split("\n")
        matches = [match if (match := NUMBERED.match(line)) and (MARK in match[0]) == marked else None for line in lines]
        numbers = [int(match[1]) for match in matches if match]
        rest = [line[match.end() :] if match else line for line, match in zip(lines, matches, strict=True)]
        rest = [line.replace(EDGE, "").replace(MARK, "") for line in rest]
        filled = [line.strip(f" \t{EDGE}{MARK}") for line in lines]
        consecutive = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        if any(map(str.strip, rest)) and (marked or (consecutive and len(numbers) == sum(map(bool, filled)))):
            spaced = all(line[:1] in ("", " ") for line, match in zip(rest, matches, strict=True) if match)
            text = "\n".join([line[1:] if match and spaced else line for line, match in zip(rest, matches, strict=True)])
    return text.replace(MARK, "").rstrip().lstrip("\n")


def render(blocks: Blocks, chosen: list[int]) -> str:
    """The text of the chosen blocks: a blank line between paragraphs, marks before items, `|` between cells of a row."""
    out: list[str] = []
    last = -1
    for block in chosen:
        if out:
            adjacent = block == last + 1
            if adjacent and blocks.row[block] == blocks.row[last] != 0 and blocks.cell[block] != blocks.cell[last]:
                out.append(" | ")
            else:
                out.append("\n" * max(1, max(blocks.gap[last + 1 : block + 1])))
        out.append(blocks.prefix[block] + blocks.text[block])
        last = block
    return "".join(out)
