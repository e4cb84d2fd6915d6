"""Personal data in text: matched by a pattern, confirmed by rules of its type, then replaced by a typed placeholder.

A pattern alone matches version numbers, floats and identifiers too, so each type has a second test: reserved domains for
e-mail, public ranges for IP addresses (`addresses`), numbering plans for telephones (`telephones`), the Luhn sum and
issuers' prefixes for cards (`payment_cards`), country length and ISO 7064 mod 97 for IBANs, check digits for national
identity numbers (`national_ids`), the numbers never issued for US social security. Precision comes first: what is replaced is
lost. Names of people and places are not looked for: no pattern tells the name of a neighbour from that of Newton.
"""

import ipaddress
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from groundup.corpus.addresses import is_public
from groundup.corpus.annotate import national_ids, payment_cards, telephones


class Span(NamedTuple):
    start: int
    end: int
    type: str


# Every pattern starts with a character that is rare in prose, and looks behind from there: the search skips to such
# characters, which makes one pass over a text several times faster.
MAIL_HOST = re.compile(r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24})(?![\w@(-])")
MAIL_NAME = re.compile(r"(?<![\w.+%/@-])[A-Za-z0-9](?:[\w+%-]|\.(?!\.)){0,63}\Z")
MAX_MAIL_NAME = 64  # RFC 5321
# RFC 2606 and RFC 6762: names for documentation and local networks, which no public host has.
RESERVED = re.compile(r"(?:^|\.)(?:example|example\.(?:com|org|net|edu)|test|invalid|localhost|local)$", re.I)
IPV4 = re.compile(r"\d(?<![\w.-].)\d{0,2}\.(?:\d{1,3}\.){2}\d{1,3}(?![\w-]|\.\d)")
IPV6 = re.compile(r"[0-9A-Fa-f](?<![\w:.].)[0-9A-Fa-f]{0,3}(?:::?[0-9A-Fa-f]{1,4}){2,7}(?:::)?(?![\w:]|\.\d)")
VERSION_BEFORE = re.compile(r"(?:versions?|ver|v|release|rev|section|sec|chapter|build|[=<>~^§])[\s.:\"'(]*$", re.I)
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
HAS_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
# Or a number with letters before it or within.
HAS_LONG_NUMBER = re.compile(r"\d(?:[\d ()./-]{5,}\d|(?<=[A-Z]{4}.)\d|\d{5}A\d)")


def find(text: str, language: str = "en") -> list[Span]:
    """Spans of personal data in order, none overlapping; of two that overlap, the more specific type is kept.

    `language` is a code as `languages.identify` returns it: it decides which national numbering plans and which cues of
    telephone numbers count.
    """
    finders: list[Callable[[str], Iterator[Span]]] = []
    if "@" in text:
        finders.append(_emails)
    if HAS_COLONS.search(text):
        finders.append(_ipv6)
    if HAS_LONG_NUMBER.search(text):
        finders += [_ibans, _cards, _named_ids, _ipv4, _ssns, _national_ids, partial(_phones, language=language)]
    spans: list[Span] = []
    for finder in finders:
        spans = sorted(spans + [span for span in finder(text) if not _overlaps(span, spans)])
    return spans


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


def _ipv4(text: str) -> Iterator[Span]:
    for match in IPV4.finditer(text):
        # 3.1.1.6 is a version or a section: of real addresses fewer than one in a thousand have three one-digit parts.
        short = sum(len(part) == 1 for part in match[0].split(".")) >= 3
        preceding = text[max(0, match.start() - 16) : match.start()]
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


def _phones(text: str, language: str) -> Iterator[Span]:
    return (Span(start, end, "phone") for start, end in telephones.find(text, language))


def _ssns(text: str) -> Iterator[Span]:
    return (Span(*match.span(), "ssn") for match in SSN.finditer(text))


def _cards(text: str) -> Iterator[Span]:
    return (Span(start, end, "card") for start, end in payment_cards.find(text))


def _national_ids(text: str) -> Iterator[Span]:
    return (Span(start, end, "national_id") for start, end in national_ids.by_form(text))


def _named_ids(text: str) -> Iterator[Span]:
    return (Span(start, end, "national_id") for start, end in national_ids.by_name(text))


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
