"""Personal data in text: matched by a pattern, confirmed by rules of its type, then replaced by a typed placeholder.

A pattern alone matches version numbers, floats and identifiers too, so each type has a second test: reserved domains for
e-mail, public ranges for IP addresses (`addresses`), numbering plans for telephones (`telephones`), the Luhn sum and
issuers' prefixes for cards (`payment_cards`), country length and ISO 7064 mod 97 for IBANs, check digits for national
identity numbers (`national_ids`), the numbers never issued for US social security. Precision comes first: what is replaced is
lost. Names of people and places are not looked for: no pattern tells the name of a neighbour from that of Newton.

Patterns read the text as `as_read` returns it, in ASCII digits and with an end of a word where Chinese, Japanese, Korean or Thai
letters touch a number or an address; the words near a match are read as they are written.
"""

import ipaddress
import re
import string
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from groundup.corpus.addresses import is_public
from groundup.corpus.annotate import national_ids, payment_cards, telephones


class Span(NamedTuple):
    start: int
    end: int
    type: str


# Every pattern starts with a character that is rare in prose, and looks behind from there: the search skips to such
# characters, which makes one pass over a text several times faster.
MAIL_HOST = re.compile(r"@((?:[^\W_](?:[^\W_]|-){0,62}\.){1,8}[^\W\d_]{2,24})(?![\w@(-])")
MAIL_NAME = re.compile(r"(?<![\w.+%/@-])[^\W_](?:[\w+%-]|\.(?!\.)){0,63}\Z")
MAX_MAIL_NAME = 64  # RFC 5321
# RFC 2606 and RFC 6762: names for documentation and local networks, which no public host has.
RESERVED = re.compile(r"(?:^|\.)(?:example|example\.(?:com|org|net|edu)|test|invalid|localhost|local)$", re.I)
IPV4 = re.compile(r"\d(?<![\w.-].)\d{0,2}\.(?:\d{1,3}\.){2}\d{1,3}(?![\w-]|\.\d)")
IPV6 = re.compile(r"[0-9A-Fa-f](?<![\w:.].)[0-9A-Fa-f]{0,3}(?:::?[0-9A-Fa-f]{1,4}){2,7}(?:::)?(?![\w:]|\.\d)")
VERSION_BEFORE = re.compile(
    r"(?:versions?|ver|v|release|rev|section|sec|chapter|build|верси[яию]|版本?号?|バージョン|버전|เวอร์ชัน|[=<>~^§])[\s.:：\"'(]*$",
    re.I,
)
IBAN = re.compile(  # from its two check digits on; the country code is before them
    r"\d\d(?<!\w....)(?:(?<=[A-Z]{2}..)(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?|(?<=[a-z]{2}..)[a-z0-9]{11,30})(?!\w)"
)
IBAN_COUNTRIES = {  # by length
    15: "NO",
    16: "BE",
    18: "DK FI FO GL NL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "PT",
    26: "IS TR",
    27: "FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB PL",
    29: "BR EG PS QA UA",
    30: "JO KW MU",
    31: "MT SC",
    32: "LC",
}
IBAN_LENGTHS = {country: length for length, countries in IBAN_COUNTRIES.items() for country in countries.split()}
# The Social Security Administration issues no area 000, 666 or 9xx, no group 00 and no serial 0000.
SSN = re.compile(r"[0-8](?<![\w.+/-].)\d\d(?<!000|666)-(?!00)\d\d-(?!0000)\d{4}(?![\w/-]|\.\d)")
# Letters of scripts that write a word next to a number, or a particle next to a foreign word, without a space. To \w they are
# the same word, which then has no end: Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters, Hangul.
UNSPACED_LETTERS = (
    (0x0E01, 0x0E4E), (0x0E81, 0x0ECD), (0x0F40, 0x0FBC), (0x1000, 0x103F), (0x1050, 0x108F), (0x1100, 0x11FF), (0x1780, 0x17D3),
    (0x3005, 0x3007), (0x3041, 0x318E), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7FB), (0xF900, 0xFAFF),
    (0xFF66, 0xFFDC),
)  # fmt: skip
WIDE = {chr(ord(sign) + 0xFEE0) for sign in f"{string.ascii_letters}+-.@"}  # as wide as Chinese characters
HYPHENS = "\u2010\u2011\u2212\u30fc"  # between digits
END_OF_WORD = 0x3001  # an ideographic comma: no pattern takes it for part of a number
HAS_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
# Or a number with letters before it or within.
HAS_LONG_NUMBER = re.compile(r"\d(?:[\d ()./-]{5,}\d|(?<=[A-Z]{4}.)\d|\d{5}A\d)")


def find(text: str, language: str = "en") -> list[Span]:
    """Spans of personal data in order, none overlapping; of two that overlap, the more specific type is kept.

    `language` is a code as `languages.identify` returns it: it decides which national numbering plans and which cues of
    telephone numbers count.
    """
    as_written, text = text, as_read(text)
    finders: list[Callable[[str], Iterator[Span]]] = []
    if "@" in text:
        finders.append(_emails)
    if HAS_COLONS.search(text):
        finders.append(_ipv6)
    if HAS_LONG_NUMBER.search(text):
        finders += [_ibans, partial(_cards, as_written=as_written), partial(_named_ids, as_written=as_written)]
        finders += [partial(_ipv4, as_written=as_written), _ssns, _national_ids]
        finders.append(partial(_phones, as_written=as_written, language=language))
    spans: list[Span] = []
    for finder in finders:
        spans = sorted(spans + [span for span in finder(text) if not _overlaps(span, spans)])
    return spans


class _Characters(NamedTuple):
    """What UTF-16 code units are: arrays of 65,536."""

    plain: np.ndarray  # uint16: the unit itself, or the ASCII digit or sign that it stands for
    letter: np.ndarray  # bool: in UNSPACED_LETTERS
    hyphen: np.ndarray  # bool: in HYPHENS
    read_as_other: np.ndarray  # bool: any of these


@cache
def _characters() -> _Characters:
    plain = np.arange(1 << 16, dtype=np.uint16)
    for point in range(0x80, 1 << 16):
        if (character := chr(point)).isdecimal():
            plain[point] = ord("0") + unicodedata.decimal(character)
        elif character in WIDE:
            plain[point] = point - 0xFEE0
    letter, hyphen = np.zeros(1 << 16, dtype=bool), np.zeros(1 << 16, dtype=bool)
    for first, last in UNSPACED_LETTERS:
        letter[first : last + 1] = True
    hyphen[list(map(ord, HYPHENS))] = True
    return _Characters(plain, letter, hyphen, letter | (plain != np.arange(1 << 16)))


def as_read(text: str) -> str:
    """The text, of the same length, as the patterns read it."""
    if text.isascii():
        return text
    characters = _characters()
    units = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), dtype="<u2")
    if not characters.read_as_other[units].any():
        return text
    letter, hyphen, units = characters.letter[units], characters.hyphen[units], characters.plain[units]
    digit = (units - ord("0")) < 10
    between = np.zeros(len(units), dtype=bool)
    between[1:-1] = digit[:-2] & digit[2:]
    units[hyphen & between] = ord("-")
    ascii_letter = ((units | 0x20) - ord("a")) < 26
    before, after = digit | ascii_letter | np.isin(units, list(b")")), digit | ascii_letter | np.isin(units, list(b"@+("))
    attached = np.zeros(len(units), dtype=bool)
    attached[1:] |= before[:-1]
    attached[:-1] |= after[1:]
    units[letter & attached & ~(hyphen & between)] = END_OF_WORD
    return units.astype("<u2").tobytes().decode("utf-16-le", "surrogatepass")


def _overlaps(span: Span, others: list[Span]) -> bool:
    """`others` are sorted and disjoint: only the last one that starts before the end of `span` can reach into it."""
    before = bisect_left(others, span.end, key=lambda other: other.start)
    return before > 0 and others[before - 1].end > span.start


def redact(text: str, spans: list[Span]) -> str:
    """The text with each span replaced by its type in angle brackets, e.g. `<email>`."""
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], f"<{span.type}>"]
        end = span.end
    return "".join([*parts, text[end:]])


def _emails(text: str) -> Iterator[Span]:
    for match in MAIL_HOST.finditer(text):
        mailbox = MAIL_NAME.search(text, max(0, match.start() - MAX_MAIL_NAME), match.start())
        # git@host is how repositories are addressed; it is nobody's mailbox.
        if mailbox and mailbox[0] != "git" and not RESERVED.search(match[1]):
            yield Span(mailbox.start(), match.end(), "email")


def _ipv4(text: str, as_written: str) -> Iterator[Span]:
    for match in IPV4.finditer(text):
        # 3.1.1.6 is a version or a section: of real addresses fewer than one in a thousand have three one-digit parts.
        short = sum(len(part) == 1 for part in match[0].split(".")) >= 3
        preceding = as_written[max(0, match.start() - 16) : match.start()]
        if not short and (_public(match[0]) or _private_machine(match[0])) and not VERSION_BEFORE.search(preceding):
            yield Span(match.start(), match.end(), "ip_address")


def _private_machine(address: str) -> bool:
    """Whether a private address is one of a large network: it names a machine, unlike the low numbers in manuals."""
    first, second, *others = map(int, address.split("."))
    return first == 10 and 99 < second < 256 and 99 < max(others) < 256


def _ipv6(text: str) -> Iterator[Span]:
    for match in IPV6.finditer(text):
        groups = match[0].split(":")
        # Only 2000::/3 is allocated; elsewhere `1:2:3:4:5:6:7:8` is a ratio or a time, and pairs of digits are the
        # address of a network card. Eight groups of up to four digits, with letters, can only be an address.
        allocated = match[0][0] in "23" and len(groups[0]) == 4
        full = len(groups) == 8 and len(match[0]) > 8 * 3 + 7 - 4 and not match[0].replace(":", "").isdigit()
        if (allocated or full) and _public(match[0]):
            yield Span(match.start(), match.end(), "ip_address")


def _public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return is_public(str(parsed))


def _phones(text: str, as_written: str, language: str) -> Iterator[Span]:
    return (Span(start, end, "phone") for start, end in telephones.find(text, as_written, language))


def _ssns(text: str) -> Iterator[Span]:
    return (Span(*match.span(), "ssn") for match in SSN.finditer(text))


def _cards(text: str, as_written: str) -> Iterator[Span]:
    return (Span(start, end, "card") for start, end in payment_cards.find(text, as_written))


def _national_ids(text: str) -> Iterator[Span]:
    return (Span(start, end, "national_id") for start, end in national_ids.by_form(text))


def _named_ids(text: str, as_written: str) -> Iterator[Span]:
    return (Span(start, end, "national_id") for start, end in national_ids.by_name(text, as_written))


def _ibans(text: str) -> Iterator[Span]:
    for match in IBAN.finditer(text):
        start = end = match.start() - 2
        length = IBAN_LENGTHS.get(text[start : start + 2].upper(), 0)
        # The match may reach into a following word in capitals: cut at the country's length.
        counted = 0
        while end < match.end() and counted < length:
            counted += text[end] != " "
            end += 1
        number = text[start:end].replace(" ", "")
        cut_in_word = end < match.end() and text[end] != " "
        if length and len(number) == length and not cut_in_word and iban_is_valid(number):
            yield Span(start, end, "iban")


def iban_is_valid(number: str) -> bool:
    """Whether the ISO 7064 mod 97-10 check of a number without spaces holds."""
    return int("".join(str(int(character, 36)) for character in number[4:] + number[:4])) % 97 == 1
