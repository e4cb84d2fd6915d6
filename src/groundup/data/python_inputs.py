"""What a Python program gives: texts as files, rows as TRL has them. What cannot be used is logged as a warning."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from groundup.core.errors import UserError
from groundup.data.contracts import Given
from groundup.data.readers import Refused
from groundup.data.texts_in_memory import as_files, require_no_table

logger = logging.getLogger(__name__)


def rows_of(
    read: Callable[[Iterable[Given]], Any], data: Given | Iterable[Given], may_be_none: bool = False
) -> list[dict[str, Any]]:
    """Conversations or preferences. Raises UserError where there is none, unless there may be none."""
    given = [*each(data)]
    if not given and may_be_none:
        return []
    found = read(given)
    warn(found.dropped)
    return [one.row for one in found.rows]


def each(data: Any) -> Iterator[Any]:
    """One row or path by itself, or each of several. Raises UserError for what is none of these, and for a table."""
    if isinstance(data, str | Path) or (isinstance(data, Mapping) and not _is_of_tables(data)):
        return iter([data])
    require_no_table(data, "data", "its rows, as data.to_dict('records') of pandas, or one split of several")
    try:
        return iter(data)
    except TypeError:
        raise UserError(f"data: {type(data).__name__}; give an iterable, or the pathlib.Path of a file or folder") from None


def _is_of_tables(data: Mapping[str, Any]) -> bool:
    """Whether it holds the splits of a data set by name, as those of Hugging Face's datasets; a row holds none."""
    return any(hasattr(one, "column_names") for one in data.values())


@contextmanager
def files_of(texts: Path | Iterable[str | Path], folder: Path) -> Iterator[list[Path]]:
    """The texts as files while they are read, those in memory in a folder beside the one that is made."""
    beside = folder.absolute()
    beside.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=beside.parent, prefix=f"{beside.name}.texts.") as made:
        yield checked_files(texts, Path(made))


def checked_files(texts: Any, folder: Path) -> list[Path]:
    """The texts as files, those in memory in `folder`. Raises UserError where nothing can be used."""
    refused = Refused()
    files = as_files(texts, folder / "texts.parquet", refused)
    warn(refused)
    return files


def warn(refused: Refused) -> None:
    if refused:
        logger.warning("passed over: %s", refused)
