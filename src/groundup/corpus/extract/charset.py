"""The text of a body's bytes: of the charsets that are stated or likely, the one whose letters make the best reading.

Labels are wrong, a stray byte or a cut in the middle of a character happens, and pages hold insertions in another charset.
So nothing is believed for being stated: UTF-8 is what decodes as such but for a few places, which are replaced and counted;
of other charsets the one that gives the likeliest letters is taken (`letter_frequencies.fit`), a stated one if none is clearly
better.
Then each piece between tags that only the other of the two can read is read by that.
"""

import re

from resiliparse.parse.encoding import map_encoding_to_html5

from groundup.corpus.archive.content_type import HTML_TYPES
from groundup.corpus.extract.letter_frequencies import fit, likeliest

MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
UTF16_TAGS = {
    "utf-16-le": re.compile(rb"[<\n]\0(?=[\x20-\x7e\n\r]\0)"),
    "utf-16-be": re.compile(rb"\0[<\n](?=\0[\x20-\x7e\n\r])"),
}
REPLACEMENT = "\ufffd"
META_WITHIN = 4096  # bytes; the standard says 1,024, and pages say it later
META = re.compile(
    rb"""<(?:meta\b[^>]{0,500}?\bcharset|\?xml\b[^>]{0,200}?\bencoding)\s{0,10}=\s{0,10}["']?\s{0,10}([\w.:-]{1,40})""",
    re.IGNORECASE,
)
# The standard's decoders are of larger sets than Python's of those names.
WIDER = {
    "shift_jis": "cp932", "euc-kr": "cp949", "euc_kr": "cp949", "gbk": "gb18030", "gb2312": "gb18030", "big5": "big5hkscs",
    "iso8859-11": "cp874",
}  # fmt: skip
# To resiliparse; hz-gb-2312 and iso-2022-kr the standard replaces by one U+FFFD, since they can hide scripts from filters. Three
# labels have no codec, and such pages are read in the likeliest charset or given up: replacement, iso-2022-cn and x-user-defined
# (128 private characters: what they look like lies in a font).
UNKNOWN_THERE = {
    "x-mac-cyrillic": "mac_cyrillic", "x-mac-ukrainian": "mac_cyrillic", "hz-gb-2312": "hz", "iso-2022-kr": "iso2022_kr",
    "csiso2022kr": "iso2022_kr",
}  # fmt: skip
OF_SEVEN_BITS = ("iso2022_jp_ext", "iso2022_kr")
SHIFTED = re.compile(rb"\x1b\$[^\x1b\x0f]*\x0f?|\x0e[^\x0e\x0f\x1b]*\x0f?")  # what is not in ASCII's letters
# What pages are in that state nothing or lie, likelier ones first.
LIKELY = (
    "cp1252", "cp1251", "gb18030", "cp932", "euc_jp", "cp949", "big5hkscs", "cp1250", "iso8859_2", "cp1254", "cp1256", "cp1255",
    "cp874", "iso8859_7", "cp1253", "cp1257", "koi8_u", "iso8859_5", "cp866", "iso8859_6",
)  # fmt: skip
OF_TWO_BYTES = ("gb18030", "cp932", "euc_jp", "cp949", "big5hkscs")  # which two bytes of UTF-8 may be a character of
RELATED = (  # charsets of one language
    ("cp1251", "koi8_r", "koi8_u", "iso8859_5", "cp866"), ("cp932", "euc_jp"), ("gb18030", "big5hkscs"), ("cp1256", "iso8859_6"),
    ("cp1253", "iso8859_7"), ("cp1250", "iso8859_2"),
)  # fmt: skip
STATED_BONUS = 0.05  # of a fit: what header and page state is taken when another is better by no more
READABLE = 0.3  # least fit of a reading that is not UTF-8; of bytes at random it is below 0.2
PIECE = re.compile(rb"[<\n]?[^<\n]+|[<\n]")  # neither byte is part of a character in any charset here
SAMPLE = 3000  # bytes of pieces beyond ASCII that a charset is told by
INSERTED = 6  # bytes beyond ASCII, and more, are an insertion in another charset, and fewer are damage
INSERTED_LINE = 30  # from so many on a piece's charset is told by itself, and where it fits less well by so much more than all
LESS = 0.2
MOST_SIGNS = 200  # bytes
MOST_PIECES = 500  # that are looked at: 0.2 ms each


def decoded(body: bytes, charset: str | None, content_type: str) -> tuple[str, int]:
    """The text, and how many invalid places in it were replaced by U+FFFD."""
    header = _codec(charset)
    for mark, codec in MARKS:
        if body.startswith(mark):
            body, header = body[len(mark) :], codec
            if codec != "utf-8":
                return _aligned(body, codec)
    if header and header.startswith("utf-16") and b"\0" in body:
        return _aligned(body, header)
    if b"\x1b" in body and b"\x1b$" in body:
        text, replaced = _replacing(body, OF_SEVEN_BITS[0])  # which writes all in ASCII's bytes
        if fit(text) > READABLE:
            return text, replaced
    if body.isascii():
        return _of_seven_bits(body, header or _codec(_meta(body, content_type)))
    stated = [codec for codec in (header, _codec(_meta(body, content_type))) if codec]
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        return _not_quite_utf8(body, stated, error)
    # What the page itself says does not matter: what decodes as UTF-8 is that, but for two bytes of Chinese or Japanese.
    if header and header != "utf-8" and not header.startswith("utf-16"):
        sample = _sample(body)
        if fit(sample.decode(header, "replace")) > fit(sample.decode("utf-8", "replace")):
            return _replacing(body, header)
    return text, 0


def _of_seven_bits(body: bytes, stated: str | None) -> tuple[str, int]:
    """ASCII, or Chinese or Korean written in its bytes; what is shifted to letters that no codec reads is replaced."""
    shifted = b"\x1b$" in body
    for codec in [*OF_SEVEN_BITS] * shifted + ["hz"] * (stated == "hz" and b"~{" in body):
        text, replaced = _replacing(body, codec)
        if fit(text) > READABLE:
            return text, replaced
    if shifted:
        body = SHIFTED.sub(lambda run: b"\xff" * max(1, len(run[0]) // 2), body)
    return _replacing(body, "ascii")


def _aligned(body: bytes, codec: str) -> tuple[str, int]:
    """UTF-16: where a byte is lost or too many, what follows would be other characters, so the tags and line ends that are not in
    step with those before start again."""
    parts, start, odd = [], 0, 0
    for mark in UTF16_TAGS[codec].finditer(body):
        if mark.start() % 2 != odd:
            parts.append(body[start : mark.start()])
            start, odd = mark.start(), 1 - odd
    return _joined([_replacing(part, codec) for part in [*parts, body[start:]]])


def _not_quite_utf8(body: bytes, stated: list[str], error: UnicodeDecodeError) -> tuple[str, int]:
    text, replaced = _replacing(body, "utf-8")
    # Of other charsets read as UTF-8 a quarter of the characters is valid at most (Thai, Chinese), of most none.
    few = replaced <= _foreign(text)
    if few or (replaced == 1 and error.reason == "unexpected end of data"):
        return _insertions_in_utf8(body, stated) if few and replaced >= INSERTED else (text, replaced)
    if (signs := _signs(body, stated)) is not None:
        return signs, 0
    # Of one or two bytes the commonest charset's reading is likely enough, and that they are damage.
    codec = _likeliest(body, stated, LIKELY if _beyond_ascii(body) >= INSERTED else LIKELY[:1])
    return _with_insertions(body, codec) if codec else (text, replaced)


def _signs(body: bytes, stated: list[str]) -> str | None:
    """The text by a stated charset of two bytes a character in which all is valid, and signs alone are beyond ASCII: too few
    of them, as the quotation marks of an English page, say by how common they are which charset they are in."""
    for codec in stated:
        if codec in OF_TWO_BYTES and _beyond_ascii(body) < MOST_SIGNS:
            try:
                text = body.decode(codec)
            except UnicodeDecodeError:
                continue
            if not any(sign.isalnum() for sign in text if sign > "\x7f"):
                return text
    return None


def _insertions_in_utf8(body: bytes, stated: list[str]) -> tuple[str, int]:
    """The text of a page of UTF-8 whose pieces that are not are of the charset that they read best in together."""
    pieces = PIECE.findall(body)
    inserted = b"\n".join([piece for piece in pieces if not _is_utf8(piece)])
    other = _likeliest(inserted, stated, LIKELY) if _beyond_ascii(inserted) >= INSERTED else None
    if not other:
        return _replacing(body, "utf-8")
    return _joined([_replacing(piece, "utf-8" if _is_utf8(piece) else other) for piece in pieces])


def _with_insertions(body: bytes, codec: str) -> tuple[str, int]:
    """The text of a page in another charset, its pieces that do not read well in it by the one that they do in."""
    usual = fit(_sample(body).decode(codec, "replace")) - LESS
    pieces = PIECE.findall(body)
    least = INSERTED if codec in OF_TWO_BYTES else 2
    looked_at = [place for place, piece in enumerate(pieces) if _beyond_ascii(piece) >= least][:MOST_PIECES]
    codecs = {place: _codec_of_piece(pieces[place], codec, usual) for place in looked_at}
    return _joined([_replacing(piece, codecs.get(place, codec)) for place, piece in enumerate(pieces)])


def _codec_of_piece(piece: bytes, codec: str, usual: float) -> str:
    try:
        if fit(piece.decode("utf-8")) > fit(piece.decode(codec, "replace")):
            return "utf-8"
    except UnicodeDecodeError:
        pass
    if _beyond_ascii(piece) >= INSERTED_LINE and fit(piece.decode(codec, "replace")) < usual:
        others = [other for group in RELATED if codec in group for other in group]
        return _likeliest(piece, [codec], others) or codec
    return codec


def _joined(found: list[tuple[str, int]]) -> tuple[str, int]:
    return "".join([text for text, _ in found]), sum([replaced for _, replaced in found])


def _is_utf8(piece: bytes) -> bool:
    """Whether it has no more invalid places than valid characters beyond ASCII."""
    text = piece.decode("utf-8", "replace")
    return text.count(REPLACEMENT) <= _foreign(text)


def _likeliest(body: bytes, stated: list[str], likely: list[str] | tuple[str, ...]) -> str | None:
    """The charset in which the bytes make the best reading; None where none makes any."""
    sample = _sample(body)
    codecs = [codec for codec in dict.fromkeys([*stated, *likely]) if codec != "utf-8" and not codec.startswith("utf-16")]
    readings = {codec: sample.decode(codec, "replace") for codec in codecs}
    codec, score = likeliest(readings, dict.fromkeys(stated, STATED_BONUS))
    return codec if score >= READABLE else None


def _sample(body: bytes) -> bytes:
    """The pieces with bytes beyond ASCII up to a length, but for those that are UTF-8, if not all are."""
    chosen: dict[bool, list[bytes]] = {True: [], False: []}
    sizes = {True: 0, False: 0}
    for piece in PIECE.findall(body):
        if piece.isascii():
            continue
        valid = _is_utf8(piece)
        if sizes[valid] < SAMPLE:
            chosen[valid].append(piece[:SAMPLE])
            sizes[valid] += len(piece)
        elif not valid:
            break
    return b"\n".join(chosen[False] or chosen[True])


def _replacing(body: bytes, codec: str) -> tuple[str, int]:
    text = body.decode(codec, "replace")
    replaced = text.count(REPLACEMENT)
    # What stands in the body itself says that somebody else's text was damaged.
    return text, replaced - (body.count(REPLACEMENT.encode()) if replaced and codec == "utf-8" else 0)


def _foreign(text: str) -> int:
    """The characters beyond ASCII that are valid."""
    return len(text) - len(text.encode("ascii", "ignore")) - text.count(REPLACEMENT)


def _beyond_ascii(body: bytes) -> int:
    return len(body) - len(body.decode("ascii", "ignore"))


def _codec(label: str | None) -> str | None:
    """Python's codec for a charset's label, of those that the web has (WHATWG Encoding); None for any other."""
    if not label:
        return None
    label = label.strip().lower()
    codec = UNKNOWN_THERE.get(label) or map_encoding_to_html5(label, fallback_utf8=False)
    return WIDER.get(codec, codec).replace("iso8859-", "iso8859_").replace("koi8-", "koi8_") if codec else None


def _meta(body: bytes, content_type: str) -> str | None:
    found = META.search(body, 0, META_WITHIN) if content_type in HTML_TYPES else None
    label = found[1].decode("ascii", "replace") if found else None
    return "utf-8" if label and label.lower().startswith("utf-16") else label  # what is read as ASCII is not UTF-16
