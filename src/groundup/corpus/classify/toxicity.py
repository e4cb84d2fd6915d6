"""Toxic and sexual language: by a list of words, and by a classifier trained on texts that people labelled.

A list is what C4 drops pages by (LDNOOBW, of which those of 22 languages ship here, of 14 to 403 words and phrases); it
cannot tell an insult from a medical page. The classifier also sees n-grams of characters, for spellings made to evade a
list. A long document may be harmless but for one part: its worst chunk of about 100 words is given too.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.words import Words, ngrams, plain, split, word_hashes
from groundup.corpus.classify import labelled
from groundup.corpus.classify.linear import Classifier
from groundup.data.whole_file import read_whole

# Not those of Persian and Chinese: کس, "somebody", and 性, "-ness", are in them, of each page of prose.
LISTED = frozenset("ar cs da de en es fi fr hi hu it ja ko nl no pl pt ru sv th tl tr".split(" "))  # noqa: SIM905
TOP_16 = np.uint64(48)


class WordList:
    """Words and phrases, compared as plain words: without case or punctuation."""

    def __init__(self, lines: list[str]) -> None:
        # Cut as texts are: a word of a script without spaces is a phrase of its characters.
        entries = [" ".join(filter(None, map(plain, split(line).raw))) for line in lines]
        phrases = [entry.split() for entry in sorted(set(entries)) if " " in entry]
        wanted = sorted({word for entry in entries for word in entry.split()})
        hashes = word_hashes(wanted)
        order = np.argsort(hashes)
        self.wanted = hashes[order]
        self.perhaps = np.zeros(1 << 16, dtype=bool)  # by the first 16 bits of a hash: most words are in no list
        self.perhaps[self.wanted >> TOP_16] = True
        self.listed = np.isin(self.wanted, word_hashes([entry for entry in entries if entry and " " not in entry]))
        place = {wanted[old]: new for new, old in enumerate(order.tolist())}
        self.phrases = [({place[word] for word in phrase}, len(phrase), _gram(phrase)) for phrase in phrases]

    def count(self, words: Words) -> int:
        """How many words of the list, and phrases, stand in the text."""
        if not len(self.wanted):
            return 0
        hashes = words.hashed[self.perhaps[words.hashed >> TOP_16]]
        places = np.minimum(np.searchsorted(self.wanted, hashes), len(self.wanted) - 1)
        places = places[self.wanted[places] == hashes]
        found = int(self.listed[places].sum())
        present = set(places.tolist())
        for needed, size, gram in self.phrases:
            if needed <= present:
                found += int((ngrams(words.hashes, size) == gram).sum())
        return found


def _gram(phrase: list[str]) -> np.ndarray:
    return ngrams(word_hashes(phrase), len(phrase))


@cache
def word_list(path: Path) -> WordList:
    """A list of your own, one word or phrase a line. Raises UserError."""
    return WordList(read_whole(path).splitlines())


@cache
def shipped_list(language: str = "en") -> WordList:
    """LDNOOBW's of one of the languages in `LISTED`."""
    return WordList(files(__package__).joinpath(f"ldnoobw_{language}.txt").read_text(encoding="utf-8").splitlines())


def train(toxic: list[Path], harmless: list[Path], out: Path) -> dict[str, Any]:
    """Write the classifier; returns macro-F1 on a held-out fifth, and the word list's on the same texts."""
    bad, good = labelled.read(toxic), labelled.read(harmless)
    texts = bad + good
    documents = labelled.chunked(texts, characters=True)
    labels = (np.arange(len(texts)) < len(bad))[:, None]
    folds = np.array([labelled.fold_of(text.group) for text in texts])
    scores = labelled.held_out_scores(documents, labels, folds, ["toxic"], characters=True, only_fold=0)[:, 0]
    held = np.flatnonzero(~np.isnan(scores))
    listed = np.array([shipped_list().count(split(texts[row].text)) > 0 for row in held])
    truth = labels[held, 0]
    classifier = labelled.fit(documents, labels, ["toxic"], characters=True)
    classifier.languages = labelled.known_languages([bad, good])
    classifier.save(out)
    return {
        "classifier": str(out),
        "languages": classifier.languages,
        "toxic": len(bad),
        "harmless": len(good),
        "held_out": len(held),
        "held_out_macro_f1": labelled.macro_f1(truth, scores[held] >= 0.5),
        "word_list_macro_f1": labelled.macro_f1(truth, listed),
    }


def score(classifier: Classifier, words: Words) -> tuple[float, float]:
    """Mean and highest probability of being toxic over the text's chunks; zeros for a text without words."""
    found = classifier.probabilities(words)[:, 0]
    return (float(found.mean()), float(found.max())) if len(found) else (0.0, 0.0)
