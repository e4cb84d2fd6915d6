"""Quality as likeness to good writing: logistic regression on hashed word unigrams and bigrams.

The classifier of GPT-3 (Brown et al. 2020, appendix A), LLaMA (would Wikipedia cite this page?) and DCLM (Li et al.
2024, which found that the choice of positives matters most), in numpy. Those score short texts badly, since a
text's score depends on its length; here training and scoring see chunks of about 100 words, and a document has their
mean.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from groundup.corpus.rules import MULTIPLIER, Words, split
from groundup.files import replacing

BITS = 18
CHUNK_WORDS = 100
EPOCHS = 4
BATCH_CHUNKS = 64
LEARNING_RATE = 1.0  # large because a logit is a mean over some 200 weights
L2 = 1e-5


@dataclass
class Classifier:
    weights: np.ndarray  # float32 [2^18]
    bias: float

    def score(self, text: str) -> float:
        """Mean over the text's chunks of the probability of being a positive; 0.5 for a text without words."""
        return self.score_words(split(text))

    def score_words(self, words: Words) -> float:
        parts = chunks(words)
        if not parts:
            return 0.5
        means = np.array([self.weights[features].mean(dtype=np.float64) for features in parts])
        return float(_sigmoid(means + self.bias).mean())

    def save(self, path: Path) -> None:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, weights=self.weights, bias=np.float64(self.bias))

    @classmethod
    def load(cls, path: Path) -> "Classifier":
        with np.load(path, allow_pickle=False) as stored:
            return cls(stored["weights"], float(stored["bias"]))


def chunks(words: Words) -> list[np.ndarray]:
    """For each chunk of about 100 words, the places in the weights of its unigrams and bigrams, int64 [features]."""
    hashes = words.hashes
    if not len(hashes):
        return []
    shift = np.uint64(64 - BITS)
    # The top bits of a product depend on all bits of the factor: hashes need no further mixing.
    unigrams = ((hashes * MULTIPLIER) >> shift).astype(np.int64)
    bigrams = (((hashes[:-1] * np.uint64(31) + hashes[1:]) * MULTIPLIER) >> shift).astype(np.int64)
    count = max(1, round(len(hashes) / CHUNK_WORDS))
    bounds = np.linspace(0, len(hashes), count + 1).astype(np.int64).tolist()
    return [np.concatenate([unigrams[begin:end], bigrams[begin : end - 1]]) for begin, end in pairwise(bounds)]


def train(positives: list[str], negatives: list[str], seed: int) -> Classifier:
    """Fit on the chunks of two lists of texts, by AdaGrad. Both lists must hold words. Deterministic."""
    return train_chunks(
        [part for text in positives for part in chunks(split(text))],
        [part for text in negatives for part in chunks(split(text))],
        seed,
    )


def train_chunks(positives: list[np.ndarray], negatives: list[np.ndarray], seed: int) -> Classifier:
    if not positives or not negatives:
        raise ValueError("a classifier needs both positive and negative chunks")
    parts = positives + negatives
    labels = np.repeat([1.0, 0.0], [len(positives), len(negatives)])
    weights = np.zeros(1 << BITS)
    squares = np.full(1 << BITS, 1e-8)
    bias = 0.0
    generator = np.random.default_rng(seed)
    for epoch in range(EPOCHS):
        rate = LEARNING_RATE * (1 - epoch / EPOCHS)
        order = generator.permutation(len(parts))
        for begin in range(0, len(parts), BATCH_CHUNKS):
            batch = order[begin : begin + BATCH_CHUNKS]
            lengths = np.array([len(parts[row]) for row in batch])
            places = np.concatenate([parts[row] for row in batch])
            starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
            logits = np.add.reduceat(weights[places], starts) / lengths + bias
            error = _sigmoid(logits) - labels[batch]
            touched, inverse = np.unique(places, return_inverse=True)
            gradient = np.bincount(inverse, np.repeat(error / lengths, lengths)) / len(batch) + L2 * weights[touched]
            squares[touched] += gradient**2
            weights[touched] -= rate * gradient / np.sqrt(squares[touched])
            bias -= rate * float(error.mean())
    return Classifier(weights.astype(np.float32), bias)


def percentiles(scores: np.ndarray) -> np.ndarray:
    """For each score the share of scores below it, equal ones counted half: uniform in 0..1 whatever the classifier."""
    if not len(scores):
        return scores
    ordered = np.sort(scores)
    below, up_to = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return (below + up_to) / (2 * len(scores))


def _sigmoid(value: np.ndarray | float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(value, -30, 30)))
