"""Gopher, C4 and FineWeb beside datatrove's filters: the same verdict, for the same reason, on texts made to fail one."""

import pytest

from groundup.core.words import split
from groundup.corpus.annotate import rules

filters = pytest.importorskip("datatrove.pipeline.filters", reason="datatrove is not installed")
pytest.importorskip("spacy", reason="datatrove splits words with spaCy, which is not installed")
from datatrove.data import Document  # noqa: E402

SENTENCES = [
    "The river that runs through the old town was once crossed by five bridges made of stone.",
    "Two of them have been lost to floods, and the others stand to this day with some repair.",
    "Visitors often stop on the second one because it gives a fine view of the harbour below.",
    "Every spring the council asks engineers to look for cracks and to measure how far each arch has moved.",
    "Most years nothing is found, but in a wet season the foundations may shift by several millimetres.",
    "Plans to replace the oldest bridge were drawn up long ago and have been put aside ever since.",
]
PROSE = "\n".join(SENTENCES)
# datatrove's reason, the column that says the same here, the paper, a text that fails.
CASES = [
    ("gopher_short_doc", "words", "Gopher", "The cat and the dog have to be with that of ours."),
    ("gopher_below_avg_threshold", "mean_word_length", "Gopher", "a to of be I it " * 30),
    ("gopher_above_avg_threshold", "mean_word_length", "Gopher", "the of " + "incomprehensibilities " * 60),
    ("gopher_too_many_hashes", "hashes_per_word", "Gopher", PROSE.replace("the ", "the # # ")),
    ("gopher_too_many_ellipsis", "ellipses_per_word", "Gopher", PROSE.replace("the ", "the... and... ")),
    ("gopher_too_many_bullets", "bullet_lines", "Gopher", "\n".join("- " + line for line in SENTENCES)),
    ("gopher_too_many_end_ellipsis", "ellipsis_lines", "Gopher", "\n".join(line[:-1] + "..." for line in SENTENCES)),
    ("gopher_below_alpha_threshold", "alphabetic_words", "Gopher", PROSE + " 123456" * 60),
    ("gopher_enough_stop_words", "stop_words", "Gopher", " ".join(f"word{number}" for number in range(80))),
    ("dup_line_frac", "duplicate_lines", "Gopher", PROSE + "\n" + PROSE),
    ("top_2_gram", "top_2_gram", "Gopher", " ".join(f"enormous elephants {chr(97 + n)}" for n in range(20))),
    ("line_punct_ratio", "lines_with_end_mark", "FineWeb", "One ends.\n" + "\n".join(line[:-1] for line in SENTENCES * 2)),
    ("short_line_ratio", "short_lines", "FineWeb", PROSE + "\n" + "\n".join(f"Short line {n}." for n in range(40))),
    ("char_dup_ratio", "duplicate_line_characters", "FineWeb", PROSE + "\n" + SENTENCES[0] + "\n" + SENTENCES[1]),
    ("lorem_ipsum", "lorem_ipsum", "C4", PROSE + "\nLorem ipsum dolor sit amet is what printers write."),
    ("curly_bracket", "curly_bracket", "C4", PROSE + "\nIn C each block stands between { and its partner."),
]


def violated(text):
    found = rules.measure(text, split(text))
    return {
        (rule.column, rule.paper)
        for rule in rules.THRESHOLDS
        if rule.column in found and not rule.minimum <= found[rule.column] <= rule.maximum
    }


def reasons(text):
    chain = [
        filters.GopherQualityFilter(),
        filters.GopherRepetitionFilter(),
        filters.FineWebQualityFilter(char_duplicates_ratio=0.1),
        filters.C4QualityFilter(filter_no_terminal_punct=False, min_num_sentences=3),
    ]
    found = set()
    for one in chain:
        verdict = one.filter(Document(text=text, id="0"))
        if verdict is not True and verdict[0] is not True:
            found.add(verdict[1])
    return found


def test_good_prose_passes_both():
    assert violated(PROSE) == set()
    assert reasons(PROSE) == set()


@pytest.mark.parametrize(("reason", "column", "paper", "text"), CASES, ids=[case[0] for case in CASES])
def test_both_drop_it_for_the_same_reason(reason, column, paper, text):
    assert reason in reasons(text)
    assert (column, paper) in violated(text)
