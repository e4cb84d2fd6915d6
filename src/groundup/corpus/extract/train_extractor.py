"""Train the extraction model: `python -m groundup.corpus.extract.train_extractor --data DIR [--out FILE]`.

DIR holds `*.warc.gz` pages and `*.gold.jsonl.gz` lines: (url, page_type, main_content) as in WCXB, (url, page,
article) of news articles, or (url, with, without), snippets that a text must and must not have. A block's label is the share of
its words that align with the gold text. In a page with snippets, the labels of blocks with a snippet are known, and at a
quarter of the weight those on which trafilatura and the shipped model agree: both are mostly right, and seldom wrong on the
same block.
Scores of tags' tokens and of words are fitted by logistic regression. The trees see each page with scores fitted on pages of
other sites; otherwise they would trust the scores too much.
"""

import argparse
import gzip
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.core import log
from groundup.core.errors import UserError
from groundup.core.text import printable
from groundup.corpus.archive.warc import Losses, read_pages
from groundup.corpus.extract.blocks import Blocks, Tag
from groundup.corpus.extract.content import LEAVES, WEIGHTS, ContentModel, Trees, content_model, to_arrays
from groundup.corpus.extract.features import Scores, features, split_words, tokens_of
from groundup.corpus.extract.page_text import decode, parse
from groundup.corpus.urls import split_url

logger = logging.getLogger(__name__)

WORD = re.compile(r"\w+")
FOLDS = 5  # of sites: each is scored by the others, and in cross-validation evaluated with a model of the others
MIN_SITES = 3  # with a token, for it to get a score
PENALTY = 1 / 3  # on squared weights; the data has weight one per page
ITERATIONS = 45
ALIGNED_WHOLE = 30_000_000  # words of the page times words of the gold: above this, frequent words are no anchors
TREES = 100
HEART = 0.95  # of the content's words
AGREED, SNIPPET = 0.5, 2.0  # weights of blocks of a page that has snippets
KIND_WEIGHTS = {"news": 2.0}  # of a page: 102 are news, 1,497 of all kinds, and 487 have few labels each
OPTIONS = {
    "objective": "cross_entropy", "num_leaves": LEAVES, "learning_rate": 0.12, "min_data_in_leaf": 40, "feature_fraction": 0.4,
    "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 5, "max_bin": 127, "use_missing": False, "seed": 2,
    "deterministic": True, "force_col_wise": True, "num_threads": 1, "verbosity": -1,
}  # fmt: skip


@dataclass
class LabelledPage:
    """A page and the labels of its content that people gave."""

    url: str
    kind: str  # one of WCXB's page types, or "news", or "snippets"
    site: str
    blocks: Blocks
    words: list[list[str]]  # of each block, as the metric counts them
    gold: Counter[str]
    label: NDArray[np.float64]  # [blocks]: share of its words that is content
    weight: NDArray[np.float64]  # [blocks]: by the square root of its words, in sum 1 per page; 0 where the label is unknown


def site_of(url: str) -> str:
    """The part of the host name that has one owner: 'blog.a.co.uk' -> 'a.co.uk'; for a file 'hard::a.org-page.html', 'a.org'."""
    url = url.rpartition("::")[2].removesuffix(".html").partition("-")[0] if "://" not in url else url
    parts = (((address := split_url(url)) and address.hostname) or url).split(".")
    return ".".join(parts[-3:] if len(parts) > 2 and len(parts[-2]) <= 3 and len(parts[-1]) == 2 else parts[-2:])


def read_examples(data: Path) -> list[LabelledPage]:
    gold = read_gold(data)
    examples = [
        _example(page.url, decode(page), gold[page.url])
        for path in sorted(data.glob("*.warc.gz"))
        for page in read_pages(path, Losses())
        if page.url in gold
    ]
    if not examples:
        raise UserError(f"no labelled pages in {data}: it must hold *.warc.gz and *.gold.jsonl.gz with the same URLs")
    return examples


def read_gold(data: Path) -> dict[str, dict[str, Any]]:
    """The labels of the pages, by URL."""
    gold: dict[str, dict[str, Any]] = {}
    for path in sorted(data.glob("*.gold.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            gold.update((row["url"], row) for row in map(json.loads, file))
    return gold


def _example(url: str, html: str, row: dict[str, Any]) -> LabelledPage:
    _, blocks = parse(html)
    words = [WORD.findall((prefix + text).lower()) for prefix, text in zip(blocks.prefix, blocks.text, strict=True)]
    weight = np.sqrt([len(block) for block in words])
    kind = row.get("page_type", "news" if "article" in row else "snippets")
    truth = WORD.findall(row.get("main_content", row.get("article", "")).lower())
    if kind == "snippets":
        label, known = _snippet_labels(html, blocks, words, row)
        weight = weight * known
    else:
        label = _labels(words, truth)
    weight = weight * KIND_WEIGHTS.get(kind, 1.0) / max(weight.sum(), 1)
    return LabelledPage(url, kind, site_of(row.get("page", url)), blocks, words, Counter(truth), label, weight)


def _snippet_labels(
    html: str, blocks: Blocks, words: list[list[str]], row: dict[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels [blocks], and the weight of each [blocks]."""
    import trafilatura

    theirs = _labels(words, WORD.findall((trafilatura.extract(html, include_comments=False) or "").lower()))
    ours = np.isin(np.arange(len(words)), content_model().content(blocks))
    known = AGREED * np.where(ours, theirs > 0.8, theirs < 0.2)
    label = ours.astype(np.float64)
    wanted, unwanted = ([" ".join(text.split()) for text in row[name]] for name in ("with", "without"))
    for block_index, text in enumerate(blocks.text):
        block = " ".join(text.split())
        good, bad = (any(snippet in block for snippet in snippets) for snippets in (wanted, unwanted))
        if good != bad:
            label[block_index], known[block_index] = float(good), SNIPPET
    return label, known


def _labels(words: list[list[str]], truth: list[str]) -> NDArray[np.float64]:
    """The share of each block's words that align with the gold text."""
    page = [word for block in words for word in block]
    owner = np.repeat(np.arange(len(words)), [len(block) for block in words])
    right = np.zeros(len(words))
    matcher = SequenceMatcher(None, page, truth, autojunk=len(page) * len(truth) > ALIGNED_WHOLE)
    for start, _, length in matcher.get_matching_blocks():
        np.add.at(right, owner[start : start + length], 1)
    return right / np.maximum([len(block) for block in words], 1)


def word_f1(kept: Iterable[list[str]], gold: Counter[str]) -> float:
    """F1 of the bag of words of the chosen blocks. 1 where nothing is chosen and nothing is content."""
    ours = Counter(word for block in kept for word in block)
    if not ours and not gold:
        return 1.0
    return 2 * (ours & gold).total() / (ours.total() + gold.total())


def heart_of(example: LabelledPage) -> LabelledPage | None:
    """The page without anything around its content: the smallest element that holds nearly all of it.

    Small and plain pages are rare in labelled data, and a model that has seen none takes their code, lists and
    tables for what is around an article elsewhere.
    """
    blocks, label = example.blocks, example.label
    content = np.cumsum([0.0, *(label * [len(words) for words in example.words])])
    words_held = [content[end] - content[start] for start, end in zip(blocks.start, blocks.end, strict=True)]
    elements = [element for element, words in enumerate(words_held) if words >= HEART * content[-1] > 0]
    if not elements or elements[-1] == 0:
        return None
    top = elements[-1]
    low, high = blocks.start[top], blocks.end[top]
    after = next((element for element in range(top + 1, len(blocks.parent)) if blocks.parent[element] < top), len(blocks.parent))
    columns = ("text", "link_chars", "inner", "gap", "prefix", "row", "cell")
    inside = Blocks(
        **{name: getattr(blocks, name)[low:high] for name in columns},
        element=[element - top for element in blocks.element[low:high]],
        kinds=blocks.kinds,
        title=blocks.title,
        stated=blocks.stated,
        kind=blocks.kind[top:after],
        parent=[max(parent - top, 0) for parent in blocks.parent[top:after]],
        start=[start - low for start in blocks.start[top:after]],
        end=[end - low for end in blocks.end[top:after]],
    )
    return replace(example, blocks=inside, words=example.words[low:high], label=label[low:high], weight=example.weight[low:high])


class _Table:
    """Rows of token counts, each with its weight of content and of the rest, for logistic regression."""

    def __init__(
        self, counts: Any, tokens: list[str], site: list[int], content: list[float], rest: list[float]
    ) -> None:
        import scipy.sparse as sparse

        self.counts, self.tokens = counts, tokens
        self.site = np.array(site)
        self.content, self.rest = np.array(content), np.array(rest)
        rows = np.arange(len(site))
        of_site = sparse.csr_matrix((np.ones(len(site), np.float32), (self.site, rows)))
        self.sites_with = (of_site @ counts).sign()  # [sites, tokens]

    def fit(self, use: NDArray[np.bool_]) -> dict[str, float]:
        """Weights of the tokens, from the sites in `use` [sites]."""
        from scipy.optimize import minimize

        columns = np.flatnonzero(np.asarray(self.sites_with[np.flatnonzero(use)].sum(axis=0)).ravel() >= MIN_SITES)
        rows = np.flatnonzero(use[self.site])
        x = self.counts[rows][:, columns].astype(np.float32)
        back = x.T.tocsr()
        content, weight = self.content[rows], (self.content + self.rest)[rows]

        def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            z = (x @ w[:-1].astype(np.float32)).astype(np.float64) + w[-1]
            slope = weight / (1 + np.exp(-z)) - content
            value = (weight * np.logaddexp(0, z) - content * z).sum() + 0.5 * PENALTY * (w[:-1] ** 2).sum()
            return value, np.append(back @ slope.astype(np.float32) + PENALTY * w[:-1], slope.sum())

        best = minimize(loss, np.zeros(len(columns) + 1), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
        return {self.tokens[column]: float(w) for column, w in zip(columns, best.x, strict=False) if abs(w) > 0.02}


class ScoreTables:
    """The pages' tags and words as tables, made once: each training set takes some of the rows."""

    def __init__(self, examples: list[LabelledPage], site: list[int]) -> None:
        import scipy.sparse as sparse

        tags: dict[Tag, int] = {}
        words: dict[str, int] = {}
        above: list[tuple[int, int]] = []  # (row, tag)
        near: list[tuple[int, int]] = []
        paths: tuple[list, list, list] = ([], [], [])  # site, content, rest of each row
        texts: tuple[list, list, list] = ([], [], [])
        row_words: list[tuple[int, int]] = []  # (row, word)
        for example, site_number in zip(examples, site, strict=True):
            blocks = example.blocks
            weight = example.weight
            kinds = [tags.setdefault(tag, len(tags)) for tag in blocks.kinds]
            chains: list[tuple[int, ...]] = []
            for element, parent in enumerate(blocks.parent):
                chains.append((*(chains[parent] if element else ()), kinds[blocks.kind[element]]))
            alike: dict[tuple, list[int]] = {}
            for block, element in enumerate(blocks.element):
                inner = (kinds[blocks.inner[block]],) if blocks.inner[block] >= 0 else ()
                alike.setdefault((chains[element], inner), []).append(block)
            for (chain, inner), group in alike.items():
                row = len(paths[0])
                above += [(row, tag) for tag in chain + inner]
                near += [(row, tag) for tag in chain[-1:] + inner]
                _add_row(paths, site_number, weight[group], example.label[group])
            same: dict[tuple[str, ...], list[int]] = {}
            words_begun, counts = split_words(blocks.text)
            begun_with = iter(words_begun)
            for block, size in enumerate(counts):
                same.setdefault(tuple(islice(begun_with, size)), []).append(block)
            for tokens, group in same.items():
                row = len(texts[0])
                row_words += [(row, words.setdefault(token, len(words))) for token in tokens]
                _add_row(texts, site_number, weight[group], example.label[group])
        tokens: dict[str, int] = {}
        of_tag = [
            (at, tokens.setdefault(token, len(tokens)))
            for tag, at in tags.items()
            for word in tag.words
            for token in tokens_of(word)
        ]
        has = _count_matrix(of_tag, len(tags), len(tokens))
        parts = [_count_matrix(pairs, len(paths[0]), len(tags)) @ has for pairs in (above, near)]
        names = [f"above {token}" for token in tokens] + [f"near {token}" for token in tokens]
        self.paths = _Table(sparse.hstack(parts, format="csr"), names, *paths)
        self.texts = _Table(_count_matrix(row_words, len(texts[0]), len(words)), list(words), *texts)
        self.fold = np.random.default_rng(0).permutation(max(site) + 1) % FOLDS  # [sites]
        self.fitted: dict[frozenset[int], Scores] = {}

    def without(self, folds: Set[int]) -> Scores:
        """Scores from the sites of the other folds."""
        key = frozenset(folds)
        if key not in self.fitted:
            self.fitted[key] = self.fit(~np.isin(self.fold, list(folds)))
        return self.fitted[key]

    def fit(self, use: NDArray[np.bool_]) -> Scores:
        paths = self.paths.fit(use)
        above, near = (
            {name.removeprefix(prefix): weight for name, weight in paths.items() if name.startswith(prefix)}
            for prefix in ("above ", "near ")
        )
        tags = {token: (above.get(token, 0.0), near.get(token, 0.0)) for token in above | near}
        return Scores(tags, self.texts.fit(use))


def _add_row(rows: tuple[list, list, list], site: int, weight: NDArray[np.float64], label: NDArray[np.float64]) -> None:
    rows[0].append(site)
    rows[1].append(float((weight * label).sum()))
    rows[2].append(float((weight * (1 - label)).sum()))


def _count_matrix(pairs: list[tuple[int, int]], rows: int, columns: int) -> Any:
    import scipy.sparse as sparse

    positions = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return sparse.csr_matrix((np.ones(len(positions), np.float32), (positions[:, 0], positions[:, 1])), shape=(rows, columns))


def train(examples: list[LabelledPage], tables: ScoreTables, site: NDArray[np.int64], held_out: Set[int]) -> ContentModel:
    """The model trained on the pages of sites that are in no held-out fold; `site` [pages]."""
    pages, x, names = training_features(examples, tables, site, held_out)
    return ContentModel(_as_stored(tables.without(held_out)), fit_trees(x, pages), names)


def _as_stored(scores: Scores) -> Scores:
    tags = {token: (float(np.float16(above)), float(np.float16(near))) for token, (above, near) in scores.tags.items()}
    return Scores(tags, {token: float(np.float16(weight)) for token, weight in scores.words.items()})


def training_features(
    examples: list[LabelledPage], tables: ScoreTables, site: NDArray[np.int64], held_out: Set[int]
) -> tuple[list[LabelledPage], list[NDArray[np.float32]], list[str]]:
    """The pages that have text, and their hearts; their features under scores fitted without their fold; the features'
    names."""
    pages: list[LabelledPage] = []
    x: list[NDArray[np.float32]] = []
    names: list[str] = []
    for fold in set(range(FOLDS)) - held_out:
        scores = tables.without(held_out | {fold})
        for at in np.flatnonzero(tables.fold[site] == fold):
            for page in (examples[at], heart_of(examples[at])):
                if page and page.weight.any():
                    columns = features(page.blocks, scores)
                    names = list(columns)
                    pages.append(page)
                    x.append(np.stack(list(columns.values()), axis=1).astype(np.float32))
    return pages, x, names


def fit_trees(x: list[NDArray[np.float32]], pages: list[LabelledPage]) -> Trees:
    import lightgbm

    weight = np.concatenate([page.weight for page in pages])
    known = weight > 0
    weight = weight[known]
    label = np.concatenate([page.label for page in pages])[known]
    data = lightgbm.Dataset(np.concatenate(x)[known], label, weight=weight * len(weight) / weight.sum())
    return _flat(lightgbm.train(OPTIONS, data, TREES).dump_model())


def _flat(dump: dict[str, Any]) -> Trees:
    """LightGBM's trees as arrays. Unused entries of smaller trees have conditions that never hold."""
    count = len(dump["tree_info"])
    trees = Trees(
        np.zeros((count, LEAVES - 1), np.int16),
        np.full((count, LEAVES - 1), np.inf, np.float32),
        np.full((count, LEAVES - 1), 0xFFFFFFFF, np.uint32),
        np.zeros((count, LEAVES), np.float32),
    )
    for tree, info in enumerate(dump["tree_info"]):
        leaves = nodes = 0

        def visit(node: dict[str, Any], tree: int = tree) -> None:
            nonlocal leaves, nodes
            if "leaf_value" in node:
                trees.value[tree, leaves] = node["leaf_value"]
                leaves += 1
                return
            node_index, first = nodes, leaves
            nodes += 1
            trees.feature[tree, node_index] = node["split_feature"]
            trees.threshold[tree, node_index] = node["threshold"] + 0.0  # no -0.0, from which 0.0 would come out negative
            visit(node["left_child"])
            trees.stays[tree, node_index] = 0xFFFFFFFF ^ ((1 << leaves) - (1 << first))
            visit(node["right_child"])

        visit(info["tree_structure"])
    return trees


def cross_validated(examples: list[LabelledPage]) -> tuple[list[list[int]], list[ContentModel]]:
    """The pages of each fold, and for each fold a model that has not seen its sites."""
    _, site, tables = _prepared(examples)
    pages = [np.flatnonzero(tables.fold[site] == fold).tolist() for fold in range(FOLDS)]
    return pages, [train(examples, tables, site, {fold}) for fold in range(FOLDS)]


def _prepared(examples: list[LabelledPage]) -> tuple[list[str], NDArray[np.int64], ScoreTables]:
    sites = sorted({example.site for example in examples})
    number = {site: at for at, site in enumerate(sites)}
    site = [number[example.site] for example in examples]
    return sites, np.array(site), ScoreTables(examples, site)


def main() -> None:
    log.to_terminal()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of *.warc.gz and *.gold.jsonl.gz")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parsed, unknown = parser.parse_known_args()
    if unknown:
        parser.error(printable(f"unrecognized arguments: {' '.join(unknown)}"))
    examples = read_examples(parsed.data)
    sites, site, tables = _prepared(examples)
    model = train(examples, tables, site, set())
    np.savez_compressed(parsed.out, **to_arrays(model))
    size = parsed.out.stat().st_size / 1000
    logger.info(f"{len(examples)} pages of {len(sites)} sites -> {parsed.out}, {size:.0f} kB")


if __name__ == "__main__":
    main()
