"""Texts in memory as a file, so that the readers of files read them too."""

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

BATCH_TEXTS = 1024  # per row group


def as_files(texts: Path | Iterable[object], out: Path, refused: Refused) -> list[Path]:
    """Files and folders of texts: the `Path`s among `texts`, then `out` (Parquet) with every `str` among them.

    Other objects, blank texts and texts over 64 MB are counted in `refused`, by their index in `texts`.
    Raises UserError where none can be used, for a single `str`, which may be a text or the name of a file, and for a table.
    """
    if isinstance(texts, Path):
        return [expanded(texts)]
    require_no_table(texts, "texts", "its column of texts, as data['text']")
    try:
        items = iter(texts)
    except TypeError:
        raise UserError(f"texts: {type(texts).__name__}; give an iterable of str, or of pathlib.Path") from None
    paths: list[Path] = []
    good_texts = _good_texts(items, paths, refused)
    if (first := next(good_texts, None)) is not None:
        schema = pa.schema([("text", pa.large_string())])
        with replacing(out) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            batch = [first, *islice(good_texts, BATCH_TEXTS - 1)]
            while batch:
                writer.write_table(pa.table({"text": batch}, schema=schema))
                batch = [*islice(good_texts, BATCH_TEXTS)]
        paths.append(out)
    if not paths:
        raise UserError(f"texts: none that can be used{f' ({refused})' if refused else ''}")
    return paths


def require_no_table(data: object, name: str, instead: str) -> None:
    """Raises UserError for a table, over whose column names Python would iterate as if these were the data.

    Likewise for one `str` and for a mapping.
    """
    if isinstance(data, str | bytes):
        raise UserError(f"{name}: one str is no list of texts; give [text], or pathlib.Path(name) of a file or folder")
    if isinstance(data, Mapping) or hasattr(data, "columns"):  # of pandas, polars, Arrow
        raise UserError(f"{name}: {type(data).__name__}, a table as a whole; give {instead}")


def _good_texts(items: Iterator[Any], paths: list[Path], refused: Refused) -> Iterator[str]:
    """The texts that can be used; appends paths to `paths`."""
    for number, item in enumerate(items):
        if isinstance(item, Path):
            paths.append(expanded(item))
        elif not isinstance(item, str):
            refused.add("not a str", f"texts[{number}]")
        elif not item.strip():
            refused.add("empty", f"texts[{number}]")
        elif len(text := well_formed(item)) > MAX_TEXT_BYTES or len(text.encode()) > MAX_TEXT_BYTES:
            refused.add(f"over {MAX_TEXT_BYTES >> 20} MB", f"texts[{number}]")
        else:
            yield text
