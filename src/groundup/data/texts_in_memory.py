"""Texts in memory as a file, so that what reads people's files reads them too."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from groundup.core.errors import UserError
from groundup.core.files import replacing
from groundup.core.plain_files import expanded
from groundup.core.text import well_formed
from groundup.data.readers import MAX_TEXT_BYTES, Refused

BATCH = 1024  # texts of a row group


def as_files(texts: Path | Iterable[object], made: Path, refused: Refused) -> list[Path]:
    """Files and folders of texts: the `Path`s among `texts` as they are, then `made` (Parquet) with every `str` among them.

    What is neither, holds nothing but white space or is over 64 MB is counted in `refused`, by its number in `texts`.
    Raises UserError where nothing is left, for one `str`, which may be a text or the name of a file, and for a table.
    """
    if isinstance(texts, Path):
        return [expanded(texts)]
    require_no_table(texts, "texts", "its column of texts, as data['text']")
    try:
        given = iter(texts)
    except TypeError:
        raise UserError(f"texts: {type(texts).__name__}; give an iterable of str, or of pathlib.Path") from None
    paths: list[Path] = []
    good = _good(given, paths, refused)
    if (first := next(good, None)) is not None:
        schema = pa.schema([("text", pa.large_string())])
        with replacing(made) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            batch = [first, *islice(good, BATCH - 1)]
            while batch:
                writer.write_table(pa.table({"text": batch}, schema=schema))
                batch = [*islice(good, BATCH)]
        paths.append(made)
    if not paths:
        raise UserError(f"texts: none that can be used{f' ({refused})' if refused else ''}")
    return paths


def require_no_table(data: object, name: str, instead: str) -> None:
    """Raises UserError for a table, which Python would go through by the names of its columns, as if these were the data.

    For one `str` and a mapping too, which would be taken apart likewise.
    """
    if isinstance(data, str | bytes):
        raise UserError(f"{name}: one str is no list of texts; give [text], or pathlib.Path(name) of a file or folder")
    if isinstance(data, Mapping) or hasattr(data, "columns"):  # of pandas, polars, Arrow
        raise UserError(f"{name}: {type(data).__name__}, a table as a whole; give {instead}")


def _good(given: Iterator[Any], paths: list[Path], refused: Refused) -> Iterator[str]:
    """The texts that can be used; on the way `paths` gets what are paths."""
    for number, one in enumerate(given):
        if isinstance(one, Path):
            paths.append(expanded(one))
        elif not isinstance(one, str):
            refused.add("not a str", f"texts[{number}]")
        elif not one.strip():
            refused.add("empty", f"texts[{number}]")
        elif len(text := well_formed(one)) > MAX_TEXT_BYTES or len(text.encode()) > MAX_TEXT_BYTES:
            refused.add(f"over {MAX_TEXT_BYTES >> 20} MB", f"texts[{number}]")
        else:
            yield text
