"""The table at the end of a run: a row for each step, with its time and what it measured."""

from typing import Any

from groundup.core.progress import duration
from groundup.core.table import table

MAX_FIGURES_LENGTH = 200  # characters of a step's figures: a reader takes in the table at a glance


def summary(seconds: dict[str, float], figures: dict[str, dict[str, Any]]) -> str:
    """The table of `seconds`, of every step, and `figures`, of some; these may be nested."""
    rows = [(name, duration(step_seconds), _cut(_figures_text(figures.get(name, {})))) for name, step_seconds in seconds.items()]
    return table(("step", "time", "figures"), [*rows, ("all", duration(sum(seconds.values())), "")], left=(2,))


def _figures_text(figures: dict[str, Any]) -> str:
    return "; ".join(
        f"{name.replace('_', ' ')} {_value_text(value)}" for name, value in figures.items() if value not in (None, {})
    )


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_value_text(inner)}" for name, inner in value.items() if inner is not None)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_FIGURES_LENGTH else f"{text[: MAX_FIGURES_LENGTH - 3]}..."
