"""Models on tasks: records on disk as they come, from them the figures, and the table of both.

Examples are scored in parts of a fixed size, each for itself, and a part's records are written at once. So the file of a run
that was killed is whole parts, and the same command adds the others: the same bytes as without a kill.
"""

import json
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.core.executor import pool
from groundup.core.files import read_object, write_json
from groundup.core.progress import Progress
from groundup.evaluation import breakdown, efficiency, hallucination, metrics, robustness, toxicity
from groundup.evaluation.leaderboard import append, require_file, row_of
from groundup.evaluation.models import FolderModel
from groundup.evaluation.ngram_model import NGRAM, ORDER, beside
from groundup.evaluation.open_model import Identity, identify, open_model
from groundup.evaluation.scoring import CONVENTIONS, Record, conventions_of, records_of
from groundup.evaluation.tasks import Example, Examples, Task, begin, corpus_texts, open_task, read_settings, shipped

RESULTS = "results.json"
logger = logging.getLogger(__name__)
# By model and task: of each example whether it is right, and its cluster.
Rights = dict[tuple[str, str], dict[int, tuple[float, str]]]

FIRST_PART, PART = 8, 128  # examples
# Of several workers: an example of MMLU with five others takes as long as twenty of BLiMP, and the last part is one worker's.
SHARED_PART, HELD = 16, 100  # the second in parts a helper: records are small


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
) -> dict[str, Any]:
    """{"results": [one for each model and task], "comparisons": [...]}, of which `table` makes a page for people.

    Beside a run's models stands the n-gram model of its tokens. `out`: records as `<model>/<task>.jsonl`, and `results.json`;
    the same call resumes there. `workers`: so many processes with one thread each, or tasks of the Ray cluster at address
    `ray`: the same bytes for any number of them. With neither, this process with all its threads. `robust`: each task under
    perturbations of its questions too, with slips of the file `misspellings` (`robustness.misspellings`). `machine`: its
    watts, price_per_hour and grams_co2_per_kwh, with which efficiency is measured too. `leaderboard`: a file that gets a row
    of each result (`leaderboard.py`).
    Raises UserError for models, tasks and files that cannot be used; of all tasks the first example is made, and all models are
    looked up, before one is opened.
    """
    if len(set(models)) < len(models) or len(set(tasks)) < len(tasks):
        raise UserError("evaluate: a model or a task is given twice")
    if data is not None and data.is_file() and len(tasks) > 1:
        raise UserError(f"{data}: one file holds the examples of one task; give the folder of all files")
    if leaderboard:
        require_file(leaderboard)
    if out:
        _require_ours(out / RESULTS)
    opened = [_checked(open_task(name, data, few_shot)) for name in tasks]
    asked = [(task, begin(task, limit)) for task in opened]
    variants: dict[str, list[robustness.Variant]] = {}
    if robust:
        known = robustness.misspellings(misspellings, data)
        variants = {task.name: robustness.variants(task, examples, known) for task, examples in asked}
    models = [*models, *beside(models)]
    labels, identities = _labels(models), {name: identify(name) for name in models}
    part = PART if workers is None and ray is None else SHARED_PART
    sheets = [
        _Sheet(name, identities[name], task, examples, out and out / labels[name], limit, part)
        for name in models
        for clean in asked
        for task, examples in (clean, *variants.get(clean[0].name, []))
    ]
    results: list[dict[str, Any]] = []
    rights: Rights = {}
    speeds: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    for sheet in _filled(sheets, batch_size, workers, ray):
        name, task, seconds = sheet.model, sheet.task, time.perf_counter() - start
        rights[name, task.name] = _headline_rights(task, sheet.records)
        if not task.perturbation:
            found = summary(task, sheet.examples, sheet.records)
            if machine:
                speeds[name] = speeds.get(name) or _speed(name)
                scored = len(sheet.records) - sheet.already
                found["efficiency"] = efficiency.of_task(speeds[name], seconds, scored, machine)
            results.append({"model": name, "folder": identities[name].where, "label": labels[name], **found})
            if leaderboard:
                rows.append(row_of(results[-1], identities[name].key, task, sheet.records, sheet.path, leaderboard))
            logger.info("%s", _line(results[-1]))
        start = time.perf_counter()
    for result in results:
        if some := variants.get(result["task"]):
            clean, *others = (rights[result["model"], task] for task in (result["task"], *(task.name for task, _ in some)))
            result["robustness"] = robustness.figures(clean, some, others)
    _tell_refused(asked)
    everything = {"results": results, "comparisons": _comparisons(models, opened, rights)}
    if out:
        write_json(out / RESULTS, everything)
    if leaderboard:
        append(leaderboard, rows)
    return everything


def _require_ours(path: Path) -> None:
    if path.is_file() and not read_object(path).keys() >= {"results", "comparisons"}:
        raise UserError(f"{path}: is there already, and of no evaluation; give another folder")


def _checked(task: Task) -> Task:
    """A wrong convention is refused before any work."""
    if task.settings.kind in ("choices", "pairs"):
        _convention(task)
    return task


def _tell_refused(asked: Sequence[tuple[Task, Examples]]) -> None:
    for task, examples in asked:
        if examples.refused:
            logger.warning("%s: rows skipped: %s", task.name, examples.refused)
        if examples.alike:
            logger.warning("%s: rows that say nothing, of equal choices the first is taken: %s", task.name, examples.alike)


def _comparisons(models: Sequence[str], tasks: Sequence[Task], rights: Rights) -> list[dict[str, Any]]:
    """Of every two models on every task."""
    return [
        {"task": task.name, "models": [first, second], **compared}
        for task in tasks
        for number, first in enumerate(models)
        for second in models[number + 1 :]
        if (compared := _compared(rights[first, task.name], rights[second, task.name]))
    ]


def listing() -> dict[str, Any]:
    """The shipped tasks: name -> title, kind, files."""
    found = {}
    for name, path in shipped().items():
        settings = read_settings(path)
        found[name] = {"title": settings.title, "kind": settings.kind, "files": settings.files}
    return {"tasks": found}


def _labels(models: Sequence[str]) -> dict[str, str]:
    """A folder's name for each model: the last parts of its path, as many as tell them apart."""
    parts = {name: [part for part in Path(name).resolve().parts if part.strip("/\\")] for name in models}
    for name in models:
        if name.startswith(NGRAM):
            parts[name][-1] = f"{ORDER}-gram-of-{parts[name][-1]}"
    for count in range(1, max(map(len, parts.values())) + 1):
        labels = {name: "-".join(found[-count:]) for name, found in parts.items()}
        if len(set(labels.values())) == len(models):
            return labels
    return {name: f"model-{number}" for number, name in enumerate(models)}


# --- records ------------------------------------------------------------------------------------------------------


class _Sheet:
    """Records of a model on a task, in memory and, in a folder, on disk: those that are there already, then part by part."""

    def __init__(
        self, model: str, identity: Identity, task: Task, examples: Examples, folder: Path | None, limit: int | None, part: int
    ) -> None:
        self.model, self.task, self.examples, self.part = model, task, examples, part
        self.path = folder / f"{task.name}.jsonl" if folder else None
        self.records: list[Record] = []
        self.asked: int | None = None  # examples, once all parts are handed out
        if self.path:
            self.records = _found(self.path, {"model": identity.key, **task.digest(), "limit": limit}, examples, part)
        self.already = len(self.records)

    def parts(self) -> Iterator[list[Example]]:
        first = len(self.records)
        while part := self.examples.part(first, _end_of_part(first, self.part)):
            first += len(part)
            yield part
        self.asked = first

    def add(self, made: list[Record]) -> None:
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in made))
        self.records += made


def _end_of_part(first: int, size: int) -> int:
    """The first part is small, so that the first example is scored and on disk at once."""
    return FIRST_PART if first < FIRST_PART else first - first % size + size


def _filled(sheets: Sequence[_Sheet], batch_size: int, workers: int | None, ray: str | None) -> Iterator[_Sheet]:
    """Each sheet once it is full, in their order. Workers are busy with parts of several sheets at a time."""
    waiting: deque[_Sheet] = deque()
    alone = workers is None and ray is None

    def jobs() -> Iterator[tuple[Any, ...]]:
        for sheet in sheets:
            for part in sheet.parts():
                waiting.append(sheet)
                yield sheet.model, sheet.task, part, batch_size, alone

    unfinished = deque(sheets)
    total = sum(sheet.examples.count for sheet in sheets)
    done = sum(len(sheet.records) for sheet in sheets)
    choose()  # sets how many threads there are
    threads = torch.get_num_threads()
    try:
        with pool(workers or (0 if ray else 1), ray) as helpers, Progress("evaluate", total, "examples", done=done) as progress:
            for made in helpers.spread(_scored, jobs(), held=HELD):
                waiting.popleft().add(made)
                progress.advance(len(made))
                while unfinished and len(unfinished[0].records) == unfinished[0].asked:
                    yield unfinished.popleft()
        yield from unfinished
    finally:
        torch.set_num_threads(threads)
        _opened.cache_clear()


def _scored(model: str, task: Task, part: list[Example], batch_size: int, alone: bool) -> list[Record]:
    """A worker's job. One thread: sums of float32 can depend on how many share them."""
    opened = _opened(model)
    if not alone:
        torch.set_num_threads(1)
    return records_of(opened, task, part, batch_size)


_opened = lru_cache(1)(open_model)


def _speed(name: str) -> dict[str, Any]:
    """Of a model that is computed here; nothing of others."""
    opened = _opened(name)
    return efficiency.speed(opened.model) if isinstance(opened, FolderModel) else {}


def _found(path: Path, key: dict[str, Any], examples: Examples, part: int) -> list[Record]:
    """Whole parts of records that a call with the same key wrote. The file is cut to them; of another key it is started again."""
    note = path.with_suffix(".key.json")
    key = json.loads(json.dumps(key))
    if path.is_file() and path.stat().st_size and not note.is_file():
        raise UserError(f"{path}: is there already, and no records of an evaluation; give another folder")
    if not (path.is_file() and note.is_file() and read_object(note) == key):
        if path.is_file():
            logger.warning("%s: of another model, task or data: started again", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
        write_json(note, key)
        return []
    records, size, whole, kept = [], 0, 0, 0
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
            whole, kept = size, len(records)
    with path.open("r+b") as file:
        file.truncate(whole)
    return records[:kept]


# --- figures ------------------------------------------------------------------------------------------------------


def summary(task: Task, examples: Examples, records: Sequence[Record]) -> dict[str, Any]:
    """The figures of one model on one task. Raises UserError when every example was skipped."""
    skipped = Counter(examples.refused) + Counter(record["skipped"] for record in records if "skipped" in record)
    scored = [record for record in records if "skipped" not in record]
    if not scored:
        reason = next(iter(skipped), "no examples")
        raise UserError(f"{task.name}: nothing could be scored: {reason}; take shorter examples or a longer context")
    found: dict[str, Any] = {
        "task": task.name, "kind": task.settings.kind, "n": len(scored), "skipped": dict(skipped),
        "truncated": sum(record["truncated"] for record in scored),
    }  # fmt: skip
    groups = [record["group"] for record in scored] if task.settings.group else None
    if task.settings.by:
        found["by"] = _by(records, _headline_rights(task, records), bool(task.settings.group))
    if task.settings.kind == "perplexity":
        return found | _perplexities(scored)
    if task.settings.kind in ("choices", "pairs"):
        return found | _choices(task, scored, groups)
    if task.settings.kind == "toxicity":
        return found | {"figures": toxicity.figures(scored, groups), "samples": task.settings.samples, "language": "en"}
    if task.settings.kind == "existence":
        return found | {
            "figures": hallucination.figures(scored, groups),
            "confidence": hallucination.confidence(scored),
            "references": hallucination.made_up(scored, corpus_texts(task) if task.corpus else None),
        }
    rights = [record["right"] for record in scored]
    found["accuracy"] = {"answer": _figure(rights, groups)}
    found["convention"] = "answer"
    if task.settings.kind == "last word":
        found["perplexity"] = _exp(-float(np.mean([record["nats"] for record in scored])))
    if "f1" in scored[0]:
        found["f1"] = metrics.mean_interval([record["f1"] for record in scored], groups)
    return found


def _figure(rights: Sequence[float], groups: Sequence[str] | None) -> dict[str, Any]:
    figure: dict[str, Any] = metrics.mean_interval(rights, groups)
    macro = metrics.macro(rights, groups) if groups else None
    return figure if macro is None else figure | {"macro": macro}


def _choices(task: Task, scored: Sequence[Record], groups: Sequence[str] | None) -> dict[str, Any]:
    headline = _convention(task)
    figures = {name: _figure(_rights(name, scored), groups) for name in conventions_of(scored[0])}
    shares = [figure["accuracy"] for figure in figures.values()]
    nats = [record["letters" if headline == "letter" else "answers"] for record in scored]
    answers = [record["answer"] for record in scored]
    found = {
        "convention": headline,
        "accuracy": figures,
        "spread": max(shares) - min(shares),
        "calibration": metrics.calibration([metrics.softmax(some) for some in nats], answers),
    }
    if task.settings.kind == "choices":
        counts, lengths = [len(some) for some in nats], [record["characters"] for record in scored]
        found["baselines"] = metrics.baselines(counts, answers, lengths)
    else:
        found["baselines"] = {"chance": float(np.mean([1 / len(some) for some in nats]))}
    return found


def _convention(task: Task) -> str:
    convention = task.settings.convention or "answer"
    known = [name for name in CONVENTIONS if task.settings.listed or name == "answer" or name.startswith("answer ")]
    if convention not in (known if task.settings.kind == "choices" else ["answer"]):
        raise UserError(f"{task.where}: convention = {convention[:40]!r}; choose one of {', '.join(known)}"[:300])
    return convention


def _rights(convention: str, scored: Sequence[Record]) -> list[float]:
    chosen = CONVENTIONS[convention]
    return [float(chosen(record) == record["answer"]) for record in scored]


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
    """By example, whether it is right under the headline's convention, and its cluster."""
    scored = [record for record in records if "skipped" not in record]
    if task.settings.kind == "perplexity":
        return {}
    if task.settings.kind in ("choices", "pairs"):
        rights = _rights(_convention(task), scored)
    elif task.settings.kind == "toxicity":
        rights = [toxicity.worst(record) for record in scored]
    else:
        scored = [record for record in scored if record["right"] is not None]
        rights = [record["right"] for record in scored]
    return {record["example"]: (right, record["group"]) for record, right in zip(scored, rights, strict=True)}


def _by(records: Sequence[Record], rights: dict[int, tuple[float, str]], clustered: bool) -> dict[str, Any]:
    marks = {record["example"]: record.get("by", {}) for record in records}
    groups = [group for _, group in rights.values()] if clustered else None
    return breakdown.figures([marks[number] for number in rights], [right for right, _ in rights.values()], groups)


def _compared(ours: dict[int, tuple[float, str]], theirs: dict[int, tuple[float, str]]) -> dict[str, Any] | None:
    """On the examples that both were scored on."""
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    return metrics.compare([ours[n][0] for n in both], [theirs[n][0] for n in both], [ours[n][1] for n in both])


# --- what is shown ------------------------------------------------------------------------------------------------


def _line(result: dict[str, Any]) -> str:
    cut = f"; {result['truncated']} truncated from the left" if result["truncated"] else ""
    left = f"; {sum(result['skipped'].values())} skipped" if result["skipped"] else ""
    return f"{result['model']}: {result['task']}: {result['n']} examples{cut}{left}"


def table(found: dict[str, Any]) -> str:
    """For people: a block for each task, a row for each model and baseline, a column for each convention, in per cent."""
    results, comparisons, lines = found["results"], found["comparisons"], []
    label = {result["model"]: result["label"] for result in results}
    for task in dict.fromkeys(result["task"] for result in results):
        some = [result for result in results if result["task"] == task]
        columns = [*some[0].get("accuracy", {})]
        # A model that some examples were too long for may lack a figure of the others, such as the mean over subjects.
        more = [_more(result) for result in some]
        heads = [*dict.fromkeys(head for one in more for head in one)]
        rows = [["", *columns, *heads]]
        for result, one in zip(some, more, strict=True):
            cells = (_shown(result["accuracy"][name]) for name in columns)
            rows.append([result["label"], *cells, *(one.get(head, "") for head in heads)])
        for name, share in some[0].get("baselines", {}).items():
            rows.append([name, *(f"{100 * share:.1f}" for _ in columns), *("" for _ in heads)])
        counts = sorted({result["n"] for result in some})
        shown = " to ".join(map(str, [counts[0], counts[-1]] if len(counts) > 1 else counts))
        lines += ["", f"{task}: {shown} examples" + (f"; headline: {some[0]['convention']}" if columns else "")]
        lines += _aligned(rows)
        for name in dict.fromkeys(name for one in some for name in one.get("by", {})):
            lines += _aligned(breakdown.rows_of_table(name, some))
        if "robustness" in some[0]:
            lines += _aligned(robustness.rows_of_table(some))
        if "efficiency" in some[0]:
            lines += _aligned(efficiency.rows_of_table(some))
        for compared in comparisons:
            if compared["task"] == task:
                lines.append(
                    f"{label[compared['models'][0]]} less {label[compared['models'][1]]}: {100 * compared['difference']:+.1f} "
                    f"({100 * compared['low']:+.1f} to {100 * compared['high']:+.1f}), p {compared['p']:.2g}"
                    + (f"; {compared['n_to_tell']:,} questions would tell" if compared["n_to_tell"] else "")
                )
    return "\n".join(lines)


def _shown(figure: dict[str, Any]) -> str:
    return f"{100 * figure['accuracy']:.1f} ±{50 * (figure['high'] - figure['low']):.1f}"


def _more(result: dict[str, Any]) -> dict[str, str]:
    """What else is shown of a model, by the heads of the columns."""
    if result["kind"] == "perplexity":
        return {
            "bits/byte": f"{result['bits_per_byte']:.4f}",
            "byte perplexity": f"{result['byte_perplexity']:.4f}",
            "word perplexity": f"{result['word_perplexity']:.4g}",
        }
    if "figures" in result:
        cells = {name: _shown({"accuracy": one["value"], **one}) for name, one in result["figures"].items()}
        known = {head: result["confidence"].get(head.lower()) for head in ("ECE", "AUROC")} if "confidence" in result else {}
        return cells | {head: f"{one['value']:.3f}" if one else "" for head, one in known.items()}
    cells = {"spread": f"{100 * result['spread']:.1f}"} if "spread" in result and len(result["accuracy"]) > 1 else {}
    headline = result["accuracy"][result["convention"]]
    cells |= {"macro": f"{100 * headline['macro']:.1f}"} if "macro" in headline else {}
    cells |= {"perplexity": f"{result['perplexity']:.4g}"} if "perplexity" in result else {}
    cells |= {"f1": _shown(result["f1"])} if "f1" in result else {}
    if "calibration" in result:
        cells |= {"ECE": f"{result['calibration']['ece']:.3f}", "Brier": f"{result['calibration']['brier']:.3f}"}
    return cells


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]

