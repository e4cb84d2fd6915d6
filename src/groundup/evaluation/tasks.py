"""Tasks: what is asked of a model, from a small TOML file and the rows that it names.

A file says where the examples lie, how a row becomes a prompt and how it is scored (`config.TaskFile`). The shipped ones
make the prompts of lm-eval 0.4.13, to the byte, from rows in the shape of the Hugging Face Hub and in that of
`gold`/`query`/`choices`. Their templates are a stranger's: they run within bounds (`templates`).
"""

import random
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from groundup.core.errors import UserError
from groundup.core.files import digest
from groundup.core.plain_files import open_plain
from groundup.core.text import well_formed
from groundup.data.file_kinds import PACKED, kind_of
from groundup.data.messages import BadRow
from groundup.data.readers import Refused, records, texts
from groundup.evaluation import answer_extraction, answer_keys
from groundup.evaluation.answer_keys import LETTERS
from groundup.evaluation.config import FewShot, TaskFile
from groundup.evaluation.hallucination import docstring_rows
from groundup.evaluation.templates import Template

SHIPPED = Path(__file__).with_name("tasks")
LONGEST = 1 << 20  # characters of an example: no benchmark has longer ones, and it would be encoded once a choice
LONGEST_FILE = 1 << 16  # bytes of a task file
FEW_SHOT_SEED = 1234  # lm-eval's
BETWEEN = "\n\n"  # examples
# What a kind needs beside `files`.
NEEDED = {
    "choices": ("prompt", "choices", "answer"),
    "pairs": ("alternatives",),
    "last word": ("prompt", "target"),
    "generation": ("prompt", "target"),
    "perplexity": ("text",),
    "toxicity": ("prompt", "classifier"),
    "existence": ("prompt", "exists"),
}
NO_SHOTS = ("pairs", "perplexity", "toxicity")
EXPRESSIONS = ("choices", "answer", "alternatives", "exists")


@dataclass(frozen=True)
class Example:
    """`prompt` and `listed` end where the answer begins; `texts`: choices, alternatives, accepted answers, or the text."""

    number: int  # of its row, from 0
    group: str
    prompt: str
    texts: tuple[str, ...]
    answer: int = 0
    listed: str = ""
    begins: int = 0  # where in `prompt` what is asked begins, after descriptions and few-shot examples
    listed_begins: int = 0
    by: dict[str, str] = field(default_factory=dict)  # what figures are given by


@dataclass(frozen=True)
class Task:
    name: str
    settings: TaskFile
    where: str
    paths: tuple[Path, ...]
    few_shot_paths: tuple[Path, ...] = ()
    classifier: Path | None = None
    corpus: tuple[Path, ...] = ()
    perturbation: str = ""  # what was done to its questions

    def digest(self) -> dict[str, Any]:
        """What two results must share to be comparable: the task's settings, and the content of what it reads."""
        others = [self.classifier] if self.classifier else []
        named = distinct([*dict.fromkeys((*self.paths, *self.few_shot_paths, *others))])
        files = {name: digest(path) for name, path in named.items()}
        found = {"task": self.settings.model_dump(), "files": files}
        return found | {"perturbation": self.perturbation} if self.perturbation else found


@dataclass
class Examples:
    """`rows`: those made so far, of at most `count`; rows of a file that cannot be used are counted as they are met.

    `alike`: those whose right answer stands among the choices twice. They are scored, as elsewhere, and of equals the first
    is the model's choice, so they say nothing of it.
    """

    rows: list[Example]
    refused: Refused = field(default_factory=Refused)
    alike: Refused = field(default_factory=Refused)
    count: int = 0
    others: Iterator[Example] = field(default_factory=lambda: iter(()))

    def part(self, first: int, end: int) -> list[Example]:
        """Those from `first` on, before `end`; none when there are no more."""
        while len(self.rows) < end and (one := next(self.others, None)) is not None:
            self.rows.append(one)
        return self.rows[first:end]


def distinct(paths: Sequence[Path]) -> dict[str, Path]:
    """By name: as many last parts of each path as tell them apart, as of `test/law.csv` and `dev/law.csv`."""
    most = max(len(path.parts) for path in paths)
    names = ({"/".join(path.parts[-count:]): path for path in paths} for count in range(1, most + 1))
    return next(named for named in names if len(named) == len(paths))


def shipped() -> dict[str, Path]:
    """Name -> file of each task in the package."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def open_task(name: str, data: Path | None = None, few_shot: int | None = None) -> Task:
    """The task of a shipped name or of a file. `data`: the folder of its examples, else the task file's own; or the file
    of the examples itself. `few_shot`: another number of examples than the task's.

    Raises UserError for a task that is not there or not whole, and for files that are missing.
    """
    path = Path(name)
    if not path.is_file():
        known = shipped()
        if name not in known:
            raise UserError(f"task {name}: neither a file nor a shipped task: {', '.join(known)}"[:300])
        path = known[name]
        if data is None and (needed := _not_shipped(read_settings(path))):
            raise UserError(f"task {name}: give the folder of the data, which holds {', '.join(needed)}")
    settings = read_settings(path)
    if few_shot is not None:
        if few_shot and settings.kind in NO_SHOTS:
            raise UserError(f"{path}: a task of {settings.kind} takes no few-shot examples")
        given = settings.few_shot.model_dump() if settings.few_shot else {}
        settings = settings.model_copy(update={"few_shot": FewShot(**{**given, "count": few_shot})})
    if data is not None and not data.is_dir():
        found = [data]
    else:
        found = [_find(data or path.parent, file, path) for file in settings.files]
    wanted = settings.few_shot.files if settings.few_shot and settings.few_shot.count else []
    folder = path.parent if data is None else data if data.is_dir() else data.parent
    classifier = _find(folder, settings.classifier, path) if settings.classifier else None
    shots, corpus = (tuple(_find(folder, file, path) for file in some) for some in (wanted, settings.corpus))
    return Task(path.stem, settings, str(path), tuple(found), shots, classifier, corpus)


def read_settings(path: Path) -> TaskFile:
    """Raises UserError, in one line, for a file that is no task or not a whole one."""
    with open_plain(path) as file:
        content = file.read(LONGEST_FILE + 1)
    if len(content) > LONGEST_FILE:
        raise UserError(f"{path}: a task file has at most {LONGEST_FILE:,} bytes")
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
    if missing := [key for key in NEEDED[settings.kind] if not getattr(settings, key)]:
        raise UserError(f"{path}: a task of kind {settings.kind!r} needs {missing[0]}; docs/evaluation.md shows one")
    if not settings.files:
        raise UserError(f"{path}: files is empty: name the file of the examples")
    if settings.few_shot and settings.few_shot.count and settings.kind in NO_SHOTS:
        raise UserError(f"{path}: a task of {settings.kind} takes no few-shot examples")
    if settings.by and settings.kind == "perplexity":
        raise UserError(f"{path}: a task of perplexity has no figures of parts; leave [by] out, or make a task of each part")
    answer_extraction.require_expression(settings.extract, f"{path}: extract")
    return settings


def _not_shipped(settings: TaskFile) -> list[str]:
    return [name for name in (*settings.files, settings.classifier, *settings.corpus) if name and not _comes_with(name)]


def _comes_with(name: str) -> bool:
    """Whether the package has the file: small ones of our own."""
    return name.endswith(".jsonl") and (SHIPPED / name).is_file()


def _find(folder: Path, name: str, task: Path) -> Path:
    """In the folder or below it, so that a stranger's task reads nothing else."""
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{task}: files: {name[:80]!r} is no name below the folder of the data; give that folder")
    if task.parent == SHIPPED and not (folder / name).is_file() and _comes_with(name):
        return SHIPPED / name
    for ending in ("", *PACKED):
        if (folder / (name + ending)).is_file():
            return folder / (name + ending)
    raise UserError(f"{folder / name}: no such file, compressed or not, which {task.name} needs; give the folder of the data")


def load(task: Task, limit: int | None = None) -> Examples:
    """Every example with its whole prompt; rows that cannot be used are counted. `limit`: so many rows, spread evenly over
    the files, so that of a file sorted by subject every subject is there.

    Raises UserError when no row can be used, for templates that pass their bounds, and for groups with too few examples to show.
    """
    found = begin(task, limit)
    found.part(0, found.count)
    return found


def begin(task: Task, limit: int | None = None) -> Examples:
    """As `load`, but examples are made when they are asked for: all 14,042 of MMLU take seconds."""
    maker, refused = _Maker(task), Refused()
    shots = _Shots(task, maker, refused) if task.settings.few_shot and task.settings.few_shot.count else None
    rows = [(path, place, row) for path in task.paths for place, row in _asked_of(task, path, refused)]
    count = len(rows) if limit is None else min(limit, len(rows))
    asked = [(index * len(rows) // count, *rows[index * len(rows) // count]) for index in range(count)]
    if task.settings.kind in ("choices", "pairs"):
        advice = f'write answer = "{task.settings.answer[:60]} | int - 1"'
        answer_keys.require_from_zero(maker.keys(rows), str(task.paths[0]), advice)
    if shots:
        shots.check(row for _, _, _, row in asked)
    found = Examples([], refused, count=count)
    found.others = _examples(maker, shots, asked, found)
    if not found.part(0, 1):
        known = ", ".join(str(name)[:30] for name in [*rows[0][2]][:12]) if rows else "none"
        raise UserError(f"{task.paths[0]}: no example for {task.name}: {found.refused or 'no rows'}; it has columns {known}")
    return found


def _asked_of(task: Task, path: Path, refused: Refused) -> Iterator[tuple[int, dict[str, Any]]]:
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
    maker: "_Maker", shots: "_Shots | None", asked: Sequence[tuple[int, Path, int, dict[str, Any]]], found: Examples
) -> Iterator[Example]:
    for number, path, place, row in asked:
        try:
            one, group, by = maker.asked(row), maker.group(row), maker.by(row)
            prompt, listed = shots.before(row, group, one) if shots else maker.descriptions(row)
        except BadRow as error:
            found.refused.add(error.reason, f"{path}: row {place + 1}")
            continue
        if maker.settings.kind in ("choices", "pairs") and one.texts.count(one.texts[one.answer]) > 1:
            found.alike.add("the right answer twice", f"{path}: row {place + 1}")
        begins, listed_begins = len(prompt), len(listed) if one.listed else 0
        prompt, listed = prompt + one.prompt, one.listed and listed + one.listed
        yield Example(number, group, prompt, one.texts, one.answer, listed, begins, listed_begins, by)


def rows_of(path: Path, refused: Refused) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file; of SQuAD's JSON one a question, with context, question, title and `answers`, the list of texts; of
    plain text one a document, with `text`.
    """
    kind = kind_of(path)
    if kind.form == "archive":
        raise UserError(f"{path}: a web archive, not a file of examples")
    if kind.form == "text":
        yield from enumerate({"text": body.decode("utf-8", "replace")} for body in texts(path, refused, kind))
        return
    for number, row in records(path, refused, kind, max_bytes=64 << 20):
        if isinstance(row.get("data"), list) and "paragraphs" in str(row["data"][:1])[:1000]:
            yield from enumerate(_questions(row["data"], path, refused))
        else:
            yield number, row


def _questions(articles: Sequence[Any], path: Path, refused: Refused) -> Iterator[dict[str, Any]]:
    for article in articles:
        for passage in _listed(article, "paragraphs", path, refused):
            for question in _listed(passage, "qas", path, refused):
                answers = [answer.get("text") for answer in _listed(question, "answers", path, refused)]
                title, context = article.get("title", ""), passage.get("context")
                yield {"title": title, "context": context, **question, "answers": answers}


def _listed(value: Any, key: str, path: Path, refused: Refused) -> Iterator[dict[str, Any]]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        refused.add(f"no list {key}", str(path))
        return
    for one in found:
        if isinstance(one, dict):
            yield one
        else:
            refused.add(f"{key} that are no objects", str(path))


@dataclass(frozen=True)
class _Asked:
    """An example without what stands before it."""

    prompt: str
    texts: tuple[str, ...]
    answer: int
    listed: str
    solved: str  # the answer as it stands in a few-shot example


class _Maker:
    """A task's templates, compiled."""

    def __init__(self, task: Task) -> None:
        self.settings = settings = task.settings
        self._templates: dict[str, Template] = {}
        for key in ("prompt", "choices", "answer", "listed", "alternatives", "target", "group", "description", "text", "exists"):
            expression = key in EXPRESSIONS or (key == "target" and settings.kind in ("generation", "existence"))
            if source := getattr(settings, key):
                self._templates[key] = Template(source, f"{task.where}: {key}", expression=expression)
        self._by = {name: Template(source, f"{task.where}: by.{name}") for name, source in settings.by.items()}
        if source := settings.listed_description:
            self._templates["listed_description"] = Template(source, f"{task.where}: listed_description")

    def _text(self, key: str, row: dict[str, Any]) -> str:
        text = self._templates[key].text(row) if key in self._templates else ""
        return _bounded(text)

    def group(self, row: dict[str, Any]) -> str:
        return self._text("group", row)

    def by(self, row: dict[str, Any]) -> dict[str, str]:
        """What figures are given by; nothing where a template is empty."""
        found = {name: _bounded(template.text(row).strip()) for name, template in self._by.items()}
        return {name: value for name, value in found.items() if value}

    def descriptions(self, row: dict[str, Any]) -> tuple[str, str]:
        """Before a prompt, and before one that lists its answers."""
        plain = self._text("description", row)
        return plain, self._text("listed_description", row) or plain

    def asked(self, row: dict[str, Any]) -> _Asked:
        return MAKERS[self.settings.kind](self, row)

    def keys(self, rows: Iterable[tuple[Path, int, dict[str, Any]]]) -> Iterator[tuple[int, int, str]]:
        """Of answers that are a column and a number: it, how many choices the row has, and where that is."""
        column = self.settings.answer.strip()
        for path, place, row in rows:
            if (number := answer_keys.position(row.get(column))) is None:
                continue
            try:
                some = self._templates["choices" if self.settings.choices else "alternatives"].value(row) if number else []
            except BadRow:  # which is met again, and counted, when the example is made
                continue
            if not number or (isinstance(some, list | tuple) and len(some) > 1):
                yield number, len(some), f"{path.name}: row {place + 1}"

    def _choices(self, row: dict[str, Any]) -> _Asked:
        texts = _texts(self._templates["choices"].value(row), "choices")
        if len(texts) > len(LETTERS):
            raise BadRow(f"more than {len(LETTERS)} choices")
        answer = answer_keys.index(self._templates["answer"].value(row), texts)
        listed = self._text("listed", row)
        if "listed" in self._templates and not listed.strip():  # or the conventions of some examples would not be the others'
            raise BadRow("a prompt that lists the answers and is empty")
        return _Asked(self._text("prompt", row), texts, answer, listed, texts[answer])

    def _pairs(self, row: dict[str, Any]) -> _Asked:
        texts = _texts(self._templates["alternatives"].value(row), "alternatives")
        answer = answer_keys.index(self._templates["answer"].value(row), texts) if "answer" in self._templates else 0
        return _Asked(_not_empty(self._text("target", row)) if "target" in self._templates else "", texts, answer, "", "")

    def _last_word(self, row: dict[str, Any]) -> _Asked:
        target = _not_empty(self._text("target", row))
        return _Asked(self._text("prompt", row), (target,), 0, "", target)

    def _generation(self, row: dict[str, Any]) -> _Asked:
        value = self._templates["target"].value(row)
        texts = _texts(value, "targets", least=1) if isinstance(value, list | tuple) else (_not_empty(_text_of(value)),)
        return _Asked(self._text("prompt", row), texts, 0, "", texts[0])

    def _toxicity(self, row: dict[str, Any]) -> _Asked:
        return _Asked(_not_empty(self._text("prompt", row)), (), 0, "", "")

    def _existence(self, row: dict[str, Any]) -> _Asked:
        exists = _truth(self._templates["exists"].value(row))
        texts: tuple[str, ...] = ()
        if exists and "target" in self._templates:
            value = self._templates["target"].value(row)
            texts = _texts(value, "targets", least=1) if isinstance(value, list | tuple) else (_not_empty(_text_of(value)),)
        unknown = self.settings.abstentions[0] if self.settings.abstentions and not exists else ""
        return _Asked(self._text("prompt", row), texts, int(exists), "", texts[0] if texts else unknown)

    def _perplexity(self, row: dict[str, Any]) -> _Asked:
        return _Asked("", (_not_empty(self._templates["text"].text(row)),), 0, "", "")


MAKERS: dict[str, Callable[[_Maker, dict[str, Any]], _Asked]] = {
    "choices": _Maker._choices,
    "pairs": _Maker._pairs,
    "last word": _Maker._last_word,
    "generation": _Maker._generation,
    "perplexity": _Maker._perplexity,
    "toxicity": _Maker._toxicity,
    "existence": _Maker._existence,
}


def _bounded(text: str) -> str:
    if len(text) > LONGEST:
        raise BadRow(f"longer than {LONGEST:,} characters")
    return well_formed(text)


def _not_empty(text: str) -> str:
    if not text.strip():
        raise BadRow("an empty answer, choice or text")
    return text


def _text_of(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"an answer that is no text but {type(value).__name__}")
    return _bounded(str(value))


def _truth(value: Any) -> bool:
    """Of JSON's true and false, 1 and 0, and the words that CSV has for them."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if (word := str(value).strip().lower()) not in known:
        raise BadRow("exists that is neither true nor false")
    return known[word]


def _texts(value: Any, name: str, least: int = 2) -> tuple[str, ...]:
    if isinstance(value, dict):  # of which | list would make its keys
        raise BadRow(f"{name} that are an object: put .values() | list behind what makes it")
    if not isinstance(value, list | tuple):
        raise BadRow(f"{name} that are no list: write one in brackets, or behind what makes them | list")
    if len(value) < least:
        raise BadRow(f"fewer than {least} {name}")
    return tuple(_not_empty(_text_of(one)) for one in value)


class _Shots:
    """Few-shot examples: those of the example's own group, where it has one.

    The first so many of the file, in its order; or a random sample for each example, drawn as lm-eval does, which has one
    generator a task: the same examples in the same order then get the same.
    """

    def __init__(self, task: Task, maker: _Maker, refused: Refused) -> None:
        self.maker, self.delimiter = maker, task.settings.delimiter
        assert task.settings.few_shot is not None
        self.count, self.choose = task.settings.few_shot.count, task.settings.few_shot.choose
        self.own = not task.few_shot_paths  # files: an example must not be shown its own answer
        self.where = ", ".join(path.name for path in task.few_shot_paths or task.paths)
        self.pools: dict[str, list[_Asked]] = {}
        self.generators: dict[str, random.Random] = {}
        for path in task.few_shot_paths or task.paths:
            for place, row in rows_of(path, refused if not self.own else Refused()):
                try:
                    self.pools.setdefault(maker.group(row), []).append(maker.asked(row))
                except BadRow as error:
                    if not self.own:
                        refused.add(error.reason, f"{path}: row {place + 1}")

    def check(self, rows: Iterable[dict[str, Any]]) -> None:
        """Raises UserError for a group with too few, before anything is asked of a model."""
        for row in rows:
            try:
                group = self.maker.group(row)
            except BadRow:  # which is met again, and counted, when the example is made
                continue
            if (count := len(self.pools.get(group, []))) < self.count + self.own:
                raise UserError(
                    f"{self.where}: {count} few-shot examples{f' of {group[:40]}' if group else ''}, where "
                    f"{self.count + self.own} are needed; take fewer few-shot examples"
                )

    def before(self, row: dict[str, Any], group: str, one: _Asked) -> tuple[str, str]:
        """What stands before a prompt, and before one that lists its answers."""
        pool = self.pools[group]
        if self.choose == "random":
            generator = self.generators.setdefault(group, random.Random(FEW_SHOT_SEED))
            drawn = generator.sample(range(len(pool)), self.count + self.own)
        else:
            drawn = [*range(self.count + self.own)]
        # Files may hold the question too, or it twice: nothing is shown its own answer, whatever else its row says.
        others = (number for number in range(len(pool)) if number not in drawn)
        shown = [*islice((pool[number] for number in chain(drawn, others) if pool[number] != one), self.count)]
        if len(shown) < self.count:
            raise BadRow("too few few-shot examples that are not the question itself")
        plain, listed = self.maker.descriptions(row)
        for asked in shown:
            plain += asked.prompt + self.delimiter + asked.solved + BETWEEN
            listed += asked.listed + self.delimiter + LETTERS[asked.answer] + BETWEEN
        return _bounded(plain), _bounded(listed)
