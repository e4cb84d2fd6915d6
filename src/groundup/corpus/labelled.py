"""Labelled texts for a classifier: named sets of files, read in a fixed order, and figures held out by host or book.

Texts of one host or book are alike in more than their label, so a fold never splits them (as GroupKFold does); a figure
that does would measure recognition.
"""

import csv
import gzip
import heapq
import io
import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from groundup.corpus import linear
from groundup.corpus.urls import split_url
from groundup.corpus.words import split
from groundup.errors import UserError

MOST_DOCUMENTS = 50_000  # of a set: the first by digest, so a sample that is the same each time
MOST_CHUNKS = 10  # of a document, evenly spread: a long book must not outweigh a hundred pages
FOLDS = 5
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".txt", ".md")
GROUP_COLUMNS = ("group", "host", "url", "id")  # the first that a row has says what it belongs to
SEED = 0
TOO_FEW = "too few hosts to hold a fifth out of each set; add texts from other hosts"


class Text(NamedTuple):
    digest: bytes
    text: str
    group: str


def read(paths: list[Path]) -> list[Text]:
    """The texts of files and of folders of files, without repeats, in order of their digest.

    Parquet, JSON lines and CSV need a column `text`; host, url or group says what belongs together; else each row is by
    itself. A .txt or .md file is one text. Raises UserError when there is no text, or a file cannot be read so.
    """
    rows = (row for path in paths for file in _files(path) for row in _rows(file))
    texts = (_text(text, group) for text, group in rows)
    found = {text.digest: text for text in heapq.nsmallest(MOST_DOCUMENTS, texts)}
    if not found:
        raise UserError(f"{', '.join(map(str, paths)) or 'no file given'}: no text; give files with a column `text`")
    return list(found.values())


def _text(text: str, group: str) -> Text:
    digest = blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
    return Text(digest, text, group or digest.hex())


def chunked(texts: list[Text], characters: bool) -> list[list[np.ndarray]]:
    """For each text the features of its chunks, at most 10."""
    found = []
    for text in texts:
        parts = linear.chunks(split(text.text), characters)
        places = np.unique(np.linspace(0, len(parts) - 1, MOST_CHUNKS).astype(int)) if parts else []
        found.append([parts[place] for place in places])
    return found


def fold_of(group: str) -> int:
    return int.from_bytes(blake2b(group.encode("utf-8", "replace"), digest_size=8).digest(), "little") % FOLDS


def fit(
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
        inside = [row for row in np.flatnonzero(folds == fold) if documents[row]]
        outside = np.flatnonzero(folds != fold)
        if not inside:
            continue
        try:
            classifier = fit([documents[row] for row in outside], labels[outside], classes, characters)
        except ValueError:
            raise UserError(TOO_FEW) from None
        for row in inside:
            scores[row] = classifier.score_chunks(documents[row]).mean(axis=0)
    if np.isnan(scores).all():
        raise UserError(TOO_FEW)
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
        both = int(((truth == label) & (guess == label)).sum())
        values.append(2 * both / (int((truth == label).sum()) + int((guess == label).sum())))
    return float(np.mean(values))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES))
    if not path.exists():
        raise UserError(f"{path}: no such file")
    return [path]


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """Text and group of each row of a file; no group where the row says none."""
    if path.name.endswith((".txt", ".md")):
        yield path.read_text(encoding="utf-8", errors="replace"), ""
        return
    for number, row in enumerate(_records(path)):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise UserError(f"{path}: row {number + 1} has no column `text`")
        name, group = next(((name, str(row[name])) for name in GROUP_COLUMNS if row.get(name)), ("", ""))
        parts = split_url(group) if name == "url" else None
        yield row["text"], (parts.hostname if parts else None) or group


def _records(path: Path) -> Iterator[Any]:
    try:
        if path.suffix == ".parquet":
            columns = [name for name in ("text", *GROUP_COLUMNS) if name in pq.read_schema(path).names]
            for batch in pq.ParquetFile(path).iter_batches(1000, columns=columns):
                yield from batch.to_pylist()
            return
        with (
            gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened,
            io.TextIOWrapper(opened, encoding="utf-8", errors="replace", newline="") as lines,
        ):
            yield from csv.DictReader(lines) if ".csv" in path.suffixes else map(json.loads, filter(str.strip, lines))
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as {''.join(path.suffixes) or 'text'} ({error})") from None
