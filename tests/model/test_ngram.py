from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.model.ngram import KneserNey

SEPARATOR = 0


def windows(tokens, order):
    """Every token with its `order - 1` tokens of history, padded with separators where its document begins."""
    history = (SEPARATOR,) * (order - 1)
    for token in tokens:
        yield (*history, token)
        history = (SEPARATOR,) * (order - 1) if token == SEPARATOR else (*history, token)[1:]


def discounts(counts):
    n = Counter(counts.values())
    if n[1] and n[2] and n[3]:
        y = n[1] / (n[1] + 2 * n[2])
        d = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        if min(d) > 0:
            return d
    return [0.5, 1.0, 1.5]


class Reference:
    """Modified Kneser-Ney with dictionaries, straight from the formula."""

    def __init__(self, tokens, order, vocabulary):
        self.vocabulary = vocabulary
        self.counts = {order: Counter(windows(tokens, order))}
        for size in range(order - 1, 0, -1):
            longer = set(windows(tokens, size + 1))
            self.counts[size] = Counter(gram[1:] for gram in longer)
        self.followers = {size: defaultdict(dict) for size in self.counts}
        for size, counts in self.counts.items():
            for gram, count in counts.items():
                self.followers[size][gram[:-1]][gram[-1]] = count
        self.discounts = {size: discounts(counts) for size, counts in self.counts.items()}

    def probability(self, gram):
        if not gram:
            return 1 / self.vocabulary
        followers = self.followers[len(gram)].get(gram[:-1])
        lower = self.probability(gram[1:])
        if not followers:
            return lower
        d = self.discounts[len(gram)]
        taken = sum(d[min(count, 3) - 1] for count in followers.values())
        count = followers.get(gram[-1], 0)
        kept = count - d[min(count, 3) - 1] if count else 0
        return (kept + taken * lower) / sum(followers.values())


def text(length, vocabulary, seed=0):
    """Tokens with structure, so that histories repeat: squares of uniform numbers favour small ids."""
    random = np.random.default_rng(seed)
    return np.concatenate([[SEPARATOR], (random.random(length) ** 2 * vocabulary).astype(np.int64)])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [5, 3000])
def test_equals_the_formula(order, length):
    train, test = text(length, 12), text(300, 14, seed=1)  # ids 12 and 13 are new
    model, reference = KneserNey.fit(train, order, 14, SEPARATOR), Reference(train.tolist(), order, 14)
    expected = [np.log(reference.probability(gram)) for gram in windows(test.tolist(), order)]
    np.testing.assert_allclose(model.log_probabilities(test), expected, rtol=1e-12)


def test_the_estimated_discounts_are_in_use():
    reference = Reference(text(3000, 12).tolist(), 3, 14)
    assert reference.discounts[3] != [0.5, 1.0, 1.5]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 4))
def test_every_distribution_sums_to_one(train, order):
    model = KneserNey.fit(np.array(train), order, 5, SEPARATOR)
    for history in product(range(5), repeat=order - 1):
        sequences = [[SEPARATOR, *history, token] for token in range(5)]
        total = sum(np.exp(model.log_probabilities(np.array(sequence))[-1]) for sequence in sequences)
        assert total == pytest.approx(1, abs=1e-12)


def test_next_token_is_the_same_distribution():
    model = KneserNey.fit(text(2000, 9), 3, 9, SEPARATOR)
    for history in ([], [4], [4, 2], [4, 2, SEPARATOR], [4, SEPARATOR, 2], [1, 2, 3, 1, 5]):
        expected = [model.log_probabilities(np.array([SEPARATOR, *history, token]))[-1] for token in range(9)]
        np.testing.assert_allclose(np.log(model.next_token(np.array(history))), expected, rtol=1e-12)


def test_a_context_never_reaches_into_the_document_before():
    model = KneserNey.fit(text(2000, 9), 4, 9, SEPARATOR)
    first, second = [SEPARATOR, 3, 1, 4], [SEPARATOR, 1, 5, 2]
    together = model.log_probabilities(np.array(first + second))
    # From its second token on, for the separator is predicted as the end of the document before.
    np.testing.assert_array_equal(together[5:], model.log_probabilities(np.array(second))[1:])


def test_a_large_vocabulary_does_not_overflow():
    train = np.random.default_rng(0).integers(0, 2**30, 5000)
    model = KneserNey.fit(np.concatenate([train, train]), 5, 2**30, SEPARATOR)
    seen = model.log_probabilities(train)
    assert (seen[5:] > np.log(0.2)).all()
    assert np.isfinite(model.log_probabilities(train[::-1].copy())).all()


def test_grammar_beats_word_salad():
    the, cat, mouse, eats, cheese = range(1, 6)
    corpus = [[the, cat, eats, the, mouse], [the, mouse, eats, the, cheese], [the, cat, eats, the, cheese]] * 3
    tokens = np.concatenate([[SEPARATOR, *sentence] for sentence in corpus])
    model = KneserNey.fit(tokens, 3, 6, SEPARATOR)

    def score(*sentence):
        return model.log_probabilities(np.array([SEPARATOR, *sentence, SEPARATOR]))[1:].sum()

    salad = score(eats, the, the, mouse, cat)
    assert score(the, mouse, eats, the, cheese) > score(the, cheese, eats, the, mouse) > salad


def test_bad_input():
    for tokens, order in (([], 3), ([1], 0), ([6], 2), ([-1], 2)):
        with pytest.raises(ValueError):
            KneserNey.fit(np.array(tokens), order, 6, SEPARATOR)
    with pytest.raises(ValueError, match="vocabulary of 6"):
        KneserNey.fit(np.array([1]), 2, 6, SEPARATOR).log_probabilities(np.array([6]))
