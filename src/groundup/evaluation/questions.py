"""Multiple-choice questions that people bring: `question`, `choices` (2 to 26 texts), `answer` (an index from 0, or a letter)."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.plain_files import expanded
from groundup.core.text import well_formed
from groundup.data.contracts import RowOrPath, no_rows_message
from groundup.data.file_kinds import kind_of
from groundup.data.messages import BadRow
from groundup.data.plain_values import plain
from groundup.data.readers import Refused, records
from groundup.evaluation.answer_keys import require_from_zero
from groundup.evaluation.multiple_choice import ALL_LETTERS

COLUMNS = {"question", "choices", "answer"}


def are_questions(source: RowOrPath) -> bool:
    """Whether a row, or the first row of a file, has the columns of a question."""
    if isinstance(source, Mapping):
        return source.keys() >= COLUMNS
    path = Path(source)
    if not path.is_file() or kind_of(path).form in ("text", "archive"):
        return False
    _, row = next(records(path, Refused()), (0, {}))
    return row.keys() >= COLUMNS


def read_questions(sources: Iterable[RowOrPath], refused: Refused) -> list[dict[str, Any]]:
    """The good rows of files and of memory, as `multiple_choice.score` takes them; bad rows are counted.

    Raises UserError where a file cannot be read, or has no usable row.
    """
    questions: list[dict[str, Any]] = []
    for number, source in enumerate(sources):
        if isinstance(source, str | Path):
            path = expanded(source)
            file_refused, count = Refused(), len(questions)
            rows = [(f"{path}: row {n + 1}", row) for n, row in records(path, file_refused)]
            require_from_zero(_numeric_keys(rows), str(path), "take 1 off each")
            questions += _good_rows(rows, file_refused)
            if len(questions) == count:
                message = no_rows_message("questions", path, file_refused)
                raise UserError(f"{path}: {message}; columns: {', '.join(sorted(COLUMNS))}")
            refused.merge(file_refused)
        else:
            questions += _good_rows([(f"row {number + 1}", source)], refused)
    if not questions:
        reasons = f" ({refused})" if refused else ""
        raise UserError(f"questions: no row can be used{reasons}; columns: {', '.join(sorted(COLUMNS))}")
    return questions


def _numeric_keys(rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[int, int, str]]:
    for location, row in rows:
        answer, choices = row.get("answer"), row.get("choices")
        if isinstance(answer, int) and not isinstance(answer, bool) and isinstance(choices, list) and len(choices) > 1:
            yield answer, len(choices), location.rpartition(": ")[2]


def _good_rows(rows: Iterable[tuple[str, Any]], refused: Refused) -> Iterator[dict[str, Any]]:
    for location, row in rows:
        try:
            yield _question(plain(row))
        except BadRow as error:
            refused.add(error.reason, location)


def _question(row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping) or not row.keys() >= COLUMNS:
        raise BadRow("missing column")
    question, choices, answer = row["question"], row["choices"], row["answer"]
    if not isinstance(question, str) or not question.strip():
        raise BadRow("no question")
    if not isinstance(choices, list | tuple) or not 2 <= len(choices) <= len(ALL_LETTERS):
        raise BadRow("choices must be a list of 2 to 26 texts")
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise BadRow("a choice is empty or no text")
    if isinstance(answer, str) and len(answer) == 1:
        answer = ALL_LETTERS.find(answer.upper())
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise BadRow("answer is none of the choices")
    return {"question": well_formed(question), "choices": [well_formed(choice) for choice in choices], "answer": answer}
