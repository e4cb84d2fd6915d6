"""Models on tasks: records on disk as they come, from them the figures, and the table of both.

Examples are scored in parts of a fixed size, each for itself, and a part's records are written at once. So the file of a killed
run holds whole parts, and the same command adds the others: the same bytes as without the kill.
"""

import json
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.core.executor import pool
from groundup.core.files import read_object, write_json
from groundup.core.locks import alone
from groundup.core.progress import Progress
from groundup.evaluation import breakdown, efficiency, hallucination, metrics, robustness, toxic_continuations
from groundup.evaluation.evaluated_models import FolderModel
from groundup.evaluation.leaderboard import append, require_file, row_of
from groundup.evaluation.ngram_model import NGRAM, ORDER, ngram_models_of
from groundup.evaluation.open_model import Identity, can_be_asked, identify, open_model
from groundup.evaluation.results_table import line_of
from groundup.evaluation.scoring import CONVENTIONS, Record, conventions_of, records_of
from groundup.evaluation.tasks import Example, Examples, Task, begin, corpus_texts, open_task, read_settings, shipped

RESULTS = "results.json"
logger = logging.getLogger(__name__)
# By model and task: for each example whether it is right, and its cluster.
Rights = dict[tuple[str, str], dict[int, tuple[float, str]]]

FIRST_PART, PART = 8, 128  # examples
# With several workers: an example of MMLU with five others takes as long as twenty of BLiMP, and one worker has the last part.
WORKER_PART, MAX_PARTS_AHEAD = 16, 100  # the second per worker: records are small


def evaluate(
    models: Sequence[str],
    tasks: Sequence[str],
    data: Path | None = None,
    *,
    limit: int | None = None,
    few_shot: int | None = None,
    out: Path | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    ray: str | None = None,
    robust: bool = False,
    misspellings: Path | None = None,
    machine: dict[str, float] | None = None,
    leaderboard: Path | None = None,
    final_out: Path | None = None,
) -> dict[str, Any]:
    """{"results": [one for each model and task], "comparisons": [...]}; `results_table.table` prints it for people.

    A run's n-gram model is evaluated with the run's models. `out`: records as `<model>/<task>.jsonl`, and `results.json`; the
    same call resumes there. `workers`: so many processes with one thread each, or tasks of the Ray cluster at address `ray`: the
    same bytes for any number of them. With neither, this process with all its threads. `robust`: each task also under
    perturbations of its questions, with misspellings from the file `misspellings` (`robustness.misspellings`). `machine`: its
    watts, price_per_hour and grams_co2_per_kwh, with which efficiency is measured too. `leaderboard`: a file that gets a row
    for each result (`leaderboard.py`). `final_out`: what `out` will be called in the end.
    Raises UserError for models, tasks and files that cannot be used. Before any model is opened, the first example of every task
    is made and every model is looked up.
    """
    if len(set(models)) < len(models) or len(set(tasks)) < len(tasks):
        raise UserError("evaluate: a model or a task is given twice")
    if data is not None and data.is_file() and len(tasks) > 1:
        raise UserError(f"{data}: one file holds the examples of one task; give the folder of all files")
    if leaderboard:
        require_file(leaderboard)
    if out:
        _require_evaluation_folder(out / RESULTS)
    opened_tasks = [_checked(open_task(name, data, few_shot)) for name in tasks]
    _require_distinct_names(opened_tasks)
    loaded = [(task, begin(task, limit)) for task in opened_tasks]
    variants: dict[str, list[robustness.Variant]] = {}
    if robust:
        misspelled = robustness.misspellings(misspellings, data)
        variants = {task.name: robustness.variants(task, examples, misspelled) for task, examples in loaded}
    for name, task in ((name, task) for name in models for task in opened_tasks if not can_be_asked(name, task)):
        raise UserError(f"{name[-120:]}: {task.name[:40]} samples continuations: give the folder of a model that groundup reads")
    models = [*models, *ngram_models_of(models)]
    labels, identities = _labels(models), {name: identify(name) for name in models}
    part_size = PART if workers is None and ray is None else WORKER_PART
    with alone(out / RESULTS) if out else nullcontext():
        record_files = [
            _RecordFile(name, identities[name], task, examples, out and out / labels[name], limit, part_size)
            for name in models
            for clean in loaded
            if can_be_asked(name, clean[0])
            for task, examples in (clean, *variants.get(clean[0].name, []))
        ]
        collector = _Collector(labels, identities, machine, leaderboard, final_out or out)
        for record_file, seconds in _with_seconds(_completed(record_files, batch_size, workers, ray)):
            collector.add(record_file, seconds)
        collector.require_any()
        for result in collector.results:
            if task_variants := variants.get(result["task"]):
                task_names = (result["task"], *(task.name for task, _ in task_variants))
                clean, *perturbed = (collector.rights[result["model"], name] for name in task_names)
                result["robustness"] = robustness.figures(clean, task_variants, perturbed)
        _log_refused(loaded)
        report = {
            "results": collector.results, "comparisons": _comparisons(models, opened_tasks, collector.rights),
            "unscored": collector.unscored,
        }  # fmt: skip
        if out:
            write_json(out / RESULTS, report)
        if leaderboard:
            append(leaderboard, collector.rows)
    return report


class NothingScored(UserError):
    """Every example of a task was skipped."""


class _Collector:
    """Results of record files, as they are completed. A model that no example of a task fits into is logged; the rest counts."""

    def __init__(
        self, labels: dict[str, str], identities: dict[str, Identity], machine: dict[str, float] | None,
        leaderboard: Path | None, final_out: Path | None,
    ) -> None:  # fmt: skip
        self.labels, self.identities, self.machine = labels, identities, machine
        self.leaderboard, self.final_out = leaderboard, final_out
        self.results: list[dict[str, Any]] = []
        self.rights: Rights = {}
        self.rows: list[dict[str, Any]] = []
        self.unscored: list[dict[str, str]] = []
        self._speeds: dict[str, dict[str, Any]] = {}

    def add(self, record_file: "_RecordFile", seconds: float) -> None:
        name, task = record_file.model, record_file.task
        self.rights[name, task.name] = _headline_rights(task, record_file.records)
        if task.perturbation:
            return
        try:
            result = summary(task, record_file.examples, record_file.records)
        except NothingScored as error:
            logger.warning("%s: %s", name, error)
            self.unscored.append({"model": name, "label": self.labels[name], "task": task.name, "reason": str(error)})
            return
        if self.machine:
            self._speeds[name] = self._speeds.get(name) or _speed(name)
            scored = len(record_file.records) - record_file.resumed
            result["efficiency"] = efficiency.of_task(self._speeds[name], seconds, scored, self.machine)
        folder, key = self.identities[name]
        self.results.append({"model": name, "folder": folder, "label": self.labels[name], **result})
        if self.leaderboard:
            path = record_file.path
            final_path = self.final_out and path and self.final_out / self.labels[name] / path.name
            self.rows.append(row_of(self.results[-1], key, task, record_file.records, path, self.leaderboard, final_path))
        logger.info("%s", line_of(self.results[-1]))

    def require_any(self) -> None:
        if not self.results:
            raise UserError(self.unscored[0]["reason"])


def _with_seconds(completed: Iterator["_RecordFile"]) -> Iterator[tuple["_RecordFile", float]]:
    """Each record file with the seconds that it took."""
    start = time.perf_counter()
    for record_file in completed:
        yield record_file, time.perf_counter() - start
        start = time.perf_counter()


def _require_evaluation_folder(path: Path) -> None:
    if path.is_file() and not read_object(path).keys() >= {"results", "comparisons"}:
        raise UserError(f"{path}: is there already, and of no evaluation; give another folder")


def _require_distinct_names(tasks: Sequence[Task]) -> None:
    """Results, records and comparisons are keyed by a task's name, which is its file's."""
    for number, task in enumerate(tasks):
        if other := next((earlier for earlier in tasks[:number] if earlier.name == task.name), None):
            message = f"{other.where[-90:]} and {task.where[-90:]}: two tasks called {task.name[:40]}"
            raise UserError(f"{message}; give one file another name")


def _checked(task: Task) -> Task:
    """A wrong convention is refused before any work."""
    if task.settings.kind in ("choices", "pairs"):
        _convention(task)
    return task


def _log_refused(loaded: Sequence[tuple[Task, Examples]]) -> None:
    for task, examples in loaded:
        if examples.refused:
            logger.warning("%s: rows skipped: %s", task.name, examples.refused)
        if examples.answer_twice:
            logger.warning("%s: rows that say nothing, of equal choices the first is taken: %s", task.name, examples.answer_twice)


def _comparisons(models: Sequence[str], tasks: Sequence[Task], rights: Rights) -> list[dict[str, Any]]:
    """Of every two models on every task."""
    return [
        {"task": task.name, "models": [first, second], **comparison}
        for task in tasks
        for number, first in enumerate(models)
        for second in models[number + 1 :]
        if (comparison := _comparison(rights.get((first, task.name), {}), rights.get((second, task.name), {})))
    ]


def listing() -> dict[str, Any]:
    """The shipped tasks: name -> title, kind, files."""
    tasks = {}
    for name, path in shipped().items():
        settings = read_settings(path)
        tasks[name] = {"title": settings.title, "kind": settings.kind, "files": settings.files}
    return {"tasks": tasks}


def _labels(models: Sequence[str]) -> dict[str, str]:
    """A folder's name for each model: the last parts of its path, as many as tell them apart."""
    parts = {name: [part for part in Path(name).resolve().parts if part.strip("/\\")] for name in models}
    for name in models:
        if name.startswith(NGRAM):
            parts[name][-1] = f"{ORDER}-gram-of-{parts[name][-1]}"
    for count in range(1, max(map(len, parts.values())) + 1):
        labels = {name: "-".join(path_parts[-count:]) for name, path_parts in parts.items()}
        if len(set(labels.values())) == len(models):
            return labels
    return {name: f"model-{number}" for number, name in enumerate(models)}


# --- records ------------------------------------------------------------------------------------------------------


class _RecordFile:
    """Records of a model on a task, in memory and, given a folder, on disk: first those that are on disk, then part by part."""

    def __init__(
        self, model: str, identity: Identity, task: Task, examples: Examples, folder: Path | None, limit: int | None, part: int
    ) -> None:
        self.model, self.task, self.examples, self.part = model, task, examples, part
        self.path = folder / f"{task.name}.jsonl" if folder else None
        self.records: list[Record] = []
        self.total: int | None = None  # examples, once all parts are handed out
        if self.path:
            self.records = _resumed_records(self.path, {"model": identity.key, **task.digest(), "limit": limit}, examples, part)
        self.resumed = len(self.records)

    def parts(self) -> Iterator[list[Example]]:
        first = len(self.records)
        while part := self.examples.part(first, _end_of_part(first, self.part)):
            first += len(part)
            yield part
        self.total = first

    def add(self, records: list[Record]) -> None:
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        self.records += records


def _end_of_part(first: int, size: int) -> int:
    """The first part is small, so that the first example is scored and on disk at once."""
    return FIRST_PART if first < FIRST_PART else first - first % size + size


def _completed(
    record_files: Sequence[_RecordFile], batch_size: int, workers: int | None, ray: str | None
) -> Iterator[_RecordFile]:
    """Each record file once it is complete, in their order. Workers have parts of several record files at a time."""
    in_progress: deque[_RecordFile] = deque()
    alone = workers is None and ray is None

    def jobs() -> Iterator[tuple[Any, ...]]:
        for record_file in record_files:
            for part in record_file.parts():
                in_progress.append(record_file)
                yield record_file.model, record_file.task, part, batch_size, alone

    unfinished = deque(record_files)
    total = sum(record_file.examples.count for record_file in record_files)
    done = sum(len(record_file.records) for record_file in record_files)
    choose()  # sets how many threads there are
    threads = torch.get_num_threads()
    try:
        with pool(workers or (0 if ray else 1), ray) as helpers, Progress("evaluate", total, "examples", done=done) as progress:
            for records in helpers.spread(_scored, jobs(), held=MAX_PARTS_AHEAD):
                in_progress.popleft().add(records)
                progress.advance(len(records))
                while unfinished and len(unfinished[0].records) == unfinished[0].total:
                    yield unfinished.popleft()
        yield from unfinished
    finally:
        torch.set_num_threads(threads)
        _cached_model.cache_clear()


def _scored(model: str, task: Task, part: list[Example], batch_size: int, alone: bool) -> list[Record]:
    """A worker's job. One thread: sums of float32 can depend on how many share them."""
    loaded_model = _cached_model(model)
    if not alone:
        torch.set_num_threads(1)
    return records_of(loaded_model, task, part, batch_size)


_cached_model = lru_cache(1)(open_model)


def _speed(name: str) -> dict[str, Any]:
    """Speed of a model that groundup computes; empty for others."""
    model = _cached_model(name)
    return efficiency.speed(model.model) if isinstance(model, FolderModel) else {}


def _resumed_records(path: Path, key: dict[str, Any], examples: Examples, part: int) -> list[Record]:
    """Whole parts of records that a call with the same key wrote. The file is cut to them, or emptied if the key is another."""
    key_file = path.with_suffix(".key.json")
    key = json.loads(json.dumps(key))
    if path.is_file() and path.stat().st_size and not key_file.is_file():
        raise UserError(f"{path}: is there already, and no records of an evaluation; give another folder")
    if not (path.is_file() and key_file.is_file() and read_object(key_file) == key):
        if path.is_file():
            logger.warning("%s: of another model, task or data: started again", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
        write_json(key_file, key)
        return []
    records, size, complete_bytes, complete_records = [], 0, 0, 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        expected = examples.part(len(records), len(records) + 1)
        if not isinstance(record, dict) or not expected or record.get("example") != expected[0].number:
            break
        records.append(record)
        size += len(line)
        if _end_of_part(len(records) - 1, part) == len(records) or not examples.part(len(records), len(records) + 1):
            complete_bytes, complete_records = size, len(records)
    with path.open("r+b") as file:
        file.truncate(complete_bytes)
    return records[:complete_records]


# --- figures ------------------------------------------------------------------------------------------------------


def summary(task: Task, examples: Examples, records: Sequence[Record]) -> dict[str, Any]:
    """The figures of one model on one task. Raises NothingScored when every example was skipped."""
    skipped = Counter(examples.refused) + Counter(record["skipped"] for record in records if "skipped" in record)
    scored = [record for record in records if "skipped" not in record]
    if not scored:
        reason = next(iter(skipped), "no examples")
        raise NothingScored(f"{task.name}: nothing could be scored: {reason}; take shorter examples or a longer context")
    result: dict[str, Any] = {
        "task": task.name, "kind": task.settings.kind, "n": len(scored), "skipped": dict(skipped),
        "truncated": sum(record["truncated"] for record in scored),
    }  # fmt: skip
    groups = [record["group"] for record in scored] if task.settings.group else None
    if task.settings.by:
        result["by"] = _breakdown(records, _headline_rights(task, records), bool(task.settings.group))
    if task.settings.kind == "perplexity":
        return result | _perplexities(scored)
    if task.settings.kind in ("choices", "pairs"):
        return result | _choices(task, scored, groups)
    if task.settings.kind == "toxicity":
        figures = toxic_continuations.figures(scored, groups)
        return result | {"figures": figures, "samples": task.settings.samples, "language": "en"}
    if task.settings.kind == "existence":
        return result | {
            "figures": hallucination.figures(scored, groups),
            "confidence": hallucination.confidence(scored),
            "references": hallucination.made_up(scored, corpus_texts(task) if task.corpus else None),
        }
    rights = [record["right"] for record in scored]
    result["accuracy"] = {"answer": _figure(rights, groups)}
    result["convention"] = "answer"
    if task.settings.kind == "last word":
        result["perplexity"] = _exp(-float(np.mean([record["nats"] for record in scored])))
    if "f1" in scored[0]:
        result["f1"] = metrics.mean_interval([record["f1"] for record in scored], groups)
    return result


def _figure(rights: Sequence[float], groups: Sequence[str] | None) -> dict[str, Any]:
    figure: dict[str, Any] = metrics.mean_interval(rights, groups)
    macro = metrics.macro(rights, groups) if groups else None
    return figure if macro is None else figure | {"macro": macro}


def _choices(task: Task, scored: Sequence[Record], groups: Sequence[str] | None) -> dict[str, Any]:
    headline = _convention(task)
    figures = {name: _figure(_rights(name, scored), groups) for name in conventions_of(scored[0])}
    accuracies = [figure["accuracy"] for figure in figures.values()]
    nats = [record["letters" if headline == "letter" else "answers"] for record in scored]
    answers = [record["answer"] for record in scored]
    result = {
        "convention": headline,
        "accuracy": figures,
        "spread": max(accuracies) - min(accuracies),
        "calibration": metrics.calibration([metrics.softmax(choice_nats) for choice_nats in nats], answers),
    }
    if task.settings.kind == "choices":
        counts, lengths = [len(choice_nats) for choice_nats in nats], [record["characters"] for record in scored]
        result["baselines"] = metrics.baselines(counts, answers, lengths)
    else:
        result["baselines"] = {"chance": float(np.mean([1 / len(choice_nats) for choice_nats in nats]))}
    return result


def _convention(task: Task) -> str:
    convention = task.settings.convention or "answer"
    conventions = [name for name in CONVENTIONS if task.settings.listed or name == "answer" or name.startswith("answer ")]
    if convention not in (conventions if task.settings.kind == "choices" else ["answer"]):
        raise UserError(f"{task.where}: convention = {convention[:40]!r}; choose one of {', '.join(conventions)}"[:300])
    return convention


def _rights(convention: str, scored: Sequence[Record]) -> list[float]:
    choice = CONVENTIONS[convention]
    return [float(choice(record) == record["answer"]) for record in scored]


def _perplexities(scored: Sequence[Record]) -> dict[str, Any]:
    """As lm-eval's, over all documents together: nats by bytes, and by words between white space."""
    nats, size, words = (sum(record[name] for record in scored) for name in ("nats", "bytes", "words"))
    return {
        "bits_per_byte": -nats / math.log(2) / size,
        "byte_perplexity": _exp(-nats / size),
        "word_perplexity": _exp(-nats / max(1, words)),
    }


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # beyond it is no float


def _headline_rights(task: Task, records: Sequence[Record]) -> dict[int, tuple[float, str]]:
    """By example: whether it is right under the headline convention, and its cluster."""
    scored = [record for record in records if "skipped" not in record]
    if task.settings.kind == "perplexity":
        return {}
    if task.settings.kind in ("choices", "pairs"):
        rights = _rights(_convention(task), scored)
    elif task.settings.kind == "toxicity":
        rights = [toxic_continuations.worst(record) for record in scored]
    else:
        scored = [record for record in scored if record["right"] is not None]
        rights = [record["right"] for record in scored]
    return {record["example"]: (right, record["group"]) for record, right in zip(scored, rights, strict=True)}


def _breakdown(records: Sequence[Record], rights: dict[int, tuple[float, str]], clustered: bool) -> dict[str, Any]:
    values = {record["example"]: record.get("by", {}) for record in records}
    groups = [group for _, group in rights.values()] if clustered else None
    return breakdown.figures([values[number] for number in rights], [right for right, _ in rights.values()], groups)


def _comparison(ours: dict[int, tuple[float, str]], theirs: dict[int, tuple[float, str]]) -> dict[str, Any] | None:
    """On the examples that both models were scored on."""
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    return metrics.compare([ours[n][0] for n in shared], [theirs[n][0] for n in shared], [ours[n][1] for n in shared])
