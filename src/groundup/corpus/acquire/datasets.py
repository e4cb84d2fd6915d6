"""Pages from rows of files (`data/readers.py`) and from data sets of the Hugging Face hub.

One column, chosen by name, holds the text. A row is a page under its own `url` where it has one, else under
`file:///<folder>/<file>/<row>`, where the file is named by its path in the folder that is read. A column called `html` holds web
pages, any other plain text.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa

from groundup.core.errors import UserError
from groundup.corpus.archive.warc import Page
from groundup.corpus.urls import quoted, split_url
from groundup.data.file_kinds import Kind
from groundup.data.readers import Refused, batches, gathered, no_column


def read_rows(path: Path, base_url: str, column: str, refused: Refused, kind: Kind | None = None) -> Iterator[Page]:
    """The pages of a file of rows, under `base_url` and their number. Rows that give none are counted in `refused`, by reason.

    Raises UserError, with the names of the columns, when no row has this one, or when the file is neither text nor Parquet.
    """
    for batch in batches(path, column, ("url",), refused, kind):
        yield from _pages(batch, str(path), base_url, column, refused)


@dataclass
class HubDataset:
    """`hf:org/name[:split]` (default split `train`), streamed; the name may be the path of a local folder."""

    source: str
    column: str
    refused: Refused

    def pages(self) -> Generator[Page, None, None]:
        """Raises UserError when the extra `hf` is not installed, or the data set cannot be read or has no such column."""
        source, column = self.source, self.column
        name, _, split = source.removeprefix("hf:").partition(":")
        if not name:
            raise UserError(f"{source}: no name of a data set; give hf:org/name, or hf:org/name:split")
        try:
            import datasets
        except ImportError:
            raise UserError(f"{source}: the package datasets is missing: pip install 'groundup[hf]'") from None
        try:
            rows = iter(datasets.load_dataset(name, split=split or "train", streaming=True))
            first = next(rows, None)
        except Exception as error:  # the library raises dozens of kinds, network errors among them
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{source}: cannot be read ({why}): check the name, the split and the network") from None
        if first is not None and column not in first:
            raise UserError(no_column(source, column, first))
        base_url = f"file:///{quoted(Path(name).name)}/{split or 'train'}"
        all_rows = chain([] if first is None else [first], rows)
        for batch in gathered(enumerate(all_rows), source, column, ("url",), self.refused):
            yield from _pages(batch, source, base_url, column, self.refused)


def _pages(batch: pa.RecordBatch, source: str, base_url: str, column: str, refused: Refused) -> Iterator[Page]:
    for row in batch.to_pylist():
        number, text, url = row["row"], row["text"], row["url"]
        if not text.strip():
            refused.add("no text", f"{source}: row {number + 1}")
            continue
        url = url if url and url.startswith(("http://", "https://")) else f"{base_url}/{number}"
        if split_url(url) is None or "\ufffd" in url:  # half of a surrogate pair, as the reader leaves it
            refused.add("malformed URL", f"{source}: row {number + 1}")
            continue
        yield Page(url, "text/html" if column == "html" else "text/plain", text.encode(), "utf-8")
