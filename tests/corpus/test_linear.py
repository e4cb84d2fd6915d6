import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.core.words import split
from groundup.corpus.classify import linear

GOOD = ["theorem", "proof", "lemma", "therefore", "follows", "equation", "bounded", "continuous", "function", "defined"]
BAD = ["buy", "cheap", "click", "now", "offer", "sale", "discount", "free", "winner", "subscribe"]
BOTH = ["the", "of", "and", "a", "to", "in", "is", "that", "it", "for"]


def text(vocabulary, words, seed):
    return " ".join(np.random.default_rng(seed).choice(vocabulary + BOTH, words))


def train(seed, characters=False):
    texts = [text(GOOD, 300, n) for n in range(30)] + [text(BAD, 300, n) for n in range(30)]
    parts = [part for one in texts for part in linear.chunks(split(one), characters)]
    labels = (np.arange(len(parts)) < len(parts) // 2)[:, None]
    return linear.train(parts, labels, ["good"], seed, characters)


def score(classifier, one):
    return classifier.probabilities(split(one)).mean()


@pytest.fixture(scope="module")
def classifier():
    return train(1)


def test_separates_unseen_texts(classifier):
    good = [score(classifier, text(GOOD, 150, 100 + n)) for n in range(20)]
    bad = [score(classifier, text(BAD, 150, 200 + n)) for n in range(20)]
    assert min(good) > 0.75 > 0.25 > max(bad)


def test_a_short_text_is_on_the_same_side(classifier):
    assert all(score(classifier, text(GOOD, 30, 300 + n)) > 0.6 for n in range(20))
    assert all(score(classifier, text(BAD, 30, 300 + n)) < 0.4 for n in range(20))
    means = [np.mean([score(classifier, text(GOOD, words, 300 + n)) for n in range(20)]) for words in (100, 2000)]
    assert max(means) - min(means) < 0.05


def test_training_is_repeatable_and_follows_its_seed(classifier, tmp_path):
    again = train(1)
    assert (again.weights == classifier.weights).all()
    assert (train(2).weights != classifier.weights).any()
    again.save(tmp_path / "good.npz")
    first = (tmp_path / "good.npz").read_bytes()
    again.save(tmp_path / "good.npz")
    assert (tmp_path / "good.npz").read_bytes() == first
    loaded = linear.Classifier.load(tmp_path / "good.npz")
    assert loaded.classes == ["good"] and not loaded.characters
    assert score(loaded, "a lemma follows") == score(again, "a lemma follows")


def test_characters_see_through_spellings():
    classifier = train(1, characters=True)
    assert score(classifier, "theorrem prooof leemma continuouss") > 0.6 > 0.4 > score(classifier, "clickk discountt winnerr")


def test_columns_are_questions_of_their_own():
    names = ["good", "bad"]
    parts = [part for words in (GOOD, BAD) for n in range(20) for part in linear.chunks(split(text(words, 200, n)))]
    labels = np.arange(len(parts))[:, None] < len(parts) // 2
    both = linear.train(parts, np.hstack([labels, ~labels]), names, 1)
    alone = linear.train(parts, labels, names[:1], 1)
    assert np.array_equal(both.weights[:, :1], alone.weights)


def test_no_words_and_one_class(classifier):
    assert classifier.probabilities(split(" -- ")).shape == (0, 1)
    with pytest.raises(ValueError, match="both"):
        linear.train(linear.chunks(split("a b c")), np.array([[True]]), ["good"], 0)


def test_a_file_that_is_no_classifier_is_refused(tmp_path):
    for name, content in (("text.npz", b"hello"), ("empty.npz", b""), ("zip.npz", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", weights=np.array([{}], dtype=object))
    for name in ("text.npz", "empty.npz", "zip.npz", "other.npz", "pickle.npz", "missing.npz"):
        with pytest.raises(UserError, match="classifier"):
            linear.Classifier.load(tmp_path / name)


@given(st.integers(1, 700))
def test_chunks_cover_all_words_in_nearly_equal_parts(words):
    parts = linear.chunks(split(" ".join(f"w{number}" for number in range(words))))
    sizes = [(len(part) + 1) // 2 for part in parts]
    assert sum(sizes) == words
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == 1 or all(60 <= size <= 150 for size in sizes)


ONES = linear.Classifier(["x"], np.ones((1 << linear.BITS, 1), np.float32), np.zeros(1, np.float32), True)


@given(st.text(max_size=100))
def test_any_text_has_probabilities(one):
    found = ONES.probabilities(split(one))
    assert ((found >= 0) & (found <= 1)).all()
