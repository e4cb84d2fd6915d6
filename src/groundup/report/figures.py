"""Figures: plain data in, an SVG element for an HTML page out.

They are drawn small, so that a phone shows them at their own size. Their colours are variables of the page's style sheet
(`--ink`, `--series-1`, ...), so they follow it from light to dark. The same data gives the same bytes: element ids
come from the figure's name, fonts from matplotlib itself, and no date is written.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.core.statistics import Z95

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 4.4  # inches; with fonts of 9 points, readable at the width of a phone
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
DRAWN_POINTS = 800  # of a series; more cannot be distinguished at this width

# Placeholders of the style sheet's colours, which replace them when the figure is written; nobody would choose these.
INK, MUTED, RULE, PAPER = "#00000a", "#00000b", "#00000c", "#00000d"
SERIES = ("#0000c1", "#0000c2", "#0000c3", "#0000c4", "#0000c5")
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)
}

_ON_PAPER = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}  # of a label, so that no line runs through it

Sizes = Mapping[str, Mapping[str, int]]  # domain -> {"documents", "bytes"}


def funnel(name: str, steps: Sequence[tuple[str, Sizes]]) -> str:
    """Stacked bars of documents and megabytes by domain: one line per step, (its name, what remains after it)."""
    domains = sorted({domain for _, sizes in steps for domain in sizes})
    with _drawing(1.0 + 0.2 * len(steps)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, key, unit, label in zip(panels, ("documents", "bytes"), (1, 1e6), ("documents", "MB"), strict=True):
            starts = [0.0] * len(steps)
            for number, domain in enumerate(domains):
                widths = [sizes.get(domain, {}).get(key, 0) / unit for _, sizes in steps]
                axes.barh(range(len(steps)), widths, left=starts, height=0.62, color=_colour(number), label=_label(domain))
                starts = [start + width for start, width in zip(starts, widths, strict=True)]
            for row, total in enumerate(starts):
                axes.annotate(_short(total), (total, row), (2, 0), textcoords="offset points", va="center", size=8)
            axes.set_xlim(0, max([*starts, 1e-9]) * 1.35)
            axes.set_title(label, size=9)
            axes.grid(axis="y", visible=False)
            axes.xaxis.set_major_locator(_few_ticks())
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(steps)), [step for step, _ in steps])
        panels[0].invert_yaxis()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, max(1, len(domains))))
        return _svg(figure, name)


def loss(
    name: str,
    tokens: Sequence[float],
    losses: Sequence[float],
    held_out: Sequence[tuple[float, float]],
    lrs: Sequence[float],
) -> str:
    """Training loss against millions of tokens, raw and smoothed, with held-out points; the learning rate below it."""
    with _drawing(3.1) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot(*_thinned(tokens, losses), color=SERIES[0], alpha=0.3, linewidth=0.6, label="each step")
        upper.plot(*_thinned(tokens, _smoothed(losses)), color=SERIES[0], linewidth=1.6, label="smoothed")
        if held_out:
            upper.plot(*zip(*held_out, strict=True), "o", color=SERIES[1], markersize=3, label="held-out documents")
            upper.annotate(
                f"{held_out[-1][1]:.2f}", held_out[-1], (0, 5), textcoords="offset points", ha="center", color=SERIES[1], size=8
            )
        upper.set_ylabel("loss, nats per token")
        upper.legend()
        lower.plot(*_thinned(tokens, lrs), color=MUTED, linewidth=1.2)
        lower.set_ylim(0, 1.1)
        lower.set_ylabel("learning rate")
        lower.set_xlabel("millions of tokens read")
        return _svg(figure, name)


def intervals(
    name: str,
    rows: Sequence[tuple[str, float, float | None, float | None]],
    label: str,
    reference: tuple[str, float] | None = None,
    percent: bool = True,
) -> str:
    """One line per row (name, value, low, high): a point, the interval around it if there is one, and a reference line."""
    scale = 100 if percent else 1
    with _drawing(0.9 + 0.27 * len(rows)) as figure:
        axes = figure.subplots()
        for y, (_, value, low, high) in enumerate(rows):
            colour = SERIES[0] if low is not None else MUTED
            if low is not None and high is not None and math.isfinite(high - low):
                axes.plot([low * scale, high * scale], [y, y], color=colour, linewidth=3, alpha=0.35)
            axes.plot([value * scale], [y], "o", color=colour, markersize=5)
            text = f"{value * scale:.0f} %" if percent else f"{value:.2f}"
            axes.annotate(text, (value * scale, y), (0, 5), textcoords="offset points", ha="center", size=8, bbox=_ON_PAPER)
        if reference:
            axes.axvline(reference[1] * scale, color=SERIES[1], linewidth=1, linestyle="--", label=reference[0])
            figure.legend(loc="outside upper right")
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.7)
        numbers = [number for row in rows for number in row[1:] if number is not None and math.isfinite(number)]
        start, end = _span([number * scale for number in [*numbers, *([reference[1]] if reference else [])]], percent)
        axes.set_xlim(start, end)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label if start <= 0 else f"{label}\nthe axis begins at {start:g}, not at 0")
        return _svg(figure, name)


Points = Mapping[str, Sequence[tuple[float, float]]]  # of each group


def scatter(name: str, groups: Points, x_label: str, y_label: str, lines: Points | None = None) -> str:
    """Points of each group, over whole numbers, and for some groups a line in the same colour."""
    with _drawing(2.6) as figure:
        axes = figure.subplots()
        for number, (group, points) in enumerate(groups.items()):
            xs, ys = _thinned([x for x, _ in points], [y for _, y in points])
            axes.plot(xs, ys, "os"[number % 2], color=_colour(number), markersize=3, alpha=0.6, label=_label(group))
            if lines and group in lines:
                axes.plot(*zip(*lines[group], strict=True), color=_colour(number), linewidth=1.2)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if groups:
            figure.legend(loc="outside upper right", ncols=len(groups))
        return _svg(figure, name)


def reliability(name: str, bins: Sequence[Mapping[str, float]], label: str) -> str:
    """Accuracy against confidence, both in %: a point per bin, larger for more questions; the diagonal is calibrated."""
    with _drawing(2.8) as figure:
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle="--", label="as sure as right")
        largest = max(group["n"] for group in bins)
        xs, ys = ([100 * group[key] for group in bins] for key in ("confidence", "accuracy"))
        axes.plot(xs, ys, color=SERIES[0], linewidth=1, label=label)
        for x, y, group in zip(xs, ys, bins, strict=True):
            axes.plot([x], [y], "o", color=SERIES[0], markersize=3 + 6 * math.sqrt(group["n"] / largest), clip_on=False)
        axes.set_xlabel("confidence in the choice, %")
        axes.set_ylabel("of these right, %")
        figure.legend(loc="outside upper right", ncols=2)
        return _svg(figure, name)


def curve(
    name: str, points: Sequence[tuple[float, float, float]], x_label: str, y_label: str, marked: float
) -> str:
    """Points (x, y, half of the interval around y) joined by a line over powers of two; the point at x `marked` is circled."""
    xs, ys, errors = zip(*points, strict=True)
    with _drawing(2.6) as figure:
        axes = figure.subplots()
        axes.errorbar(xs, ys, errors, color=SERIES[0], marker="o", markersize=3, linewidth=1.2, capsize=2)
        axes.plot([marked], [ys[xs.index(marked)]], "o", color=SERIES[1], markersize=8, fillstyle="none", markeredgewidth=1.6)
        _doublings(axes, xs)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return _svg(figure, name)


def vocabulary(sweep: dict[str, Any]) -> str:
    """Bits per byte over the sizes of a vocabulary sweep."""
    points = [(row["vocabulary"], row["bits_per_byte"]["all"], Z95 * row["standard_error"]) for row in sweep["sizes"]]
    return curve("sweep", points, "tokens in the vocabulary", "bits per byte, held out", sweep["recommended"])


def law(
    name: str,
    points: Sequence[tuple[float, float]],
    line: Sequence[tuple[float, float, float, float]],
    x_label: str,
    y_label: str,
) -> str:
    """Points (x, y), and a line (x, y, low, high) with its interval, x over powers of ten."""
    with _drawing(3.0) as figure:
        axes = figure.subplots()
        xs, ys, lows, highs = zip(*line, strict=True)
        axes.fill_between(xs, lows, highs, color=SERIES[1], alpha=0.25, linewidth=0, label="95 %")
        axes.plot(xs, ys, color=SERIES[1], linewidth=1.4, label="best size for the compute")
        axes.plot(*_thinned(*zip(*points, strict=True)), "o", color=SERIES[0], markersize=3, alpha=0.6, label="runs")
        _powers_of_ten(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        figure.legend(loc="outside upper right", ncols=3)
        return _svg(figure, name)


def residuals(name: str, points: Sequence[tuple[float, float]], x_label: str, y_label: str) -> str:
    """Points (x, y) around zero, x over powers of ten."""
    with _drawing(2.0) as figure:
        axes = figure.subplots()
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.plot(*_thinned(*zip(*points, strict=True)), "o", color=SERIES[0], markersize=3, alpha=0.6)
        _powers_of_ten(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return _svg(figure, name)


def architectures(name: str, compared: Mapping[str, Mapping[str, Any]]) -> str:
    """The runs of each architecture, (FLOP, loss), and its loss by position in the context: up to 2, 4, 8, ..."""
    with _drawing(3.0) as figure:
        runs, by_context = figure.subplots(1, 2)
        for number, (label, results) in enumerate(compared.items()):
            xs, ys = zip(*results["points"], strict=True)
            runs.plot(xs, ys, "os"[number % 2], color=_colour(number), markersize=4, label=_label(label))
            ends = [2 ** (exponent + 1) for exponent in range(len(results["by_place"]))]
            by_context.plot(ends, results["by_place"], "os"[number % 2] + "-", color=_colour(number), markersize=4, linewidth=1.2)
        _powers_of_ten(runs)
        runs.set_yscale("log")
        runs.yaxis.set_major_locator(_few_ticks())
        runs.yaxis.set_minor_locator(_few_ticks())
        runs.yaxis.set_major_formatter("{x:.1f}")
        runs.yaxis.set_minor_formatter("")
        _doublings(
            by_context,
            [2 ** (exponent + 1) for exponent in range(max(len(results["by_place"]) for results in compared.values()))],
        )
        for axes, label in ((runs, "FLOP"), (by_context, "tokens of context, at most")):
            axes.set_xlabel(label)
            axes.set_ylabel("loss, nats a token")
        figure.legend(loc="outside upper right", ncols=len(compared))
        return _svg(figure, name)


def panels(
    name: str,
    x_label: str,
    xs: Sequence[float],
    series: Mapping[str, Sequence[float]],
    held_out: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    epoch_ends: Sequence[float] = (),
) -> str:
    """One small plot per series, above each other, over the same xs, with points of held-out rows and lines between epochs."""
    marker = "o" if len(xs) < 15 else ""
    with _drawing(0.5 + 1.05 * len(series) + (0.25 if held_out else 0)) as figure:
        plots = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (label, ys) in zip(plots, series.items(), strict=True):
            if marker:
                axes.plot(xs, ys, color=SERIES[0], marker=marker, markersize=3, linewidth=1.2, label="training")
            else:
                axes.plot(*_thinned(xs, ys), color=SERIES[0], alpha=0.3, linewidth=0.6)
                axes.plot(*_thinned(xs, _smoothed(ys)), color=SERIES[0], linewidth=1.4, label="training, smoothed")
            if points := (held_out or {}).get(label):
                axes.plot(*zip(*points, strict=True), "o-", color=SERIES[1], markersize=3, linewidth=0.8, label="held-out")
            for number, end in enumerate(epoch_ends):
                axes.axvline(end, color=MUTED, linewidth=0.8, linestyle="--", label="end of an epoch" if not number else None)
            axes.set_title(label, size=9, loc="left")
            axes.yaxis.set_major_locator(_few_ticks())
        if epoch_ends or any((held_out or {}).values()):
            handles = {text: line for axes in plots for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
            figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
        plots[-1].set_xlabel(x_label)
        plots[-1].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        return _svg(figure, name)


@contextmanager
def _drawing(height: float) -> "Iterator[Figure]":
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a reader's own matplotlibrc must not change the report
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "font.family": "DejaVu Sans",
                "font.size": 9,
                "text.parse_math": False,
                "text.color": INK,
                "axes.labelcolor": INK,
                "axes.edgecolor": MUTED,
                "xtick.color": MUTED,
                "ytick.color": MUTED,
                "xtick.labelcolor": INK,
                "ytick.labelcolor": INK,
                "grid.color": RULE,
                "grid.linewidth": 0.6,
                "axes.grid": True,
                "axes.axisbelow": True,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.facecolor": "none",
                "figure.facecolor": "none",
                "savefig.facecolor": "none",
                "legend.frameon": False,
            }
        )
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def _svg(figure: "Figure", name: str) -> str:
    """The figure as an element for HTML: without prologue and style, with ids that no other figure has."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = name
    buffer = io.StringIO()
    with warnings.catch_warnings():  # of letters that its font lacks: a browser has others; and of very long names
        warnings.filterwarnings("ignore", r"Glyph .* missing|constrained_layout not applied", UserWarning)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->\n?|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    text = re.sub(r' font-family: [^;"]*;?', "", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def as_file(svg: str) -> str:
    """A figure as a file of its own, in the report's colours for light and for dark screens."""
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8").partition("\n* {")[0].replace("screen and ", "")
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    width, height = svg.partition('viewBox="0 0 ')[2].partition('"')[0].split()
    size = f'width="{2 * float(width):g}" height="{2 * float(height):g}"'
    look = f"<style>\n{style}\nsvg {{ background: var(--paper); font-family: system-ui, sans-serif; }}\n</style>"
    return svg.replace("<svg ", f'<svg data-generator="groundup" {spaces} {size} ', 1).replace(">\n", f">\n{look}\n", 1) + "\n"


def _span(values: Sequence[float], percent: bool) -> tuple[float, float]:
    """Start and end of an axis: around the values, with a quarter more on both sides, so that small differences are visible.

    It is never narrower than ten percent points, or a tenth of the largest value, so that a tiny difference does not look
    large. It includes zero where that is near, and no percentage below 0 or above 100.
    """
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    min_width = 10.0 if percent else max(0.1 * high, 1e-9)
    margin = max((high - low) / 4, (min_width - (high - low)) / 2)
    unit = 5.0 if percent else 10.0 ** math.floor(math.log10(high - low + 2 * margin)) / 10
    end = min(high + margin, 100.0) if percent else high + margin
    start = max(math.floor(min(low - margin, end - min_width) / unit) * unit, 0.0)
    end = max(end, start + min_width)
    beyond = 0.02 * (end - start)  # for half of a point's mark
    return (start or -beyond), (end + beyond if percent and end == 100 else end)


def _label(name: str) -> str:
    """A name for the legend, in which matplotlib leaves out those that begin with an underscore."""
    return f"\u200b{name}" if name.startswith("_") else name


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _powers_of_ten(axes: Any) -> None:
    """A logarithmic x axis. matplotlib's labels are formulas, which are switched off: foreign text could be read as one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    def power(value: float, position: int) -> str:
        return f"10{str(round(math.log10(value))).translate(SUPERSCRIPTS)}"

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(power))


def _doublings(axes: Any, xs: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(xs, [f"{x:,.0f}" for x in xs], rotation=45 if len(xs) > 6 else 0)
    axes.minorticks_off()


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(3, steps=[1, 2, 5, 10])


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.1f}"


def _thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    every = max(1, math.ceil(len(xs) / DRAWN_POINTS))
    return xs[::every], ys[::every]


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean around each value: of a fifteenth of the series, less near the start, where it reaches half of the way there.

    A mean that only looks back, exponential or not, lies above every point where a loss falls. A gap takes the mean before it.
    """
    sums = [0.0, *accumulate(value if math.isfinite(value) else 0.0 for value in values)]
    counts = [0, *accumulate(math.isfinite(value) for value in values)]
    smooth = [math.nan]
    for index in range(len(values)):
        reach = min(len(values) // 30, index // 2)
        first, end = index - reach, min(len(values), index + reach + 1)
        count = counts[end] - counts[first]
        smooth.append((sums[end] - sums[first]) / count if count else smooth[-1])
    return smooth[1:]
