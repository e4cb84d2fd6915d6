"""Was a test trained on? Whether a model finds its original order likelier than shuffled ones, and what a corpus holds of it.

The order test (Oren et al. 2023, "Proving Test Set Contamination in Black Box Language Models") needs no corpus: nobody but a
reader of the file can know which example comes after which. The file is cut into shards; a shard's log-probability in
the original order less its mean in shuffled ones is above 0 by chance alone as often as below, and a one-sided t test over
the shards says whether it is so too often. That holds only where every order is as likely as the other, so numbers that
ascend are cut out, and what is sorted is left out or shuffled within its groups (`exchangeable`).
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
from groundup.evaluation.open_model import open_model
from groundup.evaluation.tasks import Task, load, open_task, rows_of
from groundup.tokenizer import documents

logger = logging.getLogger(__name__)

SHARDS, PERMUTATIONS, EXAMPLES = 50, 30, 1000  # more than 30 to 50 permutations a shard bring little (Oren et al.)
LEAST_EXAMPLES = 10  # in two shards at least; of fewer nothing can be told
LEAST_PAIRS = 8  # neighbours that must all ascend: by chance one file in 2^8 does
NUMBER = re.compile(r"\d{1,18}")
HELD = 0.3  # share of an example's n-grams, in all its forms, that makes a copy of it, however many documents have one
BATCH = 64  # rows at once
SHOWN = 20  # found examples that the report names

Row = dict[str, Any]


@dataclass
class Ordered:
    """Examples as they stand in a file, as texts without what gives their order away."""

    texts: list[str]
    groups: list[int]  # examples of one are exchangeable; neighbours of one number are one group
    cut: list[str] = field(default_factory=list)  # columns of which ascending numbers were cut
    left_out: list[str] = field(default_factory=list)  # sorted columns
    grouped_by: list[str] = field(default_factory=list)


def contamination(
    name: str, task: str, data: Path | None = None, corpus: Sequence[Path] = (), *, seed: int = 0,
    examples: int = EXAMPLES, shards: int = SHARDS, permutations: int = PERMUTATIONS, out: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """{"order": of the test, "overlap": of the corpus or None}. `task`: a shipped task, a task's file, or a file of examples;
    without `corpus` that of a run's model is taken.

    Raises UserError for what cannot be read, and for files too short, or sorted by what they are made of.
    """
    asked = None if _is_rows(task) else open_task(task, data)
    refused = Refused()
    rows = [row for path in (asked.paths if asked else [Path(task)]) for row in _rows(path, refused)]
    if refused:
        logger.warning("%s: rows skipped: %s", task, refused)
    if not rows:
        raise UserError(f"{task}: no example in it{f': {refused}' if refused else ''}")
    ordered = exchangeable(rows[:examples], task)
    corpora = [*corpus] or _corpus_of_run(Path(name))
    found: dict[str, Any] = {"model": name, "task": task, "rows": len(rows), "skipped": dict(refused)}
    found["order"] = order_test(open_model(name), ordered, shards, permutations, seed)
    found["overlap"] = overlap(rows, asked, corpora, task) if corpora else None
    if out:
        write_json(out, found)
    return found


# --- examples -----------------------------------------------------------------------------------------------------


def _is_rows(task: str) -> bool:
    path = Path(task)
    return path.is_file() and path.suffix.lower() != ".toml"


def _rows(path: Path, refused: Refused) -> list[Row]:
    """Of a file of rows these; of a text its paragraphs, or where it has none its lines."""
    kind = kind_of(path)
    if kind.form != "text":
        return [row for _, row in rows_of(path, refused)]
    body = b"".join(texts(path, refused, kind)).decode("utf-8", "replace")
    parts = re.split(r"\n\s*\n", body)
    if len(parts) < LEAST_EXAMPLES:
        parts = body.split("\n")
    return [{"text": part.strip()} for part in parts if part.strip()]


def _columns(row: Row) -> dict[str, str | float]:
    """Texts and numbers of a row, by the path to them."""
    found: dict[str, str | float] = {}
    waiting: list[tuple[str, Any]] = [("", row)]  # no recursion: somebody else decides how deep it is
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict | list):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += reversed([(f"{name}.{key}" if name else str(key), part) for key, part in parts])
        elif isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
            found[name] = value
    return found


def exchangeable(rows: Sequence[Row], where: str) -> Ordered:
    """The rows' texts for the order test. Raises UserError where too few remain.

    Columns whose neighbours are equal far more often than in a random order, as a passage with its questions, make groups,
    within which alone examples are shuffled; where only a few are, as of rows that stand there twice, the first remains.
    """
    columns = [_columns(row) for row in rows]
    names = [name for name, count in Counter(name for one in columns for name in one).items() if 10 * count >= 9 * len(rows)]
    found = Ordered([], [])
    changes, kept = np.zeros(len(rows), bool), np.ones(len(rows), bool)
    for name in names:
        values = [one.get(name) for one in columns]
        same = np.array([False, *(a == b for a, b in zip(values[1:], values, strict=False))])
        expected = sum(count * (count - 1) for count in Counter(values).values()) / max(1, len(values))
        if same.all() or same[1:].all() or same.sum() <= expected + 4 * math.sqrt(expected) + 4:
            continue
        if 4 * same.sum() >= len(rows):
            changes |= ~same
            found.grouped_by.append(name)
        else:
            kept &= ~same
    groups = np.cumsum(changes)[kept]
    columns = [one for one, keep in zip(columns, kept, strict=True) if keep]
    parts: list[list[str]] = [[] for _ in columns]
    for name in dict.fromkeys(name for one in columns for name in one):
        values = [one.get(name) for one in columns]
        if not any(isinstance(value, str) for value in values):
            continue
        some = ["" if value is None else str(value) for value in values]
        if name not in found.grouped_by and _ascends(some, groups):
            found.left_out.append(name)
            continue
        some, was_cut = _without_numbers(some, groups)
        found.cut += [name] if was_cut else []
        for part, value in zip(parts, some, strict=True):
            part.append(value)
    found.texts = ["\n".join(filter(None, part)) for part in parts]
    found.groups = groups.tolist()
    sizes = Counter(found.groups)
    if sum(size for size in sizes.values() if size > 1) < LEAST_EXAMPLES or not any(found.texts):
        sorted_by = f"; sorted by {', '.join(found.left_out)[:60]}" if found.left_out else ""
        raise UserError(
            f"{where}: {len(found.texts)} examples in {len(sizes)} groups{sorted_by}: at least {LEAST_EXAMPLES} are needed that "
            "could stand in another order; give a longer file, or one that is not sorted"
        )
    return found


def _ascends(values: Sequence[Any], groups: Sequence[int] | np.ndarray) -> bool:
    """Whether no value is before its neighbour's, or none after it, in any group, and half of them differ."""
    pairs = [(a, b) for a, b, x, y in zip(values, values[1:], groups, groups[1:], strict=False) if x == y]
    up, down = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    return len(pairs) >= LEAST_PAIRS and not (up and down) and 2 * (up + down) >= len(pairs)


def _without_numbers(values: list[str], groups: np.ndarray) -> tuple[list[str], bool]:
    """Without the numbers that ascend from example to example: the first to third in each text, and the last."""
    numbers = [[*NUMBER.finditer(value[:1000])] for value in values]
    cut = False
    for place in (-1, 2, 1, 0):
        some = [
            (number, int(found[place][0]))
            for number, found in enumerate(numbers)
            if -len(found) <= place < len(found)
        ]
        if 10 * len(some) < 9 * len(values):
            continue
        rows, read = zip(*some, strict=True)
        if _ascends(read, groups[list(rows)]):
            cut = True
            for row in rows:
                start, end = numbers[row][place].span()
                values[row] = values[row][:start] + " " * (end - start) + values[row][end:]  # others keep their places
    return [re.sub(r" {2,}", " ", value) for value in values] if cut else values, cut


# --- the order test -----------------------------------------------------------------------------------------------


def order_test(
    model: EvaluatedModel, ordered: Ordered, shards: int = SHARDS, permutations: int = PERMUTATIONS, seed: int = 0
) -> dict[str, Any]:
    """{"p", "t", "shards", "examples", "permutations", "nats_a_shard", and what was cut, left out and grouped}.

    A shard longer than the context is scored in windows that overlap by half. Raises UserError where the model cannot score
    one, or none can be in another order.
    """
    generator = np.random.default_rng(seed)
    given, groups = ordered.texts, np.array(ordered.groups)
    # Ten shards are enough for a t test; more than that only if each has four examples, since those of few hold few orders.
    count = max(2, min(shards, len(given) // 2, max(10, len(given) // 4)))
    parts = [part for part in np.array_split(np.arange(len(given)), count) if _can_change(groups[part])]
    if len(parts) < 2:
        raise UserError("the order test: fewer than two parts of the file can be in another order; give a longer file")
    differences = []
    with Progress(f"{model.name}: order of examples", len(parts), "shards") as progress:
        for part in parts:
            orders = [part, *(_shuffled(part, groups, generator) for _ in range(permutations))]
            written = ["".join(f"{given[place]}\n" for place in order) for order in orders]
            nats = []
            for found in model.texts(written, "half", BATCH):
                if isinstance(found, BadRow):
                    raise UserError(f"the order test: {found.reason}")
                nats.append(found)
            differences.append(nats[0] - sum(nats[1:]) / permutations)
            progress.advance(1)
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    t = mean / (deviation / math.sqrt(len(differences))) if deviation else 0.0
    return {
        "p": students_tail(t, len(differences) - 1), "t": t, "shards": len(parts), "examples": len(given),
        "permutations": permutations, "nats_a_shard": mean, "numbers_cut": ordered.cut, "left_out": ordered.left_out,
        "shuffled_within": ordered.grouped_by,
    }  # fmt: skip


def _can_change(groups: np.ndarray) -> bool:
    return bool((groups[1:] == groups[:-1]).any())


def _shuffled(part: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Another order, in which each group stays where it is."""
    keys = generator.random(len(part))
    return part[np.lexsort((keys, groups[part]))]


# --- overlap with a corpus ----------------------------------------------------------------------------------------


def overlap(rows: Sequence[Row], task: Task | None, corpora: Sequence[Path], where: str) -> dict[str, Any]:
    """Which examples some document holds: {"examples", "too_short", "found", "low", ..., "documents", "first"}.

    An example is looked for as its row's texts and, of a task, as its prompt with the answer. A document holds it that
    shares a 13-gram of words which at most ten documents have, or three tenths of its 13-grams, as each of a hundred copies does.
    """
    forms = [["\n".join(value for value in _columns(row).values() if isinstance(value, str))] for row in rows]
    for number, prompt in _prompts(task):
        forms[number] += prompt
    indexed = ngrams.index_examples([where], ((0, number, some) for number, some in enumerate(forms)))
    refused = Refused()
    given = documents.texts(documents.find(corpora), None, refused)
    held = documents_with(indexed, given)
    if refused:
        logger.warning("corpus: rows skipped: %s", refused)
    found = [
        {"example": indexed.examples[place][1], "documents": count, "text": forms[indexed.examples[place][1]][0][:200]}
        for place, count in sorted(held.found.items())
    ]
    return {
        "corpus": [str(path) for path in corpora], "documents": held.documents, "examples": len(indexed.examples),
        "too_short": indexed.too_short[0], "found": len(found), "numbers": [one["example"] for one in found],
        "first": found[:SHOWN],
    }  # fmt: skip


def _prompts(task: Task | None) -> Iterable[tuple[int, list[str]]]:
    """Row and forms of each example of a task, without what stands before all of them; none where an example is no row, as
    those that are made of documents, and where no row makes one, as of a test whose answers are kept back.
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
        # Of what exists, `answer` says that it does; pairs go on with the prompt.
        answer = "".join(example.texts[:1]) if settings.kind in ("existence", "toxicity") else example.texts[example.answer]
        parts = (answer, example.prompt) if settings.kind == "pairs" else (example.prompt, answer)
        yield example.number, [settings.delimiter.join(parts), *([example.listed] if example.listed else [])]


def _corpus_of_run(folder: Path) -> list[Path]:
    for run in (folder, folder.parent):
        if (run / "corpus" / "documents.parquet").is_file():
            return [run / "corpus" / "documents.parquet"]
    return []


@dataclass
class Held:
    documents: int
    found: Counter[int]  # place of the example in the index -> how many documents hold it


def documents_with(indexed: ngrams.Benchmarks, given: Iterable[str]) -> Held:
    hits: list[np.ndarray] = []
    count = 0
    for text in given:
        count += 1
        places = ngrams.grams_of(split(text), indexed)
        if len(places):
            hits.append(places)
    frequency = np.bincount(np.concatenate(hits), minlength=len(indexed.grams)) if hits else np.zeros(0, int)
    sizes = np.bincount(indexed.owners, minlength=len(indexed.examples))
    found: Counter[int] = Counter()
    for places in hits:
        shared, rare = _owners(indexed, places), _owners(indexed, places[frequency[places] <= ngrams.BENCHMARK_BOILERPLATE])
        whole = [owner for owner, times in shared.items() if times >= HELD * sizes[owner]]
        found.update({*rare, *whole})
    return Held(count, found)


def _owners(indexed: ngrams.Benchmarks, places: np.ndarray) -> dict[int, int]:
    """How many of some n-grams each example has."""
    if not len(places):
        return {}
    every = np.concatenate([indexed.owners[indexed.starts[place] : indexed.starts[place + 1]] for place in places.tolist()])
    owners, counts = np.unique(every, return_counts=True)
    return dict(zip(owners.tolist(), counts.tolist(), strict=True))


def shown(found: dict[str, Any]) -> str:
    """For people."""
    order = found["order"]
    says = "likelier than shuffled: trained on" if order["p"] < 1e-3 else "open" if order["p"] < 0.05 else "nothing to see"
    lines = [
        f"order of {order['examples']} examples in {order['shards']} shards, {order['permutations']} permutations each: "
        f"{order['nats_a_shard']:+.2f} nats a shard, p {order['p']:.2g} ({says})"
    ]
    for key, title in (("numbers_cut", "ascending numbers cut in"), ("left_out", "sorted, so left out:"),
                       ("shuffled_within", "shuffled within the same")):  # fmt: skip
        lines += [f"{title} {', '.join(order[key])[:100]}"] if order[key] else []
    if (held := found["overlap"]) is None:
        return "\n".join([*lines, "no corpus was given to look in"])
    lines.append(
        f"13-grams: {held['found']} of {held['examples']} examples are in {held['documents']:,} documents; "
        f"{held['too_short']} are too short to look for"
    )
    return "\n".join([*lines, *(f"  {one['example']}: {' '.join(one['text'].split())[:100]}" for one in held["first"])])
