"""Readable text from a page.

Ordinary web pages become blocks (`blocks`), of which a small learned model chooses those that are content (`content`):
the approach of boilerpipe and Web2Text. Formulas are put into TeX before, because they would be garbled. pydoc's pages are
documentation laid out with nested tables; they are walked by rules of their own, to read as `help()` prints them.
"""

import gc
import re
import unicodedata
from dataclasses import dataclass

from resiliparse.parse.encoding import bytes_to_str, detect_encoding
from selectolax.lexbor import LexborHTMLParser

from groundup.corpus.blocks import Blocks, blocks_of, render
from groundup.corpus.bounds import bounded
from groundup.corpus.content import ContentModel, content_model
from groundup.corpus.formulas import formulas_as_tex, may_have_formulas
from groundup.corpus.pydoc_pages import pydoc_text
from groundup.corpus.warc import Page

HTML_TYPES = ("text/html", "application/xhtml+xml")


@dataclass
class Extracted:
    """`cut` says that the page was too large or nested too deep to be read to its end."""

    text: str
    title: str | None
    cut: bool = False


def extract(page: Page) -> Extracted:
    """The text of one page; empty where there is none to be had. Never raises on account of the page."""
    if page.content_type in HTML_TYPES:
        try:
            return text_of(utf8(page), content_model())
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


def utf8(page: Page) -> bytes:
    """The body as UTF-8: as it came if that is what it is, which spares most pages two conversions."""
    if not page.charset or page.charset.lower() in ("utf-8", "utf8"):
        try:
            page.body.decode("utf-8")
            return page.body.removeprefix(b"\xef\xbb\xbf")
        except UnicodeDecodeError:
            pass
    return decode(page).encode("utf-8", "replace")


def text_of(html: str | bytes, model: ContentModel) -> Extracted:
    """The text of one HTML page, bytes being UTF-8, by a model of content."""
    collecting = gc.isenabled()
    gc.disable()  # the walk makes many small objects and no cycles: looking for some takes as long as the walk
    try:
        title, blocks = parse(html)
        if title and title.startswith("Pydoc: "):
            source = html if isinstance(html, str) else html.decode("utf-8", "replace")
            return Extracted(_clean(pydoc_text(source)), title)
        chosen = model.content(blocks)
        return Extracted(_clean(render(blocks, chosen)), title, blocks.cut)
    finally:
        if collecting:
            gc.enable()


def parse(html: str | bytes) -> tuple[str | None, Blocks]:
    """Title and blocks of a page, formulas as TeX."""
    source, cut = bounded(html.encode("utf-8", "replace") if isinstance(html, str) else html)
    tree = LexborHTMLParser(source)
    head = tree.css_first("title")
    title = " ".join(head.text().split()) or None if head else None
    if may_have_formulas(source):
        formulas_as_tex(tree)
    blocks = blocks_of(tree)
    blocks.cut |= cut
    return title, blocks


CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff\ud800-\udfff]")
LINE_ENDS = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")


def _clean(text: str) -> str:
    """One kind of line end and space, no control characters, composed Unicode, at most one blank line in a row."""
    if not text.replace("\n", "").isprintable():  # which no text is that has such characters
        text = LINE_ENDS.sub("\n", text).replace("\u00a0", " ")
        text = CONTROL.sub("", text)
    text = unicodedata.normalize("NFC", text) + "\n"
    if " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    if "\n\n\n\n" in text:
        text = re.sub(r"\n{4,}", "\n\n\n", text)
    return text.strip("\n")
