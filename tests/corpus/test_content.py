import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.extract.blocks import Blocks
from groundup.corpus.extract.content import (
    LEAVES,
    WEIGHTS,
    Trees,
    best_cut,
    content_model,
    from_arrays,
    to_arrays,
)
from groundup.corpus.extract.page_text import parse


def grow(random: np.random.Generator, leaves: list[int]):
    """A random tree as nested tuples (feature, threshold, left, right) over leaf values."""
    if len(leaves) == 1:
        return float(leaves[0])
    cut = int(random.integers(1, len(leaves)))
    return (
        int(random.integers(0, 5)),
        float(random.integers(-2, 3)),
        grow(random, leaves[:cut]),
        grow(random, leaves[cut:]),
    )


def flatten(tree) -> tuple[list[tuple[int, float, int]], list[float]]:
    if isinstance(tree, float):
        return [], [tree]
    feature, threshold, left, right = tree
    left_nodes, left_leaves = flatten(left)
    right_nodes, right_leaves = flatten(right)
    size = len(left_leaves)
    moved = [(f, t, ((s << size) | ((1 << size) - 1)) & 0xFFFFFFFF) for f, t, s in right_nodes]
    here = (feature, threshold, 0xFFFFFFFF ^ ((1 << size) - 1))
    return [here, *left_nodes, *moved], left_leaves + right_leaves


def reach(tree, row) -> float:
    while not isinstance(tree, float):
        tree = tree[2] if row[tree[0]] <= tree[1] else tree[3]
    return tree


@given(st.integers(0, 2**32), st.integers(1, LEAVES), st.sampled_from([1, 7, 600]))
def test_trees_reach_the_leaves_that_a_walk_reaches(seed, leaves, rows):
    random = np.random.default_rng(seed)
    forest = [grow(random, list(random.integers(-9, 9, leaves))) for _ in range(3)]
    flat = Trees(np.zeros((3, LEAVES - 1), np.int16), np.full((3, LEAVES - 1), np.inf, np.float32),
                 np.full((3, LEAVES - 1), 0xFFFFFFFF, np.uint32), np.zeros((3, LEAVES), np.float32))  # fmt: skip
    for at, tree in enumerate(forest):
        nodes, values = flatten(tree)
        flat.value[at, : len(values)] = values
        for place, (feature, threshold, stays) in enumerate(nodes):
            flat.feature[at, place], flat.threshold[at, place], flat.stays[at, place] = feature, threshold, stays
    x = random.integers(-3, 4, (rows, 5)).astype(np.float32)
    raw = np.array([sum(reach(tree, row) for tree in forest) for row in x])
    np.testing.assert_allclose(flat.probability(x), 1 / (1 + np.exp(-raw)), rtol=1e-6)


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(1, 50)), min_size=1, max_size=12))
def test_no_other_cut_has_a_higher_expected_f1(blocks):
    probability, words = (np.array(column, dtype=np.float64) for column in zip(*blocks, strict=True))
    kept = best_cut(probability, words)

    def expected(chosen):
        return 2 * (probability * words)[chosen].sum() / (words[chosen].sum() + (probability * words).sum())

    assert kept.any()
    assert expected(kept) >= max(expected(probability >= cut) for cut in probability) - 1e-9


def test_shipped_weights_are_small_plain_arrays_and_survive_a_round_trip():
    assert WEIGHTS.stat().st_size <= 500_000
    model = content_model()
    again = from_arrays(to_arrays(model))
    assert again.scores == model.scores
    assert again.names == model.names
    assert all(array.dtype != object for array in to_arrays(model).values())


def test_a_page_without_text_has_no_content():
    assert content_model().content(Blocks()) == []


@pytest.mark.parametrize(
    "html", ["x", "<p>&nbsp;", "<p>.", "<td>日本語の文章です。", "<p>" + "x" * 100_000, "<li>a" * 3_000]
)
def test_odd_pages_have_finite_features(html):
    _, blocks = parse(html)
    if blocks.text:
        assert np.isfinite(content_model().matrix(blocks)).all()
