import gzip
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.words import split
from groundup.corpus.dedup import duplicates

DATA = Path(os.environ.get("GROUNDUP_DATA", Path(__file__).parents[3] / "shared" / "data"))


def signatures(texts, permutations=128):
    return np.stack([duplicates.signature(split(text), permutations) for text in texts])


def pairs_of(found, jaccard=0.7, **options):
    blocks = list(duplicates.near_duplicate_pairs(found, jaccard, **options))
    return np.unique(np.concatenate([np.zeros((0, 2), np.int64), *blocks]), axis=0).tolist()


def sentences(seed, count):
    generator = np.random.default_rng(seed)
    return " ".join(f"w{number}" for number in generator.integers(0, 5000, count))


def test_text_key_sees_words_not_white_space():
    assert duplicates.text_key(split("a  b\n c")) == duplicates.text_key(split(" a b c "))
    assert duplicates.text_key(split("a b")) != duplicates.text_key(split("ab"))


def test_url_key_sees_the_page_not_its_spelling():
    same = [
        "https://www.Acme.com/a/?utm_source=x&b=1",
        "http://acme.com:80/a?b=1#top",
        "https://acme.com/a?b=1&fbclid=9",
    ]
    assert {duplicates.url_key(url) for url in same} == {"acme.com/a?b=1"}
    others = ["http://acme.com:8080/a?b=1", "http://acme.com/a?b=2", "http://acme.com/b?b=1", "file:///acme.com/a?b=1"]
    assert len({duplicates.url_key(url) for url in [same[0], *others]}) == 5


def test_signature_estimates_jaccard():
    first, second = sentences(1, 2000), sentences(1, 2000) + " " + sentences(2, 500)
    a, b = (set(duplicates.shingles(split(text), 5).tolist()) for text in (first, second))
    estimate = (signatures([first])[0] == signatures([second])[0]).mean()
    assert abs(estimate - len(a & b) / len(a | b)) < 0.12  # three standard deviations of 128 permutations


def test_rows_per_band_keeps_recall():
    for jaccard in (0.5, 0.7, 0.9):
        rows = duplicates.rows_per_band(128, jaccard)
        assert 1 - (1 - jaccard**rows) ** (128 // rows) >= duplicates.MIN_RECALL
    assert duplicates.rows_per_band(128, 0.7) == 4  # five rows find 98.98 %


def test_near_duplicates_in_a_crowd_and_in_a_large_bucket():
    texts = [sentences(seed, 100) for seed in range(100)]
    changed = texts[7].split()
    changed[50] = "other"
    assert pairs_of([signatures([*texts, " ".join(changed)])]) == [[7, 100]]
    same = [signatures([texts[0]] * 200)]
    groups = duplicates.clusters(200, duplicates.near_duplicate_pairs(same, 0.7))
    assert (groups == 0).all()


def test_no_pairs():
    assert pairs_of([]) == pairs_of([signatures([sentences(1, 50)])]) == []


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.7, 0.9]), st.integers(1, 4))
def test_pairs_are_those_of_all_comparisons_however_little_memory(count, seed, jaccard, parts):
    """Each document copies about as many places of another as the threshold asks for: pairs lie on both its sides."""
    generator = np.random.default_rng(seed)
    found = generator.integers(0, 2**32, (count, 128), dtype=np.uint32)
    for row in range(1, count):
        source = found[generator.integers(row)]
        found[row] = np.where(generator.random(128) < jaccard, source, found[row])
    rows = duplicates.rows_per_band(128, jaccard)
    bands = found[:, : 128 // rows * rows].reshape(count, -1, rows)
    expected = [
        [first, second]
        for first in range(count)
        for second in range(first + 1, count)
        if (bands[first] == bands[second]).all(axis=1).any() and (found[first] == found[second]).mean() >= jaccard
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "SORTING_BYTES", (1 << 20) // 10)  # one megabyte sorts ten documents at a time,
        patch.setattr(duplicates, "BLOCK_BYTES", (1 << 20) // 128 // 3)  # and compares blocks of three
        assert pairs_of(np.array_split(found, parts), jaccard, memory_mb=1) == expected
    assert pairs_of([found], jaccard) == expected


def test_memory_bounds_what_is_held_at_a_time(tmp_path):
    generator = np.random.default_rng(0)
    blocks = [generator.integers(0, 2**32, (10_000, 128), dtype=np.uint32) for _ in range(2)]
    blocks.append(blocks[0].copy())
    tracemalloc.start()
    held = 0
    for pairs in duplicates.near_duplicate_pairs(iter(blocks), 0.7, 4, tmp_path):
        held += len(pairs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held >= 10_000 and list(tmp_path.iterdir()) == []
    assert peak < (4 << 20) + 15 * duplicates.PAIRS_PER_CHECK * 128  # the signatures are 15 MB; beside the 4, a check


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_clusters_are_connected_components(pairs):
    groups = duplicates.clusters(20, [np.array(pairs, dtype=np.int64).reshape(-1, 2)])
    reach = np.eye(20, dtype=bool)
    for first, second in pairs:
        reach[first, second] = reach[second, first] = True
    for middle in range(20):
        reach |= np.outer(reach[:, middle], reach[middle])
    assert groups.tolist() == [int(np.flatnonzero(row)[0]) for row in reach]


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
    pairs = pairs_of([signatures(articles.values())])
    assert {tuple(sorted((ids[first], ids[second]))) for first, second in pairs} == truth
