"""What `evaluate` found, for people: a line for each result, and the table of all."""

from collections.abc import Sequence
from typing import Any

from groundup.evaluation import breakdown, efficiency, robustness


def line_of(result: dict[str, Any]) -> str:
    cut = f"; {result['truncated']} truncated from the left" if result["truncated"] else ""
    left = f"; {sum(result['skipped'].values())} skipped" if result["skipped"] else ""
    return f"{result['model']}: {result['task']}: {result['n']} examples{cut}{left}"


def table(found: dict[str, Any]) -> str:
    """For people: a block for each task, a row for each model and baseline, a column for each convention, in per cent."""
    results, comparisons, lines = found["results"], found["comparisons"], []
    label = {result["model"]: result["label"] for result in results}
    for task in dict.fromkeys(result["task"] for result in results):
        some = [result for result in results if result["task"] == task]
        columns = [*some[0].get("accuracy", {})]
        # A model that some examples were too long for may lack a figure of the others, such as the mean over subjects.
        more = [_more(result) for result in some]
        heads = [*dict.fromkeys(head for one in more for head in one)]
        rows = [["", *columns, *heads]]
        for result, one in zip(some, more, strict=True):
            cells = (_shown(result["accuracy"][name]) for name in columns)
            rows.append([result["label"], *cells, *(one.get(head, "") for head in heads)])
        for name, share in some[0].get("baselines", {}).items():
            rows.append([name, *(f"{100 * share:.1f}" for _ in columns), *("" for _ in heads)])
        counts = sorted({result["n"] for result in some})
        shown = " to ".join(map(str, [counts[0], counts[-1]] if len(counts) > 1 else counts))
        lines += ["", f"{task}: {shown} examples" + (f"; headline: {some[0]['convention']}" if columns else "")]
        lines += _aligned(rows)
        for name in dict.fromkeys(name for one in some for name in one.get("by", {})):
            lines += _aligned(breakdown.rows_of_table(name, some))
        if "robustness" in some[0]:
            lines += _aligned(robustness.rows_of_table(some))
        if "efficiency" in some[0]:
            lines += _aligned(efficiency.rows_of_table(some))
        for compared in comparisons:
            if compared["task"] == task:
                lines.append(
                    f"{label[compared['models'][0]]} less {label[compared['models'][1]]}: {100 * compared['difference']:+.1f} "
                    f"({100 * compared['low']:+.1f} to {100 * compared['high']:+.1f}), p {compared['p']:.2g}"
                    + (f"; {compared['n_to_tell']:,} questions would tell" if compared["n_to_tell"] else "")
                )
    lines += [f"{one['label']}: {one['reason']}" for one in found.get("unscored", [])]
    return "\n".join(lines)


def _shown(figure: dict[str, Any]) -> str:
    return f"{100 * figure['accuracy']:.1f} ±{50 * (figure['high'] - figure['low']):.1f}"


def _more(result: dict[str, Any]) -> dict[str, str]:
    """What else is shown of a model, by the heads of the columns."""
    if result["kind"] == "perplexity":
        return {
            "bits/byte": f"{result['bits_per_byte']:.4f}",
            "byte perplexity": f"{result['byte_perplexity']:.4f}",
            "word perplexity": f"{result['word_perplexity']:.4g}",
        }
    if "figures" in result:
        cells = {name: _shown({"accuracy": one["value"], **one}) for name, one in result["figures"].items()}
        known = {head: result["confidence"].get(head.lower()) for head in ("ECE", "AUROC")} if "confidence" in result else {}
        return cells | {head: f"{one['value']:.3f}" if one else "" for head, one in known.items()}
    cells = {"spread": f"{100 * result['spread']:.1f}"} if "spread" in result and len(result["accuracy"]) > 1 else {}
    headline = result["accuracy"][result["convention"]]
    cells |= {"macro": f"{100 * headline['macro']:.1f}"} if "macro" in headline else {}
    cells |= {"perplexity": f"{result['perplexity']:.4g}"} if "perplexity" in result else {}
    cells |= {"f1": _shown(result["f1"])} if "f1" in result else {}
    if "calibration" in result:
        cells |= {"ECE": f"{result['calibration']['ece']:.3f}", "Brier": f"{result['calibration']['brier']:.3f}"}
    return cells


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
