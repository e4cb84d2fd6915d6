"""Formulas as TeX, from the ways in which pages carry them.

Most pages have the TeX next to the rendered formula: in MathML's annotation or alttext (KaTeX, MathJax 3, Wikipedia), in
MathJax 2's scripts, in the alternative text or URL of an image, or in an attribute. Where there is only MathML, it
is converted to TeX. Collections of formulas from the web handle the same cases (OpenWebMath, Paster et al., 2023).
"""

import re
from collections.abc import Container
from html import unescape
from urllib.parse import unquote

import numpy as np
from selectolax.lexbor import LexborHTMLParser, LexborNode

from groundup.corpus.extract.mathml import mathml_tex

AT, JX = np.frombuffer(b"atjx", dtype=np.uint16)
DATA = ("data-latex", "data-tex", "data-math", "data-formula", "data-katex", "data-expr")
RENDERED = (".MathJax", ".MathJax_Display", ".MathJax_SVG", ".MathJax_SVG_Display", ".MathJax_CHTML", ".mjx-chtml")
FORMULAS = ",".join(
    ["math", "script[type^='math/']", ".katex", ".katex-display", ".mwe-math-element", "mjx-container", ".MathJax_Preview",
     *RENDERED, "img", *(f"[{name}]" for name in DATA)]
)  # fmt: skip
IMAGE_QUERY = re.compile(r"codecogs\.com/[^?]*\?(.+)|latex\.php\?(?:.*&)?latex=([^&#]+)|[?&](?:tex|latex|chl)=([^&#]+)")
IMAGE_CLASS = frozenset(
    ("latex", "tex", "math", "mathtex", "mwe-math-fallback-image-inline", "mwe-math-fallback-image-display")
)
SCALING = re.compile(r"^\\(?:dpi\{\d+\}|bg_\w+|fn_\w+|inline|large|small|huge|LARGE|Large)(?![a-zA-Z])")
WRAPPED = re.compile(r"^\{\\(?:displaystyle|textstyle|scriptstyle)\s*(.*)\}$", re.DOTALL)
TEX_LIKE = re.compile(r"\\[a-zA-Z]+|[\^_]\S|^\$.*\$$")
CDATA = re.compile(r"%\s*<!\[CDATA\[|%?\s*\]\]>\s*$")  # hides `<` from parsers of XML


def may_have_formulas(source: bytes) -> bool:
    """Whether there is `math`, `Math`, `atex`, `data-tex`, `data-formula` or `mjx` in the page: most pages have none of them.

    Searches for the pairs `at` and `jx`, then around them; searching for each word would take as long as parsing the page.
    """
    letters = np.frombuffer(source, dtype=np.uint8)
    pairs = [letters[odd : odd + (len(source) - odd) // 2 * 2].view(np.uint16) for odd in (0, 1)]

    def positions(pair: np.uint16) -> np.ndarray:
        return np.concatenate([2 * np.flatnonzero(half == pair) + odd for odd, half in enumerate(pairs)])

    if any((half == JX).any() for half in pairs) and (letters.take(positions(JX) - 1, mode="clip") == ord("m")).any():
        return True
    at_pairs = positions(AT)
    before, third, fourth, sixth = (letters.take(at_pairs + offset, mode="clip") for offset in (-1, 2, 3, 5))
    math = (before | 0x20 == ord("m")) & (third == ord("h")) & (fourth != ord("."))  # `Math.floor` is a program's
    tex = (third == ord("e")) & (fourth == ord("x"))
    data = (third == ord("a")) & (fourth == ord("-")) & ((sixth == ord("e")) | (sixth == ord("o")))
    if (math | tex).any():
        return True
    return any(source.startswith((b"-tex", b"-formula"), position + 3) for position in at_pairs[data].tolist())


def formulas_as_tex(tree: LexborHTMLParser) -> None:
    """Replace the formulas of a page by their TeX: `$...$`, or `$$...$$` for displayed ones."""
    body = tree.body
    if body is None:
        return
    nodes = body.css(FORMULAS)
    scripted = any(node.tag == "script" for node in nodes)
    formulas: dict[int, tuple[LexborNode, str]] = {}
    for node in nodes:
        if not formulas or not _inside(node, formulas):
            tex = _tex_of(node, scripted)
            if tex is not None:
                tex = _tidy(tex)
                text = "" if not tex else f"$${tex}$$" if _is_display(node) else f"${tex}$"
                formulas[node.mem_id] = node, text
    for node, text in formulas.values():  # only now, as replacing an element frees those inside it
        if text:
            text = " " * _touches(node.prev, -1) + text + " " * _touches(node.next, 0)
        node.replace_with(text)


def _touches(neighbour: LexborNode | None, end: int) -> bool:
    """Whether a formula needs a space between itself and its neighbour."""
    if neighbour is None or not neighbour.is_text_node:
        return neighbour is not None
    text = neighbour.text_content or ""
    letter = text[-1:] if end else text[:1]
    return letter.isalnum() or letter == "$"


def _inside(node: LexborNode, formulas: Container[int]) -> bool:
    parent = node.parent
    while parent is not None:
        if parent.mem_id in formulas:
            return True
        parent = parent.parent
    return False


def _is_display(node: LexborNode) -> bool:
    attributes = node.attributes
    names = (attributes.get("class") or "").split()
    if node.tag == "script":
        return "mode=display" in (attributes.get("type") or "")
    if attributes.get("display") in ("block", "true"):
        return True
    if any("display" in name.lower() and "inline" not in name.lower() for name in names):
        return True
    math = node.css_first("math") if node.tag != "math" else None
    return math is not None and math.attributes.get("display") == "block"


def _tidy(tex: str) -> str:
    tex = " ".join(tex.split())
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if tex.startswith(left) and tex.endswith(right) and len(tex) > len(left) + len(right):
            tex = tex[len(left) : -len(right)].strip()
    if wrapped := WRAPPED.match(tex):
        tex = wrapped[1].strip()
    return tex.removesuffix("%").strip() if tex.endswith("%") and not tex.endswith("\\%") else tex


def _tex_of(node: LexborNode, scripted: bool) -> str | None:
    """The TeX of one element; empty where another element has the same formula; None where it is no formula."""
    attributes = node.attributes
    tag = node.tag
    if tag == "script":
        kind = attributes.get("type") or ""
        if kind.startswith("math/tex"):
            return CDATA.sub("", unescape(node.text(deep=True)))
        return from_mathml(node.text(deep=True)) if kind.startswith("math/mml") else None
    if tag == "img":
        return _image_tex(attributes)
    names = attributes.get("class") or ""
    if "MathJax_Preview" in names:
        return "" if scripted else None
    if "MathJax" in names or "mjx-chtml" in names:
        if scripted:
            return ""
        if attributes.get("data-mathml"):
            return from_mathml(attributes["data-mathml"] or "")
    math = node if tag == "math" else node.css_first("math")
    if math is not None:
        tex = _annotated(math)
        if tex:
            return tex
    for name in DATA:
        value = attributes.get(name)
        if value and (name != "data-math" or TEX_LIKE.search(value)):
            return value
    if math is not None:
        return mathml_tex(math) or None
    image = node.css_first("img[alt]") if "mwe-math" in names else None
    return image.attributes.get("alt") if image is not None else None


def _image_tex(attributes: dict[str, str | None]) -> str | None:
    alt = (attributes.get("alt") or "").strip()
    query = IMAGE_QUERY.search(attributes.get("data-src") or attributes.get("src") or "")
    if query and not TEX_LIKE.search(alt):
        tex = query[1] or query[2] or query[3]
        if not query[1] and "%" in tex:  # encoded as a form's query is: + is a space, %2B a plus
            tex = tex.replace("+", " ")
        tex = unquote(tex).replace("&space;", " ").strip()
        while (shorter := SCALING.sub("", tex).strip()) != tex:
            tex = shorter
        return tex
    if query or (alt and IMAGE_CLASS.intersection((attributes.get("class") or "").lower().split())):
        return alt
    return None


def _annotated(math: LexborNode) -> str | None:
    for annotation in math.css("annotation"):
        if "tex" in (annotation.attributes.get("encoding") or "").lower():
            tex = annotation.text(deep=True).strip()
            if tex:
                return tex
    return math.attributes.get("alttext")


def from_mathml(source: str) -> str:
    """TeX of MathML in a string, such as an attribute or a script holds."""
    tree = LexborHTMLParser(unescape(source) if "&lt;" in source else source)
    math = tree.css_first("math")
    if math is None:
        return ""
    return _annotated(math) or mathml_tex(math)
