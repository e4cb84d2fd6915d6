"""A small table of CSV as a whole, such as the runs of a ladder; in any compression and encoding of rows."""

import csv
import io
from pathlib import Path

from groundup.core.errors import UserError
from groundup.data.file_kinds import STATED_DELIMITER, delimiter_of
from groundup.data.whole_file import read_whole


def csv_table(path: Path) -> list[tuple[int, list[str]]]:
    """The non-empty rows of a file, header first, each with its line number; the header decides on comma, semicolon or tab.

    Raises UserError as `read_whole`, and for invalid CSV.
    """
    text = read_whole(path)
    stated = STATED_DELIMITER.match(text)
    preamble = stated[0] if stated else ""
    try:
        reader = csv.reader(io.StringIO(text[len(preamble) :], newline=""), delimiter=delimiter_of(text), strict=True)
        return [(len(preamble.splitlines()) + reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV ({error}); save the table as CSV") from None
