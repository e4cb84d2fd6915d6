"""A bound on what a page can cost its parser.

HTML parsers take time quadratic in depth: 300,000 nested <div> keep Lexbor for minutes. And formatting that was left
open is opened anew in every block that follows, so that a small page becomes a tree of millions. Such pages are cut
off before they are parsed. A cheap count of start and end tags clears nearly all; the others have their tags read.
"""

import re
from collections import Counter

import numpy as np

MAX_BYTES = 20_000_000
MAX_DEPTH = 1000
TAG = re.compile(rb"<(/?)([a-zA-Z][^\s>/]*)")
VOID = frozenset(b"area base br col embed hr img input link meta param source track wbr path".split())
ENDED = frozenset((b"p",))  # what a start tag ends, where that has no end tag of its own
ENDED_BY = {name: ENDED | frozenset(ends.split()) for name, ends in (
    (b"li", b"li"), (b"dd", b"dd dt"), (b"dt", b"dd dt"), (b"td", b"td th"), (b"th", b"td th"), (b"tr", b"td th tr"),
    (b"tbody", b"td th tr tbody thead"), (b"option", b"option"),
)}  # fmt: skip
FORMATTING = frozenset(b"a b big code em font i nobr s small strike strong tt u".split())
ENDED_BY |= dict.fromkeys((*FORMATTING, b"span", b"sup", b"sub"), frozenset())
STEP = np.zeros(1 << 16, dtype=np.int8)  # by the two characters after `<`: does a tag that begins so go deeper?
STEP.reshape(256, 256)[ord("a") : ord("z") + 1] = 1
STEP.reshape(256, 256)[ord("/")] = -1
for _void in ("br", "hr", "im", "wb", "so"):
    STEP[ord(_void[0]) << 8 | ord(_void[1])] = 0


def bounded(html: bytes) -> tuple[bytes, bool]:
    """The HTML up to where it is too long or nested too deep for a parser that is quadratic in depth; whether it was cut."""
    if cut := len(html) > MAX_BYTES:
        html = html[:MAX_BYTES]
    letters = np.frombuffer(html + b"  ", dtype=np.uint8)
    at = np.flatnonzero(letters == ord("<"))
    after = letters[at + 1] | 0x20
    step = STEP[after.astype(np.uint16) << 8 | letters[at + 2] | 0x20]
    if len(step) == 0 or np.cumsum(step, dtype=np.int64).max() <= MAX_DEPTH:  # too much by the <p> and <li> left open
        return html, cut
    end = _depth_end(html)
    return html[:end], cut or end < len(html)


def _depth_end(html: bytes) -> int:
    """Where nesting first passes MAX_DEPTH, as a parser would mend it. Formatting left open is opened in every block anew."""
    names: list[bytes] = []
    open_count: Counter[bytes] = Counter()
    reopened = 0
    raw = b""  # the <script> or <style> that is being read: what looks like tags in it is none
    for match in TAG.finditer(html):
        name = match[2].lower()
        if raw:
            if match[1] and name == raw:
                raw = b""
            continue
        if not match[1]:
            if name in VOID:
                continue
            if name in (b"script", b"style"):
                raw = name
                continue
            while names and names[-1] in ENDED_BY.get(name, ENDED):
                open_count[names.pop()] -= 1
            names.append(name)
            open_count[name] += 1
            if len(names) + 4 * reopened > MAX_DEPTH:
                return match.start()
        elif open_count[name]:
            while True:
                last = names.pop()
                open_count[last] -= 1
                if last == name:
                    break
                reopened += last in FORMATTING
        elif name in FORMATTING and reopened:
            reopened -= 1
    return len(html)
