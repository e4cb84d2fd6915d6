"""Payment card numbers in text: by the prefixes and lengths that issuers use, and the Luhn check digit (ISO/IEC 7812).

One number in ten passes Luhn, and bar codes, timestamps and identifiers have 12 to 14 or 17 to 19 digits too. So the
usual 16 digits (15 of American Express) and numbers in the groups that are printed on cards count by themselves; all
others count only where the text near them speaks of a card.
"""

import re
from collections.abc import Iterator

CARD = re.compile(
    r"\d(?<![\w.+-].)(?:\d{3}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|\d{3}([ -])\d{6}\2\d{4,5}|\d{11,18})(?![\w-]|\.\d)"
)
ISSUERS = [  # first digits, and how many digits there are in all
    (re.compile(start), lengths)
    for start, lengths in (
        (r"4", (13, 16, 19)),  # Visa
        (r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,)),  # Mastercard
        (r"3[47]", (15,)),  # American Express
        (r"30|36|3[89]", range(14, 20)),  # Diners Club
        (r"35", range(16, 20)),  # JCB
        (r"2131|1800", (15,)),  # JCB, older
        (r"6011|64[4-9]|65|62", range(16, 20)),  # Discover, UnionPay
        (r"220[0-4]", range(16, 20)),  # Mir
        (r"9792|8[12]|508", (16,)),  # Troy, RuPay
        (r"50|5[6-8]|6|0604", range(12, 20)),  # Maestro
    )
]
USUAL = re.compile(r"(?:4|5[1-5]|2(?:2[2-9]|[3-6]|7[01]|720)|6011|64[4-9]|65|62|35)\d{14}|3[47]\d{13}")
CUE = re.compile(
    r"\b(?:cards?|cc|visa|master ?card|amex|maestro|diners|jcb|union ?pay|carte|tarjeta|carta|cart[ãa]o|kaart|kort(?:et|tia?)?"
    r"|kart[aęyiu]?|карт[аыуе])\b|kredit-?kart|kaartnummer|(?:kort|karten?)(?:nummer|-?nr)|信用卡|卡号|卡號|カード|카드",
    re.I,
)
OTHER_NUMBER = re.compile(r"\b(?:isbn|ean|upc|gtin|imei|sku|serial|tracking|part)\b[^\d\n]{0,16}\Z", re.I)
REACH, REACH_AFTER = 64, 24  # characters that are searched for a cue; the line above is among them


def find(text: str, as_written: str) -> Iterator[tuple[int, int]]:
    """Start and end of each card number, in order. Numbers are read in `text`, cues in the text `as_written`, as long."""
    for match in CARD.finditer(text):
        start, end = match.span()
        separator = match[1] or match[2]
        # What follows four groups of four may be another number, such as the three digits on the back.
        possible_ends = (end, start + 19) if match[1] else (end,)
        for stop in possible_ends:
            digits = text[start:stop].replace(separator or " ", "")
            if issued(digits) and (separator or USUAL.fullmatch(digits) or _has_cue(as_written, start, stop)):
                yield start, stop
                break


def issued(digits: str) -> bool:
    """Whether an issuer uses numbers of this length with these first digits, and the last digit is the check digit."""
    return any(len(digits) in lengths and start.match(digits) for start, lengths in ISSUERS) and luhn(digits)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def _has_cue(text: str, start: int, end: int) -> bool:
    before = text[max(0, start - REACH) : start]
    if OTHER_NUMBER.search(before):
        return False
    return bool(CUE.search(before) or CUE.search(text[end : end + REACH_AFTER].partition("\n")[0]))
