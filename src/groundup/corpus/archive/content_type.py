"""The content type of a page's body: one answer for the crawler, archives and files, whatever a server claims.

The first valid type that is stated counts, then what an archive's writer identified, then the first bytes. Whatever is
stated, a body with the magic number of another format or full of control bytes is no text, and its root element decides
what XML is.
"""

import re
from collections.abc import Iterable

import numpy as np

HTML_TYPES = ("text/html", "application/xhtml+xml")
FEED = "application/rss+xml"  # RSS of any version, RDF and Atom: a list of pages, none itself
XML = "application/xml"
BINARY = "application/octet-stream"
PLAIN = "text/plain"
HEAD_BYTES = 4096  # looked at for magic numbers and the root element
CONTROL_CHECK_BYTES = 1 << 16  # looked at for control bytes: in all of a large body it would be a third of an archive's reading
MAX_LENGTH = 100  # of a type
MAX_CONTROL = 0.05  # share of control bytes; in random bytes it is 0.1, in ordinary pages next to 0
FEW_CONTROLS = 4  # this many are allowed in the shortest text
TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
UNKNOWN = frozenset(("unknown/unknown", "application/unknown", "content/unknown", "application/x-unknown"))
# Style sheets and scripts of pages: a browser's archive holds as many of them as pages. The scripts' types are WHATWG's.
PAGE_ASSETS = re.compile(r"text/(?:css|(?:x-)?(?:java|j|live|ecma)script[\d.]*|x-component|cache-manifest|event-stream)")
HTML_ALIASES = re.compile(r"text/.*htm")  # text/htm, text/x-server-parsed-html
SPACE = b" \t\r\n\x0b\x0c"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
MARKS = {
    b"%PDF-": "application/pdf", b"%!PS-": "application/postscript", b"{\\rtf": "application/rtf",
    b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF87a": "image/gif", b"GIF89a": "image/gif",
    b"II*\0": "image/tiff", b"MM\0*": "image/tiff", b"\0\0\1\0": "image/x-icon",
    b"\x1f\x8b": "application/gzip", b"PK\3\4": "application/zip", b"PK\5\6": "application/zip",
    b"7z\xbc\xaf\x27\x1c": "application/x-7z-compressed", b"Rar!\x1a\7": "application/vnd.rar",
    b"BZh91AY&SY": "application/x-bzip2", b"\xfd7zXZ\0": "application/x-xz", b"\x28\xb5\x2f\xfd": "application/zstd",
    b"\x04\x22\x4d\x18": "application/x-lz4", b"OggS\0": "audio/ogg", b"fLaC\0": "audio/flac",
    b"ID3\2": "audio/mpeg", b"ID3\3": "audio/mpeg", b"ID3\4": "audio/mpeg", b"\x1aE\xdf\xa3": "video/webm",
    b"FLV\1": "video/x-flv", b"wOFF": "font/woff", b"wOF2": "font/woff2", b"OTTO\0": "font/otf", b"\0\1\0\0\0": "font/ttf",
    b"\x7fELF": BINARY, b"\0asm": "application/wasm", b"\xca\xfe\xba\xbe": BINARY,
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "application/x-ole-storage", b"SQLite format 3\0": "application/vnd.sqlite3",
}  # fmt: skip
ANY_MARK = tuple(MARKS)
RIFF = re.compile(rb"RIFF.{4}(WEBP|WAVE|AVI )", re.DOTALL)
FTYP = re.compile(rb"\0\0.{2}ftyp", re.DOTALL)
# The first element after declarations, instructions and comments, without its namespace's prefix.
ROOT = re.compile(
    rb"(?:\s+|<\?.{0,1000}?\?>|<!--.{0,2000}?-->|<!(?!--)[^>\[]{0,500}(?:\[[^\]]{0,2000}\]\s{0,9})?>)*+"
    rb"<(?:[a-z_][\w.-]{0,50}:)?([a-z][\w.-]{0,50})",
    re.DOTALL | re.IGNORECASE,
)
# WHATWG MIME Sniffing, 7.1: what a page of no stated type begins with.
PAGE_START = re.compile(
    rb"<(?:!doctype html|html|head|script|iframe|h[1-6]|div|font|table|a|style|title|b|body|br|p|meta|link|main|article|section"
    rb"|ul|ol|span)(?=[\s>/])|<!--",
    re.IGNORECASE,
)


def parse_content_type(values: Iterable[str]) -> tuple[str, str | None]:
    """The first valid type in these header values, "" if none, and the first charset. In lower case, names of HTML as text/html.

    'Text/HTML; charset="UTF-8"' -> ('text/html', 'utf-8'). Values may be doubled, absent, or lists with stray commas.
    """
    kind, charset = "", None
    for piece in ",".join(values).lower().split(","):
        name, *parameters = (part.strip() for part in piece.split(";"))
        if not kind and len(name) <= MAX_LENGTH and TYPE.fullmatch(name) and name not in UNKNOWN:
            kind = HTML_TYPES[0] if HTML_ALIASES.match(name) else name
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if charset is None and key.strip() == "charset":
                charset = value.strip(" \t\"'")[:MAX_LENGTH] or None
    return kind, charset


def kind_of_body(kind: str, identified: str, body: bytes, charset: str | None = None) -> str:
    """The type of a body: `kind` as stated, or else as identified, or else by the bytes; the bytes overrule the other two."""
    if mark := _kind_by_mark(body):
        return mark
    if _is_binary(body, charset):
        return BINARY
    kind = kind or parse_content_type([identified])[0] or _sniffed(body)
    if kind in HTML_TYPES or kind in (XML, "text/xml") or kind.endswith("+xml"):
        return _kind_by_root(kind, body)
    return kind


def gives_text(kind: str) -> bool:
    """Whether bodies of this type give text: web pages, and text of any kind but XML, style sheets and scripts."""
    return kind in HTML_TYPES or (kind.startswith("text/") and kind != "text/xml" and not PAGE_ASSETS.fullmatch(kind))


def may_give_text(kind: str) -> bool:
    """Whether a body of this stated type may give text: where the type is missing or XML's, the bytes decide."""
    return not kind or kind in (XML, "text/xml") or gives_text(kind)


def _kind_by_mark(body: bytes) -> str | None:
    """The format whose magic number the body begins with, if any."""
    start = body[:64].removeprefix(b"\xef\xbb\xbf").lstrip(SPACE) or body[:64]
    for text in (body, start):
        if text.startswith(ANY_MARK):
            return next(kind for mark, kind in MARKS.items() if text.startswith(mark))
    if RIFF.match(body) or FTYP.match(body):
        return BINARY
    return None


def _is_binary(body: bytes, charset: str | None) -> bool:
    """Whether many of its bytes, or of its characters if it is UTF-16, are control characters."""
    if body.startswith(UTF16) or (charset or "").startswith(("utf-16", "utf16")):
        codec = "utf-16" if body.startswith(UTF16) else ("utf-16-be" if (charset or "").endswith("be") else "utf-16-le")
        body = body[:HEAD_BYTES].decode(codec, "replace").encode("utf-8", "replace")
    parts = (body[:CONTROL_CHECK_BYTES], body.rstrip(b"\0")[:CONTROL_CHECK_BYTES])  # some archives fill up with null bytes
    return all(_control_count(part) > max(FEW_CONTROLS, len(part) * MAX_CONTROL) for part in parts)


def _control_count(body: bytes) -> int:
    """Bytes below 32, but for white space (9 to 13) and ESC (27), as in ISO-2022-JP. numpy takes a seventh of the time."""
    letters = np.frombuffer(body, dtype=np.uint8)
    return int(np.count_nonzero(letters < 9) + np.count_nonzero(letters - np.uint8(14) < 18) - np.count_nonzero(letters == 27))


def _head(body: bytes) -> bytes:
    start = body[:HEAD_BYTES]
    if start.startswith(UTF16):
        return start.decode("utf-16", "replace").encode()
    return start.removeprefix(b"\xef\xbb\xbf")


def _sniffed(body: bytes) -> str:
    start = _head(body).lstrip(SPACE)
    if start[:5].lower() == b"<?xml":
        return XML
    return HTML_TYPES[0] if PAGE_START.match(start) else PLAIN


def _kind_by_root(kind: str, body: bytes) -> str:
    """The type of HTML or XML by its root element: HTML, a feed, or as stated."""
    root = ROOT.match(_head(body))
    name = root[1].lower() if root else b""
    if name in (b"rss", b"feed", b"rdf"):
        return FEED
    if kind in HTML_TYPES:
        return kind
    return HTML_TYPES[1] if name == b"html" else (XML if kind == "text/xml" else kind)
