"""Labelled texts for classifiers: named sets of files, read in a fixed order, and figures held out by host or book.

Texts of one host or book are alike in more than their label, so folds never split them (as GroupKFold); otherwise a figure
would measure whether the host or book is recognised.
"""

import heapq
import logging
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from groundup.core.errors import UserError
from groundup.core.words import split
from groundup.corpus import languages
from groundup.corpus.classify import linear
from groundup.corpus.urls import split_url
from groundup.data import file_kinds
from groundup.data.file_kinds import is_page, kind_of
from groundup.data.readers import MAX_TEXT_BYTES, Refused, batches, gathered, texts

logger = logging.getLogger(__name__)

MAX_DOCUMENTS = 50_000  # of a set: the first by digest, so a sample that is the same each time
MAX_CHUNKS = 10  # of a document, evenly spread: a long book must not outweigh a hundred pages
MIN_TEXTS = 20  # of each class, for the classifier to know a language
FOLDS = 5
ENDINGS = (*file_kinds.ROWS, *file_kinds.TEXTS)
GROUP_COLUMNS = ("group", "host", "url", "id")  # the first that a row has names its group
SEED = 0
TOO_FEW = "too few hosts to hold a fifth out of each set; add texts from other hosts"


class TooFew(UserError):
    """A set has texts of too few hosts to hold a fifth out."""


class Text(NamedTuple):
    digest: bytes
    text: str
    group: str


def read(paths: list[Path]) -> list[Text]:
    """The texts of files and of folders of files, without repeats, in order of their digest.

    Parquet, JSON and CSV need a column `text`; a column group, host, url or id names a row's group; without one each row is
    a group. A file of text is one text. Rows that are passed over are counted in a warning; in a folder, files too.
    Raises UserError when there is no text, or a file given by name cannot be read.
    """
    refused = Refused()
    rows = (_text(text, group) for path in paths for text, group in _files(path, refused))
    by_digest = {text.digest: text for text in heapq.nsmallest(MAX_DOCUMENTS, rows)}
    sources = ", ".join(map(str, paths)) or "no file given"
    if not by_digest:
        raise UserError(f"{sources}: no text{f' ({refused})' if refused else ''}; give files with a column `text`")
    if refused:
        logger.warning(f"passed over in {sources}: {refused}")
    return list(by_digest.values())


def _text(text: str, group: str) -> Text:
    digest = blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
    return Text(digest, text, group or digest.hex())


def named_languages(texts: list[Text]) -> list[str]:
    """The language of each text; where it is unknown, the commonest of the others. Raises UserError where all are unknown."""
    identified = [languages.identify(text.text) for text in texts]
    counts = Counter(name for name, _ in identified if name != languages.UNKNOWN)
    if not counts:
        raise UserError(f"the language of none of {len(texts)} texts is known, as of {texts[0].text[:40]!r}; give longer ones")
    commonest = min(counts, key=lambda name: (-counts[name], name))
    return [commonest if name == languages.UNKNOWN else name for name, _ in identified]


def known_languages(sets: list[list[Text]]) -> list[str]:
    """The languages of which each set has 20 texts, and the commonest of all texts. Raises UserError where all are unknown."""
    counts = [Counter(named_languages(texts)) for texts in sets]
    totals = sum(counts, Counter())
    commonest = min(totals, key=lambda name: (-totals[name], name))
    return sorted({commonest, *(name for name in totals if min(set_counts[name] for set_counts in counts) >= MIN_TEXTS)})


def chunked(texts: list[Text], characters: bool) -> list[list[np.ndarray]]:
    """For each text the features of its chunks, at most 10."""
    features = []
    for text in texts:
        parts = linear.chunks(split(text.text), characters)
        indices = np.unique(np.linspace(0, len(parts) - 1, MAX_CHUNKS).astype(int)) if parts else []
        features.append([parts[index] for index in indices])
    return features


def fold_of(group: str) -> int:
    return int.from_bytes(blake2b(group.encode("utf-8", "replace"), digest_size=8).digest(), "little") % FOLDS


def train(
    documents: list[list[np.ndarray]], labels: np.ndarray, classes: list[str], characters: bool = False
) -> linear.Classifier:
    """Train on all chunks of documents with their labels, bool [documents, classes]."""
    counts = [len(parts) for parts in documents]
    parts = [part for document in documents for part in document]
    return linear.train(parts, np.repeat(labels, counts, axis=0), classes, SEED, characters)


def held_out_scores(
    documents: list[list[np.ndarray]],
    labels: np.ndarray,
    folds: np.ndarray,
    classes: list[str],
    characters: bool = False,
    only_fold: int | None = None,
) -> np.ndarray:
    """float64 [documents, classes]: each document's mean score by a classifier that saw no text of its fold.

    NaN for documents without words, and outside `only_fold` where that is given (one training instead of five).
    """
    scores = np.full(labels.shape, np.nan)
    for fold in range(FOLDS) if only_fold is None else [only_fold]:
        held_out = [row for row in np.flatnonzero(folds == fold) if documents[row]]
        others = np.flatnonzero(folds != fold)
        if not held_out:
            continue
        try:
            classifier = train([documents[row] for row in others], labels[others], classes, characters)
        except ValueError:
            raise TooFew(TOO_FEW) from None
        for row in held_out:
            scores[row] = classifier.score_chunks(documents[row]).mean(axis=0)
    if np.isnan(scores).all():
        raise TooFew(TOO_FEW)
    return scores


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The share of pairs in which the positive scores higher; ties count half."""
    ordered = np.sort(negative)
    below, up_to = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
    return float((below + up_to).sum() / (2 * len(positive) * len(negative)))


def macro_f1(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean over the classes of `truth` of the harmonic mean of precision and recall."""
    values = []
    for label in np.unique(truth):
        true_positives = int(((truth == label) & (guess == label)).sum())
        values.append(2 * true_positives / (int((truth == label).sum()) + int((guess == label).sum())))
    return float(np.mean(values))


def _files(path: Path, refused: Refused) -> Iterator[tuple[str, str]]:
    """`_rows` of a file, or of all files of a folder that can be read."""
    if not path.is_dir():
        yield from _rows(path, refused)
        return
    names, skipped = file_kinds.files_of(path, ENDINGS)
    for line in file_kinds.skipped_lines(skipped):
        logger.info(f"{line}")
    for name in names:
        try:
            yield from _rows(path / name, refused)
        except UserError as refusal:
            refused.add("refused files", str(refusal))


def _rows(path: Path, refused: Refused) -> Iterator[tuple[str, str]]:
    """Text and group of each row of a file; group "" where the row names none."""
    kind = kind_of(path)
    if kind.form == "text":
        if is_page(path, kind):
            raise UserError(f"{path}: a web page, not a text: `groundup corpus` makes texts of it")
        body = bytearray()
        for part in texts(path, refused, kind):  # a small file may unpack to any size
            body += part
            if len(body) > MAX_TEXT_BYTES:
                break
        rows = [(0, {"text": body.decode("utf-8", "replace")})] if body else []
        for batch in gathered(rows, str(path), "text", (), refused, MAX_TEXT_BYTES):
            yield from ((text, "") for text in batch["text"].to_pylist())
        return
    for batch in batches(path, "text", GROUP_COLUMNS, refused, kind):
        for row in batch.to_pylist():
            name, group = next(((name, row[name]) for name in GROUP_COLUMNS if row[name]), ("", ""))
            parts = split_url(group) if name == "url" else None
            yield row["text"], (parts.hostname if parts else None) or group
