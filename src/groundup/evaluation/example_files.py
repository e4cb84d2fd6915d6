"""Rows of example files, whatever their format: JSONL, CSV, Parquet, SQuAD's JSON, plain text."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.data.file_kinds import kind_of
from groundup.data.readers import Refused, records, texts


def rows_of(path: Path, refused: Refused) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file, numbered from 0. SQuAD's JSON has one per question, with context, question, title and `answers`, the list
    of texts; plain text has one per document, with `text`.
    """
    kind = kind_of(path)
    if kind.form == "archive":
        raise UserError(f"{path}: a web archive, not a file of examples")
    if kind.form == "text":
        yield from enumerate({"text": body.decode("utf-8", "replace")} for body in texts(path, refused, kind))
        return
    for number, row in records(path, refused, kind, max_bytes=64 << 20):
        if isinstance(row.get("data"), list) and "paragraphs" in str(row["data"][:1])[:1000]:
            yield from enumerate(_squad_questions(row["data"], path, refused))
        else:
            yield number, row


def _squad_questions(articles: Sequence[Any], path: Path, refused: Refused) -> Iterator[dict[str, Any]]:
    for article in articles:
        for passage in _objects(article, "paragraphs", path, refused):
            for question in _objects(passage, "qas", path, refused):
                answers = [answer.get("text") for answer in _objects(question, "answers", path, refused)]
                title, context = article.get("title", ""), passage.get("context")
                yield {"title": title, "context": context, **question, "answers": answers}


def _objects(value: Any, key: str, path: Path, refused: Refused) -> Iterator[dict[str, Any]]:
    entries = value.get(key) if isinstance(value, dict) else None
    if not isinstance(entries, list):
        refused.add(f"no list {key}", str(path))
        return
    for entry in entries:
        if isinstance(entry, dict):
            yield entry
        else:
            refused.add(f"{key} that are no objects", str(path))
