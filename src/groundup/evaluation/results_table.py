"""Results of `evaluate` for people: a line for each result, and the table of all."""

from collections.abc import Sequence
from typing import Any

from groundup.evaluation import breakdown, efficiency, robustness


def line_of(result: dict[str, Any]) -> str:
    truncated = f"; {result['truncated']} truncated from the left" if result["truncated"] else ""
    skipped = f"; {sum(result['skipped'].values())} skipped" if result["skipped"] else ""
    return f"{result['model']}: {result['task']}: {result['n']} examples{truncated}{skipped}"


def table(report: dict[str, Any]) -> str:
    """A block for each task, with a row for each model and baseline and a column for each convention, in per cent."""
    results, comparisons, lines = report["results"], report["comparisons"], []
    label = {result["model"]: result["label"] for result in results}
    for task in dict.fromkeys(result["task"] for result in results):
        task_results = [result for result in results if result["task"] == task]
        columns = [*task_results[0].get("accuracy", {})]
        # A model that skipped some examples as too long may lack a figure that others have, such as the mean over subjects.
        extra_cells = [_extra_cells(result) for result in task_results]
        columns_of_extra = [*dict.fromkeys(head for extra in extra_cells for head in extra)]
        rows = [["", *columns, *columns_of_extra]]
        for result, extra in zip(task_results, extra_cells, strict=True):
            cells = (_percent(result["accuracy"][name]) for name in columns)
            rows.append([result["label"], *cells, *(extra.get(head, "") for head in columns_of_extra)])
        for name, share in task_results[0].get("baselines", {}).items():
            rows.append([name, *(f"{100 * share:.1f}" for _ in columns), *("" for _ in columns_of_extra)])
        counts = sorted({result["n"] for result in task_results})
        example_count = " to ".join(map(str, [counts[0], counts[-1]] if len(counts) > 1 else counts))
        lines += ["", f"{task}: {example_count} examples" + (f"; headline: {task_results[0]['convention']}" if columns else "")]
        lines += _aligned(rows)
        for name in dict.fromkeys(name for result in task_results for name in result.get("by", {})):
            lines += _aligned(breakdown.rows_of_table(name, task_results))
        if "robustness" in task_results[0]:
            lines += _aligned(robustness.rows_of_table(task_results))
        if "efficiency" in task_results[0]:
            lines += _aligned(efficiency.rows_of_table(task_results))
        for compared in comparisons:
            if compared["task"] == task:
                lines.append(
                    f"{label[compared['models'][0]]} less {label[compared['models'][1]]}: {100 * compared['difference']:+.1f} "
                    f"({100 * compared['low']:+.1f} to {100 * compared['high']:+.1f}), p {compared['p']:.2g}"
                    + (f"; {compared['n_to_tell']:,} questions would tell" if compared["n_to_tell"] else "")
                )
    lines += [f"{unscored['label']}: {unscored['reason']}" for unscored in report.get("unscored", [])]
    return "\n".join(lines)


def _percent(figure: dict[str, Any]) -> str:
    return f"{100 * figure['accuracy']:.1f} ±{50 * (figure['high'] - figure['low']):.1f}"


def _extra_cells(result: dict[str, Any]) -> dict[str, str]:
    """Further figures of a model, by column head."""
    if result["kind"] == "perplexity":
        return {
            "bits/byte": f"{result['bits_per_byte']:.4f}",
            "byte perplexity": f"{result['byte_perplexity']:.4f}",
            "word perplexity": f"{result['word_perplexity']:.4g}",
        }
    if "figures" in result:
        cells = {name: _percent({"accuracy": figure["value"], **figure}) for name, figure in result["figures"].items()}
        confidence = {head: result["confidence"].get(head.lower()) for head in ("ECE", "AUROC")} if "confidence" in result else {}
        return cells | {head: f"{figure['value']:.3f}" if figure else "" for head, figure in confidence.items()}
    cells = {"spread": f"{100 * result['spread']:.1f}"} if "spread" in result and len(result["accuracy"]) > 1 else {}
    headline = result["accuracy"][result["convention"]]
    cells |= {"macro": f"{100 * headline['macro']:.1f}"} if "macro" in headline else {}
    cells |= {"perplexity": f"{result['perplexity']:.4g}"} if "perplexity" in result else {}
    cells |= {"f1": _percent(result["f1"])} if "f1" in result else {}
    if "calibration" in result:
        cells |= {"ECE": f"{result['calibration']['ece']:.3f}", "Brier": f"{result['calibration']['brier']:.3f}"}
    return cells


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
