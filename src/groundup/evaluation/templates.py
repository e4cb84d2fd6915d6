"""Templates of task files: jinja as lm-eval renders it, within the bounds of the sandbox that chat templates run in."""

from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import meta

from groundup.core.errors import UserError
from groundup.data.messages import BadRow
from groundup.tokenizer.template import Sandbox, compiled

RESULT = "groundup_result"  # the variable that holds the value of an expression; no column is called so
SHOWN = 120  # characters of what a template ended with


class Template:
    """What a row's columns make: `text`, or with `value` the value of an expression, such as a list of choices.

    A column that a row lacks is BadRow, and so is one of a type that the template cannot use. A template that passes the
    sandbox's bounds is UserError: it would on any row.
    """

    def __init__(self, source: str, where: str, *, expression: bool = False) -> None:
        self.where = where
        self._last: tuple[tuple[str, ...] | None, str] = (None, "")
        self._sandbox = Sandbox(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
        filters = self._sandbox.filters
        printed, joined = filters["_printed"], filters["_joined"]
        filters |= {
            "unbracketed": unbracketed, "_printed": lambda value: printed(_text_alone(value)),
            "_joined": lambda parts: joined([*map(_text_alone, parts)]),
        }  # fmt: skip
        self._size = len(source)
        if expression and source.strip().startswith("{{") and source.strip().endswith("}}"):
            raise UserError(f"{where}: an expression, not a template: write it without {{{{ and }}}}")
        if expression:
            source = f"{{% set {RESULT} = ({source}) %}}"
        try:
            self._compiled = compiled(source, self._sandbox)
            self._named = sorted(meta.find_undeclared_variables(self._sandbox.parse(source)))
        except Exception as error:  # jinja's compiler is not made for strangers
            raise UserError(f"{where}: not a template: {_said(error)}") from None

    def text(self, row: Mapping[str, Any]) -> str:
        # What all questions of a subject share, such as its name, is made once.
        key = tuple(value if isinstance(value := row.get(name), str) else None for name in self._named)
        if None in key:
            return "".join(self._run(row, lambda: [*self._compiled.generate(self._columns(row))]))
        if key != self._last[0]:
            self._last = key, "".join(self._run(row, lambda: [*self._compiled.generate(self._columns(row))]))
        return self._last[1]

    def value(self, row: Mapping[str, Any]) -> Any:
        return self._run(row, lambda: self._value(row))

    def _value(self, row: Mapping[str, Any]) -> Any:
        found = getattr(self._compiled.make_module(self._columns(row)), RESULT)
        for part in found if isinstance(found, list | tuple) else [found]:
            if isinstance(part, jinja2.Undefined):
                str(part)  # raises, and says what is missing
        return found

    def _columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: row[name] for name in self._named if name in row}

    def _run(self, row: Mapping[str, Any], make: Any) -> Any:
        self._sandbox.allow(self._size, [len(value) for value in row.values() if isinstance(value, str)])
        try:
            return make()
        except UserError as error:
            raise UserError(f"{self.where}: the template ended with: {_said(error)}; shorten its loops") from None
        except jinja2.UndefinedError as error:
            raise BadRow(f"a column is missing: {_said(error)}") from None
        except Exception as error:  # of a row that is not as the others: any class
            raise BadRow(f"not what the template needs: {_said(error)}") from None


def _text_alone(value: Any) -> Any:
    """What a template writes out. Of a list, an object or nothing it would be Python's way of writing that."""
    if value is None or isinstance(value, list | tuple | dict):
        raise TypeError(f"{'nothing' if value is None else type(value).__name__} where a text is wanted")
    return value


def unbracketed(text: str) -> str:
    """Without what stands in square brackets on one line, and them: `[header]` and its like in HellaSwag."""
    lines = []
    for line in str(text).split("\n"):
        kept, start = [], 0
        while (opening := line.find("[", start)) >= 0 and (closing := line.find("]", opening)) >= 0:
            kept.append(line[start:opening])
            start = closing + 1
        lines.append("".join([*kept, line[start:]]))
    return "\n".join(lines)


def _said(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
