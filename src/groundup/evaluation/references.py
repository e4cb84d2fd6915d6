"""Names, links and citations in answers, and whether a corpus has them: a reference that exists nowhere is made up.

A reference counts as existing where its words follow one another in a document, whatever case and punctuation. A name that the
question holds already is not the model's invention, and is passed over.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from groundup.core.words import ngrams, word_hashes

LINK = re.compile(r"(?:https?://|www\.)[^\s<>\"')\]}`]+")
CAPITALISED = r"[A-Z][\w'’-]++"  # taken whole, and begun only where a word begins: else time grows with its square
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
LONGEST = 32  # words of a reference that are looked for


def references(text: str, question: str = "") -> dict[str, list[str]]:
    """By kind, each once, without those whose words follow one another in the question."""
    links = [found.rstrip(".,;:!?") for found in LINK.findall(text)]
    text = LINK.sub(" ", text)
    citations = [match[0].rstrip(".,;: ") for match in CITATION.finditer(text)]
    text = CITATION.sub(" ", text)
    names = [next(filter(None, match.groups())).rstrip("().,;: ") for match in NAME.finditer(text)]
    asked = " ".join(words(question))
    found = {"names": names, "links": links, "citations": citations}
    return {
        kind: [one for one in dict.fromkeys(some) if words(one) and f" {' '.join(words(one))} " not in f" {asked} "]
        for kind, some in found.items()
    }


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


@dataclass
class Existing:
    """Which of some references a corpus has. Memory grows with them, not with the corpus."""

    sought: Iterable[str]
    found: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        parts = {one: tuple(words(one)[:LONGEST]) for one in self.sought}
        known = sorted({word for some in parts.values() for word in some})
        self._hash = dict(zip(known, word_hashes(known).tolist(), strict=True))
        self._wanted: dict[int, dict[int, list[str]]] = {}  # by number of words, by their hash
        for one, some in parts.items():
            [gram] = ngrams(np.array([self._hash[word] for word in some], np.uint64), len(some)).tolist()
            self._wanted.setdefault(len(some), {}).setdefault(gram, []).append(one)

    def read(self, documents: Iterable[str]) -> "Existing":
        for document in documents:
            hashes = np.array([self._hash.get(word, 0) for word in words(document)], np.uint64)
            for size, wanted in self._wanted.items():
                for gram in np.intersect1d(ngrams(hashes, size), np.array([*wanted], np.uint64)).tolist():
                    self.found.update(wanted[gram])
        return self


def missing(answers: Sequence[dict[str, list[str]]], documents: Iterable[str]) -> list[dict[str, list[str]]]:
    """Of the references of each answer those that no document has."""
    existing = Existing({one for some in answers for kind in KINDS for one in some[kind]}).read(documents)
    return [{kind: [one for one in some[kind] if one not in existing.found] for kind in KINDS} for some in answers]
