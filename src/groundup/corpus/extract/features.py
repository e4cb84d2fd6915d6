"""The extraction model's features of a block: its words, its position, its neighbours, and the elements around it.

An element's blocks are an interval, so a sum over an element is a difference of two running sums, and
a sum over a block's ancestors is a running sum of differences: Python needs no loop over the tree.
Features follow boilerpipe (Kohlschütter et al., 2010), dragnet (Peters & Lecocq, 2013) and Web2Text (Vogels et al.,
2018); the learned scores of class names and words are new. All arrays are [blocks] unless they say otherwise.
"""

import re
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

from groundup.corpus.extract.blocks import Blocks, Tag
from groundup.corpus.extract.json_ld import shares_stated

Array = NDArray[np.float64]
Features = dict[str, Array]

LEVELS = 4  # containers around a block, each larger than the one before
WORDS_SCORED = 8  # at the start of a block
LETTERS_SCORED = 64
LONG = 15  # words that make a block prose, if few are links
FAR = 999.0  # distance where there is no such block
NAMES = ["p", "li", "td", "pre", "h1", "h2", "h3", "div", "span", "a", "strong", "label", "button", "dd", "figcaption"]
AROUND = ["aside", "form", "ul"]
HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
NUMBER = {name: at for at, name in enumerate(dict.fromkeys(NAMES + AROUND + HEADINGS), 1)}  # 0 for all others
IS_HEADING = np.array([False, *(name in HEADINGS for name in NUMBER)])
AROUND_AT = np.array([0, *(AROUND.index(name) + 1 if name in AROUND else 0 for name in NUMBER)])
MAX_CACHED, LONGEST_CACHED = 50_000, 100  # words of tags whose scores are cached, and letters of the longest
MAX_PARTS = 12  # of a class or id
DIGITS = re.compile(r"[0-9]+")
PART = re.compile(r"[A-Z]?[a-z]+")
WORD = re.compile(r"[a-z]++(?![^\W\d_])|[0-9]|[^\W\d_]+|[^\w\s]")  # letters a to z first: that is faster


@dataclass
class Scores:
    """Learned log-odds of being content: for tokens of tags (anywhere above a block, directly around it) and for words."""

    tags: dict[str, tuple[float, float]]
    words: dict[str, float]
    cache: dict[str, tuple[float, float, int]] = field(default_factory=dict, repr=False, compare=False)

    def of_tags(self, tags: list[Tag]) -> tuple[Array, Array, Array]:
        """[tags]: scores above a block and near it, and a number that is the same for the same name and classes."""
        if len(self.cache) > MAX_CACHED:
            self.cache.clear()
        words = list(chain.from_iterable([tag.words for tag in tags]))
        facts = list(map(self.cache.get, words))
        for at in [at for at, fact in enumerate(facts) if fact is None]:
            word = words[at]
            facts[at] = fact = self.cache.get(word) or self._of_word(word)
            if len(word) <= LONGEST_CACHED:
                self.cache[word] = fact
        owner = np.repeat(np.arange(len(tags)), [len(tag.words) for tag in tags])
        above, near, look = np.fromiter(chain.from_iterable(facts), np.float64, 3 * len(facts)).reshape(-1, 3).T
        return tuple(np.bincount(owner, column, len(tags)) for column in (above, near, look))

    def _of_word(self, word: str) -> tuple[float, float, int]:
        tokens = tokens_of(word)
        # Not of ids: they differ between elements that look the same. 32 bits: a float holds the sum over a path exactly.
        look = zlib.crc32(tokens[0].encode("utf-8", "replace")) if word[0] in "<." else 0
        above = near = 0.0
        for token in tokens:
            if scores := self.tags.get(token):
                above += scores[0]
                near += scores[1]
        return above, near, look

    def of_texts(self, texts: list[str]) -> Array:
        """Per block the sum of the scores of its first words."""
        words, counts = split_words(texts)
        scores = np.fromiter(map(self.words.get, words, repeat(0.0)), np.float64, len(words))
        return np.bincount(np.repeat(np.arange(len(texts)), counts), scores, len(texts))


def tokens_of(word: str) -> tuple[str, ...]:
    """The tokens of a tag's word: the word, and of a class or an id its parts as well; each number becomes 0."""
    if word[0] not in ".#":
        return (word,)
    word = DIGITS.sub("0", word)
    return (word.lower(), *map(str.lower, PART.findall(word)[:MAX_PARTS]))


def split_words(texts: list[str]) -> tuple[list[str], list[int]]:
    """The first words of the texts, one text after the other, and their number per text. The whole beginning counts as a word
    as well: 'read more' says more than its words."""
    heads = [text[:LETTERS_SCORED].lower().replace("\n", " ") for text in texts]
    words = [[*WORD.findall(head)[:WORDS_SCORED], head] for head in heads]
    return list(chain.from_iterable(words)), list(map(len, words))


def _counter(**classes: str) -> tuple[list[str], NDArray[np.int64]]:
    """A table from bytes to counters: one per class, 21 bits wide, so that three are summed at once."""
    table = np.zeros(256, dtype=np.int64)
    for index, characters in enumerate(classes.values()):
        table[list(characters.encode("latin-1"))] += 1 << (21 * index)
    return list(classes), table


COUNTERS = [
    _counter(space=" \n\t", stop=".!?", comma=",;:"),
    _counter(foreign="".join(map(chr, range(0xC0, 256))), line="\n", digit="0123456789"),
]
SUMS = ("words", "links", "path", "word score", "prose", "prose words", "sentences")
ENDS = np.zeros(256)
ENDS[list(b".!?\"')")] = 1


class PageView:
    """The blocks and elements of one page as arrays, and values that several features need."""

    def __init__(self, blocks: Blocks, scores: Scores) -> None:
        self.blocks = blocks
        self.count = len(blocks.text)
        self.index = np.arange(self.count)
        # [kinds]: scores, a hash of name and classes, the name as a number.
        self.above_of, self.near_of, self.look_of = scores.of_tags(blocks.kinds)
        self.name_of = np.fromiter(map(NUMBER.get, [tag.name for tag in blocks.kinds], repeat(0)), np.int64)
        # [elements]: kind, parent, interval of blocks. [blocks]: innermost element, kind of the inline element before the text.
        self.kind, self.parent, self.start, self.end, self.element, self.inner = blocks.arrays
        self.inline = self.inner >= 0
        self.holder = self.kind[self.element]

        encoded = [text.encode("utf-8", "replace") for text in blocks.text]
        size = np.fromiter(map(len, encoded), np.int64, self.count)
        stops = np.cumsum(size)
        letters = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self.first_letter, self.last_letter = letters[stops - size], letters[stops - 1]
        self.letters: Features = {}
        for names, table in COUNTERS:
            packed = np.add.reduceat(table.take(letters, mode="clip"), stops - size)  # clipped: that is faster
            for index, name in enumerate(names):
                self.letters[name] = ((packed >> (21 * index)) & 0x1FFFFF).astype(np.float64)
        foreign = self.letters["foreign"]
        self.chars = size.astype(np.float64)
        words = self.letters["space"] + 1.0
        self.words = np.where(foreign > 4 * words, np.maximum(words, foreign / 2), words)  # scripts without spaces
        self.link = np.minimum(np.array(blocks.link_chars) / np.maximum(self.chars - foreign, 1), 1.0)
        self.linked = self.words * self.link
        sentences = self.letters["stop"] + self.letters["comma"]
        self.prose = ((self.words >= LONG) & (self.link < 0.5) & (sentences > 0)).astype(np.float64)
        self.total = self.words.sum()
        self.words_before = np.cumsum(self.words) - self.words

        self.word_score = scores.of_texts(blocks.text)
        inside = np.where(self.inline, self.above_of[self.inner], 0.0)
        above = self.above_of[self.kind]
        self.path_up = self.over_ancestors(np.maximum(above, 0.0)) + np.maximum(inside, 0.0)
        self.path_down = self.over_ancestors(np.minimum(above, 0.0)) + np.minimum(inside, 0.0)
        self.path_near = self.near_of[self.holder] + np.where(self.inline, self.near_of[self.inner], 0.0)
        self.path = self.path_up + self.path_down + self.path_near
        self.total_score = self.path + self.word_score
        self.look = self.over_ancestors(self.look_of[self.kind])  # the same for the same path of names and classes

    def over_ancestors(self, values: Array) -> Array:
        """[elements] -> [blocks]: the sum of `own` over the elements that a block is in."""
        size = self.count + 1
        change = np.bincount(self.start, values, size) - np.bincount(self.end, values, size)
        return np.cumsum(change)[: self.count]

    @cached_property
    def running(self) -> Array:
        """Running sums [SUMS, blocks + 1], starting with 0."""
        parts = np.stack(
            [self.words, self.linked, self.path * self.words, self.word_score * self.words, self.prose,
             self.prose * self.words, self.letters["comma"] + self.letters["stop"]]
        )  # fmt: skip
        running = np.zeros((len(parts), self.count + 1))
        np.cumsum(parts, axis=1, out=running[:, 1:])
        return running

    @cached_property
    def sums(self) -> Features:
        return dict(zip(SUMS, self.running, strict=True))

    @cached_property
    def heart(self) -> int:
        """The block most like content."""
        likely = 1 / (1 + np.exp(-np.clip(self.total_score, -20, 20)))
        return int(np.argmax((self.words - self.linked) * (0.2 + self.prose) * likely))

    @cached_property
    def widest(self) -> NDArray[np.int64]:
        """[elements] -> the outermost element that has the same blocks."""
        same = (self.start == self.start[self.parent]) & (self.end == self.end[self.parent])
        widest = np.where(same, self.parent, np.arange(len(self.parent)))
        while not np.array_equal(widest, wider := widest[widest]):
            widest = wider
        return widest


def features(blocks: Blocks, scores: Scores) -> Features:
    """name -> [blocks], for a page that has blocks."""
    page = PageView(blocks, scores)
    return (
        _text(page) | _tags(page) | _path(page) | _position(page) | _headings(page) | _prose(page)
        | _neighbours(page) | _containers(page) | _alike(page) | _heart(page) | _ending(page) | _repeated(page) | _stated(page)
    )  # fmt: skip


def _text(page: PageView) -> Features:
    out = {"words": page.words, "chars per word": page.chars / page.words, "link": page.link}
    for name in ("stop", "comma", "foreign", "digit"):
        out[name] = page.letters[name] / page.chars
    seen: dict[str, int] = {}
    same = [seen.setdefault(text, at) for at, text in enumerate(page.blocks.text)]
    return out | {
        "stops": page.letters["stop"],
        "commas": page.letters["comma"],
        "lines": page.letters["line"],
        "ends": ENDS[page.last_letter],
        "colon": (page.last_letter == ord(":")).astype(np.float64),
        "capital": ((page.first_letter >= ord("A")) & (page.first_letter <= ord("Z"))).astype(np.float64),
        "word score": page.word_score,
        "copies": np.bincount(same, minlength=page.count)[same].astype(np.float64),
    }


def _tags(page: PageView) -> Features:
    around = AROUND_AT[page.name_of][page.kind]
    change = np.zeros((len(AROUND) + 1, page.count + 1))
    elements = np.flatnonzero(around)
    np.add.at(change, (around[elements], page.start[elements]), 1.0)
    np.subtract.at(change, (around[elements], page.end[elements]), 1.0)
    inside = np.cumsum(change, axis=1)[1:, : page.count]
    return {
        "tag": page.name_of[np.where(page.inline, page.inner, page.holder)].astype(np.float64),
        "block tag": page.name_of[page.holder].astype(np.float64),
        "depth": page.over_ancestors(np.ones(len(page.kind))),
    } | {f"in {name}": row for name, row in zip(AROUND, inside, strict=True)}


def _path(page: PageView) -> Features:
    path = page.path
    middle = (path * page.words).sum() / page.total
    return {
        "path": path,
        "path up": page.path_up,
        "path down": page.path_down,
        "path near": page.path_near,
        "path own": page.above_of[np.where(page.inline, page.inner, page.holder)],
        "path container": page.above_of[page.holder],
        "path parent": page.above_of[page.kind[page.parent[page.element]]],
        "path deviation": path - middle,
        "path below best": path.max() - path,
        "path spread": np.full(page.count, np.sqrt((page.words * (path - middle) ** 2).sum() / page.total)),
        "both": page.total_score,
    }


def _position(page: PageView) -> Features:
    page_values = {
        "blocks": page.count,
        "all words": page.total,
        "page link": page.linked.sum() / page.total,
        "page prose": (page.words * page.prose).sum() / page.total,
        "page prose blocks": page.prose.sum(),
        "page word score": (page.word_score * page.words).sum() / page.total,
    }
    position = {"place": page.index / page.count, "place words": page.words_before / page.total}
    return position | {name: np.full(page.count, float(value)) for name, value in page_values.items()}


def _headings(page: PageView) -> Features:
    """How far the block is from the page's <h1> and from the heading before it, and that heading's scores."""
    h1 = np.flatnonzero(page.name_of[page.holder] == NUMBER["h1"])
    last = np.maximum.accumulate(np.where(IS_HEADING[page.name_of][page.holder], page.index, -1))
    under, heading = last >= 0, np.maximum(last, 0)
    return {
        "after h1": (page.index - h1[0]).astype(np.float64) if len(h1) else np.full(page.count, -FAR),
        "words after h1": (page.words_before - page.words_before[h1[0]]) / page.total if len(h1) else np.full(page.count, -2.0),
        "since heading": np.where(under, page.index - last, 99.0),
        "words since heading": np.where(under, page.words_before - page.words_before[heading], FAR),
        "heading score": np.where(under, page.word_score[heading], 0.0),
        "heading path": np.where(under, page.path[heading], 0.0),
    }


def _prose(page: PageView) -> Features:
    """How far the block is from the prose before it and after it."""
    prose = np.flatnonzero(page.prose)
    if not len(prose):
        far = np.full(page.count, FAR)
        return {"to next prose": far, "from last prose": far, "prose before": np.zeros(page.count)}
    following = np.searchsorted(prose, page.index)
    ahead = prose[np.minimum(following, len(prose) - 1)] - page.index
    behind = page.index - prose[np.maximum(following - 1, 0)]
    return {
        "to next prose": np.where(ahead < 0, FAR, ahead),
        "from last prose": np.where(following == 0, FAR, np.where(ahead == 0, 0.0, behind)),
        "prose before": following / len(prose),
    }


def _neighbours(page: PageView) -> Features:
    """Values of the blocks directly before and after, and means over the blocks around."""
    names = ("words", "link", "path", "word score", "link words", "prose")
    rows = np.stack([page.words, page.link, page.path, page.word_score, page.linked, page.prose])
    out: Features = {}
    padded = np.zeros((4, page.count + 2))
    padded[:, 1:-1] = rows[:4]
    for by in (-1, 1):
        out |= {f"{name} {by:+d}": row[1 + by : 1 + by + page.count] for name, row in zip(names[:4], padded, strict=True)}
    wide = (0, 4, 2, 3, 5)
    running = np.zeros((len(wide), page.count + 1))
    np.cumsum(rows[list(wide)], axis=1, out=running[:, 1:])
    for reach in (3, 10):
        low, high = np.maximum(page.index - reach, 0), np.minimum(page.index + reach + 1, page.count)
        mean = (running.take(high, axis=1) - running.take(low, axis=1)) / (high - low)
        out |= {f"{names[which]} within {reach}": row for which, row in zip(wide, mean, strict=True)}
    return out


def _containers(page: PageView) -> Features:
    """Sums over the elements around the block, from the second innermost outwards, without those that add no blocks."""
    levels = np.empty((LEVELS, page.count), dtype=np.int64)
    outer, level = page.widest[page.parent[page.widest]], page.element
    for depth in range(LEVELS):
        level = levels[depth] = outer[level]
    low, high = page.start[levels], page.end[levels]
    inside = dict(zip(SUMS, page.running.take(high, axis=1) - page.running.take(low, axis=1), strict=True))
    words, blocks = np.maximum(inside["words"], 1.0), np.maximum(high - low, 1)
    columns = {
        "words": words,
        "share": words / page.total,
        "own share": page.words / words,
        "link": inside["links"] / words,
        "path": inside["path"] / words,
        "word score": inside["word score"] / words,
        "prose": inside["prose"],
        "prose share": inside["prose words"] / words,
        "sentences": inside["sentences"] / words,
        "blocks": blocks,
        "words a block": words / blocks,
        "place": (page.index - low) / blocks,
    }
    return {f"{name} in {depth}": row for name, rows in columns.items() for depth, row in enumerate(rows)}


def _alike(page: PageView) -> Features:
    """Sums and means over the blocks under the same path of names and classes."""
    _, alike = np.unique(page.look, return_inverse=True)
    words, count = np.bincount(alike, page.words)[alike], np.bincount(alike)[alike]

    def mean(values: Array) -> Array:
        return np.bincount(alike, values * page.words)[alike] / words

    return {
        "alike words": words,
        "alike share": words / page.total,
        "alike blocks": count.astype(np.float64),
        "alike words a block": words / count,
        "alike path": mean(page.path),
        "alike link": mean(page.link),
        "alike word score": mean(page.word_score),
        "alike prose": np.bincount(alike, page.prose)[alike],
    }


def _heart(page: PageView) -> Features:
    """Distance to the block most like content, and the smallest element that holds both."""
    heart = page.heart
    chain = [int(page.widest[page.element[heart]])]
    while chain[-1]:
        chain.append(int(page.widest[page.parent[chain[-1]]]))
    steps, share, link = np.zeros(page.count), np.ones(page.count), np.zeros(page.count)
    for step in range(len(chain) - 1, -1, -1):
        low, high = int(page.start[chain[step]]), int(page.end[chain[step]])
        words = max(page.sums["words"][high] - page.sums["words"][low], 1.0)
        steps[low:high] = step
        share[low:high] = words / page.total
        link[low:high] = (page.sums["links"][high] - page.sums["links"][low]) / words
    return {
        "heart steps": steps,
        "heart share": share,
        "heart link": link,
        "heart distance": (page.index - heart).astype(np.float64),
        "heart path": page.path - page.path[heart],
    }


def _ending(page: PageView) -> Features:
    """What is between the block and the heart: an article ends where something else begins."""
    heart, count = page.heart, page.count
    heading = IS_HEADING[page.name_of][page.holder]
    marks = np.where(page.prose > 0, 0.0, np.minimum(page.total_score, 0.0))  # of short blocks and of lists of links
    worst = np.empty(count)
    worst[heart:] = np.minimum.accumulate(marks[heart:])
    worst[: heart + 1] = np.minimum.accumulate(marks[heart::-1])[::-1]
    parts = np.stack([page.linked, heading * (page.link > 0.5), heading, page.total_score * page.words, page.words])
    running = np.zeros((len(parts), count + 1))
    np.cumsum(parts, axis=1, out=running[:, 1:])
    low, high = np.minimum(page.index, heart), np.maximum(page.index, heart) + 1
    linked, linked_headings, headings, both, words = running.take(high, axis=1) - running.take(low, axis=1)
    alike = np.flatnonzero(page.look == page.look[heart])
    last, first = alike[-1], alike[0]
    return {
        "worst to heart": worst,
        "linked to heart": linked,
        "linked headings to heart": linked_headings,
        "headings to heart": headings,
        "both to heart": both / words,
        "words to heart": np.where(page.index < heart, -words, words),
        "after heart's like": np.maximum(page.index - last, 0.0) + np.minimum(page.index - first, 0.0),
        "heart's look": (page.look == page.look[heart]).astype(np.float64),
    }


def _repeated(page: PageView) -> Features:
    """How many siblings of the elements around the block look the same: cards of other pages, comments, posts."""
    number = page.look_of[page.kind] * len(page.parent) + page.parent  # exact: 32 bits times elements
    _, alike, sizes = np.unique(number, return_inverse=True, return_counts=True)
    siblings = np.where(page.end > page.start, sizes[alike], 1)
    siblings[page.end - page.start == 1] = 1  # single blocks of text are no cards
    repeats = page.over_ancestors(np.log(siblings))
    return {"cards": repeats, "cards to heart": repeats - repeats[page.heart]}


def _stated(page: PageView) -> Features:
    """How far the block is from the first one that the title contains, and its share in the article that the page states."""
    title = page.blocks.title
    titled = [at for at, text in enumerate(page.blocks.text) if len(text) >= LONG and text in title]
    after = page.index - titled[0] if titled else np.full(page.count, -FAR)
    stated = shares_stated(page.blocks.text, page.blocks.stated) if page.blocks.stated else np.full(page.count, -1.0)
    return {"after title": np.asarray(after, np.float64), "stated": np.asarray(stated, np.float64)}
