"""The page of a leaderboard: self-contained, its only script the one that sorts."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from groundup.core.files import write_text
from groundup.evaluation.leaderboard import load, standings
from groundup.report.tokenizer_page import render

HERE = Path(__file__).parent
COLUMNS = (("Rank", "n"), ("Model", ""), ("Figure", "n"), ("95 %", "n"), ("Tied with", ""), ("ECE", "n"), ("Date", ""))


def write(board: Path, page: Path) -> dict[str, Any]:
    """Write `page` of the leaderboard `board`; {"page", "rows", "tasks", "passed_over"}. Raises UserError as `load` does."""
    from markupsafe import Markup

    rows, notes = load(board)
    by_task = standings(rows, board.parent)
    script = (HERE / "leaderboard.js").read_text(encoding="utf-8")
    text = render(
        "leaderboard.html.jinja",
        {
            "rows": len(rows),
            "notes": notes,
            "standings": by_task,
            "columns": COLUMNS,
            "style": Markup((HERE / "report.css").read_text(encoding="utf-8")),
            "script": Markup(script),
            "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        },
    )
    write_text(page, text)
    return {"page": str(page), "rows": len(rows), "tasks": [task["task"] for task in by_task], "passed_over": notes}
