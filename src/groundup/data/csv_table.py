"""A small table of CSV as a whole, such as the runs of a ladder; in any wrapping that rows may come in."""

import csv
import io
from pathlib import Path

from groundup.core.errors import UserError
from groundup.data.kinds import STATED_DELIMITER, delimiter_of
from groundup.data.text import read_whole


def csv_table(path: Path) -> list[list[str]]:
    """The rows of a file, its head among them, cut at the commas, semicolons or tabs that the head has.

    Raises UserError as `read_whole`, and for what is no CSV.
    """
    text = read_whole(path)
    try:
        lines = io.StringIO(STATED_DELIMITER.sub("", text, 1) if STATED_DELIMITER.match(text) else text, newline="")
        return list(csv.reader(lines, delimiter=delimiter_of(text), strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV ({error}); save the table as CSV") from None
