import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus import duplicates
from groundup.corpus.rules import split

DATA = Path(os.environ.get("GROUNDUP_DATA", Path(__file__).parents[3] / "shared" / "data"))


def signatures(texts, permutations=128):
    return np.stack([duplicates.signature(split(text), permutations) for text in texts])


def sentences(seed, count):
    generator = np.random.default_rng(seed)
    return " ".join(f"w{number}" for number in generator.integers(0, 5000, count))


def test_text_key_sees_words_not_white_space():
    assert duplicates.text_key("a  b\n c") == duplicates.text_key(" a b c ")
    assert duplicates.text_key("a b") != duplicates.text_key("ab")


def test_signature_estimates_jaccard():
    first, second = sentences(1, 2000), sentences(1, 2000) + " " + sentences(2, 500)
    a, b = (set(duplicates.shingles(split(text), 5).tolist()) for text in (first, second))
    estimate = (signatures([first])[0] == signatures([second])[0]).mean()
    assert abs(estimate - len(a & b) / len(a | b)) < 0.12  # three standard deviations of 128 permutations


def test_rows_per_band_keeps_recall():
    for jaccard in (0.5, 0.7, 0.9):
        rows = duplicates.rows_per_band(128, jaccard)
        assert 1 - (1 - jaccard**rows) ** (128 // rows) >= duplicates.LEAST_RECALL
    assert duplicates.rows_per_band(128, 0.7) == 4  # five rows find 98.98 %


def test_near_duplicates_in_a_crowd_and_in_a_large_bucket():
    texts = [sentences(seed, 100) for seed in range(100)]
    changed = texts[7].split()
    changed[50] = "other"
    pairs = duplicates.near_duplicate_pairs(signatures([*texts, " ".join(changed)]), 0.7)
    assert pairs.tolist() == [[7, 100]]
    groups = duplicates.clusters(200, duplicates.near_duplicate_pairs(signatures([texts[0]] * 200), 0.7))
    assert (groups == 0).all()


def test_no_pairs():
    assert duplicates.near_duplicate_pairs(signatures([sentences(1, 50)]), 0.7).shape == (0, 2)


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_clusters_are_connected_components(pairs):
    groups = duplicates.clusters(20, np.array(pairs, dtype=np.int64).reshape(-1, 2))
    reach = np.eye(20, dtype=bool)
    for first, second in pairs:
        reach[first, second] = reach[second, first] = True
    for middle in range(20):
        reach |= np.outer(reach[:, middle], reach[middle])
    assert groups.tolist() == [int(np.flatnonzero(row)[0]) for row in reach]


def test_representative_is_longest_then_least_id():
    groups = np.array([0, 0, 2, 0])
    assert duplicates.representatives(groups, [5, 9, 1, 9], ["a", "d", "b", "c"]).tolist() == [3, 3, 2, 3]


def test_contamination_in_both_directions():
    held = sentences(1, 200)
    words = held.split()
    excerpt = " ".join(words[50:100])
    quoting = f"{sentences(2, 1000)} {held} {sentences(3, 1000)}"
    half = " ".join(words[:106]) + " " + sentences(4, 3000)
    other = sentences(5, 200)
    overlaps = duplicates.contamination([sentences(9, 50), held], [excerpt, quoting, half, other])
    assert overlaps[0] == (1.0, 1)
    assert overlaps[1] == (1.0, 1)
    assert overlaps[2] == (94 / 188, 1)
    assert overlaps[3] == (0.0, -1)


def test_contamination_leaves_boilerplate_out():
    licence = sentences(1, 60)
    held = [f"{licence} {sentences(2, 60)}"]
    train = [f"{licence} {sentences(seed, 60)}" for seed in range(10, 40)]
    assert all(share == 0 for share, _ in duplicates.contamination(held, train))
    assert all(share > 0.4 for share, _ in duplicates.contamination(held, train[:5]))


def test_contamination_without_text():
    assert duplicates.contamination([], ["a b c"]) == [(0.0, -1)]
    assert duplicates.contamination(["a b c"], ["", "A, b. c!"]) == [(0.0, -1), (1.0, 0)]


@pytest.mark.skipif(not (DATA / "dedup").is_dir(), reason=f"no {DATA}/dedup; set GROUNDUP_DATA")
def test_news_articles_with_known_near_duplicates():
    with gzip.open(DATA / "dedup" / "mccormick_articles_1000.txt.gz", "rt", encoding="utf-8") as file:
        articles = dict(line.rstrip("\n").split(" ", 1) for line in file)
    truth = {
        tuple(sorted(line.split()))
        for line in (DATA / "dedup" / "mccormick_articles_1000.truth").read_text().splitlines()
        if line.strip()
    }
    ids = list(articles)
    pairs = duplicates.near_duplicate_pairs(signatures(articles.values()), 0.7)
    assert {tuple(sorted((ids[first], ids[second]))) for first, second in pairs.tolist()} == truth
