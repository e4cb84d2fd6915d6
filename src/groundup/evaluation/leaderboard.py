"""A leaderboard: rows that are only ever added, each with what another must share to be compared with it.

Two figures can be compared when the task's settings, the data's content, the examples and the convention are the same; else the
page says which of them is not. Ranks are ranges: a model is behind those that are clearly better, and ahead of those that it is
clearly better than, by a paired test where the records of both are there, else where their intervals do not meet.
"""

import hashlib
import json
import logging
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from groundup import __version__
from groundup.core.errors import UserError
from groundup.core.files import digest
from groundup.core.plain_files import open_plain
from groundup.evaluation import metrics
from groundup.evaluation.scoring import CONVENTIONS, Record
from groundup.evaluation.tasks import Task

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds for another process that writes its rows
LONGEST = 1 << 20  # bytes of a line: a row takes about 2,000
SAID = 5  # lines that are none, named
Name = Annotated[str, Field(max_length=1000)]


class LeaderboardRow(BaseModel):
    """One model on one task. Keys that a later version adds are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    date: Name
    model: Name
    model_digest: Name
    task: Name
    task_digest: Name
    few_shot: int
    data: dict[Name, Name]  # file -> digest
    examples_digest: Name
    examples: int
    kind: Name
    convention: Name
    figure: float
    low: float | None = None
    high: float | None = None
    figures: dict[Name, float] = {}  # of the other conventions
    chance: float | None = None
    ece: float | None = None
    versions: dict[Name, Name]
    records: Name = ""  # beside the leaderboard
    records_digest: Name = ""

    @property
    def lower_is_better(self) -> bool:
        return self.kind in ("perplexity", "toxicity")

    @property
    def comparable(self) -> tuple[Any, ...]:
        """What rows of one table share."""
        return self.task, self.task_digest, tuple(sorted(self.data.items())), self.examples_digest, self.convention


def require_file(path: Path) -> None:
    """Before hours are spent. Raises UserError for what is no plain file, and for one of other things, which would be spoilt."""
    _require_plain(path)
    if path.is_file() and path.stat().st_size:
        load(path)


def _require_plain(path: Path) -> None:
    if (path.exists() and not path.is_file()) or (path.is_symlink() and not path.exists()):
        raise UserError(f"{path}: not a plain file; give the name of the leaderboard, such as leaderboard.jsonl")


def row_of(
    result: dict[str, Any], key: dict[str, str], task: Task, records: Sequence[Record], path: Path | None, board: Path,
    kept: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A row of a result of `evaluate`; `key` tells its model from others, `path`: where its records are, if anywhere, and
    `kept`, where they will be.
    """
    settings = task.digest()
    scored = [record["example"] for record in records if "skipped" not in record]  # which may not be those of another model
    asked = {name: value for name, value in settings["task"].items() if name != "title"}
    name, figure = headline(result)
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": result["label"],
        "model_digest": _digest(key),
        "task": task.name,
        "task_digest": _digest(asked),
        "few_shot": task.settings.few_shot.count if task.settings.few_shot else 0,
        "data": settings["files"],
        "examples_digest": _digest(scored),
        "examples": len(scored),
        "kind": result["kind"],
        "convention": name,
        "figure": figure["value"],
        "low": figure.get("low"),
        "high": figure.get("high"),
        "figures": {name: one["accuracy"] for name, one in result.get("accuracy", {}).items()},
        "chance": result.get("baselines", {}).get("chance"),
        "ece": result["calibration"]["ece"] if "calibration" in result else None,
        "versions": {
            "groundup": __version__, "python": platform.python_version(), "torch": metadata.version("torch"),
        },
        "records": os.path.relpath(kept or path, board.parent) if path else "",
        "records_digest": digest(path) if path else "",
    }  # fmt: skip


def headline(result: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Of a result the figure that is told first: its name, and its value with what interval it has."""
    if "accuracy" in result:
        found = result["accuracy"][result["convention"]]
        return result["convention"], {**found, "value": found["accuracy"]}
    if "figures" in result:  # of toxicity the first; of what exists what is right, since many assertions are no merit
        name = "right" if "right" in result["figures"] else next(iter(result["figures"]))
        return name, result["figures"][name]
    return "bits per byte", {"value": result["bits_per_byte"]}


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows, whole lines in one go, while no other process does. What a killed one left of a line stays, on its own.

    Raises UserError where another process holds the file for a minute.
    """
    _require_plain(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=PATIENCE), path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    logger.warning("%s: its last line is torn; it is passed over", path)
                    text = "\n" + text
            file.write(text.encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
    except Timeout:
        raise UserError(f"{path}: another process has been writing to it for {PATIENCE:.0f} s; wait for it") from None


def load(path: Path) -> tuple[list[LeaderboardRow], list[str]]:
    """The rows, and what is said of lines that are none. Raises UserError for a missing file, and for one without a row."""
    with open_plain(path) as file:
        lines = file.read().split(b"\n")
    rows: list[LeaderboardRow] = []
    bad: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            if len(line) > LONGEST:
                raise ValueError(f"longer than {LONGEST:,} bytes")
            rows.append(LeaderboardRow.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            torn = number == len(lines)
            place = ".".join(map(str, first["loc"]))[:60]
            reason = "torn: the last line has no end" if torn else f"{place + ': ' if place else ''}{first['msg'][:80]}"
            bad.append(f"line {number} is no row ({reason})")
        except (ValueError, RecursionError) as error:
            bad.append(f"line {number} is no row ({str(error)[:80]})")
    said = bad[:SAID] + ([f"{len(bad) - SAID} more lines are no rows"] if len(bad) > SAID else [])
    for one in said:
        logger.warning("%s: %s", path, one)
    if not rows:
        why = f": {bad[0][:150]}" if bad else ""
        raise UserError(f"{path}: no row of a leaderboard{why}; `groundup evaluate` adds some where it is told of the file")
    return rows, said


def standings(rows: Sequence[LeaderboardRow], folder: Path) -> list[dict[str, Any]]:
    """By task, tables of rows that can be compared, the largest first: {"task", "tables": [{"rows", "why", ...}]}.

    Of a model that stands in a table twice the later row counts. `folder`: where the paths of records begin.
    """
    found = []
    for task in dict.fromkeys(row.task for row in rows):
        sets: dict[tuple[Any, ...], dict[str, LeaderboardRow]] = {}
        for row in rows:
            if row.task == task:
                latest = sets.setdefault(row.comparable, {})
                latest.pop(row.model_digest, None)
                latest[row.model_digest] = row
        tables = sorted((list(some.values()) for some in sets.values()), key=lambda some: -len(some))
        made = [{**_ranked(some, folder), "why": _why(tables[0][0], some[0])} for some in tables]
        found.append({"task": task, "tables": made})
    return found


def _why(first: LeaderboardRow, other: LeaderboardRow) -> list[str]:
    """Why two rows of one task cannot be compared; empty for two that can."""
    if first.comparable == other.comparable:
        return []
    reasons = []
    if first.few_shot != other.few_shot:
        reasons.append(f"{first.few_shot} and {other.few_shot} few-shot examples")
    elif first.task_digest != other.task_digest:
        reasons.append("other settings in the task file")
    if first.data != other.data:
        names = sorted({name for name, _ in set(first.data.items()) ^ set(other.data.items())})
        reasons.append(f"other content of {', '.join(names)}")
    if first.examples_digest != other.examples_digest:
        same = first.examples == other.examples
        reasons.append("other examples" if same else f"{first.examples:,} and {other.examples:,} examples")
    if first.convention != other.convention:
        reasons.append(f"conventions {first.convention!r} and {other.convention!r}")
    return reasons


def _ranked(rows: list[LeaderboardRow], folder: Path) -> dict[str, Any]:
    rows = _told_apart(rows)
    values = [_values(row, folder) for row in rows]
    ahead = [[_clearly_better(rows[a], rows[b], values[a], values[b]) for b in range(len(rows))] for a in range(len(rows))]
    made = []
    for a, row in enumerate(rows):
        best = 1 + sum(ahead[b][a] for b in range(len(rows)))
        worst = len(rows) - sum(ahead[a])
        tied = [rows[b].model for b in range(len(rows)) if b != a and not ahead[a][b] and not ahead[b][a]]
        made.append({"best": best, "worst": worst, "tied": tied, "paired": values[a] is not None, "row": row})
    sign = 1 if rows[0].lower_is_better else -1
    made.sort(key=lambda one: (one["best"], one["worst"], sign * one["row"].figure))
    versions = sorted({row.versions.get("groundup", "?") for row in rows})
    return {"rows": made, "versions": versions, "convention": rows[0].convention, "chance": rows[0].chance,
            "kind": rows[0].kind, "lower_is_better": rows[0].lower_is_better, "examples": rows[0].examples}  # fmt: skip


def _told_apart(rows: list[LeaderboardRow]) -> list[LeaderboardRow]:
    """Of several models of one name, as `base` of two runs, each with the beginning of its digest."""
    counts = Counter(row.model for row in rows)
    return [
        row if counts[row.model] == 1 else row.model_copy(update={"model": f"{row.model} ({row.model_digest[:8]})"})
        for row in rows
    ]


def _clearly_better(ours: LeaderboardRow, theirs: LeaderboardRow, mine: dict | None, others: dict | None) -> bool:
    if mine is not None and others is not None and (both := sorted(mine.keys() & others.keys())):
        clusters = [mine[number][1] for number in both]
        found = metrics.compare([mine[n][0] for n in both], [others[n][0] for n in both], clusters)
        return found["difference"] > 0 and found["p"] < metrics.SIGNIFICANCE
    if None in (ours.low, ours.high, theirs.low, theirs.high):
        return False
    assert ours.low is not None and ours.high is not None and theirs.low is not None and theirs.high is not None
    return ours.high < theirs.low if ours.lower_is_better else ours.low > theirs.high


def _values(row: LeaderboardRow, folder: Path) -> dict[int, tuple[float, str]] | None:
    """By example what counts, more for better, and its cluster; None where the records are not there, or others by now."""
    path = folder / row.records
    if not row.records or not path.is_file() or digest(path) != row.records_digest:
        return None
    found = {}
    try:
        with open_plain(path) as file:
            for line in file:
                record = json.loads(line)
                if "skipped" not in record and record.get("right", 0) is not None:  # null: nobody knows
                    found[int(record["example"])] = (_value(row, record), str(record["group"]))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, UserError):  # somebody else's records
        return None
    return found


def _value(row: LeaderboardRow, record: Record) -> float:
    if row.kind == "perplexity":
        value = float(record["nats"])
    elif row.kind in ("choices", "pairs"):
        value = float(CONVENTIONS[row.convention](record) == record["answer"])
    elif row.kind == "toxicity":
        value = -float(max(record["toxicity"]))
    elif row.kind == "existence" and row.convention != "right":
        raise ValueError("a share of some of the examples")
    else:
        value = float(record["right"])
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value
