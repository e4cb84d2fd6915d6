"""What the extraction model sees of a block: its words, its place, its neighbours, and the elements around it.

An element's blocks are an interval, so whatever is summed over an element is a difference of two running sums, and
whatever is summed over a block's ancestors is a running sum of differences: no loop over the tree is left to Python.
Features follow boilerpipe (Kohlschütter et al., 2010), Web2Text (Vogels et al., 2018) and dragnet (Peters & Lecocq,
2013); the learned scores of class names and words are what those lack.
"""

import re
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundup.corpus.blocks import Blocks, Tag

Floats = NDArray[np.float32]

LEVELS = 4  # containers around a block, each larger than the one before
WORDS_SCORED = 8  # at the start of a block
LONG = 15  # words that make a block prose, if few are links
NAMES = ("p", "li", "td", "pre", "h1", "h2", "h3", "div", "span", "a", "strong", "label", "button", "dd", "figcaption")
AROUND = ("main", "article", "section", "nav", "header", "footer", "aside", "form", "table", "ul", "ol", "button", "p")
HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
WORD = re.compile(r"[^\W\d_]+|[0-9]|[^\w\s]")


@dataclass
class Scores:
    """Log-odds of being content, learned for the tokens of tags (anywhere above a block, or next to it) and for words."""

    above: dict[str, float]
    near: dict[str, float]
    words: dict[str, float]


def word_tokens(text: str) -> list[str]:
    """The words a block begins with; a short block as a whole as well."""
    words = WORD.findall(text[:64].lower())[:WORDS_SCORED]
    if len(text) <= 32:
        words.append(" ".join(words))
    return words


def _lookup(**classes: str) -> tuple[list[str], NDArray[np.int64]]:
    """A table from bytes to counters: one a class, 21 bits wide, so that up to three are added up at once."""
    table = np.zeros(256, dtype=np.int64)
    for place, characters in enumerate(classes.values()):
        table[list(characters.encode("latin-1"))] += 1 << (21 * place)
    return list(classes), table


UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COUNTERS = [
    _lookup(space=" \n\t", upper=UPPER, lower=UPPER.lower()),
    _lookup(digit="0123456789", stop=".!?", comma=",;:"),
    _lookup(symbol="|/\\<>[]{}()=+*#@$%&_~^-", foreign="".join(map(chr, range(0xC0, 256))), line="\n"),
]
ENDS = np.zeros(256, dtype=np.float32)
ENDS[list(b".!?\"')")] = 1


def tag_scores(tag: Tag, scores: Scores) -> tuple[float, float]:
    above, near = scores.above, scores.near
    return sum(above.get(token, 0.0) for token in tag.tokens), sum(near.get(token, 0.0) for token in tag.tokens)


def tag_sign(tag: Tag) -> int:
    """A number for the kind of element, the same on every page: of its name and classes, not its id."""
    return zlib.crc32(" ".join(token for token in tag.tokens if token[0] in ".<").encode("utf-8", "replace")) + 1


class Tree:
    """The elements of one page as arrays, with sums over the blocks inside elements and over the elements around blocks."""

    def __init__(self, blocks: Blocks) -> None:
        self.count = len(blocks.text)
        self.start = np.array(blocks.start, dtype=np.int64)
        self.end = np.array(blocks.end, dtype=np.int64)
        self.parent = np.array(blocks.parent, dtype=np.int64)
        self.element = np.array(blocks.element, dtype=np.int64)
        self.inner = np.array(blocks.inner, dtype=np.int64)
        self.kind = np.array(blocks.kind, dtype=np.int64)

    def over_ancestors(self, own: NDArray) -> NDArray:
        """[elements] -> [blocks]: the sum of `own` over the elements that a block is in."""
        size = self.count + 1
        if own.dtype == np.float64:
            change = np.bincount(self.start, own, size) - np.bincount(self.end, own, size)
        else:
            change = np.zeros(size, dtype=own.dtype)
            np.add.at(change, self.start, own)
            np.subtract.at(change, self.end, own)
        return np.cumsum(change)[: self.count]

    def widest(self) -> NDArray[np.int64]:
        """[elements] -> the outermost element that has the same blocks."""
        same = (self.start == self.start[self.parent]) & (self.end == self.end[self.parent])
        widest = np.where(same, self.parent, np.arange(len(self.parent)))
        while not np.array_equal(widest, wider := widest[widest]):
            widest = wider
        return widest


def _rank(values: NDArray, weights: NDArray) -> NDArray:
    """The share of `weights` that lies at lower values."""
    order = np.argsort(values, kind="stable")
    out = np.empty(len(values))
    out[order] = np.cumsum(weights[order])
    return out / max(out.max(), 1e-9)


def _window(values: NDArray, reach: int) -> NDArray:
    """The mean over the blocks up to `reach` away."""
    total = np.concatenate(([0.0], np.cumsum(values)))
    at = np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _shift(values: NDArray, by: int) -> NDArray:
    """The value of the block `by` places later, 0 beyond the ends."""
    out = np.zeros(len(values))
    if by > 0:
        out[:-by] = values[by:]
    else:
        out[-by:] = values[:by]
    return out


def features(
    blocks: Blocks, title: str, scores_above: NDArray, scores_near: NDArray, word_scores: NDArray
) -> dict[str, NDArray]:
    """name -> [blocks]. `scores_*` are of the page's kinds of tags [kinds], `word_scores` of its blocks [blocks]."""
    n = len(blocks.text)
    tree = Tree(blocks)
    out: dict[str, NDArray] = {}

    encoded = [text.encode("utf-8", "replace") for text in blocks.text]
    size = np.fromiter(map(len, encoded), np.int64, n)
    stops = np.cumsum(size)
    offsets = stops - size
    letters = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    counts: dict[str, NDArray] = {}
    for names, table in COUNTERS:
        packed = np.add.reduceat(table[letters], offsets)
        for place, name in enumerate(names):
            counts[name] = ((packed >> (21 * place)) & 0x1FFFFF).astype(np.float64)
    chars = np.maximum(size, 1).astype(np.float64)
    words = counts["space"] + 1.0
    words = np.where(counts["foreign"] > 4 * words, np.maximum(words, counts["foreign"] / 2), words)
    link = np.minimum(np.array(blocks.link_chars, dtype=np.float64) / np.maximum(chars - counts["foreign"], 1), 1.0)
    linked = words * link
    prose = ((words >= LONG) & (link < 0.5) & (counts["stop"] + counts["comma"] > 0)).astype(np.float64)
    total = words.sum()

    out["words"] = words
    out["chars per word"] = chars / words
    out["link"] = link
    for name in ("upper", "digit", "stop", "comma", "symbol", "foreign"):
        out[name] = counts[name] / chars
    out["stops"] = counts["stop"]
    out["commas"] = counts["comma"]
    out["lines"] = counts["line"]
    last = letters[stops - 1]
    first = letters[offsets]
    out["ends"] = ENDS[last]
    out["colon"] = (last == 58).astype(np.float64)
    out["capital"] = ((first >= 65) & (first <= 90)).astype(np.float64)
    out["word score"] = word_scores
    texts: dict[str, int] = {}
    same_text = [texts.setdefault(text, at) for at, text in enumerate(blocks.text)]
    out["copies"] = np.bincount(same_text, minlength=n)[same_text].astype(np.float64)
    titled = set(WORD.findall(title.lower()))
    out["in title"] = np.array(
        [len(titled.intersection(text.lower().split())) if len(text) < 200 else 0 for text in blocks.text],
        dtype=np.float64,
    ) / max(len(titled), 1)

    names = [tag.name for tag in blocks.kinds]
    kinds = tree.kind
    holder = kinds[tree.element]
    inline = tree.inner >= 0
    inner = np.where(inline, tree.inner, holder)
    index = np.array([NAMES.index(name) + 1 if name in NAMES else 0 for name in names])
    out["tag"] = index[inner].astype(np.float64)
    out["block tag"] = index[holder].astype(np.float64)
    for name in AROUND:
        own = np.array([float(other == name) for other in names])
        out[f"in {name}"] = tree.over_ancestors(own[kinds]) if own.any() else np.zeros(n)
    out["depth"] = tree.over_ancestors(np.ones(len(kinds)))

    above = scores_above[kinds]
    near = scores_near[kinds]
    inside = np.where(inline, scores_above[tree.inner], 0.0)
    up = tree.over_ancestors(np.maximum(above, 0.0)) + np.maximum(inside, 0.0)
    down = tree.over_ancestors(np.minimum(above, 0.0)) + np.minimum(inside, 0.0)
    beside = near[tree.element] + np.where(inline, scores_near[tree.inner], 0.0)
    path = up + down + beside
    out["path"] = path
    out["path up"] = up
    out["path down"] = down
    out["path near"] = beside
    out["path own"] = scores_above[inner]
    out["path container"] = above[tree.element]
    out["path parent"] = above[tree.parent[tree.element]]
    out["path rank"] = _rank(path, words)
    middle = (path * words).sum() / total
    out["path deviation"] = path - middle
    out["path below best"] = path.max() - path
    out["path spread"] = np.full(n, np.sqrt((words * (path - middle) ** 2).sum() / total))
    both = path + word_scores
    out["both"] = both
    out["both rank"] = _rank(both, words)

    at = np.arange(n, dtype=np.float64)
    before = np.cumsum(words) - words
    out["place"] = at / n
    out["place words"] = before / total
    out["blocks"] = np.full(n, float(n))
    out["all words"] = np.full(n, total)
    out["page link"] = np.full(n, linked.sum() / total)
    out["page prose"] = np.full(n, (words * prose).sum() / total)
    out["page prose blocks"] = np.full(n, prose.sum())
    out["page word score"] = np.full(n, (word_scores * words).sum() / total)
    heading = np.array([name in HEADINGS for name in names])[holder]
    h1 = np.flatnonzero(np.array([name == "h1" for name in names])[holder])
    one = h1[0] if len(h1) else -1
    out["after h1"] = at - one if one >= 0 else np.full(n, -999.0)
    out["words after h1"] = (before - before[one]) / total if one >= 0 else np.full(n, -2.0)
    marks = np.maximum.accumulate(np.where(heading, np.arange(n), -1))
    safe = np.maximum(marks, 0)
    out["since heading"] = np.where(marks >= 0, at - marks, 99.0)
    out["words since heading"] = np.where(marks >= 0, before - before[safe], 999.0)
    out["heading score"] = np.where(marks >= 0, word_scores[safe], 0.0)
    out["heading path"] = np.where(marks >= 0, path[safe], 0.0)
    long = np.flatnonzero(prose)
    if len(long):
        following = np.searchsorted(long, np.arange(n))
        ahead = long[np.minimum(following, len(long) - 1)] - at
        behind = at - long[np.maximum(following - 1, 0)]
        out["to next prose"] = np.where(ahead < 0, 999.0, ahead)
        out["from last prose"] = np.where((following == 0), 999.0, np.where(ahead == 0, 0.0, behind))
        out["prose before"] = following / len(long)
    else:
        out["to next prose"] = out["from last prose"] = np.full(n, 999.0)
        out["prose before"] = np.zeros(n)

    for name, values in (
        ("words", words),
        ("link", link),
        ("path", path),
        ("word score", word_scores),
        ("stop", counts["stop"]),
    ):
        for by in (-2, -1, 1, 2):
            out[f"{name} {by:+d}"] = _shift(values, by)
    for name, values in (
        ("words", words),
        ("link words", linked),
        ("path", path),
        ("word score", word_scores),
        ("prose", prose),
    ):
        for reach in (3, 10):
            out[f"{name} within {reach}"] = _window(values, reach)

    sums = {
        name: np.concatenate(([0.0], np.cumsum(values)))
        for name, values in (
            ("words", words),
            ("links", linked),
            ("path", path * words),
            ("word score", word_scores * words),
            ("prose", prose),
            ("prose words", prose * words),
            ("commas", counts["comma"]),
            ("stops", counts["stop"]),
        )
    }
    widest = tree.widest()
    level = tree.element
    for depth in range(LEVELS + 1):
        level = widest[level]
        low, high = tree.start[level], tree.end[level]
        inside = {name: values[high] - values[low] for name, values in sums.items()}
        inside_words = np.maximum(inside["words"], 1.0)
        out[f"words in {depth}"] = inside_words
        out[f"share in {depth}"] = inside_words / total
        out[f"own share in {depth}"] = words / inside_words
        out[f"link in {depth}"] = inside["links"] / inside_words
        out[f"path in {depth}"] = inside["path"] / inside_words
        out[f"word score in {depth}"] = inside["word score"] / inside_words
        out[f"prose in {depth}"] = inside["prose"]
        out[f"prose share in {depth}"] = inside["prose words"] / inside_words
        out[f"commas in {depth}"] = (inside["commas"] + inside["stops"]) / inside_words
        out[f"blocks in {depth}"] = (high - low).astype(np.float64)
        out[f"words a block in {depth}"] = inside_words / np.maximum(high - low, 1)
        out[f"place in {depth}"] = (at - low) / np.maximum(high - low, 1)
        level = tree.parent[level]

    signs = np.array([tag_sign(tag) for tag in blocks.kinds], dtype=np.uint64)[kinds]
    _, alike = np.unique(tree.over_ancestors(signs), return_inverse=True)
    for name, values in (
        ("words", words),
        ("path", words * path),
        ("link", linked),
        ("prose", prose),
        ("word score", words * word_scores),
    ):
        out[f"alike {name}"] = np.bincount(alike, values)[alike]
    alike_words = out["alike words"]
    out["alike blocks"] = np.bincount(alike)[alike].astype(np.float64)
    out["alike share"] = alike_words / total
    out["alike path"] /= alike_words
    out["alike link"] /= alike_words
    out["alike word score"] /= alike_words
    out["alike words a block"] = alike_words / out["alike blocks"]

    # The block that looks most like the heart of the page, and how far out one must go from it to reach another block.
    heart = int(np.argmax((words - linked) * (0.2 + prose) / (1 + np.exp(-np.clip(both, -20, 20)))))
    shared, steps = np.full(n, 1.0), np.zeros(n)
    heart_link, step = np.zeros(n), 0
    low, high = n, -1
    element = int(widest[tree.element[heart]])
    chain = []
    while True:
        chain.append(element)
        if element == 0:
            break
        element = int(widest[tree.parent[element]])
    for step, element in enumerate(reversed(chain)):
        part = slice(int(tree.start[element]), int(tree.end[element]))
        inside_words = max(sums["words"][part.stop] - sums["words"][part.start], 1.0)
        shared[part] = inside_words / total
        steps[part] = len(chain) - step - 1
        heart_link[part] = (sums["links"][part.stop] - sums["links"][part.start]) / inside_words
    out["heart share"] = shared
    out["heart steps"] = steps
    out["heart link"] = heart_link
    out["heart distance"] = at - heart
    out["heart path"] = path - path[heart]
    return out
