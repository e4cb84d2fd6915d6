"""The ledger of a ladder: a line of JSON for each run that is done, and the table that laws are fitted to."""

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.files import read_text, write_text

logger = logging.getLogger(__name__)

COLUMNS = ("parameters", "tokens", "loss", "flop", "batch", "parameters_total", "parameters_without_embedding")


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The runs that are done. A last line that was cut off is left out and logged; its run is done again.

    Raises UserError, with the line's number, for another line that is no run.
    """
    lines = [line for line in read_text(path).split("\n") if line] if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                logger.warning("%s: its last line was cut off; that run is done again", path)
                break
            row = None
        wanted = ("name", "seconds", *COLUMNS)
        if not isinstance(row, dict) or any(not isinstance(row.get(name), (str, int, float)) for name in wanted):
            raise UserError(f"{path}:{number}: not a run of a ladder; delete that line, and its run is done again")
        rows.append(row)
    return rows


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, ["name", *COLUMNS], extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())
