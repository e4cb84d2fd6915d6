"""Templates of task files: jinja as lm-eval renders it, in the sandbox and bounds of chat templates."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jinja2
from jinja2 import meta

from groundup.core.errors import UserError
from groundup.data.messages import BadRow
from groundup.tokenizer.template import Sandbox, compiled

RESULT = "groundup_result"  # the variable that holds the value of an expression; no column is called so
MAX_MESSAGE = 120  # characters of a template's error


class Template:
    """Renders a row's columns: `text`, or for an expression its `value`, such as a list of choices.

    A column that the row lacks is BadRow, and so is one of a type that the template cannot use. A template that exceeds the
    sandbox's bounds is UserError: it would on any row.
    """

    def __init__(self, source: str, where: str, *, expression: bool = False) -> None:
        self.where = where
        self._last: tuple[tuple[str, ...] | None, str] = (None, "")
        self._sandbox = Sandbox(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
        filters = self._sandbox.filters
        printed, joined = filters["_printed"], filters["_joined"]
        filters |= {
            "unbracketed": unbracketed, "_printed": lambda value: printed(_require_text(value)),
            "_joined": lambda parts: joined([*map(_require_text, parts)]),
            "int": partial(_number, filters["int"]), "float": partial(_number, filters["float"]),
        }  # fmt: skip
        self._size = len(source)
        if expression and source.strip().startswith("{{") and source.strip().endswith("}}"):
            raise UserError(f"{where}: an expression, not a template: write it without {{{{ and }}}}")
        if expression:
            source = f"{{% set {RESULT} = ({source}) %}}"
        try:
            self._compiled = compiled(source, self._sandbox)
            self._columns_used = sorted(meta.find_undeclared_variables(self._sandbox.parse(source)))
        except Exception as error:  # jinja's compiler is not made for strangers
            raise UserError(f"{where}: not a template: {_message(error)}") from None

    def text(self, row: Mapping[str, Any]) -> str:
        # The last text is kept: all questions of a subject share some, such as its name.
        key = tuple(value if isinstance(value := row.get(name), str) else None for name in self._columns_used)
        if None in key:
            return "".join(self._run(row, lambda: [*self._compiled.generate(self._columns(row))]))
        if key != self._last[0]:
            self._last = key, "".join(self._run(row, lambda: [*self._compiled.generate(self._columns(row))]))
        return self._last[1]

    def value(self, row: Mapping[str, Any]) -> Any:
        return self._run(row, lambda: self._value(row))

    def _value(self, row: Mapping[str, Any]) -> Any:
        value = getattr(self._compiled.make_module(self._columns(row)), RESULT)
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, jinja2.Undefined):
                str(part)  # raises, and says what is missing
        return value

    def _columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: row[name] for name in self._columns_used if name in row}

    def _run(self, row: Mapping[str, Any], make: Any) -> Any:
        self._sandbox.allow(self._size, [len(value) for value in row.values() if isinstance(value, str)])
        try:
            return make()
        except UserError as error:
            raise UserError(f"{self.where}: the template ended with: {_message(error)}; shorten its loops") from None
        except jinja2.UndefinedError as error:
            raise BadRow(f"a column is missing: {_message(error)}") from None
        except Exception as error:  # a row unlike the others can raise any class
            raise BadRow(f"not what the template needs: {_message(error)}") from None


def _require_text(value: Any) -> Any:
    """Refuses lists, objects and None, which a template would print as Python writes them."""
    if value is None or isinstance(value, list | tuple | dict):
        raise TypeError(f"{'nothing' if value is None else type(value).__name__} where a text is wanted")
    return value


def _number(converted: Callable[..., Any], value: Any, default: Any = None, **options: Any) -> Any:
    """jinja's `int` or `float`. Without a default it refuses what is no number: jinja makes 0 of it, the first choice's index."""
    number = converted(value, default, **options)
    if number is None:
        raise ValueError(f"{type(value).__name__} that is no number")
    return number


def unbracketed(text: str) -> str:
    """Without square brackets and their content on one line, such as `[header]` in HellaSwag."""
    lines = []
    for line in str(text).split("\n"):
        parts, start = [], 0
        while (opening := line.find("[", start)) >= 0 and (closing := line.find("]", opening)) >= 0:
            parts.append(line[start:opening])
            start = closing + 1
        lines.append("".join([*parts, line[start:]]))
    return "\n".join(lines)


def _message(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."
