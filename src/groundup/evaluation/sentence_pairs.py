"""Minimal pairs: does the model find a grammatical sentence more probable than the same words in a wrong order?

The first thing that a language model is asked for is the probability of a sequence: "the mouse ate the cheese" above
"the the mouse ate cheese" (grammar) and above "the cheese ate the mouse" (meaning). The measure is that of BLiMP
(Warstadt et al. 2020): the share of pairs in which the right sentence has the strictly higher log-probability. Both
sentences of a pair made here hold the same words, so neither length nor rarity can decide.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import regex

from groundup.core.errors import UserError
from groundup.core.statistics import proportion
from groundup.data.docstring_questions import digest, sentences

MIN_WORDS, MAX_WORDS = 8, 30
SCRAMBLED, SWAPPED = "scrambled", "two words swapped"

LECTURE_PAIRS = (
    {"right": "The mouse ate the cheese.", "wrong": "The the mouse ate cheese.", "how": "grammar"},
    {"right": "The mouse ate the cheese.", "wrong": "The cheese ate the mouse.", "how": "meaning"},
)

# Words and a full stop: a misplaced comma or bracket would give the wrong sentence away.
# Of any script with capitals: a German sentence may have umlauts.
_PROSE = regex.compile(r"\p{Lu}\p{Ll}*( \w+(?:['-]\w+)*)+\.")
_COMMENT = re.compile(r"^[ \t]*#+", re.MULTILINE)
_END_OF_COMMENT = re.compile(r"(^[ \t]*#.*\n)(?![ \t]*#)", re.MULTILINE)


def from_documents(texts: Iterable[str], pairs: int, seed: int) -> list[dict[str, str]]:
    """At most `pairs` rows {"right", "wrong", "how"}: sentences of 8 to 30 words and the same words in a wrong order.

    Half of them are "scrambled" (all words in random order), half have "two words swapped"; a few swaps give another
    good sentence, so no model reaches 100 %. Which sentences, and which order, follow from their digests.
    """
    distinct = {sentence for text in texts for sentence in _prose_sentences(text)}
    rows = []
    for number, right in enumerate(sorted(distinct, key=lambda sentence: (digest(seed, sentence), sentence))[:pairs]):
        how = (SCRAMBLED, SWAPPED)[number % 2]
        rows.append({"right": right, "wrong": _disordered(right, how, digest(seed, right)), "how": how})
    return rows


def _prose_sentences(text: str) -> list[str]:
    # In source, prose is in comments and docstrings, with code right behind it.
    text = _COMMENT.sub("", _END_OF_COMMENT.sub(r"\1\n", text)).replace('"""', "\n\n")
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    candidates = [sentence for paragraph in paragraphs for sentence in sentences(paragraph)]
    return [sentence for sentence in candidates if _PROSE.fullmatch(sentence) and _fits(sentence.lower().split())]


def _fits(words: list[str]) -> bool:
    # "No no no no no no no no." has no other order.
    return MIN_WORDS <= len(words) <= MAX_WORDS and 2 * len(set(words)) > len(words)


def _disordered(sentence: str, how: str, seed: int) -> str:
    """The words in a wrong order, the capital and the full stop where they belong."""
    generator = np.random.default_rng(seed)
    words = sentence.removesuffix(".").split()
    words[0] = words[0].lower() if words[0] != "I" else "I"
    order = np.arange(len(words))
    while [words[index] for index in order] == words:
        order = np.arange(len(words))
        if how == SCRAMBLED:
            generator.shuffle(order)
        else:
            first, second = generator.choice(len(words), size=2, replace=False)
            order[[first, second]] = order[[second, first]]
    text = " ".join(words[index] for index in order)
    return text[0].upper() + text[1:] + "."


def score(pairs: Sequence[dict[str, str]], log_likelihood: Callable[[list[str]], list[float]]) -> dict[str, Any]:
    """{how: {"accuracy", "low", "high", "n"}} for each kind of error, in order of appearance, and "all".

    `log_likelihood` takes texts and gives the log-probability of each in nats; it is called once. A tie counts as
    wrong. Raises UserError without pairs.
    """
    if not pairs:
        raise UserError("sentence pairs: none to score; hold out documents with plain sentences of 8 to 30 words")
    nats = log_likelihood([pair["right"] for pair in pairs] + [pair["wrong"] for pair in pairs])
    won = [right > wrong for right, wrong in zip(nats[: len(pairs)], nats[len(pairs) :], strict=True)]
    scores = {}
    for how in dict.fromkeys(pair["how"] for pair in pairs):
        outcomes = [right_higher for right_higher, pair in zip(won, pairs, strict=True) if pair["how"] == how]
        scores[how] = proportion(sum(outcomes), len(outcomes))
    return {**scores, "all": proportion(sum(won), len(won))}
