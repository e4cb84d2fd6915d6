"""Telephone numbers in text: proved by a numbering plan, or named as such by the words beside them.

A number that starts with + or 00, or is written the North American way, must be one that its country's plan gives out
(phonenumbers, Google's tables). Other national forms, as `0431 35 06 90`, cannot be told from any identifier without
knowing the country, and short local ones are in no plan at all. They count where the text itself calls them a
telephone: a cue right before (`Phone:`, `call me at`) or right after (`... office`), as Presidio weighs context words.
Nouns are English, German, French, Spanish and Italian, and stand on pages of any language; verbs and the cues behind a
number are English, and count in English texts alone.
"""

import re
from collections.abc import Iterator

import phonenumbers

# Groups of digits with one separator between. Nothing is given back (`++`), so a page of digits costs one pass.
RUN = re.compile(r"[+(\d](?<![\w.$#€£=/@%*+-].)(?<!\d[ ,:].)[(\d]*+\)?+(?:(?: [-./] |[-./ ]|(?<=\)))\(?+\d++\)?+)*+")
EXTENSION = re.compile(r" ?(?:x|ext\.?|extension) ?:?\d{1,6}")
RUNS_ON = re.compile(r"[\w%=/]|[.:-]\d|,\d{3}\b")
NORTH_AMERICAN = re.compile(r"(?:1[-. ])?(?:\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}([-.])\d{3}\1\d{4})")
DATE_OR_DECIMAL = re.compile(
    r"(?:\+?\d+\.\d+|\d{4}([-./])\d\d\1\d\d|(?:19|20)\d\d[-. ]\d\d|\d\d?([-./])\d\d?\2\d{4})(?: \d.*)?"
)
# Right before the number, with at most a few words of the same line between.
NOUN = r"(?:tele)?phones?|telefono|tel[ée]fono|telefon|tél(?:éphone)?|tel\.?|mobile|cell|fax|handy|m[óo]vil|whatsapp|hotline"
VERB = r"call(?:ing)?|dial(?:ing)?|ring|text|reach|contact"
WORDS_BETWEEN = r"me|us|him|her|them|now|today|toll[ -]free|our|the|office|number|directly|anytime"
NOUN_BEFORE = re.compile(
    rf"(?:\b(?:{NOUN})(?: ?(?:no|nr|number|numéro|nummer)s?\.?)?|[☎☏✆📞📱])(?: ?\([^()\d\n]{{1,20}}\))?"
    rf"(?: (?:is|are|at|on))?:?[ \t*_|]{{0,3}}\Z",
    re.I,
)
VERB_BEFORE = re.compile(
    rf"\b(?:(?:{VERB})(?: (?:{WORDS_BETWEEN})){{0,4}}(?: (?:at|on|via))?:?|answer(?:s|ing)?(?: calls)? (?:at|on):?) \Z",
    re.I,
)
# Right after a number that stands at the start of a field, and itself at the end of one, as on a business card.
CUE_AFTER = re.compile(
    r"[ \t]?[-–(/,]?[ \t]?(?:office|work|home|mobile|cell|fax|tel|phone|direct)\b(?=[ \t]*(?:$|[\n,;)\\|/]))", re.I
)
FIELD_START = "\n,;|\\>:\t"
REACH = 48  # characters before the number that are searched for a cue
LEAST_DIGITS, MOST_DIGITS = 6, 15  # ITU-T E.164 allows 15; local numbers of small places have 6
MOST_GROUPS = 7
LONGEST = 32  # characters of a number, extension aside


def find(text: str, language: str = "en") -> Iterator[tuple[int, int]]:
    """Start and end of each telephone number, in order."""
    for match in RUN.finditer(text):
        start, run_end = match.span()
        while run_end - start >= LEAST_DIGITS and (end := _end(text, start, run_end, language)):
            yield start, end
            start = end + 1  # one number after the other, a space between


def _end(text: str, start: int, run_end: int, language: str) -> int:
    """Where the number at `start` ends; 0 if there is none. `call 415-867-5309 2 times`: any space may be its end."""
    extension = EXTENSION.match(text, run_end)
    whole = extension.end() if extension else run_end
    ends = [] if run_end - start > LONGEST or RUNS_ON.match(text, whole) else [whole]
    ends += [place for place in range(min(run_end, start + LONGEST), start, -1) if text[place : place + 1] == " "]
    forms = [(end, text[start : min(run_end, end)]) for end in ends]
    forms = [(end, number) for end, number in forms if _shaped(number)]
    proved = [end for end, number in forms if in_plan(number)]
    return next(iter(proved or [end for end, _ in forms if _named(text, start, end, language)]), 0)


def _shaped(number: str) -> bool:
    groups = re.findall(r"\d+", number)
    return (
        LEAST_DIGITS <= sum(map(len, groups)) <= MOST_DIGITS
        and len(groups) <= MOST_GROUPS
        and all(len(group) > 1 for group in groups[1:])
        and number.count("(") == number.count(")")
        and not DATE_OR_DECIMAL.fullmatch(number)
    )


def in_plan(number: str) -> bool:
    """Whether a numbering plan gives this number out: international, or written the North American way."""
    international = number.startswith(("+", "00"))
    if not international and not NORTH_AMERICAN.fullmatch(number):
        return False
    try:
        parsed = phonenumbers.parse("+" + number[2:] if number.startswith("00") else number, "US")
    except phonenumbers.NumberParseException:
        return False
    # 555-0100 to 555-0199 are kept for films and books.
    fictional = parsed.country_code == 1 and str(parsed.national_number)[3:8] == "55501"
    return phonenumbers.is_valid_number(parsed) and not fictional


def _named(text: str, start: int, end: int, language: str) -> bool:
    before = text[max(0, start - REACH) : start]
    if NOUN_BEFORE.search(before):
        return True
    if language != "en":
        return False
    if VERB_BEFORE.search(before):
        return True
    at_field_start = not before.rstrip(" ") or before.rstrip(" ")[-1] in FIELD_START
    return at_field_start and CUE_AFTER.match(text, end) is not None
