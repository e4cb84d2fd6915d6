"""Names, links and citations in answers, and whether a corpus has them: a reference that exists nowhere is made up.

A reference counts as existing if its words follow one another in a document, whatever case and punctuation. A name that is in
the question already is not the model's invention, and is ignored.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from groundup.core.words import ngrams, word_hashes

LINK = re.compile(r"(?:https?://|www\.)[^\s<>\"')\]}`]+")
CAPITALISED = r"[A-Z][\w'’-]++"  # possessive, and only at the start of a word: else time is quadratic
CITATION = re.compile(
    rf"(?<![\w'’-]){CAPITALISED}(?: et al\.?,?|(?:,| and| &) {CAPITALISED},?|,)? \(?(?:1[5-9]|20)\d\d[a-z]?\b\)?"
    r"|\b10\.\d{4,9}/[^\s<>\"')\]}]++|\barXiv:\s?\d{4}\.\d{4,5}\b"
)
# `code`, a.dotted.name, and two to five words with capitals.
NAME = re.compile(
    rf"`([^`\n]{{2,80}})`|(?<![\w.])([A-Za-z_]\w*+(?:\.[A-Za-z_]\w*+)++)"
    rf"|(?<![\w'’-])({CAPITALISED}(?: {CAPITALISED}){{1,4}})"
)
KINDS = ("names", "links", "citations")
WORD = re.compile(r"\w+")
MAX_WORDS = 32  # words of a reference that are looked for


def references(text: str, question: str = "") -> dict[str, list[str]]:
    """By kind, each once, without those whose words follow one another in the question."""
    links = [link.rstrip(".,;:!?") for link in LINK.findall(text)]
    text = LINK.sub(" ", text)
    citations = [match[0].rstrip(".,;: ") for match in CITATION.finditer(text)]
    text = CITATION.sub(" ", text)
    names = [next(filter(None, match.groups())).rstrip("().,;: ") for match in NAME.finditer(text)]
    question_words = " ".join(words(question))
    by_kind = {"names": names, "links": links, "citations": citations}
    return {
        kind: [name for name in dict.fromkeys(names) if words(name) and f" {' '.join(words(name))} " not in f" {question_words} "]
        for kind, names in by_kind.items()
    }


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


@dataclass
class Existing:
    """Which of these references a corpus has. Memory grows with the references, not with the corpus."""

    references: Iterable[str]
    existing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        words_of = {reference: tuple(words(reference)[:MAX_WORDS]) for reference in self.references}
        vocabulary = sorted({word for reference_words in words_of.values() for word in reference_words})
        self._hash = dict(zip(vocabulary, word_hashes(vocabulary).tolist(), strict=True))
        self._wanted: dict[int, dict[int, list[str]]] = {}  # by number of words, by their hash
        for reference, reference_words in words_of.items():
            hashes = np.array([self._hash[word] for word in reference_words], np.uint64)
            [gram] = ngrams(hashes, len(reference_words)).tolist()
            self._wanted.setdefault(len(reference_words), {}).setdefault(gram, []).append(reference)

    def read(self, documents: Iterable[str]) -> "Existing":
        for document in documents:
            hashes = np.array([self._hash.get(word, 0) for word in words(document)], np.uint64)
            for size, wanted in self._wanted.items():
                for gram in np.intersect1d(ngrams(hashes, size), np.array([*wanted], np.uint64)).tolist():
                    self.existing.update(wanted[gram])
        return self


def missing(answers: Sequence[dict[str, list[str]]], documents: Iterable[str]) -> list[dict[str, list[str]]]:
    """The references of each answer that no document has."""
    corpus = Existing({reference for answer in answers for kind in KINDS for reference in answer[kind]}).read(documents)
    return [{kind: [name for name in answer[kind] if name not in corpus.existing] for kind in KINDS} for answer in answers]
