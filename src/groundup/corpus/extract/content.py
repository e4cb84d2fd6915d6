"""Which blocks of a page are its content: boosted trees over block features, the best threshold for the page, the article's end.

The trees are evaluated for all blocks at once, without a walk through any tree (QuickScorer, Lucchese et al., 2015):
each condition that holds removes the leaves it cuts off, and the first remaining leaf is the one reached.
The weights are plain arrays, made by `python -m groundup.corpus.extract.train_extractor`.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from groundup.corpus.extract.article_body import article_alone, first_occurrences
from groundup.corpus.extract.blocks import Blocks
from groundup.corpus.extract.features import Scores, features

WEIGHTS = Path(__file__).with_name("extract_model.npz")
LEAVES = 16
ITEM_LEVELS = 2  # elements between an item of a list and its text, as in <li><p>
ROWS = 128  # blocks at a time: the conditions' values then stay in the processor's cache


@dataclass
class Trees:
    """Trees of at most LEAVES leaves: conditions `features[:, feature] > threshold`, each with the leaves that remain."""

    feature: NDArray[np.int16]  # [trees, LEAVES - 1]
    threshold: NDArray[np.float32]  # [trees, LEAVES - 1]
    stays: NDArray[np.uint32]  # [trees, LEAVES - 1]: the leaves that remain when the condition holds, as bits
    value: NDArray[np.float32]  # [trees, LEAVES]

    def probability(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """[blocks, features], all finite -> [blocks]"""
        feature, threshold = self.feature.T.ravel().astype(np.intp), self.threshold.T.reshape(-1, 1)
        cuts = ~self.stays.view(np.int32).T.reshape(-1, 1)
        first = np.arange(len(self.value))[:, None] * LEAVES
        out = np.empty(len(x))
        for low in range(0, len(x), ROWS):
            over = np.ascontiguousarray(x[low : low + ROWS].T).take(feature, axis=0)
            np.subtract(threshold, over, out=over)  # negative where a condition holds
            holds = over.view(np.int32)
            holds >>= 31  # the sign, in all bits
            holds &= cuts
            struck_out = np.bitwise_or.reduce(holds.reshape(LEAVES - 1, len(self.value), -1), axis=0)
            lowest = (~struck_out & (struck_out + 1)).view(np.uint32).astype(np.float32)  # a power of two, so exact
            leaf = (lowest.view(np.int32) >> 23) - 127
            out[low : low + ROWS] = self.value.reshape(-1)[leaf + first].sum(axis=0, dtype=np.float64)
        return 1.0 / (1.0 + np.exp(-out))


@dataclass
class ContentModel:
    scores: Scores
    trees: Trees
    names: list[str]  # of the features, in the trees' order

    def matrix(self, blocks: Blocks) -> NDArray[np.float32]:
        """The features of a page that the trees use: [blocks, features]"""
        columns = features(blocks, self.scores)
        rows = np.concatenate([columns[name] for name in self.names], dtype=np.float32, casting="same_kind")
        return rows.reshape(len(self.names), -1).T

    def content(self, blocks: Blocks) -> list[int]:
        """The blocks that are content, in order."""
        if not blocks.text:
            return []
        x = self.matrix(blocks)
        probability = items_together(self.trees.probability(x), blocks)
        words = x[:, self.names.index("words")].astype(np.float64)
        keep = article_alone(blocks, probability, words, best_cut(probability, words))
        return np.flatnonzero(first_occurrences(blocks, words, keep)).tolist()


def items_together(probability: NDArray[np.float64], blocks: Blocks) -> NDArray[np.float64]:
    """Probabilities [blocks] -> [blocks], where all items of a list get the probability at its best third: of three, the best.

    Decided one by one, only the longest items of a list of links would be kept. Other blocks stay as they are: an item's block
    is one directly in it, or alone in up to ITEM_LEVELS elements.
    """
    kind, parent, start, end, item, _ = blocks.arrays
    is_item_kind = [tag.name == "li" for tag in blocks.kinds]
    if True not in is_item_kind:
        return probability
    is_item = np.array(is_item_kind)[kind]
    for _ in range(ITEM_LEVELS):  # up, while there is nothing else in the element
        outer = parent[item]
        item = np.where(~is_item[item] & (end[outer] - start[outer] == 1), outer, item)
    inside = np.flatnonzero(is_item[item])
    if not len(inside):
        return probability
    _, lists = np.unique(parent[item[inside]], return_inverse=True)
    size = np.bincount(lists)
    order = inside[np.lexsort((-probability[inside], lists))]
    third = probability[order][np.cumsum(size) - size + (size - 1) // 3]
    out = probability.copy()
    out[inside] = third[lists]
    return out


def best_cut(probability: NDArray[np.float64], words: NDArray) -> NDArray[np.bool_]:
    """[blocks] -> whether to keep each: all from one probability on, chosen so that the expected word F1 is greatest."""
    order = np.argsort(-probability, kind="stable")
    kept = np.cumsum(words[order])
    right = np.cumsum((words * probability)[order])
    best = int(np.argmax(2 * right / (kept + right[-1])))
    return probability >= probability[order[best]]


@cache
def content_model() -> ContentModel:
    """The shipped model."""
    with np.load(WEIGHTS, allow_pickle=False) as file:
        return from_arrays(dict(file))


def to_arrays(model: ContentModel) -> dict[str, NDArray]:
    """The model as plain arrays; words and names are lines of UTF-8."""
    arrays: dict[str, NDArray] = {"names": _packed(model.names)}
    for name, table in (("tags", model.scores.tags), ("words", model.scores.words)):
        arrays[f"{name} tokens"] = _packed(list(table))
        arrays[f"{name} scores"] = np.array(list(table.values()), dtype=np.float16)
    return arrays | vars(model.trees)


def from_arrays(arrays: dict[str, NDArray]) -> ContentModel:
    tags, words = (
        zip(_unpacked(arrays[f"{name} tokens"]), arrays[f"{name} scores"].tolist(), strict=True) for name in ("tags", "words")
    )
    scores = Scores({token: (above, near) for token, (above, near) in tags}, dict(words))
    trees = Trees(*(arrays[name] for name in ("feature", "threshold", "stays", "value")))
    return ContentModel(scores, trees, _unpacked(arrays["names"]))


def _packed(words: list[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(words).encode("utf-8", "replace"), dtype=np.uint8)


def _unpacked(packed: NDArray[np.uint8]) -> list[str]:
    return packed.tobytes().decode().split("\n")
