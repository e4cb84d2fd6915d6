"""The text of a body's bytes. A few that are invalid do not change the charset: they are replaced, and counted.

A page is of one charset, but a stray byte, an insertion from elsewhere or a cut in the middle of a character happen: read as
another charset for their sake, all of its letters come out wrong. How many characters are valid tells the two apart.
"""

import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

from groundup.corpus.archive.content_type import HTML_TYPES

MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
REPLACEMENT = "\ufffd"
FEW = 3  # invalid bytes that a stated charset survives, whatever else there is
META_WITHIN = 4096  # bytes; the standard says 1,024, and pages say it later
META = re.compile(
    rb"""<(?:meta\b[^>]{0,500}?\bcharset|\?xml\b[^>]{0,200}?\bencoding)\s{0,10}=\s{0,10}["']?\s{0,10}([\w.:-]{1,40})""",
    re.IGNORECASE,
)
# What the end of a page cut inside a character looks like, of characters that no text of a single-byte charset ends with.
CUT = re.compile(rb"(?:[\xc2\xc3]|[\xe0-\xef][\x80-\xbf]|[\xf0-\xf4][\x80-\xbf]{1,2})\Z")


def decoded(body: bytes, charset: str | None, content_type: str) -> tuple[str, int]:
    """The text, and how many invalid places in it were replaced by U+FFFD.

    By byte-order mark, the charset that the header states, the one in the page's own <meta>, UTF-8, or what the bytes
    look like: the first that fits them.
    """
    for mark, codec in MARKS:
        if body.startswith(mark):
            return _replacing(body[len(mark) :], codec)
    header = _codec(charset)
    named = [codec for codec in (header, _codec(_meta(body, content_type))) if codec]
    if (text := _as_utf8(body, header)) is not None:
        return text, 0
    for codec in named:
        text, replaced = _replacing(body, codec)
        if replaced <= max(FEW, _foreign(text)):
            return text, replaced
    text, replaced = _replacing(body, "utf-8")
    # Of other charsets read as UTF-8 a quarter of the characters is valid at most (Thai, Chinese), of most none.
    if replaced <= _foreign(text) or (replaced == 1 and CUT.search(body)):
        return text, replaced
    looks_like = detect_encoding(body, from_html_meta=False)
    return _replacing(body, "cp1252" if looks_like == "utf-8" else looks_like)


def _as_utf8(body: bytes, header: str | None) -> str | None:
    """The text, if the bytes are UTF-8 and what the header says does not speak against it. <meta> does not: what decodes as
    UTF-8 is UTF-8. Nor does Latin-1, which servers state of every page; nor UTF-16 without a null byte."""
    if b"\x1b" in body or not (header in (None, "utf-8", "cp1252") or (header.startswith("utf-16") and b"\0" not in body)):
        return None  # ESC: ISO-2022-JP writes all in ASCII's bytes
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if header == "cp1252" and _foreign(text) == 1 else text


def _replacing(body: bytes, codec: str) -> tuple[str, int]:
    text = body.decode(codec, "replace")
    replaced = text.count(REPLACEMENT)
    # What stands in the body itself says that somebody else's text was damaged.
    return text, replaced - (body.count(REPLACEMENT.encode()) if replaced and codec == "utf-8" else 0)


def _foreign(text: str) -> int:
    """The characters beyond ASCII that are valid."""
    return len(text) - len(text.encode("ascii", "ignore")) - text.count(REPLACEMENT)


def _codec(label: str | None) -> str | None:
    """Python's codec for a charset's label, of those that the web has (WHATWG Encoding); None for any other."""
    return map_encoding_to_html5(label, fallback_utf8=False) if label else None


def _meta(body: bytes, content_type: str) -> str | None:
    found = META.search(body, 0, META_WITHIN) if content_type in HTML_TYPES else None
    label = found[1].decode("ascii", "replace") if found else None
    return "utf-8" if label and label.lower().startswith("utf-16") else label  # what is read as ASCII is not UTF-16
