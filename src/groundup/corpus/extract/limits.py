"""A bound on the time that a parser takes for a page.

HTML parsers take more than linear time in the depth of elements, in open formatting, since each block that follows opens it
again, and in the attributes of one tag, since each is compared with those before it. Pages that go far beyond real
ones are cut off before they are parsed. A cheap count of start and end tags, and the distance from
one to the next, pass nearly all pages; the tags of the others are parsed.
"""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

MAX_BYTES = 20_000_000
MAX_DEPTH = 1000
MAX_ATTRIBUTES = 2000  # of one tag
LONG_TAG = 3 * MAX_ATTRIBUTES  # bytes: a shorter one cannot have as many
LOOK_BACK = 100  # earlier `<` to try: one in a quoted value begins no tag
MAX_LOOKED_AT = 100 * MAX_ATTRIBUTES  # attributes that are parsed: 0.1 s; the most of 1,497 ordinary pages is 27,000
TAG = re.compile(rb"<(/?)([a-zA-Z][^\s>/]*)")
ATTRIBUTE = re.compile(rb"""[\s/]*[^\s/>][^\s/>=]*(?:\s*=\s*(?:"[^"]*"|'[^']*'|[^\s>]*))?""")
VOID = frozenset(b"area base br col embed hr img input link meta param source track wbr path".split())
RAW = frozenset((b"script", b"style"))
ENDED = frozenset((b"p",))  # elements without an end tag that a start tag ends
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
    """The HTML up to where it is too long, nested too deep or has a tag with too many attributes; whether it was cut."""
    if cut := len(html) > MAX_BYTES:
        html = html[:MAX_BYTES]
    letters = np.frombuffer(html, dtype=np.uint8)
    tag_starts = np.flatnonzero(letters == ord("<"))
    if (end := _attributes_end(html, tag_starts)) < len(html):
        return bounded(html[:end])[0], True
    if len(tag_starts) == 0:
        return html, cut
    after, second = (letters.take(tag_starts + offset, mode="clip") | 0x20 for offset in (1, 2))
    step = STEP[after.astype(np.uint16) << 8 | second]
    if np.cumsum(step, dtype=np.int64).max() <= MAX_DEPTH:  # an upper bound: <p> and <li> may be left open
        return html, cut
    end = _depth_end(html)
    return html[:end], cut or end < len(html)


def _attributes_end(html: bytes, tag_starts: np.ndarray) -> int:
    """Where a tag with more than MAX_ATTRIBUTES begins, or the search reaches its limit. `tag_starts`: offsets of `<`."""
    looked_at = 0
    tags: set[int] | None = None  # offsets of real tags, computed once something looks like a long tag: it may be in a script
    for last in np.flatnonzero(np.diff(tag_starts, append=len(html)) > LONG_TAG).tolist():
        for start in tag_starts[max(0, last - LOOK_BACK) : last + 1][::-1].tolist():
            name = TAG.match(html, start)
            if name is None or (tags is not None and start not in tags):
                continue
            count, end = 0, name.end()
            while count <= MAX_ATTRIBUTES and (attribute := ATTRIBUTE.match(html, end)):
                count, end = count + 1, attribute.end()
            looked_at += count
            if looked_at > MAX_LOOKED_AT:
                return start
            if count > MAX_ATTRIBUTES:
                tags = tags or {tag.start() for tag in _tags(html)}
                if start in tags:
                    return start
            elif end > tag_starts[last]:
                break
    return len(html)


def _tags(html: bytes) -> Iterator[re.Match[bytes]]:
    """The tags, without those in scripts and style sheets."""
    raw = b""
    for match in TAG.finditer(html):
        name = match[2].lower()
        if not raw:
            yield match
            if not match[1] and name in RAW:
                raw = name
        elif match[1] and name == raw:
            raw = b""


def _depth_end(html: bytes) -> int:
    """Where nesting first exceeds MAX_DEPTH, as a parser would repair it. Formatting left open is opened again in every block."""
    names: list[bytes] = []
    open_count: Counter[bytes] = Counter()
    reopened = 0
    for match in _tags(html):
        name = match[2].lower()
        if not match[1]:
            if name in VOID or name in RAW:
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
