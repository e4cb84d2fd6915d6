"""Quality as likeness to writing that the user considers good: would Wikipedia reference this page?

LLaMA's classifier asks that question, GPT-3's and DCLM's ask for likeness to other sets; DCLM found that the choice of
positives matters most, so the user gives both positives and negatives. Raw scores of such a classifier shift with its
training texts (RedPajama's users found that no fixed threshold holds), so scores are percentiles: 0.9 means that nine of ten
pages like the negatives score lower.

There is a classifier per language: one for all would learn which language the positives are written in.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.words import Words
from groundup.corpus.classify import labelled
from groundup.corpus.classify.linear import Classifier

QUANTILES = 1000


def train(positives: list[Path], negatives: list[Path], out: Path) -> dict[str, Any]:
    """Write a classifier for each language of which both sets have texts of enough hosts; returns, by language, sizes and
    figures held out by host, and how many texts are of other languages.

    Raises UserError where a set is empty, or no language has texts of enough hosts.
    """
    texts = [labelled.read(positives), labelled.read(negatives)]
    codes = [labelled.named_languages(side) for side in texts]
    figures: dict[str, dict[str, Any]] = {}
    classifiers, left_out = [], Counter[str]()
    for language in sorted({*codes[0], *codes[1]}):
        sides = [[text for text, name in zip(*side, strict=True) if name == language] for side in zip(texts, codes, strict=True)]
        try:
            classifier, figures[language] = _train(sides[0], sides[1])
            classifiers.append(classifier)
        except labelled.TooFew as refusal:
            left_out[language], last_refusal = sum(map(len, sides)), refusal
    if not figures:
        raise last_refusal
    weights = np.concatenate([classifier.weights for classifier in classifiers], axis=1)
    bias, quantiles = (
        np.concatenate([getattr(classifier, name) for classifier in classifiers]) for name in ("bias", "quantiles")
    )
    Classifier([*figures], weights, bias, quantiles=quantiles, languages=[*figures]).save(out)
    return {"classifier": str(out), "languages": figures, "texts_of_other_languages": dict(left_out)}


def _train(good: list[labelled.Text], bad: list[labelled.Text]) -> tuple[Classifier, dict[str, Any]]:
    """The classifier of one language, and its figures. Raises TooFew."""
    documents = labelled.chunked(good + bad, characters=False)
    labels = (np.arange(len(documents)) < len(good))[:, None]
    folds = np.array([labelled.fold_of(text.group) for text in good + bad])
    scores = labelled.held_out_scores(documents, labels, folds, ["quality"])[:, 0]
    scored = ~np.isnan(scores)
    positive, negative = scores[labels[:, 0] & scored], scores[~labels[:, 0] & scored]
    if not (len(positive) and len(negative)):
        raise labelled.TooFew(labelled.TOO_FEW)
    classifier = labelled.train(documents, labels, ["quality"])
    classifier.quantiles = np.quantile(negative, np.linspace(0, 1, QUANTILES + 1)).astype(np.float32)[None]
    return classifier, {
        "positives": len(good),
        "negatives": len(bad),
        "held_out_auc": labelled.auc(positive, negative),
        "positives_kept_with_best_tenth_of_negatives": float((positive >= np.quantile(negative, 0.9)).mean()),
    }


def raw_score(classifier: Classifier, words: Words) -> float:
    """Mean over the text's chunks of the probability of being a positive; 0.5 for a text without words."""
    probabilities = classifier.probabilities(words)
    return float(probabilities[:, 0].mean()) if len(probabilities) else 0.5


def score(classifier: Classifier, words: Words) -> float:
    """The share of texts like the negatives that score lower, 0..1."""
    return calibrated_share(classifier, raw_score(classifier, words))


def calibrated_share(classifier: Classifier, raw: float) -> float:
    """A raw score as its percentile, 0..1, in the scores that the classifier is calibrated on; itself where there are none."""
    return float(percentile(classifier.quantiles[0], np.array([raw]))[0]) if classifier.quantiles.size else raw


def percentiles(scores: np.ndarray) -> np.ndarray:
    """For each score the share of scores below it, equal ones counted half: uniform in 0..1 for any classifier."""
    return percentile(np.sort(scores), scores)


def percentile(ordered: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each score the share of the `ordered` ones below it, equal ones counted half."""
    below, up_to = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return (below + up_to) / (2 * max(1, len(ordered)))
