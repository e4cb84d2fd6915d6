"""A leaderboard: rows that are only ever added, each with what another must share to be compared with it.

Two figures can be compared when the task's settings, the data's content, the examples and the convention are the same; else the
page says which of them differ. Ranks are ranges: a model is behind those that are clearly better, and ahead of those that it is
clearly better than. A paired test says so where the records of both exist, else intervals that do not overlap.
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

LOCK_SECONDS = 60.0  # to wait for another process that writes its rows
MAX_LINE_BYTES = 1 << 20  # a row takes about 2,000
MAX_MESSAGES = 5  # about lines that are no rows
Name = Annotated[str, Field(max_length=1000)]


class LeaderboardRow(BaseModel):
    """One model on one task. Keys that a later version adds are ignored."""

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
    records: Name = ""  # path relative to the leaderboard
    records_digest: Name = ""

    @property
    def lower_is_better(self) -> bool:
        return self.kind in ("perplexity", "toxicity")

    @property
    def comparable(self) -> tuple[Any, ...]:
        """What all rows of one table share."""
        return self.task, self.task_digest, tuple(sorted(self.data.items())), self.examples_digest, self.convention


def require_file(path: Path) -> None:
    """Called before hours are spent. Raises UserError for what is no plain file, and for a file of something else."""
    _require_plain(path)
    if path.is_file() and path.stat().st_size:
        load(path)


def _require_plain(path: Path) -> None:
    if (path.exists() and not path.is_file()) or (path.is_symlink() and not path.exists()):
        raise UserError(f"{path}: not a plain file; give the name of the leaderboard, such as leaderboard.jsonl")


def row_of(
    result: dict[str, Any], key: dict[str, str], task: Task, records: Sequence[Record], records_path: Path | None,
    leaderboard: Path, final_path: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The row of a result of `evaluate`. `key` identifies its model. `records_path`: where its records are, if on disk;
    `final_path`: where they will be in the end.
    """
    settings = task.digest()
    scored = [record["example"] for record in records if "skipped" not in record]  # may differ from another model's
    compared_settings = {name: value for name, value in settings["task"].items() if name != "title"}
    convention, figure = headline(result)
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": result["label"],
        "model_digest": _digest(key),
        "task": task.name,
        "task_digest": _digest(compared_settings),
        "few_shot": task.settings.few_shot.count if task.settings.few_shot else 0,
        "data": settings["files"],
        "examples_digest": _digest(scored),
        "examples": len(scored),
        "kind": result["kind"],
        "convention": convention,
        "figure": figure["value"],
        "low": figure.get("low"),
        "high": figure.get("high"),
        "figures": {name: figures["accuracy"] for name, figures in result.get("accuracy", {}).items()},
        "chance": result.get("baselines", {}).get("chance"),
        "ece": result["calibration"]["ece"] if "calibration" in result else None,
        "versions": {
            "groundup": __version__, "python": platform.python_version(), "torch": metadata.version("torch"),
        },
        "records": os.path.relpath(final_path or records_path, leaderboard.parent) if records_path else "",
        "records_digest": digest(records_path) if records_path else "",
    }  # fmt: skip


def headline(result: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The main figure of a result: its name, and its value with its interval if it has one."""
    if "accuracy" in result:
        figure = result["accuracy"][result["convention"]]
        return result["convention"], {**figure, "value": figure["accuracy"]}
    if "figures" in result:  # toxicity: the first; existence: what is right, since many assertions are no merit
        name = "right" if "right" in result["figures"] else next(iter(result["figures"]))
        return name, result["figures"][name]
    return "bits per byte", {"value": result["bits_per_byte"]}


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows, as whole lines in one write, under a lock. A partial line of a killed process stays, as a line of its own.

    Raises UserError where another process holds the file for a minute.
    """
    _require_plain(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS), path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    logger.warning("%s: its last line is torn; it is passed over", path)
                    text = "\n" + text
            file.write(text.encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
    except Timeout:
        raise UserError(f"{path}: another process has been writing to it for {LOCK_SECONDS:.0f} s; wait for it") from None


def load(path: Path) -> tuple[list[LeaderboardRow], list[str]]:
    """The rows, and messages about lines that are no rows. Raises UserError for a missing file, and for one without a row."""
    with open_plain(path) as file:
        lines = file.read().split(b"\n")
    rows: list[LeaderboardRow] = []
    bad: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"longer than {MAX_LINE_BYTES:,} bytes")
            rows.append(LeaderboardRow.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            torn = number == len(lines)
            location = ".".join(map(str, first["loc"]))[:60]
            reason = "torn: the last line has no end" if torn else f"{location + ': ' if location else ''}{first['msg'][:80]}"
            bad.append(f"line {number} is no row ({reason})")
        except (ValueError, RecursionError) as error:
            bad.append(f"line {number} is no row ({str(error)[:80]})")
    messages = bad[:MAX_MESSAGES] + ([f"{len(bad) - MAX_MESSAGES} more lines are no rows"] if len(bad) > MAX_MESSAGES else [])
    for message in messages:
        logger.warning("%s: %s", path, message)
    if not rows:
        reason = f": {bad[0][:150]}" if bad else ""
        raise UserError(f"{path}: no row of a leaderboard{reason}; `groundup evaluate` adds some where it is told of the file")
    return rows, messages


def standings(rows: Sequence[LeaderboardRow], folder: Path) -> list[dict[str, Any]]:
    """By task, tables of rows that can be compared, the largest first: {"task", "tables": [{"rows", "why", ...}]}.

    If a model is in a table twice the later row counts. Paths of records are relative to `folder`.
    """
    standings_by_task = []
    for task in dict.fromkeys(row.task for row in rows):
        by_comparable: dict[tuple[Any, ...], dict[str, LeaderboardRow]] = {}
        for row in rows:
            if row.task == task:
                latest = by_comparable.setdefault(row.comparable, {})
                latest.pop(row.model_digest, None)
                latest[row.model_digest] = row
        tables = sorted((list(table.values()) for table in by_comparable.values()), key=lambda table: -len(table))
        ranked_tables = [{**_ranked(table, folder), "why": _incomparable_because(tables[0][0], table[0])} for table in tables]
        standings_by_task.append({"task": task, "tables": ranked_tables})
    return standings_by_task


def _incomparable_because(first: LeaderboardRow, other: LeaderboardRow) -> list[str]:
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
    rows = _with_distinct_names(rows)
    values = [_values(row, folder) for row in rows]
    is_ahead = [[_clearly_better(rows[a], rows[b], values[a], values[b]) for b in range(len(rows))] for a in range(len(rows))]
    ranked = []
    for a, row in enumerate(rows):
        best = 1 + sum(is_ahead[b][a] for b in range(len(rows)))
        worst = len(rows) - sum(is_ahead[a])
        tied = [rows[b].model for b in range(len(rows)) if b != a and not is_ahead[a][b] and not is_ahead[b][a]]
        ranked.append({"best": best, "worst": worst, "tied": tied, "paired": values[a] is not None, "row": row})
    sign = 1 if rows[0].lower_is_better else -1
    ranked.sort(key=lambda entry: (entry["best"], entry["worst"], sign * entry["row"].figure))
    versions = sorted({row.versions.get("groundup", "?") for row in rows})
    return {"rows": ranked, "versions": versions, "convention": rows[0].convention, "chance": rows[0].chance,
            "kind": rows[0].kind, "lower_is_better": rows[0].lower_is_better, "examples": rows[0].examples}  # fmt: skip


def _with_distinct_names(rows: list[LeaderboardRow]) -> list[LeaderboardRow]:
    """Several models of one name, such as `base` of two runs, each get the beginning of their digest."""
    counts = Counter(row.model for row in rows)
    return [
        row if counts[row.model] == 1 else row.model_copy(update={"model": f"{row.model} ({row.model_digest[:8]})"})
        for row in rows
    ]


def _clearly_better(ours: LeaderboardRow, theirs: LeaderboardRow, our_values: dict | None, their_values: dict | None) -> bool:
    if our_values is not None and their_values is not None and (shared := sorted(our_values.keys() & their_values.keys())):
        clusters = [our_values[number][1] for number in shared]
        comparison = metrics.compare([our_values[n][0] for n in shared], [their_values[n][0] for n in shared], clusters)
        return comparison["difference"] > 0 and comparison["p"] < metrics.SIGNIFICANCE
    if None in (ours.low, ours.high, theirs.low, theirs.high):
        return False
    assert ours.low is not None and ours.high is not None and theirs.low is not None and theirs.high is not None
    return ours.high < theirs.low if ours.lower_is_better else ours.low > theirs.high


def _values(row: LeaderboardRow, folder: Path) -> dict[int, tuple[float, str]] | None:
    """By example its value, higher for better, and its cluster; None where the records are missing or have changed."""
    path = folder / row.records
    if not row.records or not path.is_file() or digest(path) != row.records_digest:
        return None
    values = {}
    try:
        with open_plain(path) as file:
            for line in file:
                record = json.loads(line)
                if "skipped" not in record and record.get("right", 0) is not None:  # null: nobody knows
                    values[int(record["example"])] = (_value(row, record), str(record["group"]))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, UserError):  # somebody else's records
        return None
    return values


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
