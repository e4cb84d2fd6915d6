"""The language of a text, how sure that is, and what share of the text is in it: by CLD2, which knows 83 languages and more
by their script.

Compared with others on the Universal Declaration in 60 languages and on web pages (`benchmarks/corpus_languages.py`):
no other is as often right about single sentences; only resiliparse's is faster, and it is wrong about one sentence in four.
"""

import difflib
import re
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import pycld2

from groundup.core.errors import UserError

# Languages with nearly one written standard: only single words tell them apart. Where one of a group is wanted, texts in the
# others count as it; where two are wanted, each stays itself.
ALIKE = (("hr", "bs", "sr"), ("id", "ms"))
IN_GROUPS = frozenset(chain.from_iterable(ALIKE))
CYRILLIC = re.compile(r"[а-яА-ЯјљњћђџЈЉЊЋЂЏ]")
CODES = {"iw": "he", "jw": "jv", "zh-Hant": "zh"}
NOT_LANGUAGES = ("un", "tlh", "zzb", "zze", "zzh", "zzp", "xx", "xxx")  # Klingon, pig latin and other jokes
UNKNOWN = "unknown"
UNRELIABLE_FACTOR = 0.5  # on the share of a language where CLD2 itself says that it is not reliable
REFUSED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U0001fffe-\U0001ffff]")
MIN_LETTERS = 40  # of a paragraph whose language counts: of 20 English letters, one time in ten another language is identified
# Letters from Thai on count as so many: of 14 characters of Chinese, 4 in 100 are identified as another, of Japanese, Korean and
# Thai none. Their paragraphs have often fewer than 40, and without these a page's one line of English would be all that counts.
LATE_LETTERS = 3
LATE = re.compile(r"[\u0e00-\u1fff\u2c00-\U0010ffff]")  # between them are quotation marks and signs


class DetectedLanguage(NamedTuple):
    """`score`: 0..1, the share of the text that is in the language, halved where that is not reliable. `share`: of the letters
    in paragraphs that are long enough to identify, the share in paragraphs of the language; 1 where there are none."""

    language: str
    score: float
    share: float


KNOWN = frozenset(
    CODES.get(code, code.partition("-")[0])
    for name, code in pycld2.LANGUAGES
    if name in pycld2.DETECTED_LANGUAGES
) - {*NOT_LANGUAGES}


def require_known(languages: Sequence[str]) -> None:
    """Raises UserError for a code that is neither a known language nor "all"."""
    for language in languages:
        if language not in KNOWN and language != "all":
            hint = difflib.get_close_matches(language, sorted(KNOWN), n=3) or ["en", "de", "zh"]
            raise UserError(f"languages: {language!r} is not a known language; known are {', '.join(hint)}, ...")


def identify(text: str, wanted: Sequence[str] = ()) -> tuple[str, float]:
    """Language code and score; ("unknown", 0.0) where no language fits. Of languages that are alike, the one that is `wanted`."""
    return _detected(REFUSED.sub(" ", text), wanted)


def _detected(text: str, wanted: Sequence[str]) -> tuple[str, float]:
    """As `identify`, of a text without REFUSED characters."""
    try:
        reliable, _, candidates = pycld2.detect(text, isPlainText=True, bestEffort=True)
    except pycld2.error:  # a character that it does not take
        return UNKNOWN, 0.0
    _, code, share, _ = candidates[0]
    if code in NOT_LANGUAGES:
        return UNKNOWN, 0.0
    return _as_wanted(CODES.get(code, code.partition("-")[0]), text, wanted), share / 100 * (1 if reliable else UNRELIABLE_FACTOR)


def identify_document(text: str, wanted: Sequence[str] = ()) -> DetectedLanguage:
    """The language of a text, and how much of the text is in it."""
    text = REFUSED.sub(" ", text)  # once: it takes as long as a third of the paragraphs' own
    language, score = _detected(text, wanted)
    same = known = 0
    for paragraph in text.split("\n"):
        if _is_long_enough(paragraph):
            detected, paragraph_score = _detected(paragraph, wanted)
            if paragraph_score > UNRELIABLE_FACTOR:
                known += len(paragraph)
                same += len(paragraph) if detected == language else 0
    return DetectedLanguage(language, score, same / known if known else 1.0)


def _is_long_enough(paragraph: str) -> bool:
    length = len(paragraph)
    if length >= MIN_LETTERS or LATE_LETTERS * length < MIN_LETTERS or paragraph.isascii():
        return length >= MIN_LETTERS
    return length + (LATE_LETTERS - 1) * len(LATE.findall(paragraph)) >= MIN_LETTERS


def _as_wanted(language: str, text: str, wanted: Sequence[str]) -> str:
    if language not in IN_GROUPS:
        return language
    group = next(group for group in ALIKE if language in group)
    wanted_in_group = [code for code in group if code in wanted]
    if language in wanted_in_group or len(wanted_in_group) != 1 or (language == "sr" and CYRILLIC.search(text)):
        return language
    return wanted_in_group[0]
