"""Questions made from plain text, so that a reader can practise before it sees a real one (Lewis et al. 2019, 1906.04980).

A phrase of a paragraph is the answer. Its sentence without it is the question: some words are dropped, a question word that
suits the phrase replaces it, and often the parts before and after it are swapped, as in real questions.
The reader learns to find the words of the question in the context, and the kind of phrase that is missing there.
"""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from groundup.encoder.squad import Question, phrases_of

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“(])")
_YEAR = re.compile(r"1\d{3}|20\d{2}")
PARAGRAPH_WORDS = (50, 220)
MAX_ANSWER_WORDS = 5
CLAUSE_WORDS = 9  # on each side of the answer
DROP_PROBABILITIES = (0.2, 0.7)  # of the words of the clause: from a little to most of them


def paragraphs(texts: Iterable[str]) -> Iterator[str]:
    """Lines of texts that are paragraphs: long enough for several sentences, short enough for one window."""
    low, high = PARAGRAPH_WORDS
    for text in texts:
        for line in text.split("\n"):
            paragraph = line.strip()
            if low <= paragraph.count(" ") < high and len(_SENTENCE.split(paragraph)) > 2:
                yield paragraph


def cloze(paragraph: str, seed: tuple[int, ...]) -> Question | None:
    """One question about the paragraph, the same for the same seed; None when no phrase suits."""
    generator = np.random.default_rng(seed)
    sentence = generator.choice(_SENTENCE.split(paragraph))
    phrases = [(start, end) for start, end in phrases_of(sentence) if sentence.count(" ", start, end) < MAX_ANSWER_WORDS]
    if len(phrases) < 2:
        return None
    # Names and numbers are asked for more often, as in SQuAD.
    weights = np.array([4.0 if re.search(r"\d|[A-Z]", sentence[s or 1 : e]) else 1.0 for s, e in phrases])
    start, end = phrases[generator.choice(len(phrases), p=weights / weights.sum())]
    answer = sentence[start:end]
    sides = (sentence[:start].split()[-CLAUSE_WORDS:], sentence[end:].split()[:CLAUSE_WORDS])
    drop_probability = generator.uniform(*DROP_PROBABILITIES)
    before, after = ([word for word in side if generator.random() > drop_probability] for side in sides)
    asking = [generator.choice(_question_words(answer))]
    question = (asking + after + before, before + asking + after, asking + before + after)[generator.integers(3)]
    return Question(
        "-".join(map(str, seed)),
        " ".join(question).strip(" .,;:!?") + "?",
        paragraph,
        [(paragraph.index(sentence) + start, answer)],
    )


def _question_words(answer: str) -> list[str]:
    if _YEAR.fullmatch(answer):
        return ["when", "in what year", "what year"]
    if re.search(r"\d", answer):
        return ["how many", "how much", "what", "when"]
    if answer[0].isupper():
        return ["who", "what", "where", "which", "whose"]
    return ["what", "what", "which", "how", "why"]
