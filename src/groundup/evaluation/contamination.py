"""Was a test trained on? Whether a model finds its original order likelier than shuffled ones, and what a corpus holds of it.

The order test (Oren et al. 2023, "Proving Test Set Contamination in Black Box Language Models") needs no corpus: nobody but a
reader of the file can know which example comes after which. The file is cut into shards. By chance alone, a shard's
log-probability in the original order less its mean in shuffled ones is above 0 as often as below; a one-sided t test over the
shards says whether it is above too often. That holds only where all orders are equally likely, so numbers that ascend are cut
out, and what is sorted is left out or shuffled within its groups (`exchangeable`).
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.core.files import write_json
from groundup.core.progress import Progress
from groundup.core.statistics import students_tail
from groundup.core.words import split
from groundup.corpus.dedup import decontamination as ngrams
from groundup.data.file_kinds import kind_of
from groundup.data.messages import BadRow
from groundup.data.readers import Refused, texts
from groundup.evaluation.evaluated_models import EvaluatedModel
from groundup.evaluation.example_files import rows_of
from groundup.evaluation.open_model import open_model
from groundup.evaluation.tasks import Task, load, open_task
from groundup.tokenizer import documents

logger = logging.getLogger(__name__)

SHARDS, PERMUTATIONS, EXAMPLES = 50, 30, 1000  # more than 30 to 50 permutations a shard bring little (Oren et al.)
MIN_EXAMPLES = 10  # in two shards at least; fewer prove nothing
MIN_PAIRS = 8  # neighbours that must all ascend: by chance one file in 2^8 does
NUMBER = re.compile(r"\d{1,18}")
COPY_FRACTION = 0.3  # a document with this share of an example's n-grams is a copy, however many documents have one
BATCH_SIZE = 64  # texts at once
MAX_SHOWN = 20  # matched examples that the report names

Row = dict[str, Any]


@dataclass
class Ordered:
    """Examples in the order of their file, as texts without what reveals that order."""

    texts: list[str]
    groups: list[int]  # neighbours of one number are a group, and exchangeable
    cut: list[str] = field(default_factory=list)  # columns of which ascending numbers were cut
    left_out: list[str] = field(default_factory=list)  # sorted columns
    grouped_by: list[str] = field(default_factory=list)


def contamination(
    name: str, task: str, data: Path | None = None, corpus: Sequence[Path] = (), *, seed: int = 0,
    examples: int = EXAMPLES, shards: int = SHARDS, permutations: int = PERMUTATIONS, out: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """{"order": of the test, "overlap": of the corpus or None}. `task`: a shipped task, a task's file, or a file of examples;
    without `corpus` that of a run's model is taken.

    Raises UserError for what cannot be read, and for files that are too short or sorted by their content.
    """
    opened_task = None if _is_example_file(task) else open_task(task, data)
    refused = Refused()
    rows = [row for path in (opened_task.paths if opened_task else [Path(task)]) for row in _rows(path, refused)]
    if refused:
        logger.warning("%s: rows skipped: %s", task, refused)
    if not rows:
        raise UserError(f"{task}: no example in it{f': {refused}' if refused else ''}")
    ordered = exchangeable(rows[:examples], task)
    corpora = [*corpus] or _corpus_of_run(Path(name))
    result: dict[str, Any] = {"model": name, "task": task, "rows": len(rows), "skipped": dict(refused)}
    result["order"] = order_test(open_model(name), ordered, shards, permutations, seed)
    result["overlap"] = overlap(rows, opened_task, corpora, task) if corpora else None
    if out:
        write_json(out, result)
    return result


# --- examples -----------------------------------------------------------------------------------------------------


def _is_example_file(task: str) -> bool:
    path = Path(task)
    return path.is_file() and path.suffix.lower() != ".toml"


def _rows(path: Path, refused: Refused) -> list[Row]:
    """A file's rows; of a text file its paragraphs, or where there are too few its lines."""
    kind = kind_of(path)
    if kind.form != "text":
        return [row for _, row in rows_of(path, refused)]
    body = b"".join(texts(path, refused, kind)).decode("utf-8", "replace")
    paragraphs = re.split(r"\n\s*\n", body)
    if len(paragraphs) < MIN_EXAMPLES:
        paragraphs = body.split("\n")
    return [{"text": paragraph.strip()} for paragraph in paragraphs if paragraph.strip()]


def _columns(row: Row) -> dict[str, str | float]:
    """Texts and numbers of a row, by their path."""
    columns: dict[str, str | float] = {}
    pending: list[tuple[str, Any]] = [("", row)]  # no recursion: the file decides how deep it is
    while pending:
        path, value = pending.pop()
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            pending += reversed([(f"{path}.{key}" if path else str(key), item) for key, item in items])
        elif isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
            columns[path] = value
    return columns


def exchangeable(rows: Sequence[Row], where: str) -> Ordered:
    """The rows' texts for the order test. Raises UserError where too few remain.

    A column whose neighbours are equal far more often than in a random order, such as a passage with its questions, makes groups:
    examples are shuffled within them only. Where only a few neighbours are equal, as with duplicated rows, the first stays.
    """
    columns = [_columns(row) for row in rows]
    counts = Counter(name for row_columns in columns for name in row_columns)
    names = [name for name, count in counts.items() if 10 * count >= 9 * len(rows)]
    ordered = Ordered([], [])
    changes, kept_rows = np.zeros(len(rows), bool), np.ones(len(rows), bool)
    for name in names:
        values = [row_columns.get(name) for row_columns in columns]
        same = np.array([False, *(a == b for a, b in zip(values[1:], values, strict=False))])
        expected = sum(count * (count - 1) for count in Counter(values).values()) / max(1, len(values))
        if same.all() or same[1:].all() or same.sum() <= expected + 4 * math.sqrt(expected) + 4:
            continue
        if 4 * same.sum() >= len(rows):
            changes |= ~same
            ordered.grouped_by.append(name)
        else:
            kept_rows &= ~same
    groups = np.cumsum(changes)[kept_rows]
    columns = [row_columns for row_columns, is_kept in zip(columns, kept_rows, strict=True) if is_kept]
    texts_of_examples: list[list[str]] = [[] for _ in columns]
    for name in dict.fromkeys(name for row_columns in columns for name in row_columns):
        values = [row_columns.get(name) for row_columns in columns]
        if not any(isinstance(value, str) for value in values):
            continue
        texts = ["" if value is None else str(value) for value in values]
        if name not in ordered.grouped_by and _ascends(texts, groups):
            ordered.left_out.append(name)
            continue
        texts, was_cut = _without_numbers(texts, groups)
        ordered.cut += [name] if was_cut else []
        for example_texts, value in zip(texts_of_examples, texts, strict=True):
            example_texts.append(value)
    ordered.texts = ["\n".join(filter(None, example_texts)) for example_texts in texts_of_examples]
    ordered.groups = groups.tolist()
    sizes = Counter(ordered.groups)
    if sum(size for size in sizes.values() if size > 1) < MIN_EXAMPLES or not any(ordered.texts):
        sorted_by = f"; sorted by {', '.join(ordered.left_out)[:60]}" if ordered.left_out else ""
        raise UserError(
            f"{where}: {len(ordered.texts)} examples in {len(sizes)} groups{sorted_by}: at least {MIN_EXAMPLES} are needed that "
            "could stand in another order; give a longer file, or one that is not sorted"
        )
    return ordered


def _ascends(values: Sequence[Any], groups: Sequence[int] | np.ndarray) -> bool:
    """Whether values only ascend, or only descend, within every group, and at least half of the neighbours differ."""
    pairs = [(a, b) for a, b, x, y in zip(values, values[1:], groups, groups[1:], strict=False) if x == y]
    ascending, descending = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    return len(pairs) >= MIN_PAIRS and not (ascending and descending) and 2 * (ascending + descending) >= len(pairs)


def _without_numbers(values: list[str], groups: np.ndarray) -> tuple[list[str], bool]:
    """Texts without the numbers, of the first three and the last of each text, that ascend from example to example."""
    numbers = [[*NUMBER.finditer(value[:1000])] for value in values]
    was_cut = False
    for index in (-1, 2, 1, 0):
        numbered = [
            (number, int(matches[index][0]))
            for number, matches in enumerate(numbers)
            if -len(matches) <= index < len(matches)
        ]
        if 10 * len(numbered) < 9 * len(values):
            continue
        rows, values_read = zip(*numbered, strict=True)
        if _ascends(values_read, groups[list(rows)]):
            was_cut = True
            for row in rows:
                start, end = numbers[row][index].span()
                values[row] = values[row][:start] + " " * (end - start) + values[row][end:]  # other numbers keep their offsets
    return [re.sub(r" {2,}", " ", value) for value in values] if was_cut else values, was_cut


# --- the order test -----------------------------------------------------------------------------------------------


def order_test(
    model: EvaluatedModel, ordered: Ordered, shards: int = SHARDS, permutations: int = PERMUTATIONS, seed: int = 0
) -> dict[str, Any]:
    """{"p", "t", "shards", "examples", "permutations", "nats_a_shard", and what was cut, left out and grouped}.

    A shard longer than the context is scored in windows that overlap by half. Raises UserError where the model cannot score
    one, or where fewer than two shards have another order.
    """
    generator = np.random.default_rng(seed)
    texts, groups = ordered.texts, np.array(ordered.groups)
    # Ten shards are enough for a t test; more only if each has four examples, since shards of few examples have few orders.
    count = max(2, min(shards, len(texts) // 2, max(10, len(texts) // 4)))
    usable_shards = [shard for shard in np.array_split(np.arange(len(texts)), count) if _has_other_orders(groups[shard])]
    if len(usable_shards) < 2:
        raise UserError("the order test: fewer than two parts of the file can be in another order; give a longer file")
    differences = []
    with Progress(f"{model.name}: order of examples", len(usable_shards), "shards") as progress:
        for shard in usable_shards:
            orders = [shard, *(_shuffled(shard, groups, generator) for _ in range(permutations))]
            shuffled_texts = ["".join(f"{texts[index]}\n" for index in order) for order in orders]
            nats = []
            for log_probability in model.texts(shuffled_texts, "half", BATCH_SIZE):
                if isinstance(log_probability, BadRow):
                    raise UserError(f"the order test: {log_probability.reason}")
                nats.append(log_probability)
            differences.append(nats[0] - sum(nats[1:]) / permutations)
            progress.advance(1)
    mean, std = float(np.mean(differences)), float(np.std(differences, ddof=1))
    t = mean / (std / math.sqrt(len(differences))) if std else 0.0
    return {
        "p": students_tail(t, len(differences) - 1), "t": t, "shards": len(usable_shards), "examples": len(texts),
        "permutations": permutations, "nats_a_shard": mean, "numbers_cut": ordered.cut, "left_out": ordered.left_out,
        "shuffled_within": ordered.grouped_by,
    }  # fmt: skip


def _has_other_orders(groups: np.ndarray) -> bool:
    return bool((groups[1:] == groups[:-1]).any())


def _shuffled(part: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Another order, with each group where it is."""
    keys = generator.random(len(part))
    return part[np.lexsort((keys, groups[part]))]


# --- overlap with a corpus ----------------------------------------------------------------------------------------


def overlap(rows: Sequence[Row], task: Task | None, corpora: Sequence[Path], where: str) -> dict[str, Any]:
    """Which examples are in some document: {"corpus", "documents", "examples", "too_short", "found", "numbers", "first"}.

    An example is searched as its row's texts and, of a task, as its prompt with the answer. It is in a document that shares a
    13-gram of words with it which at most ten documents have, or that has three tenths of its 13-grams, as each of a hundred
    copies does.
    """
    forms = [["\n".join(value for value in _columns(row).values() if isinstance(value, str))] for row in rows]
    for number, prompt in _prompts(task):
        forms[number] += prompt
    indexed = ngrams.index_examples([where], ((0, number, texts) for number, texts in enumerate(forms)))
    refused = Refused()
    matches = documents_with(indexed, documents.texts(documents.find(corpora), None, refused))
    if refused:
        logger.warning("corpus: rows skipped: %s", refused)
    examples_found = [
        {"example": indexed.examples[index][1], "documents": count, "text": forms[indexed.examples[index][1]][0][:200]}
        for index, count in sorted(matches.documents_of.items())
    ]
    return {
        "corpus": [str(path) for path in corpora], "documents": matches.documents, "examples": len(indexed.examples),
        "too_short": indexed.too_short[0], "found": len(examples_found),
        "numbers": [example["example"] for example in examples_found], "first": examples_found[:MAX_SHOWN],
    }  # fmt: skip


def _prompts(task: Task | None) -> Iterable[tuple[int, list[str]]]:
    """Row and forms of each example of a task, without description and few-shot examples. None where examples are no rows, such
    as those made of documents, and where no row makes an example, such as in a test whose answers are withheld.
    """
    if task is None or task.settings.made_of or any(kind_of(path).form == "text" for path in task.paths):
        return
    settings = task.settings.model_copy(update={"few_shot": None, "description": "", "listed_description": ""})
    try:
        examples = load(replace(task, settings=settings, few_shot_paths=())).rows
    except UserError as error:
        logger.warning("only what the rows hold is looked for, no prompts: %s", error)
        return
    for example in examples:
        # In existence tasks, `answer` says that the thing exists; in pairs the prompt comes last.
        answer = "".join(example.texts[:1]) if settings.kind in ("existence", "toxicity") else example.texts[example.answer]
        parts = (answer, example.prompt) if settings.kind == "pairs" else (example.prompt, answer)
        yield example.number, [settings.delimiter.join(parts), *([example.listed] if example.listed else [])]


def _corpus_of_run(folder: Path) -> list[Path]:
    for run in (folder, folder.parent):
        if (run / "corpus" / "documents.parquet").is_file():
            return [run / "corpus" / "documents.parquet"]
    return []


@dataclass
class CorpusMatches:
    documents: int
    documents_of: Counter[int]  # index of an example -> how many documents it is in


def documents_with(indexed: ngrams.Benchmarks, texts: Iterable[str]) -> CorpusMatches:
    hits: list[np.ndarray] = []
    count = 0
    for text in texts:
        count += 1
        grams = ngrams.grams_of(split(text), indexed)
        if len(grams):
            hits.append(grams)
    frequency = np.bincount(np.concatenate(hits), minlength=len(indexed.grams)) if hits else np.zeros(0, int)
    sizes = np.bincount(indexed.owners, minlength=len(indexed.examples))
    documents_of: Counter[int] = Counter()
    for grams in hits:
        shared, rare = _owners(indexed, grams), _owners(indexed, grams[frequency[grams] <= ngrams.BENCHMARK_BOILERPLATE])
        copied = [owner for owner, shared_grams in shared.items() if shared_grams >= COPY_FRACTION * sizes[owner]]
        documents_of.update({*rare, *copied})
    return CorpusMatches(count, documents_of)


def _owners(indexed: ngrams.Benchmarks, grams: np.ndarray) -> dict[int, int]:
    """How many of these n-grams each example has."""
    if not len(grams):
        return {}
    owner_indices = np.concatenate([indexed.owners[indexed.starts[gram] : indexed.starts[gram + 1]] for gram in grams.tolist()])
    owners, counts = np.unique(owner_indices, return_counts=True)
    return dict(zip(owners.tolist(), counts.tolist(), strict=True))


def report_text(result: dict[str, Any]) -> str:
    """The report as text for people."""
    order = result["order"]
    verdict = "likelier than shuffled: trained on" if order["p"] < 1e-3 else "open" if order["p"] < 0.05 else "nothing to see"
    lines = [
        f"order of {order['examples']} examples in {order['shards']} shards, {order['permutations']} permutations each: "
        f"{order['nats_a_shard']:+.2f} nats a shard, p {order['p']:.2g} ({verdict})"
    ]
    for key, title in (("numbers_cut", "ascending numbers cut in"), ("left_out", "sorted, so left out:"),
                       ("shuffled_within", "shuffled within the same")):  # fmt: skip
        lines += [f"{title} {', '.join(order[key])[:100]}"] if order[key] else []
    if (corpus := result["overlap"]) is None:
        return "\n".join([*lines, "no corpus was given to look in"])
    lines.append(
        f"13-grams: {corpus['found']} of {corpus['examples']} examples are in {corpus['documents']:,} documents; "
        f"{corpus['too_short']} are too short to look for"
    )
    lines += [f"  {first['example']}: {' '.join(first['text'].split())[:100]}" for first in corpus["first"]]
    return "\n".join(lines)
