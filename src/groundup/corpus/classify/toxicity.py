"""Toxic and sexual language: by a list of words, and by a classifier trained on texts that people labelled.

C4 drops pages by such a list (LDNOOBW, of which the lists of 22 languages ship here, of 14 to 403 words and phrases); it
cannot tell an insult from a medical page. The classifier also sees n-grams of characters, for spellings made to evade a
list. A long document may be harmless except for one part: the score of its worst chunk of about 100 words is given too.
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

# Not the lists of Persian and Chinese: they hold کس, "somebody", and 性, "-ness", which are on every page of prose.
LISTED_LANGUAGES = frozenset("ar cs da de en es fi fr hi hu it ja ko nl no pl pt ru sv th tl tr".split(" "))  # noqa: SIM905
TOP_16 = np.uint64(48)


class WordList:
    """Words and phrases, compared as plain words: without case or punctuation."""

    def __init__(self, lines: list[str]) -> None:
        # Split as texts are: a word of a script without spaces is a phrase of its characters.
        entries = [" ".join(filter(None, map(plain, split(line).raw))) for line in lines]
        phrases = [entry.split() for entry in sorted(set(entries)) if " " in entry]
        wanted = sorted({word for entry in entries for word in entry.split()})
        hashes = word_hashes(wanted)
        order = np.argsort(hashes)
        self.word_hashes = hashes[order]
        self.maybe_listed = np.zeros(1 << 16, dtype=bool)  # by the first 16 bits of a hash: most words are in no list
        self.maybe_listed[self.word_hashes >> TOP_16] = True
        self.listed = np.isin(self.word_hashes, word_hashes([entry for entry in entries if entry and " " not in entry]))
        index_of = {wanted[old]: new for new, old in enumerate(order.tolist())}
        self.phrases = [({index_of[word] for word in phrase}, len(phrase), _gram(phrase)) for phrase in phrases]

    def count(self, words: Words) -> int:
        """How often words and phrases of the list occur in the text."""
        if not len(self.word_hashes):
            return 0
        hashes = words.hashed[self.maybe_listed[words.hashed >> TOP_16]]
        indices = np.minimum(np.searchsorted(self.word_hashes, hashes), len(self.word_hashes) - 1)
        indices = indices[self.word_hashes[indices] == hashes]
        count = int(self.listed[indices].sum())
        present = set(indices.tolist())
        for needed, size, gram in self.phrases:
            if needed <= present:
                count += int((ngrams(words.hashes, size) == gram).sum())
        return count


def _gram(phrase: list[str]) -> np.ndarray:
    return ngrams(word_hashes(phrase), len(phrase))


@cache
def word_list(path: Path) -> WordList:
    """A user's list, one word or phrase per line. Raises UserError."""
    return WordList(read_whole(path).splitlines())


@cache
def shipped_list(language: str = "en") -> WordList:
    """LDNOOBW's list for one of `LISTED_LANGUAGES`."""
    return WordList(files(__package__).joinpath(f"ldnoobw_{language}.txt").read_text(encoding="utf-8").splitlines())


def train(toxic: list[Path], harmless: list[Path], out: Path) -> dict[str, Any]:
    """Write the classifier; returns macro-F1 on a held-out fifth, and the word list's on the same texts."""
    bad, good = labelled.read(toxic), labelled.read(harmless)
    texts = bad + good
    documents = labelled.chunked(texts, characters=True)
    labels = (np.arange(len(texts)) < len(bad))[:, None]
    folds = np.array([labelled.fold_of(text.group) for text in texts])
    scores = labelled.held_out_scores(documents, labels, folds, ["toxic"], characters=True, only_fold=0)[:, 0]
    held_out = np.flatnonzero(~np.isnan(scores))
    listed = np.array([shipped_list().count(split(texts[row].text)) > 0 for row in held_out])
    truth = labels[held_out, 0]
    classifier = labelled.train(documents, labels, ["toxic"], characters=True)
    classifier.languages = labelled.known_languages([bad, good])
    classifier.save(out)
    return {
        "classifier": str(out),
        "languages": classifier.languages,
        "toxic": len(bad),
        "harmless": len(good),
        "held_out": len(held_out),
        "held_out_macro_f1": labelled.macro_f1(truth, scores[held_out] >= 0.5),
        "word_list_macro_f1": labelled.macro_f1(truth, listed),
    }


def score(classifier: Classifier, words: Words) -> tuple[float, float]:
    """Mean and highest probability of being toxic over the text's chunks; zeros for a text without words."""
    probabilities = classifier.probabilities(words)[:, 0]
    return (float(probabilities.mean()), float(probabilities.max())) if len(probabilities) else (0.0, 0.0)
