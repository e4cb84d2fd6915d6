"""Domain classes: whether a document reads like code, a novel, news, a forum, an encyclopedia, ... Weights of a mixture
need domains, which the host alone does not tell.

The classes are those that the user has examples of: one set of files per class.
"""

from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.core.words import Words
from groundup.corpus.classify import labelled
from groundup.corpus.classify.linear import Classifier


def train(sets: dict[str, list[Path]], out: Path) -> dict[str, Any]:
    """Write the classifier of two or more classes; returns accuracy held out by host or book.

    Raises UserError for fewer than two classes, an empty one, or a text in two of them.
    """
    if len(sets) < 2:
        raise UserError("a domain classifier needs two or more classes: NAME=PATH NAME=PATH ...")
    classes = sorted(sets)
    texts = {name: labelled.read(sets[name]) for name in classes}
    class_of: dict[bytes, str] = {}
    for name in classes:
        for text in texts[name]:
            if class_of.setdefault(text.digest, name) != name:
                raise UserError(f"a text of {name!r} is also in {class_of[text.digest]!r}: {text.text[:40]!r}")
    truth = np.repeat(np.arange(len(classes)), [len(texts[name]) for name in classes])
    all_texts = [text for name in classes for text in texts[name]]
    documents = labelled.chunked(all_texts, characters=False)
    labels = truth[:, None] == np.arange(len(classes))
    folds = np.array([labelled.fold_of(text.group) for text in all_texts])
    scores = labelled.held_out_scores(documents, labels, folds, classes)
    scored = ~np.isnan(scores[:, 0])
    guesses = scores[scored].argmax(axis=1)
    classifier = labelled.train(documents, labels, classes)
    classifier.languages = labelled.known_languages([texts[name] for name in classes])
    classifier.save(out)
    recall = {name: float((guesses == column)[truth[scored] == column].mean()) for column, name in enumerate(classes)}
    return {
        "classifier": str(out),
        "languages": classifier.languages,
        "documents": {name: len(texts[name]) for name in classes},
        "held_out_accuracy": float((guesses == truth[scored]).mean()),
        "held_out_macro_f1": labelled.macro_f1(truth[scored], guesses),
        "held_out_recall": recall,
    }


def named_sets(pairs: list[str]) -> dict[str, list[Path]]:
    """`["news=a.jsonl", "news=b.jsonl", "code=src"]` as sets. Raises UserError for what is not NAME=PATH."""
    sets: dict[str, list[Path]] = {}
    for pair in pairs:
        name, sign, path = pair.partition("=")
        if not (name and sign and path):
            raise UserError(f"{pair!r}: not NAME=PATH; give each class a name and a file, as news=news.jsonl")
        sets.setdefault(name, []).append(Path(path))
    return sets


def classify(classifier: Classifier, words: Words) -> tuple[str, float]:
    """The likeliest class and its share of all classes' scores; ("unknown", 0.0) for a text without words."""
    probabilities = classifier.probabilities(words)
    if not len(probabilities):
        return "unknown", 0.0
    means = probabilities.mean(axis=0)
    likeliest = int(means.argmax())
    return classifier.classes[likeliest], float(means[likeliest] / means.sum())
