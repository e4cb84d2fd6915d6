"""Inputs of Python programs: texts as files, rows in TRL's format. What cannot be used is logged as a warning."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from groundup.core.errors import UserError
from groundup.data.contracts import RowOrPath
from groundup.data.readers import Refused
from groundup.data.texts_in_memory import as_files, require_no_table

logger = logging.getLogger(__name__)


def rows_of(
    read: Callable[[Iterable[RowOrPath]], Any], data: RowOrPath | Iterable[RowOrPath], may_be_none: bool = False
) -> list[dict[str, Any]]:
    """Conversations or preferences. Raises UserError where there is none, unless there may be none."""
    items = [*each(data)]
    if not items and may_be_none:
        return []
    result = read(items)
    warn(result.dropped)
    return [example.row for example in result.rows]


def each(data: Any) -> Iterator[Any]:
    """One row or path by itself, or each of several. Raises UserError for what is none of these, and for a table."""
    if isinstance(data, str | Path) or (isinstance(data, Mapping) and not _is_of_splits(data)):
        return iter([data])
    require_no_table(data, "data", "its rows, as data.to_dict('records') of pandas, or one split of several")
    try:
        return iter(data)
    except TypeError:
        raise UserError(f"data: {type(data).__name__}; give an iterable, or the pathlib.Path of a file or folder") from None


def _is_of_splits(data: Mapping[str, Any]) -> bool:
    """Whether it holds the splits of a data set by name, as Hugging Face's datasets do; a row does not."""
    return any(hasattr(split, "column_names") for split in data.values())


@contextmanager
def files_of(texts: Path | Iterable[str | Path], folder: Path) -> Iterator[list[Path]]:
    """The texts as files; those in memory are written to a temporary folder beside `folder`."""
    target = folder.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.texts.") as temporary:
        yield checked_files(texts, Path(temporary))


def checked_files(texts: Any, folder: Path) -> list[Path]:
    """The texts as files, those in memory in `folder`. Raises UserError where nothing can be used."""
    refused = Refused()
    files = as_files(texts, folder / "texts.parquet", refused)
    warn(refused)
    return files


def warn(refused: Refused) -> None:
    if refused:
        logger.warning("passed over: %s", refused)
