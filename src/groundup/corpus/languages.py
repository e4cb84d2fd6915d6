"""Which language a text is in, how surely, and how much of it: by CLD2, which knows 83 languages and more by their script.

Measured beside others on the Universal Declaration in 60 languages and on web pages (`benchmarks/corpus_languages.py`):
no other is as right of single sentences, and only resiliparse's is faster, which is wrong of one sentence in four.
"""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pycld2

from groundup.core.errors import UserError

# Written by one standard or nearly: which of them a text is in is told by single words. Where one of them is wanted, texts
# of the others count as it; of two that are wanted each stays itself.
ALIKE = (("hr", "bs", "sr"), ("id", "ms"))
CYRILLIC = re.compile(r"[а-яА-ЯјљњћђџЈЉЊЋЂЏ]")
CODES = {"iw": "he", "jw": "jv", "zh-Hant": "zh"}
NOT_LANGUAGES = ("un", "tlh", "zzb", "zze", "zzh", "zzp", "xx", "xxx")  # Klingon, pig latin and other jokes
UNKNOWN = "unknown"
UNSURE = 0.5  # what a share counts of which CLD2 itself says that it is not reliable
REFUSED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U0001fffe-\U0001ffff]")
LEAST_LETTERS = 40  # of a paragraph whose language is told by itself: of 20 English ones every tenth is taken for another's


class DetectedLanguage(NamedTuple):
    """`score`: 0..1, the share of the text that is in the language, halved where that is not sure. `share`: of the letters in
    paragraphs that are long enough to tell, those in paragraphs of the language; 1 where there are none."""

    language: str
    score: float
    share: float


KNOWN = frozenset(
    CODES.get(code, code.partition("-")[0])
    for name, code in pycld2.LANGUAGES
    if name in pycld2.DETECTED_LANGUAGES
) - {*NOT_LANGUAGES}


def check(languages: Sequence[str]) -> None:
    """Raises UserError where one is neither known here nor "all"."""
    for language in languages:
        if language not in KNOWN and language != "all":
            hint = difflib.get_close_matches(language, sorted(KNOWN), n=3) or ["en", "de", "zh"]
            raise UserError(f"languages: {language!r} is no language that can be told; as {', '.join(hint)}")


def identify(text: str, wanted: Sequence[str] = ()) -> tuple[str, float]:
    """Language code and score; ("unknown", 0.0) where none is near. Of languages that are alike the one that is `wanted`."""
    try:
        reliable, _, found = pycld2.detect(REFUSED.sub(" ", text), isPlainText=True, bestEffort=True)
    except pycld2.error:  # a character that it does not take
        return UNKNOWN, 0.0
    _, code, share, _ = found[0]
    if code in NOT_LANGUAGES:
        return UNKNOWN, 0.0
    return _as_wanted(CODES.get(code, code.partition("-")[0]), text, wanted), share / 100 * (1 if reliable else UNSURE)


def of_document(text: str, wanted: Sequence[str] = ()) -> DetectedLanguage:
    """The language of a text, and how much of it is."""
    language, score = identify(text, wanted)
    letters: Counter[bool] = Counter()
    for paragraph in text.split("\n"):
        if len(paragraph) >= LEAST_LETTERS:
            found, sure = identify(paragraph, wanted)
            letters[found == language] += len(paragraph) if sure > UNSURE else 0
    return DetectedLanguage(language, score, letters[True] / letters.total() if letters.total() else 1.0)


def _as_wanted(language: str, text: str, wanted: Sequence[str]) -> str:
    group = next((group for group in ALIKE if language in group), ())
    those = [one for one in group if one in wanted]
    if language in those or len(those) != 1 or (language == "sr" and CYRILLIC.search(text)):
        return language
    return those[0]
