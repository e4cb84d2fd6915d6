import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.evaluation import sentence_pairs

TEXTS = [
    'def f():\n    """Return the number of files that were copied to the target."""\n    return 1\n',
    "# The parser reads one line at a time and stops\n# at the first blank one.\nx = y[1] + 2\n",
    "Title\n\nA queue keeps the order in which its items were added. Too short this one.\n\n"
    "This sentence, having commas, is not used because they would tell. f(x) is some code that nobody would read.\n",
]

word = st.text("abcdefghij", min_size=1, max_size=6)
sentence = st.lists(word, min_size=8, max_size=30).map(lambda words: " ".join(words).capitalize() + ".")


def test_sentences_are_found_in_prose_comments_and_docstrings():
    rows = sentence_pairs.from_documents(TEXTS, pairs=10, seed=0)
    assert {row["right"] for row in rows} == {
        "Return the number of files that were copied to the target.",
        "The parser reads one line at a time and stops at the first blank one.",
        "A queue keeps the order in which its items were added.",
    }
    assert sentence_pairs.from_documents(TEXTS[::-1], pairs=10, seed=0) == rows
    assert len(sentence_pairs.from_documents(TEXTS, pairs=2, seed=0)) == 2


@pytest.mark.parametrize(
    "right",
    [
        "Über dem Fluss öffnet die Bäckerin um vier Uhr früh.",
        "Élise a gardé près du port les clés de son frère.",
        "Старый учитель каждый вечер читает детям новые письма.",
    ],
)
def test_sentences_of_every_script_with_capitals_are_found(right):
    [row] = sentence_pairs.from_documents([right], pairs=2, seed=0)
    assert row["right"] == right and row["wrong"] != right


@given(st.lists(sentence, max_size=6), st.integers(0, 3))
def test_a_wrong_sentence_holds_the_same_words_in_another_order(found, seed):
    rows = sentence_pairs.from_documents(found, pairs=100, seed=seed)
    for row in rows:
        right, wrong = (row[side].lower().removesuffix(".").split() for side in ("right", "wrong"))
        assert right != wrong and Counter(right) == Counter(wrong)
        assert row["wrong"][0].isupper() and row["wrong"].endswith(".")
        if row["how"] == sentence_pairs.SWAPPED:
            assert sum(one != other for one, other in zip(right, wrong, strict=True)) == 2
    hows = Counter(row["how"] for row in rows)
    assert 0 <= hows[sentence_pairs.SCRAMBLED] - hows[sentence_pairs.SWAPPED] <= 1


def test_a_sentence_of_one_word_repeated_has_no_wrong_order():
    assert sentence_pairs.from_documents(["No no no no no no no no no."], pairs=5, seed=0) == []


def test_a_bigram_model_prefers_the_right_order():
    """Counts of neighbouring words, learnt from the right sentences, tell them from the wrong ones."""
    generator = random.Random(0)
    verbs, nouns = ["reads", "keeps", "moves"], ["parser", "queue", "file", "reader"]
    texts = [
        f"The {generator.choice(nouns)} {generator.choice(verbs)} each {generator.choice(nouns)} that the "
        f"{generator.choice(nouns)} {generator.choice(verbs)}."
        for _ in range(60)
    ]
    pairs = sentence_pairs.from_documents(texts, pairs=40, seed=0)
    seen = Counter(pair for text in texts for pair in zip(text.lower().split(), text.lower().split()[1:], strict=False))

    def log_likelihood(found):
        return [
            sum(math.log(seen[pair] + 0.01) for pair in zip(one.lower().split(), one.lower().split()[1:], strict=False))
            for one in found
        ]

    scores = sentence_pairs.score(pairs, log_likelihood)
    assert set(scores) == {"scrambled", "two words swapped", "all"}
    assert scores["scrambled"]["accuracy"] > 0.9 and scores["all"]["low"] > 0.5
    assert sum(scores[how]["n"] for how in ("scrambled", "two words swapped")) == scores["all"]["n"] == len(pairs)


def test_the_pairs_of_the_lecture():
    def prefers_mice_that_eat(texts):
        return [-1.0 if one == "The mouse ate the cheese." else -9.0 for one in texts]

    scores = sentence_pairs.score(sentence_pairs.LECTURE_PAIRS, prefers_mice_that_eat)
    assert list(scores) == ["grammar", "meaning", "all"]
    assert scores["all"]["accuracy"] == 1
    reverse = sentence_pairs.score(sentence_pairs.LECTURE_PAIRS, lambda texts: [-1.0 for _ in texts])
    assert reverse["all"]["accuracy"] == 0  # a tie is not a preference


def test_nothing_to_score_is_an_error():
    with pytest.raises(UserError, match="none to score"):
        sentence_pairs.score([], lambda texts: [])
