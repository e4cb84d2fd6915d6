import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus import quality
from groundup.corpus.rules import split

GOOD = ["theorem", "proof", "lemma", "therefore", "follows", "equation", "bounded", "continuous", "function", "defined"]
BAD = ["buy", "cheap", "click", "now", "offer", "sale", "discount", "free", "winner", "subscribe"]
BOTH = ["the", "of", "and", "a", "to", "in", "is", "that", "it", "for"]


def text(vocabulary, words, seed):
    return " ".join(np.random.default_rng(seed).choice(vocabulary + BOTH, words))


@pytest.fixture(scope="module")
def classifier():
    return quality.train([text(GOOD, 300, n) for n in range(30)], [text(BAD, 300, n) for n in range(30)], seed=1)


def test_separates_unseen_texts(classifier):
    good = [classifier.score(text(GOOD, 150, 100 + n)) for n in range(20)]
    bad = [classifier.score(text(BAD, 150, 200 + n)) for n in range(20)]
    assert min(good) > 0.75 > 0.25 > max(bad)


def test_score_does_not_hang_on_length(classifier):
    means = [np.mean([classifier.score(text(GOOD, words, 300 + n)) for n in range(20)]) for words in (30, 100, 2000)]
    assert max(means) - min(means) < 0.05


def test_training_is_repeatable_and_follows_its_seed(classifier, tmp_path):
    again = quality.train([text(GOOD, 300, n) for n in range(30)], [text(BAD, 300, n) for n in range(30)], seed=1)
    other = quality.train([text(GOOD, 300, n) for n in range(30)], [text(BAD, 300, n) for n in range(30)], seed=2)
    assert (again.weights == classifier.weights).all()
    assert (other.weights != classifier.weights).any()
    again.save(tmp_path / "quality.npz")
    first = (tmp_path / "quality.npz").read_bytes()
    again.save(tmp_path / "quality.npz")
    assert (tmp_path / "quality.npz").read_bytes() == first
    assert quality.Classifier.load(tmp_path / "quality.npz").score("a lemma follows") == again.score("a lemma follows")


def test_no_words_and_no_chunks(classifier):
    assert classifier.score(" -- ") == 0.5
    with pytest.raises(ValueError, match="both"):
        quality.train(["a"], ["!"], seed=0)


@given(st.integers(1, 700))
def test_chunks_cover_all_words_in_nearly_equal_parts(words):
    parts = quality.chunks(split(" ".join(f"w{number}" for number in range(words))))
    sizes = [(len(part) + 1) // 2 for part in parts]
    assert sum(sizes) == words
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == 1 or all(60 <= size <= 150 for size in sizes)


def test_percentiles():
    assert quality.percentiles(np.array([3.0, 1.0, 2.0, 2.0])).tolist() == [0.875, 0.125, 0.5, 0.5]
