"""The text of a body's bytes: of the charsets that are stated or likely, the one whose letters make the best reading.

Labels can be wrong, there are stray bytes and cuts in the middle of a character, and pages hold insertions in another charset.
So no label is trusted. A body is UTF-8 if it decodes as such but for a few invalid sequences, which are replaced and counted.
Otherwise the charset that gives the likeliest letters is taken (`letter_frequencies.fit`), a stated one if none is clearly
better. Then each piece between tags that reads well in the other of the two only is decoded by that.
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
META_WITHIN = 4096  # bytes; the standard says 1,024, but some pages have it later
META = re.compile(
    rb"""<(?:meta\b[^>]{0,500}?\bcharset|\?xml\b[^>]{0,200}?\bencoding)\s{0,10}=\s{0,10}["']?\s{0,10}([\w.:-]{1,40})""",
    re.IGNORECASE,
)
# The standard's decoders know larger character sets than Python's codecs of the same names.
WIDER = {
    "shift_jis": "cp932", "euc-kr": "cp949", "euc_kr": "cp949", "gbk": "gb18030", "gb2312": "gb18030", "big5": "big5hkscs",
    "iso8859-11": "cp874",
}  # fmt: skip
# The standard replaces hz-gb-2312 and iso-2022-kr by one U+FFFD, since they can hide scripts from filters. Three labels have no
# codec, and such pages are read in the likeliest charset or given up: replacement, iso-2022-cn and x-user-defined (128 private
# characters, whose shapes are in a font).
UNKNOWN_TO_RESILIPARSE = {
    "x-mac-cyrillic": "mac_cyrillic", "x-mac-ukrainian": "mac_cyrillic", "hz-gb-2312": "hz", "iso-2022-kr": "iso2022_kr",
    "csiso2022kr": "iso2022_kr",
}  # fmt: skip
SEVEN_BIT_CODECS = ("iso2022_jp_ext", "iso2022_kr")
SHIFTED = re.compile(rb"\x1b\$[^\x1b\x0f]*\x0f?|\x0e[^\x0e\x0f\x1b]*\x0f?")  # bytes that do not stand for ASCII
# Charsets of pages that state none or a wrong one, likelier ones first.
LIKELY = (
    "cp1252", "cp1251", "gb18030", "cp932", "euc_jp", "cp949", "big5hkscs", "cp1250", "iso8859_2", "cp1254", "cp1256", "cp1255",
    "cp874", "iso8859_7", "cp1253", "cp1257", "koi8_u", "iso8859_5", "cp866", "iso8859_6",
)  # fmt: skip
TWO_BYTE_CODECS = ("gb18030", "cp932", "euc_jp", "cp949", "big5hkscs")  # two bytes of UTF-8 may be a character in these
RELATED = (  # charsets of one language
    ("cp1251", "koi8_r", "koi8_u", "iso8859_5", "cp866"), ("cp932", "euc_jp"), ("gb18030", "big5hkscs"), ("cp1256", "iso8859_6"),
    ("cp1253", "iso8859_7"), ("cp1250", "iso8859_2"),
)  # fmt: skip
STATED_BONUS = 0.05  # of a fit: a stated charset is taken unless another is better by more
READABLE = 0.3  # least fit of a reading that is not UTF-8; for random bytes it is below 0.2
PIECE = re.compile(rb"[<\n]?[^<\n]+|[<\n]")  # neither byte is part of a character in any charset here
SAMPLE = 3000  # bytes of pieces beyond ASCII that decide a charset
INSERTED = 6  # from this many bytes beyond ASCII on, a piece is an insertion in another charset; fewer are damage
INSERTED_LINE = 30  # from this many on, a piece has a charset of its own if it fits by FIT_MARGIN less than the page does
FIT_MARGIN = 0.2
MOST_SIGNS = 200  # bytes
MOST_PIECES = 500  # that are tested: 0.2 ms each


def decoded(body: bytes, charset: str | None, content_type: str) -> tuple[str, int]:
    """The text, and how many invalid sequences in it were replaced by U+FFFD."""
    header = _codec(charset)
    for mark, codec in MARKS:
        if body.startswith(mark):
            body, header = body[len(mark) :], codec
            if codec != "utf-8":
                return _decode_utf16(body, codec)
    if header and header.startswith("utf-16") and b"\0" in body:
        return _decode_utf16(body, header)
    if b"\x1b" in body and b"\x1b$" in body:
        text, replaced = _decode_replacing(body, SEVEN_BIT_CODECS[0])
        if fit(text) > READABLE:
            return text, replaced
    if body.isascii():
        return _decode_seven_bits(body, header or _codec(_meta_label(body, content_type)))
    stated = [codec for codec in (header, _codec(_meta_label(body, content_type))) if codec]
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        return _decode_invalid_utf8(body, stated, error)
    # What decodes as UTF-8 is UTF-8, whatever the page's own label. But two of its bytes may be a Chinese or Japanese character.
    if header and header != "utf-8" and not header.startswith("utf-16"):
        sample = _sample(body)
        if fit(sample.decode(header, "replace")) > fit(sample.decode("utf-8", "replace")):
            return _decode_replacing(body, header)
    return text, 0


def _decode_seven_bits(body: bytes, stated: str | None) -> tuple[str, int]:
    """ASCII, or Chinese or Korean in seven-bit bytes; shifted bytes that no codec reads are replaced."""
    shifted = b"\x1b$" in body
    for codec in [*SEVEN_BIT_CODECS] * shifted + ["hz"] * (stated == "hz" and b"~{" in body):
        text, replaced = _decode_replacing(body, codec)
        if fit(text) > READABLE:
            return text, replaced
    if shifted:
        body = SHIFTED.sub(lambda run: b"\xff" * max(1, len(run[0]) // 2), body)
    return _decode_replacing(body, "ascii")


def _decode_utf16(body: bytes, codec: str) -> tuple[str, int]:
    """UTF-16. After a lost or extra byte all characters would be wrong, so decoding starts again at each tag or line end that is
    out of step with those before."""
    parts, start, odd = [], 0, 0
    for mark in UTF16_TAGS[codec].finditer(body):
        if mark.start() % 2 != odd:
            parts.append(body[start : mark.start()])
            start, odd = mark.start(), 1 - odd
    return _join([_decode_replacing(part, codec) for part in [*parts, body[start:]]])


def _decode_invalid_utf8(body: bytes, stated: list[str], error: UnicodeDecodeError) -> tuple[str, int]:
    text, replaced = _decode_replacing(body, "utf-8")
    # In other charsets read as UTF-8 at most a quarter of the characters is valid (Thai, Chinese), in most of them none.
    few = replaced <= _foreign_count(text)
    if few or (replaced == 1 and error.reason == "unexpected end of data"):
        return _insertions_in_utf8(body, stated) if few and replaced >= INSERTED else (text, replaced)
    if (signs := _decode_signs(body, stated)) is not None:
        return signs, 0
    # Of one or two bytes a reading in the commonest charset is likely enough; otherwise they are damage.
    codec = _likeliest(body, stated, LIKELY if _non_ascii_count(body) >= INSERTED else LIKELY[:1])
    return _with_insertions(body, codec) if codec else (text, replaced)


def _decode_signs(body: bytes, stated: list[str]) -> str | None:
    """The text by a stated charset of two bytes per character, if all is valid and only signs are beyond ASCII, as the quotation
    marks of an English page: they are too few to tell a charset by their frequency."""
    for codec in stated:
        if codec in TWO_BYTE_CODECS and _non_ascii_count(body) < MOST_SIGNS:
            try:
                text = body.decode(codec)
            except UnicodeDecodeError:
                continue
            if not any(sign.isalnum() for sign in text if sign > "\x7f"):
                return text
    return None


def _insertions_in_utf8(body: bytes, stated: list[str]) -> tuple[str, int]:
    """The text of a page of UTF-8 with insertions: its other pieces are decoded by the charset that fits them best together."""
    pieces = PIECE.findall(body)
    inserted = b"\n".join([piece for piece in pieces if not _is_utf8(piece)])
    other = _likeliest(inserted, stated, LIKELY) if _non_ascii_count(inserted) >= INSERTED else None
    if not other:
        return _decode_replacing(body, "utf-8")
    return _join([_decode_replacing(piece, "utf-8" if _is_utf8(piece) else other) for piece in pieces])


def _with_insertions(body: bytes, codec: str) -> tuple[str, int]:
    """The text of a page in another charset; pieces that do not read well in it are decoded by one that fits them."""
    min_fit = fit(_sample(body).decode(codec, "replace")) - FIT_MARGIN
    pieces = PIECE.findall(body)
    min_bytes = INSERTED if codec in TWO_BYTE_CODECS else 2
    tested = [index for index, piece in enumerate(pieces) if _non_ascii_count(piece) >= min_bytes][:MOST_PIECES]
    codecs = {index: _codec_of_piece(pieces[index], codec, min_fit) for index in tested}
    return _join([_decode_replacing(piece, codecs.get(index, codec)) for index, piece in enumerate(pieces)])


def _codec_of_piece(piece: bytes, codec: str, min_fit: float) -> str:
    try:
        if fit(piece.decode("utf-8")) > fit(piece.decode(codec, "replace")):
            return "utf-8"
    except UnicodeDecodeError:
        pass
    if _non_ascii_count(piece) >= INSERTED_LINE and fit(piece.decode(codec, "replace")) < min_fit:
        others = [other for group in RELATED if codec in group for other in group]
        return _likeliest(piece, [codec], others) or codec
    return codec


def _join(pieces: list[tuple[str, int]]) -> tuple[str, int]:
    return "".join([text for text, _ in pieces]), sum([replaced for _, replaced in pieces])


def _is_utf8(piece: bytes) -> bool:
    """Whether it has no more invalid sequences than valid characters beyond ASCII."""
    text = piece.decode("utf-8", "replace")
    return text.count(REPLACEMENT) <= _foreign_count(text)


def _likeliest(body: bytes, stated: list[str], likely: list[str] | tuple[str, ...]) -> str | None:
    """The charset in which the bytes make the best reading; None where no reading is good enough."""
    sample = _sample(body)
    codecs = [codec for codec in dict.fromkeys([*stated, *likely]) if codec != "utf-8" and not codec.startswith("utf-16")]
    readings = {codec: sample.decode(codec, "replace") for codec in codecs}
    codec, score = likeliest(readings, dict.fromkeys(stated, STATED_BONUS))
    return codec if score >= READABLE else None


def _sample(body: bytes) -> bytes:
    """The pieces with bytes beyond ASCII, up to a length: those that are not UTF-8, or all if all are."""
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


def _decode_replacing(body: bytes, codec: str) -> tuple[str, int]:
    text = body.decode(codec, "replace")
    replaced = text.count(REPLACEMENT)
    # A U+FFFD in the body itself is damage from before, not ours.
    return text, replaced - (body.count(REPLACEMENT.encode()) if replaced and codec == "utf-8" else 0)


def _foreign_count(text: str) -> int:
    """The number of valid characters beyond ASCII."""
    return len(text) - len(text.encode("ascii", "ignore")) - text.count(REPLACEMENT)


def _non_ascii_count(body: bytes) -> int:
    return len(body) - len(body.decode("ascii", "ignore"))


def _codec(label: str | None) -> str | None:
    """Python's codec for a label of the web (WHATWG Encoding); None for any other label."""
    if not label:
        return None
    label = label.strip().lower()
    codec = UNKNOWN_TO_RESILIPARSE.get(label) or map_encoding_to_html5(label, fallback_utf8=False)
    return WIDER.get(codec, codec).replace("iso8859-", "iso8859_").replace("koi8-", "koi8_") if codec else None


def _meta_label(body: bytes, content_type: str) -> str | None:
    match = META.search(body, 0, META_WITHIN) if content_type in HTML_TYPES else None
    label = match[1].decode("ascii", "replace") if match else None
    return "utf-8" if label and label.lower().startswith("utf-16") else label  # what is read as ASCII is not UTF-16
