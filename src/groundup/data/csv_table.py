"""A small table of CSV as a whole, such as the runs of a ladder; in any wrapping that rows may come in."""

import csv
import io
from pathlib import Path

from groundup.core.errors import UserError
from groundup.data.file_kinds import STATED_DELIMITER, delimiter_of
from groundup.data.whole_file import read_whole


def csv_table(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a file that hold anything, its head first, each with its line, cut at the head's commas, semicolons or tabs.

    Raises UserError as `read_whole`, and for what is no CSV.
    """
    text = read_whole(path)
    stated = STATED_DELIMITER.match(text)
    before = stated[0] if stated else ""
    try:
        reader = csv.reader(io.StringIO(text[len(before) :], newline=""), delimiter=delimiter_of(text), strict=True)
        return [(len(before.splitlines()) + reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV ({error}); save the table as CSV") from None
