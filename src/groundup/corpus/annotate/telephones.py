"""Telephone numbers in text: valid in a numbering plan, or named as such by the words near them.

A number that starts with + or 00, or is written the North American way, must be valid in its country's plan (phonenumbers,
Google's tables). Of `+41 (0)96 471 07 95`, which nothing else looks like, only the length is checked. Other national forms,
as `0431 35 06 90`, could be of any country: on a page in German they must be in the plan of Germany, Austria or Switzerland.
What is in no such plan counts where the text itself calls it a telephone number: a cue right before (`Phone:`, `call me at`),
alone on the line above, or right after (`... office`), as Presidio weighs context words. Nouns are of twenty languages and
count on pages in any language; verbs and the cues behind a number are English and count in English texts only.
"""

import re
from collections.abc import Iterator

import phonenumbers

# Groups of digits with one separator between. Possessive (`++`), so a page of digits costs one pass.
RUN = re.compile(r"[+(\d](?<![\w.$#€£=/@%*+-].)(?<!\d[ ,:].)[(\d]*+\)?+(?:(?: [-./] |[-./ ]|(?<=\))|(?=\(0\)))\(?+\d++\)?+)*+")
EXTENSION = re.compile(r" ?(?:x|ext\.?|extension) ?:?\d{1,6}")
RUNS_ON = re.compile(r"[\w%=/]|[.:-]\d|,\d{3}\b")
NORTH_AMERICAN = re.compile(r"(?:1[-. ])?(?:\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}([-.])\d{3}\1\d{4})")
# Written as numbers are within a country: an area with its 0, then groups; or pairs, as in France.
NATIONAL = re.compile(r"\(?0\d{1,5}\)?(?: ?[-/] ?| )\d{2,8}(?:[ -]\d{2,5}){0,4}|0\d(?:([.-])\d\d)(?:\1\d\d){3}")
MIN_NATIONAL_DIGITS = 9  # shorter ones are dates and times too
REGIONS = {  # language of a page: countries whose numbers it may show without their code
    "bg": "BG", "cs": "CZ", "de": "DE AT CH", "el": "GR", "en": "GB IE AU NZ ZA", "es": "ES MX AR CO CL", "fi": "FI",
    "fr": "FR BE CH", "he": "IL", "hr": "HR", "hu": "HU", "id": "ID", "it": "IT CH", "ja": "JP", "ko": "KR",
    "nl": "NL BE", "pl": "PL", "pt": "PT BR", "ro": "RO", "ru": "RU", "sk": "SK", "sl": "SI", "sr": "RS",
    "sv": "SE FI", "th": "TH", "tr": "TR", "uk": "UA", "vi": "VN", "zh": "CN TW",
}  # fmt: skip
TRUNK_ZERO = re.compile(r"\(0\) ?")
DATE_OR_DECIMAL = re.compile(
    r"(?:\+?\d+\.\d+|\d{4}([-./])\d\d\1\d\d|(?:19|20)\d\d[-. ]\d\d|\d\d?([-./])\d\d?\2\d{4})(?: \d.*)?"
    r"|\d{1,3}(?:([ .])\d{3})*[ .]000"  # 250 000
)
# Right before the number, with at most a few words of the same line between.
NOUN = (
    r"(?:(?:(?:tele)?phones?|telefono|tel[ée]fono|telefoon|telefone|telemóvel|celular|telefon|tél(?:éphone)?|tel\.?|tlf\.?"
    r"|mobile?|mobiel|mobil|cell|fax|handy|gsm|m[óo]vil|whatsapp|hotline|komórka|puh(?:elin)?\.?|τηλ(?:έφωνο)?\.?"
    r"|тел(?:ефон)?\.?|факс|(?:電話|电话|手机|手機|携帯|전화|휴대폰)(?:番号|号码|號碼|번호)?)"
    r"(?: ?(?:no|nr|number|numéro|nummer)s?\.?)?)"
)
LABEL = (  # cues only where they are the name of a field
    r"desk|office|work|home|direct(?: line| dial)?|landline|switchboard|toll[- ]free|pager|festnetz|durchwahl|zentrale"
    r"|büro|bureau|ufficio|oficina|kantoor"
)
VERB = r"call(?:ing)?|dial(?:ing)?|ring|text|reach|contact|messages?|sms"
WORDS_BETWEEN = (
    r"me|us|him|her|them|now|today|toll[ -]free|our|my|your|the|this|office|registered|number|directly|anytime|sent|received"
)
NOUN_BEFORE = re.compile(
    rf"(?:(?:\b|(?=[電电手携전휴])){NOUN}|[☎☏✆📞📱])(?: ?\([^()\d\n]{{1,20}}\))?"
    rf"(?: (?:is|are|at|on)|[はが是为為은는])?[:：]?[ \t*_|]{{0,3}}\Z",
    re.I,
)
LABEL_BEFORE = re.compile(rf"(?:\A|[\n,;|>])[ \t*_]{{0,3}}(?:{LABEL})[ \t*_]{{0,3}}:[ \t*_|]{{0,3}}\Z", re.I)
LINE_ABOVE = re.compile(
    rf"(?:\A|\n)[ \t*_#|>-]{{0,8}}(?:{NOUN}|{LABEL})[ \t*_]{{0,3}}[:：]?[ \t*_|]{{0,3}}\n\n?[ \t*_|]{{0,8}}\Z", re.I
)
VERB_BEFORE = re.compile(
    rf"\b(?:(?:{VERB})(?: (?:{WORDS_BETWEEN})){{0,4}}(?: (?:at|on|via|to))?(?: (?:{WORDS_BETWEEN})){{0,2}}:?"
    rf"|answer(?:s|ing)?(?: calls)? (?:at|on):?) \Z",
    re.I,
)
# Right after a number at the start of a field, and itself at the end of that field, as on a business card.
CUE_AFTER = re.compile(
    r"[ \t]?[-–(/,]?[ \t]?(?:office|work|home|mobile|cell|fax|tel|phone|direct|desk)\b(?=[ \t]*(?:$|[\n,;)\\|/]))", re.I
)
LINE_END = re.compile(r"[ \t*_|]*(?:\n|\Z)")
FIELD_START = "\n,;|\\>:\t"
REACH = 48  # characters before the number that are searched for a cue
MIN_DIGITS, MAX_DIGITS = 6, 15  # ITU-T E.164 allows 15; local numbers of small places have 6
MAX_GROUPS = 7
MAX_CHARACTERS = 32  # of a number without its extension


def find(text: str, as_written: str, language: str = "en") -> Iterator[tuple[int, int]]:
    """Start and end of each telephone number, in order. Numbers are read in `text`, cues in the text `as_written`, as long."""
    for match in RUN.finditer(text):
        start, run_end = match.span()
        while run_end - start >= MIN_DIGITS and (end := _end(text, as_written, start, run_end, language)):
            yield start, end
            start = end + 1  # one number may follow another after a space


def _end(text: str, as_written: str, start: int, run_end: int, language: str) -> int:
    """Where the number at `start` ends; 0 if there is none. `call 415-867-5309 2 times`: it may end at any space."""
    extension = EXTENSION.match(text, run_end)
    full_end = extension.end() if extension else run_end
    ends = [] if run_end - start > MAX_CHARACTERS or RUNS_ON.match(text, full_end) else [full_end]
    ends += [space for space in range(min(run_end, start + MAX_CHARACTERS), start, -1) if text[space : space + 1] == " "]
    candidates = [(end, text[start : min(run_end, end)]) for end in ends]
    candidates = [(end, number) for end, number in candidates if _has_phone_form(number)]
    proved = [end for end, number in candidates if in_plan(number)]
    if not proved and ends and ends[0] == full_end:
        proved = [end for end, number in candidates[:1] if end == full_end and in_national_plan(number, language)]
    return next(iter(proved or [end for end, _ in candidates if _has_cue(as_written, start, end, language)]), 0)


def _has_phone_form(number: str) -> bool:
    groups = re.findall(r"\d+", TRUNK_ZERO.sub("", number))
    # The area may be one digit: +46 8 928 571 38.
    later_groups = groups[2:] if TRUNK_ZERO.search(number) or number.startswith(("+", "00")) else groups[1:]
    return (
        MIN_DIGITS <= sum(map(len, groups)) <= MAX_DIGITS
        and len(groups) <= MAX_GROUPS
        and all(len(group) > 1 for group in later_groups)
        and number.count("(") == number.count(")")
        and not DATE_OR_DECIMAL.fullmatch(number)
    )


def in_plan(number: str) -> bool:
    """Whether the number is valid in a numbering plan: international, or written the North American way."""
    international = number.startswith(("+", "00"))
    if not international and not NORTH_AMERICAN.fullmatch(number):
        return False
    parsed = _parsed("+" + number[2:] if number.startswith("00") else number, "US")
    if parsed is None:
        return False
    if international and TRUNK_ZERO.search(number):
        return phonenumbers.is_possible_number(parsed)
    # 555-0100 to 555-0199 are reserved for films and books.
    fictional = parsed.country_code == 1 and str(parsed.national_number)[3:8] == "55501"
    return phonenumbers.is_valid_number(parsed) and not fictional


def in_national_plan(number: str, language: str) -> bool:
    """Whether the number is valid in a country of this language, and written as numbers are written there.

    With its leading 0 that is any usual way; without it the country's own groups, unless they look like a large number's.
    """
    if sum(map(str.isdigit, number)) < MIN_NATIONAL_DIGITS:
        return False
    with_zero = NATIONAL.fullmatch(number) is not None
    lengths = [len(group) for group in re.findall(r"\d+", number)]
    if not with_zero and (number.startswith(("0", "+")) or len(lengths) < 2 or set(lengths[1:]) == {3}):
        return False
    for region in REGIONS.get(language, "").split():
        parsed = _parsed(number, region)
        if parsed and phonenumbers.is_valid_number_for_region(parsed, region):
            written = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.NATIONAL)
            # English is spoken in too many countries: any digits after a leading 0 are valid in one of them.
            if (with_zero and language != "en") or written == number:
                return True
    return False


def _parsed(number: str, region: str) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return None


def _has_cue(text: str, start: int, end: int, language: str) -> bool:
    before = text[max(0, start - REACH) : start]
    if NOUN_BEFORE.search(before) or LABEL_BEFORE.search(before):
        return True
    if LINE_ABOVE.search(before) and LINE_END.match(text, end):
        return True
    if language != "en":
        return False
    if VERB_BEFORE.search(before):
        return True
    at_field_start = not before.rstrip(" ") or before.rstrip(" ")[-1] in FIELD_START
    return at_field_start and CUE_AFTER.match(text, end) is not None
