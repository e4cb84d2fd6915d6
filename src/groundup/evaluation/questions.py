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
from groundup.evaluation.multiple_choice import MOST_LETTERS

COLUMNS = {"question", "choices", "answer"}


def are_questions(given: RowOrPath) -> bool:
    """Whether a row, or the first row of a file, has the columns of a question."""
    if isinstance(given, Mapping):
        return given.keys() >= COLUMNS
    path = Path(given)
    if not path.is_file() or kind_of(path).form in ("text", "archive"):
        return False
    _, row = next(records(path, Refused()), (0, {}))
    return row.keys() >= COLUMNS


def read_questions(given: Iterable[RowOrPath], refused: Refused) -> list[dict[str, Any]]:
    """The good rows of files and of memory, as `multiple_choice.score` takes them; the others are counted.

    Raises UserError where a file cannot be read, or holds no row that can be used.
    """
    found: list[dict[str, Any]] = []
    for number, one in enumerate(given):
        if isinstance(one, str | Path):
            path = expanded(one)
            mine, before = Refused(), len(found)
            rows = [(f"{path}: row {n + 1}", row) for n, row in records(path, mine)]
            require_from_zero(_keys(rows), str(path), "take 1 off each")
            found += _good(rows, mine)
            if len(found) == before:
                raise UserError(f"{path}: {no_rows_message('questions', path, mine)}; columns: {', '.join(sorted(COLUMNS))}")
            refused.merge(mine)
        else:
            found += _good([(f"row {number + 1}", one)], refused)
    if not found:
        why = f" ({refused})" if refused else ""
        raise UserError(f"questions: no row can be used{why}; columns: {', '.join(sorted(COLUMNS))}")
    return found


def _keys(rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[int, int, str]]:
    for place, row in rows:
        answer, choices = row.get("answer"), row.get("choices")
        if isinstance(answer, int) and not isinstance(answer, bool) and isinstance(choices, list) and len(choices) > 1:
            yield answer, len(choices), place.rpartition(": ")[2]


def _good(rows: Iterable[tuple[str, Any]], refused: Refused) -> Iterator[dict[str, Any]]:
    for place, row in rows:
        try:
            yield _question(plain(row))
        except BadRow as error:
            refused.add(error.reason, place)


def _question(row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping) or not row.keys() >= COLUMNS:
        raise BadRow("missing column")
    question, choices, answer = row["question"], row["choices"], row["answer"]
    if not isinstance(question, str) or not question.strip():
        raise BadRow("no question")
    if not isinstance(choices, list | tuple) or not 2 <= len(choices) <= len(MOST_LETTERS):
        raise BadRow("choices must be a list of 2 to 26 texts")
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise BadRow("a choice is empty or no text")
    if isinstance(answer, str) and len(answer) == 1:
        answer = MOST_LETTERS.find(answer.upper())
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise BadRow("answer is none of the choices")
    return {"question": well_formed(question), "choices": [well_formed(one) for one in choices], "answer": answer}
