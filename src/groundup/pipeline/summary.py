"""The table at the end of a run: a row for each step, with its time and what it measured."""

from typing import Any

from groundup.core.progress import duration
from groundup.core.table import table

MOST = 200  # characters of a step's figures: a table is to be taken in at a glance


def summary(seconds: dict[str, float], figures: dict[str, dict[str, Any]]) -> str:
    """`seconds` of every step, and of some steps `figures`, which may be nested."""
    rows = [(name, duration(taken), _cut(_words(figures.get(name, {})))) for name, taken in seconds.items()]
    return table(("step", "time", "figures"), [*rows, ("all", duration(sum(seconds.values())), "")], left=(2,))


def _words(figures: dict[str, Any]) -> str:
    return "; ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in figures.items() if value not in (None, {}))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_shown(one)}" for name, one in value.items() if one is not None)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= MOST else f"{text[: MOST - 3]}..."
