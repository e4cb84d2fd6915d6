"""Numbers, decisions and foreign text, as a page shows them."""

import math

from groundup.core.progress import duration

NO_INTERVAL = "no interval"  # of a single value
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def against(low: float, high: float, line: float) -> str:
    """Where an interval lies: "above" the line, "below" it, or "open" when the line is within (or nothing is known)."""
    if low > line:
        return "above"
    return "below" if high < line else "open"


def number(value: float) -> str:
    """1234567 -> '1.23 million'; powers of ten from 1e15."""
    if not math.isfinite(value):
        return "not measured"
    rounded = float(f"{value:.3g}") if abs(value) >= 1e6 else value  # 999,999,999 is a billion, not 1e+03 million
    if abs(rounded) >= 1e15:
        digits, exponent = f"{value:.1e}".split("e+")
        return f"{digits} × 10{exponent.translate(_RAISED)}"
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(rounded) >= size:
            return f"{rounded / size:.3g} {word}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def percent(share: float) -> str:
    return f"{share:.0%}".replace("%", "\u00a0%") if math.isfinite(share) else "not measured"


def decimals(value: float, places: int = 2) -> str:
    return f"{value:,.{places}f}".replace("-", "−") if math.isfinite(value) else "not measured"


def interval(estimate: dict[str, float]) -> str:
    """The interval of a share: '12 to 15 %'."""
    if not (math.isfinite(estimate["low"]) and math.isfinite(estimate["high"])):
        return NO_INTERVAL
    return f"{percent(estimate['low']).removesuffix(chr(0xA0) + '%')} to {percent(estimate['high'])}"


def bounds(low: float, high: float, places: int = 2) -> str:
    """An interval: '0.12 to 0.15'."""
    known = math.isfinite(low) and math.isfinite(high)
    return f"{decimals(low, places)} to {decimals(high, places)}" if known else NO_INTERVAL


def seconds(value: float) -> str:
    return duration(value) if value >= 1 else "< 1s"


def comparison(
    question: str, result: str, other: str, ahead: float, low: float, high: float, unit: str = "points"
) -> dict[str, str]:
    """A line of the summary. `ahead`: by how much the result is better than the other, with its 95 % interval.

    Where the unit is points, of a hundred, these are shares.
    """
    scale, places = (100, 1) if unit == "points" else (1, 2)
    amount = f"{decimals(scale * ahead, places)} {unit}"
    by = f"{amount} ({decimals(scale * low, places)} to {decimals(scale * high, places)})"
    known = all(map(math.isfinite, (ahead, low, high)))
    verdict = {"above": "better", "below": "worse", "open": "cannot be told apart"}[against(low, high, 0)]
    return {
        "question": question, "result": result, "other": other, "ahead": by if known else "not measured",
        "verdict": verdict if known else "cannot be told apart",
    }  # fmt: skip


def _name(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"
