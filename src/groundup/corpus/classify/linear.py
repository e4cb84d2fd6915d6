"""A linear text classifier: logistic regression on hashed n-grams, trained by AdaGrad, in numpy.

The kind of classifier that GPT-3 (Brown et al. 2020, appendix A), LLaMA and DCLM (Li et al. 2024) score quality with;
fastText is one too. The quality score, the domain classes and the toxicity score share it. The field's classifiers score
short texts badly, since their scores depend on length. Here training and scoring see chunks of about 100 words, features are
divided by the root of their number, and a document's score is the mean of its chunks'. Each class is a binary question with
its own column of weights; its positives and negatives weigh equally. One seeded order and no parallel sums: the same texts
give the same bytes.
"""

import json
import zipfile
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from groundup.core.errors import UserError
from groundup.core.files import replacing
from groundup.core.words import MULTIPLIER, Words, ngrams

BITS = 18
CHUNK_WORDS = 100
CHARACTER_NGRAMS = (3, 4, 5)
EPOCHS = 4
BATCH_CHUNKS = 64
LEARNING_RATE = 0.3
L2 = 1e-5
SHIFT = np.uint64(64 - BITS)


@dataclass
class Classifier:
    """`classes` names the columns of `weights`; a classifier of quality has one per language."""

    classes: list[str]
    weights: np.ndarray  # float32 [2^18, classes]
    bias: np.ndarray  # float32 [classes]
    characters: bool = False  # whether n-grams of characters are features too: for words written to evade a list
    # Of the scores that it is calibrated on, float32 [classes, quantiles]; no columns where it is not calibrated.
    quantiles: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    languages: list[str] = field(default_factory=list)  # that it knows

    def probabilities(self, words: Words) -> np.ndarray:
        """float64 [chunks, classes], each in 0..1 independently; no row for a text without words."""
        parts = chunks(words, self.characters)
        return self.score_chunks(parts) if parts else np.zeros((0, len(self.classes)))

    def score_chunks(self, parts: list[np.ndarray]) -> np.ndarray:
        """The same for features from `chunks`, of one text or several; `parts` must not be empty."""
        sums, lengths = _sums(self.weights, parts)
        return _sigmoid(sums / np.sqrt(lengths)[:, None] + self.bias)

    def save(self, path: Path) -> None:
        description = json.dumps({name: getattr(self, name) for name in ("classes", "characters", "languages")})
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file, weights=self.weights, bias=self.bias, quantiles=self.quantiles, description=np.array(description)
            )

    @classmethod
    def load(cls, path: Path) -> "Classifier":
        """Raises UserError when the file is missing or not such a classifier."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in ("weights", "bias", "quantiles")}
                loaded = cls(**arrays, **json.loads(str(stored["description"])))
        except FileNotFoundError:
            raise UserError(f"{path}: no such classifier; train it first") from None
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
            raise UserError(f"{path}: not a classifier; write one with groundup corpus train-...") from None
        if loaded.weights.shape != (1 << BITS, len(loaded.classes)):
            raise UserError(f"{path}: weights for other features; train the classifier again")
        return loaded

    def of_language(self, language: str) -> "Classifier | None":
        """The classifier of one language, where `classes` are languages; None where it does not know the language."""
        if language not in self.classes:
            return None
        column = self.classes.index(language)
        weights = np.ascontiguousarray(self.weights[:, column : column + 1])
        return Classifier(
            [language], weights, self.bias[column : column + 1], self.characters, self.quantiles[column : column + 1], [language]
        )


def chunks(words: Words, characters: bool = False) -> list[np.ndarray]:
    """For each chunk of about 100 words, the rows of its features in the weights, int64 [features]."""
    hashes = words.hashes
    if not len(hashes):
        return []
    # The top bits of a product depend on all bits of the hash: it needs no further mixing.
    unigrams = ((hashes * MULTIPLIER) >> SHIFT).astype(np.int64)
    bigrams = (((hashes[:-1] * np.uint64(31) + hashes[1:]) * MULTIPLIER) >> SHIFT).astype(np.int64)
    count = max(1, round(len(hashes) / CHUNK_WORDS))
    borders = list(pairwise(np.linspace(0, len(hashes), count + 1).astype(np.int64).tolist()))
    features = [np.concatenate([unigrams[begin:end], bigrams[begin : end - 1]]) for begin, end in borders]
    if characters:
        texts = (" ".join([words.raw[index] for index in words.filled[begin:end]]) for begin, end in borders)
        features = [np.concatenate([part, _character_ngrams(text)]) for part, text in zip(features, texts, strict=True)]
    return features


def _character_ngrams(text: str) -> np.ndarray:
    points = np.frombuffer(f" {text.lower()} ".encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    grams = np.concatenate([ngrams(points * MULTIPLIER + np.uint64(n), n) for n in CHARACTER_NGRAMS])
    return ((grams * MULTIPLIER) >> SHIFT).astype(np.int64)


def train(
    parts: list[np.ndarray], labels: np.ndarray, classes: list[str], seed: int, characters: bool = False
) -> Classifier:
    """Train on chunks (from `chunks`) with their labels, bool [chunks, classes]. Deterministic.

    Raises ValueError where a class has no positive or no negative chunk.
    """
    positive = labels.mean(axis=0) if len(labels) else np.zeros(len(classes))
    if not all(0 < share < 1 for share in positive):
        raise ValueError("a classifier needs both positive and negative chunks")
    balance = np.where(labels, 0.5 / positive, 0.5 / (1 - positive))
    weights = np.zeros((1 << BITS, len(classes)))
    squares = np.full_like(weights, 1e-8)
    bias = np.zeros(len(classes))
    generator = np.random.default_rng(seed)
    for epoch in range(EPOCHS):
        lr = LEARNING_RATE * (1 - epoch / EPOCHS)
        order = generator.permutation(len(parts))
        for begin in range(0, len(parts), BATCH_CHUNKS):
            batch = order[begin : begin + BATCH_CHUNKS]
            batch_parts = [parts[row] for row in batch]
            sums, lengths = _sums(weights, batch_parts)
            roots = np.sqrt(lengths)[:, None]
            error = (_sigmoid(sums / roots + bias) - labels[batch]) * balance[batch]
            touched, inverse = np.unique(np.concatenate(batch_parts), return_inverse=True)
            shares = np.repeat(error / roots, lengths, axis=0)
            gradient = np.stack([np.bincount(inverse, column) for column in shares.T], axis=1) / len(batch)
            gradient += L2 * weights[touched]
            squares[touched] += gradient**2
            weights[touched] -= lr * gradient / np.sqrt(squares[touched])
            bias -= lr * error.mean(axis=0)
    return Classifier(classes, weights.astype(np.float32), bias.astype(np.float32), characters)


def _sums(weights: np.ndarray, parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each part the sum of its weights, float64 [parts, classes], and its number of features, int64 [parts]."""
    lengths = np.array([len(part) for part in parts])
    starts = np.cumsum(lengths) - lengths
    return np.add.reduceat(weights[np.concatenate(parts)], starts, axis=0, dtype=np.float64), lengths


def _sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(value, -30, 30)))
