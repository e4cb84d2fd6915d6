"""Heuristic measurements of a document's text, as numbers; nothing is dropped here.

Every rule of Gopher (Rae et al. 2021, appendix A1.1), C4 (Raffel et al. 2020, section 2.2) and FineWeb (Penedo et al.
2024, section 3.6). `THRESHOLDS` has each paper's threshold on a measurement, and notes where papers and implementations
disagree. All pipelines implement Gopher differently (what is a word, which mean, which bullets), so a threshold taken
from one of them does not keep the same share of pages in another; `groundup corpus tune` shows what it keeps here.
"""

import re
from typing import NamedTuple

import numpy as np

from groundup.core import words as word_lists
from groundup.core.words import MULTIPLIER, Words
from groundup.corpus.annotate import stop_words

# More than C4's: full-width and half-width, guillemets and brackets that close a quotation, the danda of Hindi, the marks of
# Arabic, Urdu, Armenian, Ethiopic, Burmese, Khmer and Tibetan.
END_MARKS = tuple('.!?"”。！？．｡»«“’」』।॥؟۔։።፧။៕។།')
WITHOUT_END_MARKS = {"th", "lo"}  # a space ends their sentences
ELLIPSES = ("...", "…")
BULLETS = ("•", "-", "*", "‣", "●")  # Gopher names no set; datatrove has • and -, dolma * and -
SHORT_LINE_CHARACTERS = 30  # five English words with their spaces; in scripts without spaces SHORT_LINE_WORDS count
SHORT_LINE_WORDS = 5
C4_LINE_WORDS = 5
C4_WORD_CHARACTERS = 1000
C4_NOT_IN_LINES = (
    "javascript", "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"
)  # fmt: skip
SENTENCE_END = re.compile(r"[.!?؟۔።፧](?: ?[»«]|[\"”’')\]“])*(?=\s|$)")
SENTENCE_MARKS = "。！？．｡।॥။៕។།"  # that need no space after them
PARAGRAPH_BREAK = re.compile(r"\n\s*\n")


class Threshold(NamedTuple):
    column: str
    minimum: float
    maximum: float
    paper: str
    note: str = ""


ANY = float("inf")
THRESHOLDS = (
    Threshold("words", 50, 100_000, "Gopher", "datatrove splits with spaCy: more, since punctuation counts"),
    Threshold("mean_word_length", 3, 10, "Gopher", "dolma takes the median; datatrove: without punctuation; null without spaces"),
    Threshold("hashes_per_word", 0, 0.1, "Gopher"),
    Threshold("ellipses_per_word", 0, 0.1, "Gopher"),
    Threshold("bullet_lines", 0, 0.9, "Gopher", "the set of bullets differs in every implementation"),
    Threshold("ellipsis_lines", 0, 0.3, "Gopher"),
    Threshold("alphabetic_words", 0.8, 1, "Gopher", "of prose; code and signatures hold fewer"),
    Threshold("stop_words", 2, ANY, "Gopher", "distinct ones, in any case; null without a list; datatrove: lower case alone"),
    Threshold("duplicate_lines", 0, 0.30, "Gopher", "blank lines are not lines here; datatrove once counted them"),
    Threshold("duplicate_paragraphs", 0, 0.30, "Gopher"),
    Threshold(
        "duplicate_line_characters", 0, 0.20, "Gopher", "of all lines' characters; datatrove: of the whole text's"
    ),
    Threshold("duplicate_paragraph_characters", 0, 0.20, "Gopher"),
    Threshold("top_2_gram", 0, 0.20, "Gopher", "of the characters in words; datatrove: of the whole text's"),
    Threshold("top_3_gram", 0, 0.18, "Gopher"),
    Threshold("top_4_gram", 0, 0.16, "Gopher"),
    Threshold("duplicate_5_grams", 0, 0.15, "Gopher", "all occurrences, as written; datatrove leaves out the first"),
    Threshold("duplicate_6_grams", 0, 0.14, "Gopher"),
    Threshold("duplicate_7_grams", 0, 0.13, "Gopher"),
    Threshold("duplicate_8_grams", 0, 0.12, "Gopher"),
    Threshold("duplicate_9_grams", 0, 0.11, "Gopher"),
    Threshold("duplicate_10_grams", 0, 0.10, "Gopher"),
    Threshold(
        "c4_lines", 0, 1, "C4", "share it keeps: end mark, 5 words, no javascript or cookie policy; datatrove: 3 words"
    ),
    Threshold("c4_sentences", 3, ANY, "C4", "in those lines; datatrove and the paper's first version: 5"),
    Threshold("lorem_ipsum", 0, 0, "C4"),
    Threshold("curly_bracket", 0, 0, "C4", "drops all pages that show C, Java or JavaScript"),
    Threshold("toxic_words", 0, 0, "C4", "one word of LDNOOBW drops a page: medicine and news too"),
    Threshold("lines_with_end_mark", 0.12, 1, "FineWeb", "datatrove keeps pages that have none; C4's rule drops 30 %"),
    Threshold("duplicate_line_characters", 0, 0.1, "FineWeb", "0.1 in its text; 0.01 in its appendix and in datatrove"),
    Threshold("short_lines", 0, 0.67, "FineWeb", "shorter than 30 characters; datatrove: 30 too"),
    Threshold("newlines_per_word", 0, 0.3, "FineWeb", "in datatrove's filter of that name, not in the paper"),
)
MEASURED_ELSEWHERE = {"toxic_words"}  # measured by `toxicity`
COLUMNS = tuple(dict.fromkeys(threshold.column for threshold in THRESHOLDS if threshold.column not in MEASURED_ELSEWHERE))
COUNTS = {"words", "stop_words", "c4_sentences", "lorem_ipsum", "curly_bracket"}  # whole numbers


def measure(text: str, words: Words, language: str = "en") -> dict[str, float | None]:
    """All of `COLUMNS`. Shares are in 0..1 and 0 for an empty text; None where a rule does not know the language.

    The mean word length means nothing where each word is a character or two, nor do marks at the end of lines where the
    language has none.
    """
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    paragraphs = [paragraph for paragraph in map(str.strip, PARAGRAPH_BREAK.split(text)) if paragraph]
    units, word_count = max(1, len(words)), max(1, words.count)
    has_end_marks = language not in WITHOUT_END_MARKS
    short_limit = SHORT_LINE_CHARACTERS if words.per_word == 1 else SHORT_LINE_WORDS * words.per_word
    lower = text.lower()
    lines_with_end_mark = [line for line in lines if line.endswith(END_MARKS)]
    duplicate_lines, duplicate_line_characters = _duplicate_shares(lines)
    duplicate_paragraphs, duplicate_paragraph_characters = _duplicate_shares(paragraphs)
    has_unwanted_phrase = any(phrase in lower for phrase in C4_NOT_IN_LINES)  # only then is each line searched
    c4_lines = [line for line in lines_with_end_mark if _c4_keeps(line, has_unwanted_phrase)]
    line_count = max(1, len(lines))
    return {
        "words": words.count,
        "mean_word_length": float(words.lengths.sum()) / units if words.per_word == 1 else None,
        "hashes_per_word": text.count("#") / word_count,
        "ellipses_per_word": sum(map(text.count, ELLIPSES)) / word_count,
        "bullet_lines": sum([line.startswith(BULLETS) for line in lines]) / line_count,
        "ellipsis_lines": sum([line.endswith(ELLIPSES) for line in lines]) / line_count,
        "alphabetic_words": int(words.letters.sum()) / units,
        "stop_words": _stop_words(words, language),
        "duplicate_lines": duplicate_lines,
        "duplicate_paragraphs": duplicate_paragraphs,
        "duplicate_line_characters": duplicate_line_characters,
        "duplicate_paragraph_characters": duplicate_paragraph_characters,
        **_ngram_shares(words.as_written, words.lengths, words.per_word),
        "c4_lines": len(c4_lines) / line_count if has_end_marks else None,
        "c4_sentences": _sentences("\n".join(c4_lines)) if has_end_marks else None,
        "lorem_ipsum": int("lorem ipsum" in lower),
        "curly_bracket": int("{" in text),
        "lines_with_end_mark": len(lines_with_end_mark) / line_count if has_end_marks else None,
        "short_lines": sum([len(line) < short_limit for line in lines]) / line_count,
        "newlines_per_word": text.count("\n") / word_count,
    }


def _stop_words(words: Words, language: str) -> int | None:
    stops = stop_words.HASHES.get(language)
    return None if stops is None else sum([bool((words.hashed == stop).any()) for stop in stops])


def _sentences(text: str) -> int:
    marks = "".join([mark for mark in SENTENCE_MARKS if mark in text])  # few texts have any: a pattern takes as long as the other
    return len(SENTENCE_END.findall(text)) + (len(re.findall(f"[{marks}]+", text)) if marks else 0)


def _c4_keeps(line: str, has_unwanted_phrase: bool) -> bool:
    if line.endswith(ELLIPSES):
        return False
    if (len(line.split(None, C4_LINE_WORDS)) if line.isascii() else word_lists.count(line)) < C4_LINE_WORDS:
        return False
    if len(line) > C4_WORD_CHARACTERS and max(map(len, word_lists.split(line).raw)) > C4_WORD_CHARACTERS:
        return False
    return not has_unwanted_phrase or not any(phrase in line.lower() for phrase in C4_NOT_IN_LINES)


def _duplicate_shares(parts: list[str]) -> tuple[float, float]:
    """Share of the parts, and of their characters, that repeats an earlier part."""
    if not parts:
        return 0.0, 0.0
    distinct = set(parts)
    characters = sum(map(len, parts))
    return 1 - len(distinct) / len(parts), 1 - sum(map(len, distinct)) / characters


def _ngram_shares(values: np.ndarray, lengths: np.ndarray, per_word: int = 1) -> dict[str, float]:
    """Share of characters in the most frequent n-gram (n = 2..4), and in n-grams that occur twice or more (5..10).

    A character in several overlapping n-grams counts once. n counts words, of `per_word` values each.
    """
    characters = max(1, int(lengths.sum()))
    starts = np.arange(len(values))  # of n-grams that may be repeated
    grams = values
    ends = np.concatenate([[0], np.cumsum(lengths)])
    shares: dict[str, float] = {}
    for size in range(2, 10 * per_word + 1):
        n = size // per_word if size % per_word == 0 else 0  # 0: between two multiples
        if len(starts) < 2:  # no longer n-gram is repeated
            if n > 1:
                shares[f"top_{n}_gram" if n <= 4 else f"duplicate_{n}_grams"] = 0.0
            continue
        # Both (n-1)-grams inside a repeated n-gram are repeated: no others need to be extended.
        kept = np.flatnonzero(starts[1:] == starts[:-1] + 1)
        starts, grams = starts[kept], grams[kept] * MULTIPLIER + values[starts[kept] + size - 1]
        order = np.argsort(grams)
        ordered = grams[order]
        firsts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        counts = np.diff(np.append(firsts, len(order)))
        if 1 < n <= 4:
            most_frequent = _most_frequent(starts[order], firsts, counts, size, ends)
            shares[f"top_{n}_gram"] = _covered(most_frequent, size, lengths) / characters
        repeated = np.zeros(len(starts), dtype=bool)
        repeated[order[np.repeat(counts > 1, counts)]] = True
        starts, grams = starts[repeated], grams[repeated]
        if n > 4:
            shares[f"duplicate_{n}_grams"] = _covered(starts, size, lengths) / characters
    return shares


def _most_frequent(starts: np.ndarray, firsts: np.ndarray, counts: np.ndarray, n: int, ends: np.ndarray) -> np.ndarray:
    """Starts of the most frequent n-gram; of equally frequent ones the one with most characters, then the earliest.

    `starts` are sorted by n-gram; each n-gram has `counts` of them from index `firsts` on. `ends`: where each word ends.
    """
    max_count = counts.max(initial=0)
    if max_count < 2:
        return starts[:0]
    firsts = firsts[counts == max_count]
    characters = ends[starts[firsts] + n] - ends[starts[firsts]]
    firsts = firsts[characters == characters.max()]
    earliest_starts = [starts[index : index + max_count].min() for index in firsts]
    index = firsts[int(np.argmin(earliest_starts))]
    return starts[index : index + max_count]


def _covered(starts: np.ndarray, n: int, lengths: np.ndarray) -> int:
    """Characters of the words that lie in one of the n-grams starting at `starts`."""
    if not len(starts):
        return 0
    covered = np.zeros(len(lengths), dtype=bool)
    for offset in range(n):
        covered[starts + offset] = True
    return int(lengths[covered].sum())
