"""Tasks: what is asked of a model, from a small TOML file and the rows that it names.

A file says where the examples lie, how a row becomes a prompt and how it is scored (`config.TaskFile`). The shipped ones
make the prompts of lm-eval 0.4.13, to the byte, from rows in the shape of the Hugging Face Hub and in that of
`gold`/`query`/`choices`. Their templates are a stranger's: they run within bounds (`templates`).
"""

import random
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from groundup.core.errors import UserError
from groundup.core.files import digest
from groundup.core.plain_files import open_plain
from groundup.data.file_kinds import PACKED
from groundup.data.messages import BadRow
from groundup.data.readers import Refused
from groundup.evaluation import answer_extraction, answer_keys
from groundup.evaluation.answer_keys import LETTERS
from groundup.evaluation.config import FewShot, TaskFile
from groundup.evaluation.example_files import rows_of
from groundup.evaluation.hallucination import docstring_rows
from groundup.evaluation.row_templates import THROUGH_INT, BareExample, RowTemplates, bounded

SHIPPED = Path(__file__).with_name("tasks")
MAX_FILE_BYTES = 1 << 16  # of a task file
FEW_SHOT_SEED = 1234  # lm-eval's
EXAMPLE_SEPARATOR = "\n\n"
# Keys that a kind requires beside `files`.
REQUIRED_KEYS = {
    "choices": ("prompt", "choices", "answer"),
    "pairs": ("alternatives",),
    "last word": ("prompt", "target"),
    "generation": ("prompt", "target"),
    "perplexity": ("text",),
    "toxicity": ("prompt", "classifier"),
    "existence": ("prompt", "exists"),
}
KINDS_WITHOUT_FEW_SHOT = ("pairs", "perplexity", "toxicity")


@dataclass(frozen=True)
class Example:
    """`prompt` and `listed` end where the answer begins; `texts`: choices, alternatives, accepted answers, or the text."""

    number: int  # of its row, from 0
    group: str
    prompt: str
    texts: tuple[str, ...]
    answer: int = 0
    listed: str = ""
    question_start: int = 0  # offset in `prompt` of the question itself, after description and few-shot examples
    listed_question_start: int = 0
    by: dict[str, str] = field(default_factory=dict)  # its value of each name that figures are broken down by


@dataclass(frozen=True)
class Task:
    name: str
    settings: TaskFile
    where: str
    paths: tuple[Path, ...]
    few_shot_paths: tuple[Path, ...] = ()
    classifier: Path | None = None
    corpus: tuple[Path, ...] = ()
    perturbation: str = ""  # how its questions were changed

    def digest(self) -> dict[str, Any]:
        """What two results must share to be comparable: the task's settings, and the content of what it reads."""
        classifiers = [self.classifier] if self.classifier else []
        named = distinct([*dict.fromkeys((*self.paths, *self.few_shot_paths, *classifiers))])
        files = {name: digest(path) for name, path in named.items()}
        content = {"task": self.settings.model_dump(), "files": files}
        return content | {"perturbation": self.perturbation} if self.perturbation else content


@dataclass
class Examples:
    """`rows`: the examples made so far, of at most `count`. `refused`: unusable rows of a file, counted as they are met.

    `answer_twice`: rows whose right answer is among the choices twice. They are scored, as elsewhere. Of equal choices the first
    counts as the model's, so these rows say nothing about it.
    """

    rows: list[Example]
    refused: Refused = field(default_factory=Refused)
    answer_twice: Refused = field(default_factory=Refused)
    count: int = 0
    pending: Iterator[Example] = field(default_factory=lambda: iter(()))

    def part(self, first: int, end: int) -> list[Example]:
        """The examples from `first` on, before `end`; an empty list after the last."""
        while len(self.rows) < end and (example := next(self.pending, None)) is not None:
            self.rows.append(example)
        return self.rows[first:end]


def distinct(paths: Sequence[Path]) -> dict[str, Path]:
    """By name: as many last parts of each path as tell them apart, as of `test/law.csv` and `dev/law.csv`."""
    max_parts = max(len(path.parts) for path in paths)
    candidates = ({"/".join(path.parts[-count:]): path for path in paths} for count in range(1, max_parts + 1))
    return next(named for named in candidates if len(named) == len(paths))


def shipped() -> dict[str, Path]:
    """Name -> file of each task in the package."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def open_task(name: str, data: Path | None = None, few_shot: int | None = None) -> Task:
    """The task of a shipped name or of a file. `data`: the folder of its examples, by default the task file's own; or the file
    of the examples itself. `few_shot`: a number of examples in place of the task's.

    Raises UserError for a task that is missing or incomplete, and for missing files.
    """
    path = Path(name)
    if not path.is_file():
        shipped_tasks = shipped()
        if name not in shipped_tasks:
            raise UserError(f"task {name}: neither a file nor a shipped task: {', '.join(shipped_tasks)}"[:300])
        path = shipped_tasks[name]
        if data is None and (needed := _not_shipped(read_settings(path))):
            raise UserError(f"task {name}: give the folder of the data, which holds {', '.join(needed)}")
    settings = read_settings(path)
    if few_shot is not None:
        if few_shot and settings.kind in KINDS_WITHOUT_FEW_SHOT:
            raise UserError(f"{path}: a task of {settings.kind} takes no few-shot examples")
        configured = settings.few_shot.model_dump() if settings.few_shot else {}
        settings = settings.model_copy(update={"few_shot": FewShot(**{**configured, "count": few_shot})})
    if data is not None and not data.is_dir():
        paths = [data]
    else:
        paths = [_find_file(data or path.parent, file, path) for file in settings.files]
    few_shot_files = settings.few_shot.files if settings.few_shot and settings.few_shot.count else []
    folder = path.parent if data is None else data if data.is_dir() else data.parent
    classifier = _find_file(folder, settings.classifier, path) if settings.classifier else None
    few_shot_paths, corpus = (
        tuple(_find_file(folder, file, path) for file in files) for files in (few_shot_files, settings.corpus)
    )
    return Task(path.stem, settings, str(path), tuple(paths), few_shot_paths, classifier, corpus)


def read_settings(path: Path) -> TaskFile:
    """Raises UserError, in one line, for a file that is no task or an incomplete one."""
    with open_plain(path) as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{path}: a task file has at most {MAX_FILE_BYTES:,} bytes")
    try:
        settings = TaskFile.model_validate(tomllib.loads(content.decode("utf-8-sig")))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])[:80]
        raise UserError(f"{path}: {key}: {first['msg'][:150]}; docs/evaluation.md shows a task file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not TOML: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not TOML ({str(error)[:100]}); docs/evaluation.md shows a task file") from None
    if missing := [key for key in REQUIRED_KEYS[settings.kind] if not getattr(settings, key)]:
        raise UserError(f"{path}: a task of kind {settings.kind!r} needs {missing[0]}; docs/evaluation.md shows one")
    if not settings.files:
        raise UserError(f"{path}: files is empty: name the file of the examples")
    if settings.few_shot and settings.few_shot.count and settings.kind in KINDS_WITHOUT_FEW_SHOT:
        raise UserError(f"{path}: a task of {settings.kind} takes no few-shot examples")
    if settings.by and settings.kind == "perplexity":
        raise UserError(f"{path}: a task of perplexity has no figures of parts; leave [by] out, or make a task of each part")
    answer_extraction.require_expression(settings.extract, f"{path}: extract")
    return settings


def _not_shipped(settings: TaskFile) -> list[str]:
    return [name for name in (*settings.files, settings.classifier, *settings.corpus) if name and not _is_shipped_file(name)]


def _is_shipped_file(name: str) -> bool:
    """Whether the package has the file: small ones of our own."""
    return name.endswith(".jsonl") and (SHIPPED / name).is_file()


def _find_file(folder: Path, name: str, task: Path) -> Path:
    """In the folder or below it, so that a stranger's task reads nothing else."""
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{task}: files: {name[:80]!r} is no name below the folder of the data; give that folder")
    if task.parent == SHIPPED and not (folder / name).is_file() and _is_shipped_file(name):
        return SHIPPED / name
    for ending in ("", *PACKED):
        if (folder / (name + ending)).is_file():
            return folder / (name + ending)
    raise UserError(f"{folder / name}: no such file, compressed or not, which {task.name} needs; give the folder of the data")


def load(task: Task, limit: int | None = None) -> Examples:
    """Every example with its whole prompt; rows that cannot be used are counted. `limit`: at most so many rows, spread evenly
    over the files, so that every subject of a file sorted by subject is among them.

    Raises UserError when no row can be used, for templates that pass their bounds, and for groups with too few examples to show.
    """
    examples = begin(task, limit)
    examples.part(0, examples.count)
    return examples


def begin(task: Task, limit: int | None = None) -> Examples:
    """As `load`, but examples are made when they are asked for: all 14,042 of MMLU take seconds."""
    templates, refused = RowTemplates(task.settings, task.where), Refused()
    few_shot = _FewShot(task, templates, refused) if task.settings.few_shot and task.settings.few_shot.count else None
    rows = [(path, row_index, row) for path in task.paths for row_index, row in _task_rows(task, path, refused)]
    count = len(rows) if limit is None else min(limit, len(rows))
    selected = [(index * len(rows) // count, *rows[index * len(rows) // count]) for index in range(count)]
    if task.settings.kind in ("choices", "pairs"):
        advice = f'write answer = "{THROUGH_INT.sub("", task.settings.answer.strip())[:60]} | int - 1"'
        answer_keys.require_from_zero(templates.numeric_keys(rows), str(task.paths[0]), advice)
    if few_shot:
        few_shot.require_enough(row for _, _, _, row in selected)
    examples = Examples([], refused, count=count)
    examples.pending = _examples(templates, few_shot, selected, examples)
    if not examples.part(0, 1):
        columns = ", ".join(str(name)[:30] for name in [*rows[0][2]][:12]) if rows else "none"
        raise UserError(f"{task.paths[0]}: no example for {task.name}: {examples.refused or 'no rows'}; it has columns {columns}")
    return examples


def _task_rows(task: Task, path: Path, refused: Refused) -> Iterator[tuple[int, dict[str, Any]]]:
    if task.settings.made_of == "docstrings":
        sources = [(row.get("url"), row.get("text")) for _, row in rows_of(path, refused)]
        return enumerate(docstring_rows((url, text) for url, text in sources if isinstance(url, str) and isinstance(text, str)))
    return rows_of(path, refused)


def corpus_texts(task: Task) -> Iterator[str]:
    """The documents of a task's corpus: of each row the column text, or page."""
    for path in task.corpus:
        for _, row in rows_of(path, Refused()):
            text = row.get("text", row.get("page"))
            if isinstance(text, str):
                yield text


def _examples(
    templates: RowTemplates, few_shot: "_FewShot | None", selected: Sequence[tuple[int, Path, int, dict[str, Any]]],
    examples: Examples,
) -> Iterator[Example]:  # fmt: skip
    """Examples of the selected rows; what cannot be used is counted in `examples`."""
    for number, path, row_index, row in selected:
        try:
            bare, group, by = templates.example(row), templates.group(row), templates.breakdown(row)
            prompt, listed = few_shot.prefixes(row, group, bare) if few_shot else templates.descriptions(row)
        except BadRow as error:
            examples.refused.add(error.reason, f"{path}: row {row_index + 1}")
            continue
        if templates.settings.kind in ("choices", "pairs") and bare.texts.count(bare.texts[bare.answer]) > 1:
            examples.answer_twice.add("the right answer twice", f"{path}: row {row_index + 1}")
        question_start, listed_question_start = len(prompt), len(listed) if bare.listed else 0
        prompt, listed = prompt + bare.prompt, bare.listed and listed + bare.listed
        yield Example(number, group, prompt, bare.texts, bare.answer, listed, question_start, listed_question_start, by)


class _FewShot:
    """Few-shot examples: those of the example's own group, where it has one.

    The first so many of the file, in its order; or a random sample for each example, drawn as lm-eval does: one generator per
    task, so the same examples in the same order get the same samples.
    """

    def __init__(self, task: Task, templates: RowTemplates, refused: Refused) -> None:
        self.templates, self.delimiter = templates, task.settings.delimiter
        assert task.settings.few_shot is not None
        self.count, self.choose = task.settings.few_shot.count, task.settings.few_shot.choose
        self.from_test_files = not task.few_shot_paths  # then an example must not be shown its own answer
        self.where = ", ".join(path.name for path in task.few_shot_paths or task.paths)
        self.pools: dict[str, list[BareExample]] = {}
        self.generators: dict[str, random.Random] = {}
        for path in task.few_shot_paths or task.paths:
            for row_index, row in rows_of(path, refused if not self.from_test_files else Refused()):
                try:
                    self.pools.setdefault(templates.group(row), []).append(templates.example(row))
                except BadRow as error:
                    if not self.from_test_files:
                        refused.add(error.reason, f"{path}: row {row_index + 1}")

    def require_enough(self, rows: Iterable[dict[str, Any]]) -> None:
        """Raises UserError for a group with too few, before anything is asked of a model."""
        for row in rows:
            try:
                group = self.templates.group(row)
            except BadRow:  # which is met again, and counted, when the example is made
                continue
            if (count := len(self.pools.get(group, []))) < self.count + self.from_test_files:
                raise UserError(
                    f"{self.where}: {count} few-shot examples{f' of {group[:40]}' if group else ''}, where "
                    f"{self.count + self.from_test_files} are needed; take fewer few-shot examples"
                )

    def prefixes(self, row: dict[str, Any], group: str, example: BareExample) -> tuple[str, str]:
        """What stands before a prompt, and before one that lists its answers."""
        pool = self.pools[group]
        if self.choose == "random":
            generator = self.generators.setdefault(group, random.Random(FEW_SHOT_SEED))
            drawn = generator.sample(range(len(pool)), self.count + self.from_test_files)
        else:
            drawn = [*range(self.count + self.from_test_files)]
        # Any file may hold the question, even twice: nothing is shown its own answer, whatever else the shown row has.
        undrawn = (index for index in range(len(pool)) if index not in drawn)
        shots = [*islice((pool[index] for index in chain(drawn, undrawn) if pool[index] != example), self.count)]
        if len(shots) < self.count:
            raise BadRow("too few few-shot examples that are not the question itself")
        plain, listed = self.templates.descriptions(row)
        for shot in shots:
            plain += shot.prompt + self.delimiter + shot.shown_answer + EXAMPLE_SEPARATOR
            listed += shot.listed + self.delimiter + LETTERS[shot.answer] + EXAMPLE_SEPARATOR
        return bounded(plain), bounded(listed)
