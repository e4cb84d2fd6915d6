"""Readable text from a page.

Ordinary web pages become blocks (`blocks`), of which a small learned model chooses those that are content (`content`):
the approach of boilerpipe and Web2Text. Formulas are converted to TeX first, because they would be garbled. pydoc's pages are
documentation laid out with nested tables; rules of their own turn them into the text that `help()` prints.
"""

import gc
import re
import unicodedata
from dataclasses import dataclass, replace

from selectolax.lexbor import LexborDocumentOptions, LexborHTMLParser

from groundup.corpus.archive.content_type import HTML_TYPES, gives_text, kind_of_body
from groundup.corpus.archive.warc import Page
from groundup.corpus.extract.blocks import Blocks, blocks_of, render
from groundup.corpus.extract.charset import REPLACEMENT, decoded
from groundup.corpus.extract.comments import comments_of
from groundup.corpus.extract.content import ContentModel, content_model
from groundup.corpus.extract.error_pages import is_bare, is_error_page
from groundup.corpus.extract.formulas import formulas_as_tex, may_have_formulas
from groundup.corpus.extract.json_ld import stated_article
from groundup.corpus.extract.limits import VOID, bounded
from groundup.corpus.extract.pydoc_pages import pydoc_text

XHTML = HTML_TYPES[1]
HEAD = 200  # bytes in which XML is declared
# In XML any element may be written so. To a parser of HTML all behind <title/> or <script/> is in it, and all behind <a/> a link.
SELF_CLOSED = re.compile(rb"<([A-Za-z][\w:.-]*)((?:\s[^<>]*)?)/>")
# A template that is shown: an element's contents as frameworks write them on the server.
SHADOW_ROOT = re.compile(rb"<template(?=\s[^<>]*?\bshadowroot(?:mode)?\b)", re.IGNORECASE)
LONGEST_TITLE = 300  # characters that are searched for blocks
MOST_UNREAD = 0.05  # share of a text's characters that may be U+FFFD; a word in three is damaged then
FEW_UNREAD = 3  # the shortest text may have this many


@dataclass
class Extracted:
    """`cut` says that the page was too large or nested too deep to be read to its end; `replaced` counts the invalid sequences
    of its bytes, each decoded as U+FFFD. A page with many of them in its text is given up: its text is empty."""

    text: str
    title: str | None
    cut: bool = False
    replaced: int = 0


def extract(page: Page, comments: bool = False) -> Extracted:
    """The text of one page, with its readers' comments if `comments`; empty where there is none. Never raises because
    of the page."""
    kind = kind_of_body(page.content_type, "", page.body, page.charset)
    if not gives_text(kind):
        return Extracted("", None)
    if kind not in HTML_TYPES:
        text, replaced = decoded(page.body, page.charset, kind)
        return _if_readable(Extracted(_clean(text), None, replaced=replaced))
    try:
        source, replaced = _utf8(page)
        if kind == XHTML or source[:HEAD].lstrip().startswith(b"<?xml"):
            source = SELF_CLOSED.sub(_with_end_tag, source)
        return _if_readable(replace(text_of(source, content_model(), comments), replaced=replaced))
    except Exception:  # a parser's trouble with one page in a million must not end a run over all of them
        return Extracted("", None)


def _with_end_tag(tag: re.Match[bytes]) -> bytes:
    return tag[0] if tag[1].lower() in VOID else b"<%s%s></%s>" % (tag[1], tag[2], tag[1])


def _if_readable(extracted: Extracted) -> Extracted:
    unread = min(extracted.text.count(REPLACEMENT), extracted.replaced)  # not those that were in the page itself
    return replace(extracted, text="", title=None) if unread > max(FEW_UNREAD, MOST_UNREAD * len(extracted.text)) else extracted


def decode(page: Page) -> str:
    """The body as text; see `charset.decoded`."""
    return decoded(page.body, page.charset, page.content_type)[0]


def utf8(page: Page) -> bytes:
    """The body as UTF-8."""
    return _utf8(page)[0]


def _utf8(page: Page) -> tuple[bytes, int]:
    """The body as UTF-8, and how many invalid sequences were replaced. A UTF-8 body is returned as it is, which spares most pages
    two conversions."""
    if (not page.charset or page.charset.lower() in ("utf-8", "utf8")) and b"\x1b" not in page.body:
        try:
            page.body.decode("utf-8")
            return page.body.removeprefix(b"\xef\xbb\xbf"), 0
        except UnicodeDecodeError:
            pass
    text, replaced = decoded(page.body, page.charset, page.content_type)
    return text.encode("utf-8", "replace"), replaced


def text_of(html: str | bytes, model: ContentModel, comments: bool = False) -> Extracted:
    """The text of one HTML page, in UTF-8 if bytes, by a content model; with readers' comments if `comments`."""
    collecting = gc.isenabled()
    gc.disable()  # the walk makes many small objects and no cycles: searching for cycles takes as long as the walk
    try:
        title, blocks = parse(html)
        if title and title.startswith("Pydoc: "):
            source = html if isinstance(html, str) else html.decode("utf-8", "replace")
            return Extracted(_clean(pydoc_text(source)), title)
        chosen = [] if is_error_page(blocks) else model.content(blocks)
        if is_bare(blocks, chosen):
            chosen = []
        if comments:
            chosen = sorted({*chosen, *comments_of(blocks)})
        return Extracted(_clean(render(blocks, chosen)), title, blocks.cut)
    finally:
        if collecting:
            gc.enable()


def parse(html: str | bytes) -> tuple[str | None, Blocks]:
    """Title and blocks of a page, formulas as TeX."""
    source, cut = bounded(html.encode("utf-8", "replace") if isinstance(html, str) else html)
    if b"shadowroot" in source:
        source = SHADOW_ROOT.sub(b"<div", source)
    tree = LexborHTMLParser(source, options=LexborDocumentOptions.WO_EVENTS)  # of which only <selectedcontent> would need any
    head = tree.css_first("title")
    title = " ".join(head.text().split()) or None if head else None
    if may_have_formulas(source):
        formulas_as_tex(tree)
    blocks = blocks_of(tree)
    blocks.cut |= cut
    blocks.title, blocks.stated = (title or "")[:LONGEST_TITLE], stated_article(source)
    return title, blocks


# With the soft hyphen, which marks where a word may be broken.
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\ufeff\ufffe\uffff\ud800-\udfff]")
LINE_ENDS = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")


def _clean(text: str) -> str:
    """One kind of line end and space, no control characters, composed Unicode, at most two blank lines in a row."""
    if not text.replace("\n", "").isprintable():  # no text with such characters is printable
        text = LINE_ENDS.sub("\n", text).replace("\u00a0", " ")
        text = CONTROL.sub("", text)
    text = unicodedata.normalize("NFC", text) + "\n"
    if " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    if "\n\n\n\n" in text:
        text = re.sub(r"\n{4,}", "\n\n\n", text)
    return text.strip("\n")
