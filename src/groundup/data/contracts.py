"""Files that people bring, as conversations, preferences or prompts; what cannot be used is counted by reason.

All formats, compressions and encodings of `data/` are read; each row's columns decide its format. A bad row is passed over,
its file and its line or row is named; a file or folder without any good row is refused.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, TypeVar

from groundup.core.errors import UserError
from groundup.core.plain_files import expanded
from groundup.data.conversations import Conversation, conversation_of, format_of
from groundup.data.file_kinds import ROWS, files_of, kind_of
from groundup.data.messages import BadRow, Message
from groundup.data.plain_values import plain
from groundup.data.preferences import Preference, preference_format_of, preference_of, prompt_of
from groundup.data.readers import Refused, csv_rows, records

MAX_ROW_BYTES = 16 << 20  # 4 million tokens; no context is as long
HELD_OUT = 0.1  # of the prompts
Prompt = tuple[Message, ...]
RowOrPath = str | Path | Mapping[str, Any]  # a file or folder, or a row in memory
T = TypeVar("T", Conversation, Preference, Prompt)


@dataclass
class ReadResult(Generic[T]):
    """What was read: rows of one kind, their formats, and counts of what was passed over."""

    what: str
    rows: list[T] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    dropped: Refused = field(default_factory=Refused)

    def __str__(self) -> str:
        formats = ", ".join(f"{name} {count:,}" for name, count in self.formats.most_common())
        dropped = f"; {self.dropped.total():,} dropped ({self.dropped})" if self.dropped else ""
        return f"{len(self.rows):,} {self.what} ({formats}){dropped}"


def read_conversations(items: Iterable[RowOrPath], max_row_bytes: int = MAX_ROW_BYTES) -> ReadResult[Conversation]:
    """All conversations of files, folders and rows. Raises UserError where a path cannot be read or holds none."""
    return _read_all("conversations", items, conversation_of, max_row_bytes)


def read_preferences(items: Iterable[RowOrPath], max_row_bytes: int = MAX_ROW_BYTES) -> ReadResult[Preference]:
    """All preferences of files, folders and rows. Raises UserError where a path cannot be read or holds none."""
    return _read_all("preferences", items, preference_of, max_row_bytes)


def read_prompts(paths: Sequence[str | Path], max_row_bytes: int = MAX_ROW_BYTES) -> ReadResult[Prompt]:
    """The prompts of files and folders with prompts, preferences or conversations, which lose their last answer.

    Raises UserError where a path cannot be read or holds none.
    """
    return _read_all("prompts", paths, prompt_of, max_row_bytes)


def _read_all(
    kind_name: str, items: Iterable[RowOrPath], make: Callable[[Mapping[str, Any]], T], max_row_bytes: int
) -> ReadResult[T]:
    result: ReadResult[T] = ReadResult(kind_name)
    rows: list[tuple[str, Any]] = []
    for number, item in enumerate(items):
        if not isinstance(item, str | Path):
            rows.append((f"row {number + 1}", item))
            continue
        path = expanded(item)
        before = len(result.rows)
        refused = Refused()
        result.rows.extend(read(path, make, refused, result.formats, max_row_bytes))
        if len(result.rows) == before:
            raise UserError(f"{path}: {no_rows_message(kind_name, path, refused)}")
        result.dropped.merge(refused)
    refused = Refused()
    good = list(_good_rows(Path(kind_name), rows, make, refused, result.formats))
    if not good and (rows or not result.rows):
        raise UserError(no_rows_message(kind_name, Path(kind_name), refused))
    result.rows.extend(good)
    result.dropped.merge(refused)
    return result


def no_rows_message(what: str, path: Path, refused: Refused) -> str:
    """Message: why a path has no row that can be used."""
    if not refused:
        return f"holds no rows: give a file or a folder with {what}"
    first = refused.first.removeprefix(f"{path}: ")
    return f"none of its {refused.total():,} rows can be used as {what}; first {first}"


def read(
    path: Path, make: Callable[[Mapping[str, Any]], T], refused: Refused, formats: Counter[str],
    max_row_bytes: int = MAX_ROW_BYTES,
) -> Iterator[T]:  # fmt: skip
    """`make` of each good row of a file, or of the files of rows in a folder; formats and bad rows are counted.

    Raises UserError where the path cannot be read as rows; in a folder such files are counted.
    """
    if not path.is_dir():
        yield from _good_rows(path, _rows(path, refused, max_row_bytes), make, refused, formats)
        return
    names, others = files_of(path, ROWS)
    if not names:
        raise UserError(f"{path}: no file of rows in it: give JSON lines, JSON, CSV or Parquet")
    for name in others:
        refused.add("files that are not read", str(path / name))
    for name in names:
        try:
            yield from _good_rows(path / name, _rows(path / name, refused, max_row_bytes), make, refused, formats)
        except UserError as error:
            refused.first = refused.first or str(error)
            refused.add("files that cannot be read", str(path / name))


def _good_rows(
    path: Path, rows: Iterable[tuple[str, Any]], make: Callable[[Mapping[str, Any]], T], refused: Refused,
    formats: Counter[str],
) -> Iterator[T]:  # fmt: skip
    seen: set[bytes] = set()
    for position, row in rows:
        try:
            if not isinstance(row, Mapping):
                raise BadRow("not a row", f"{type(row).__name__}, where a row of named columns is wanted")
            row = _plain(row)
            made = make(row)
            _require_texts(made)
            _require_new(row, seen)
        except BadRow as error:
            refused.first = refused.first or f"{path}: {position}: {error}"
            refused.add(error.reason, f"{path}: {position}")
            continue
        formats[preference_format_of(row) or format_of(row) or "prompts"] += 1
        yield made


def _rows(path: Path, refused: Refused, max_row_bytes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Position (as "line 3") and columns of each row of a file."""
    kind = kind_of(path)
    if kind.form in ("text", "archive"):
        what = "plain text" if kind.form == "text" else "a web archive"
        raise UserError(f"{path}: {what}, not rows: give JSON lines, JSON, CSV or Parquet")
    if kind.form == "csv":
        for number, row in csv_rows(path, refused, kind, max_row_bytes):  # in CSV all is text: numbers are parsed here
            yield f"row {number + 1}", row | ({"margin": _number(row["margin"])} if "margin" in row else {})
        return
    unit = {"lines": "line", "values": "value"}.get(kind.form, "row")
    for number, row in records(path, refused, kind, max_bytes=max_row_bytes):
        yield f"{unit} {number + 1}", row


def _number(text: str) -> float | str | None:
    try:
        return float(text) if text.strip() else None
    except ValueError:
        return text


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(plain(row))
    except RecursionError:
        raise BadRow("nested too deep") from None


def _require_texts(row: Conversation | Preference | Prompt) -> None:
    """Raises BadRow where a text is empty, has a NUL character or was not valid UTF-8."""
    if isinstance(row, Preference):
        prompt, answers = row.prompt, [row.chosen, row.rejected]
    else:
        messages = row.messages if isinstance(row, Conversation) else row
        prompt, answers = messages, [message for message in messages if message.role == "assistant"]
    for message in (*prompt, *answers):
        if "\ufffd" in message.content:
            raise BadRow("invalid UTF-8", f"the text of the {message.role} was not valid UTF-8")
        if "\0" in message.content:
            raise BadRow("a NUL character", f"the text of the {message.role} has a NUL character")
    if not all(message.content.strip() for message in answers):
        raise BadRow("empty answer")
    if not all(message.content.strip() for message in prompt if message.role != "assistant"):
        raise BadRow("empty question")
    if isinstance(row, Preference) and row.chosen.content.strip() == row.rejected.content.strip():
        raise BadRow("chosen equal to rejected")


def _require_new(row: Mapping[str, Any], seen: set[bytes]) -> None:
    """Raises BadRow where an earlier row of the same file, and of the same annotator, has the same `id`.

    Rows without one are fine.
    """
    identifier, annotator = row.get("id"), row.get("annotator")
    if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
        return
    key = digest([identifier, *([annotator] if isinstance(annotator, str | int) else [])])
    if key in seen:
        raise BadRow("duplicate id", f"an earlier row has the id {str(identifier)[:40]!r} too")
    seen.add(key)


def digest(value: Any) -> bytes:
    return blake2b(json.dumps(value).encode(), digest_size=8).digest()


def split(rows: Sequence[T], held_out: float = HELD_OUT) -> tuple[list[T], list[T]]:
    """(training, held-out) rows, by digest of their prompts: rows of one prompt are on one side, whatever other rows there are.

    With two or more prompts neither side is empty; with one, both sides are all rows.
    """
    keys = [_key(row) for row in rows]
    ordered = sorted(set(keys))
    if len(ordered) < 2:
        return list(rows), list(rows)
    count = sum(int.from_bytes(key) < held_out * 2**64 for key in ordered)
    last_held_out_key = ordered[min(max(count, 1), len(ordered) - 1) - 1]
    sides: tuple[list[T], list[T]] = ([], [])
    for key, row in zip(keys, rows, strict=True):
        sides[key <= last_held_out_key].append(row)
    return sides


def _key(row: Conversation | Preference | Prompt) -> bytes:
    prompt = row if isinstance(row, tuple) else row.prompt
    return digest([[message.role, message.content.strip()] for message in prompt])
