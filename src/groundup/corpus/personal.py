"""Personal data in text: found by pattern, then proved by its own rules, then replaced by a typed placeholder.

A pattern alone finds version numbers, floats and identifiers, so each type has a second test: reserved domains for
e-mail, public ranges for addresses (`ipaddress`), numbering plans for telephones (phonenumbers), the Luhn sum and
issuer prefix for cards, country length and ISO 7064 mod 97 for IBANs. Precision comes first: what is replaced is lost.
"""

import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple

import phonenumbers


class Span(NamedTuple):
    start: int
    end: int
    type: str


EMAIL = re.compile(
    r"(?<![\w.+%/@-])[A-Za-z0-9](?:[\w+%-]|\.(?!\.)){0,63}"
    r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24})(?![\w@(-])"
)
# RFC 2606 and RFC 6762: names that lead nowhere, for documentation.
RESERVED = re.compile(r"(?:^|\.)(?:example|example\.(?:com|org|net|edu)|test|invalid|localhost|local)$", re.I)
IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}(?:::?[0-9A-Fa-f]{1,4}){2,7}(?:::)?(?![\w:]|\.\d)")
VERSION_BEFORE = re.compile(r"(?:versions?|ver|v|release|rev|section|sec|chapter|build|[=<>~^§])[\s.:\"'(]*$", re.I)
PHONE = re.compile(
    r"(?<![\w.$#/=-])"
    r"(?:\+\d{1,3}(?:[ .-]?(?:\(\d{1,4}\)|\d{2,12})){1,6}"
    r"|\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}([-. ])\d{3}\1\d{4})(?: ?(?:x|ext\.?) ?\d{1,6})?(?![\w/=-]|\.\d)"
)
CARD = re.compile(r"(?<![\w.+-])(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}|3[47]\d{2}([ -]?)\d{6}\2\d{5})(?![\w-]|\.\d)")
CARD_ISSUER = re.compile(r"4|5[1-5]|2(?:2[2-9]|[3-6]|7[01]|720)|3[47]|6011|65|35")
IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
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
HAS_LONG_NUMBER = re.compile(r"\d[\d ().-]{6,}\d")


def find(text: str) -> list[Span]:
    """Spans of personal data in order of place, none overlapping; of two that overlap, the more specific type stays."""
    finders = []
    if "@" in text:
        finders.append(_emails)
    if text.count(":") >= 2:
        finders.append(_ipv6)
    if HAS_LONG_NUMBER.search(text):
        finders += [_ibans, _cards, _ipv4, _phones]
    found: list[Span] = []
    for finder in finders:
        taken = list(found)
        found += [span for span in finder(text) if not any(span.start < t.end and t.start < span.end for t in taken)]
    return sorted(found)


def redact(text: str, spans: list[Span]) -> str:
    """The text with each span replaced by its type in angle brackets, e.g. `<email>`."""
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], f"<{span.type}>"]
        end = span.end
    return "".join([*parts, text[end:]])


def _emails(text: str) -> Iterator[Span]:
    for match in EMAIL.finditer(text):
        # git@host is how every repository is addressed; it is nobody's mailbox.
        if not RESERVED.search(match[1]) and not match[0].startswith("git@"):
            yield Span(match.start(), match.end(), "email")


def _ipv4(text: str) -> Iterator[Span]:
    for match in IPV4.finditer(text):
        # 3.1.1.6 is a version or a section: of real addresses less than one in a thousand has three one-digit parts.
        short = sum(len(part) == 1 for part in match[0].split(".")) >= 3
        before = text[max(0, match.start() - 16) : match.start()]
        if not short and _public(match[0]) and not VERSION_BEFORE.search(before):
            yield Span(match.start(), match.end(), "ip_address")


def _ipv6(text: str) -> Iterator[Span]:
    for match in IPV6.finditer(text):
        # Only 2000::/3 is given out; elsewhere `1:2:3:4:5:6:7:8` is a ratio or a time.
        if match[0][0] in "23" and len(match[0].split(":")[0]) == 4 and _public(match[0]):
            yield Span(match.start(), match.end(), "ip_address")


def _public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast


def _phones(text: str) -> Iterator[Span]:
    for match in PHONE.finditer(text):
        if re.fullmatch(r"\+\d+\.\d+", match[0]):  # a decimal number with its sign
            continue
        # Without a + only North American numbers written with separators count: ten bare digits are any identifier.
        try:
            number = phonenumbers.parse(match[0], "US")
        except phonenumbers.NumberParseException:
            continue
        national = str(number.national_number)
        # 555-0100 to 555-0199 are kept for films and books.
        fictional = number.country_code == 1 and national[3:8] == "55501"
        if phonenumbers.is_valid_number(number) and not fictional:
            yield Span(match.start(), match.end(), "phone")


def _cards(text: str) -> Iterator[Span]:
    for match in CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if CARD_ISSUER.match(digits) and luhn(digits):
            yield Span(match.start(), match.end(), "card")


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def _ibans(text: str) -> Iterator[Span]:
    for match in IBAN.finditer(text):
        length = IBAN_LENGTHS.get(match[0][:2], 0)
        # The pattern may have run on into a following word in capitals: cut at the country's length.
        end = match.start()
        seen = 0
        while end < match.end() and seen < length:
            seen += text[end] != " "
            end += 1
        number = text[match.start() : end].replace(" ", "")
        cut_in_word = end < match.end() and text[end] != " "
        if length and len(number) == length and not cut_in_word and iban_holds(number):
            yield Span(match.start(), end, "iban")


def iban_holds(number: str) -> bool:
    """Whether the ISO 7064 mod 97-10 check holds, for a number without spaces."""
    return int("".join(str(int(character, 36)) for character in number[4:] + number[:4])) % 97 == 1
