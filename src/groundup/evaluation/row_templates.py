"""A task's templates on a row: its prompt, answers and group, without description and few-shot examples."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.core.text import well_formed
from groundup.data.messages import BadRow
from groundup.evaluation import answer_keys
from groundup.evaluation.answer_keys import LETTERS
from groundup.evaluation.config import TaskFile
from groundup.evaluation.templates import Template

MAX_CHARACTERS = 1 << 20  # characters of an example: no benchmark has longer ones, and it would be encoded once a choice
THROUGH_INT = re.compile(r"\s*\|\s*int\Z")
EXPRESSIONS = ("choices", "answer", "alternatives", "exists")


@dataclass(frozen=True)
class BareExample:
    """An example without description and few-shot examples."""

    prompt: str
    texts: tuple[str, ...]
    answer: int
    listed: str
    shown_answer: str  # as it stands in a few-shot example


class RowTemplates:
    """A task's templates, compiled. `where`: the task's file, for messages."""

    def __init__(self, settings: TaskFile, where: str) -> None:
        self.settings = settings
        self._templates: dict[str, Template] = {}
        for key in ("prompt", "choices", "answer", "listed", "alternatives", "target", "group", "description", "text", "exists"):
            expression = key in EXPRESSIONS or (key == "target" and settings.kind in ("generation", "existence"))
            if source := getattr(settings, key):
                self._templates[key] = Template(source, f"{where}: {key}", expression=expression)
        self._breakdown = {name: Template(source, f"{where}: by.{name}") for name, source in settings.by.items()}
        if source := settings.listed_description:
            self._templates["listed_description"] = Template(source, f"{where}: listed_description")

    def _text(self, key: str, row: dict[str, Any]) -> str:
        text = self._templates[key].text(row) if key in self._templates else ""
        return bounded(text)

    def group(self, row: dict[str, Any]) -> str:
        return self._text("group", row)

    def breakdown(self, row: dict[str, Any]) -> dict[str, str]:
        """The row's value of each name in [by]; none where a template is empty."""
        values = {name: bounded(template.text(row).strip()) for name, template in self._breakdown.items()}
        return {name: value for name, value in values.items() if value}

    def descriptions(self, row: dict[str, Any]) -> tuple[str, str]:
        """The description before a prompt, and the one before a prompt that lists its answers."""
        plain = self._text("description", row)
        return plain, self._text("listed_description", row) or plain

    def example(self, row: dict[str, Any]) -> BareExample:
        return EXAMPLE_KINDS[self.settings.kind](self, row)

    def numeric_keys(self, rows: Iterable[tuple[Path, int, dict[str, Any]]]) -> Iterator[tuple[int, int, str]]:
        """Of each row whose answer is a column with a number, alone or through `int`: that number, how many choices the row has,
        and the row's name.
        """
        column = THROUGH_INT.sub("", self.settings.answer.strip())
        for path, row_index, row in rows:
            if (number := answer_keys.position(row.get(column))) is None:
                continue
            try:
                choices = self._templates["choices" if self.settings.choices else "alternatives"].value(row) if number else []
            except BadRow:  # which is met again, and counted, when the example is made
                continue
            if not number or (isinstance(choices, list | tuple) and len(choices) > 1):
                yield number, len(choices), f"{path.name}: row {row_index + 1}"

    def _choices(self, row: dict[str, Any]) -> BareExample:
        texts = _texts(self._templates["choices"].value(row), "choices")
        if len(texts) > len(LETTERS):
            raise BadRow(f"more than {len(LETTERS)} choices")
        answer = answer_keys.index(self._templates["answer"].value(row), texts)
        listed = self._text("listed", row)
        if "listed" in self._templates and not listed.strip():  # else its example would lack conventions that others have
            raise BadRow("a prompt that lists the answers and is empty")
        return BareExample(self._text("prompt", row), texts, answer, listed, texts[answer])

    def _pairs(self, row: dict[str, Any]) -> BareExample:
        texts = _texts(self._templates["alternatives"].value(row), "alternatives")
        answer = answer_keys.index(self._templates["answer"].value(row), texts) if "answer" in self._templates else 0
        return BareExample(_not_empty(self._text("target", row)) if "target" in self._templates else "", texts, answer, "", "")

    def _last_word(self, row: dict[str, Any]) -> BareExample:
        target = _not_empty(self._text("target", row))
        return BareExample(self._text("prompt", row), (target,), 0, "", target)

    def _generation(self, row: dict[str, Any]) -> BareExample:
        value = self._templates["target"].value(row)
        texts = _texts(value, "targets", min_count=1) if isinstance(value, list | tuple) else (_not_empty(_text_of(value)),)
        return BareExample(self._text("prompt", row), texts, 0, "", texts[0])

    def _toxicity(self, row: dict[str, Any]) -> BareExample:
        return BareExample(_not_empty(self._text("prompt", row)), (), 0, "", "")

    def _existence(self, row: dict[str, Any]) -> BareExample:
        exists = _boolean(self._templates["exists"].value(row))
        texts: tuple[str, ...] = ()
        if exists and "target" in self._templates:
            value = self._templates["target"].value(row)
            texts = _texts(value, "targets", min_count=1) if isinstance(value, list | tuple) else (_not_empty(_text_of(value)),)
        unknown = self.settings.abstentions[0] if self.settings.abstentions and not exists else ""
        return BareExample(self._text("prompt", row), texts, int(exists), "", texts[0] if texts else unknown)

    def _perplexity(self, row: dict[str, Any]) -> BareExample:
        return BareExample("", (_not_empty(self._templates["text"].text(row)),), 0, "", "")


EXAMPLE_KINDS: dict[str, Callable[[RowTemplates, dict[str, Any]], BareExample]] = {
    "choices": RowTemplates._choices,
    "pairs": RowTemplates._pairs,
    "last word": RowTemplates._last_word,
    "generation": RowTemplates._generation,
    "perplexity": RowTemplates._perplexity,
    "toxicity": RowTemplates._toxicity,
    "existence": RowTemplates._existence,
}


def bounded(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise BadRow(f"longer than {MAX_CHARACTERS:,} characters")
    return well_formed(text)


def _not_empty(text: str) -> str:
    if not text.strip():
        raise BadRow("an empty answer, choice or text")
    return text


def _text_of(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"an answer that is no text but {type(value).__name__}")
    return bounded(str(value))


def _boolean(value: Any) -> bool:
    """True or false, from JSON's booleans, 1 and 0, and the words that CSV has for them."""
    booleans = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if (word := str(value).strip().lower()) not in booleans:
        raise BadRow("exists that is neither true nor false")
    return booleans[word]


def _texts(value: Any, name: str, min_count: int = 2) -> tuple[str, ...]:
    if isinstance(value, dict):  # of which | list would make its keys
        raise BadRow(f"{name} that are an object: put .values() | list behind what makes it")
    if not isinstance(value, list | tuple):
        raise BadRow(f"{name} that are no list: write one in brackets, or behind what makes them | list")
    if len(value) < min_count:
        raise BadRow(f"fewer than {min_count} {name}")
    return tuple(_not_empty(_text_of(text)) for text in value)
