from typing import Any

from groundup.report import figures
from groundup.report.run_results import RunResults

TITLE = "Benchmarks: tests that others use"
STAGES = ("benchmarks",)


def gather(run: RunResults) -> dict[str, Any]:
    tested = run.results["benchmarks"]
    tasks = []
    for name in tested["tasks"]:
        results = [result for result in tested["results"] if result["task"] == name]
        first = results[0]
        bins = first["calibration"]["bins"] if "calibration" in first else []
        columns = [result["label"] for result in results] + list(first.get("baselines", {}))
        tasks.append({
            "name": name,
            "results": results,
            "heads": [("Convention", ""), *((column, "n") for column in columns)],
            "conventions": list(first.get("accuracy", {})),
            "figures": list(dict.fromkeys(name for result in results for name in result.get("figures", {}))),
            "figure_heads": [("Figure", ""), *((result["label"], "n") for result in results)],
            "baselines": first.get("baselines", {}),
            "comparisons": [compared for compared in tested["comparisons"] if compared["task"] == name],
            "reliability": figures.reliability(f"reliability-{len(tasks)}", bins, "this model") if bins else "",
            "contamination": tested["contamination"].get(name),
            "board": next((board for board in tested["leaderboard"] if board["task"] == name), None),
        })  # fmt: skip
    return {"tasks": tasks, "labels": {result["model"]: result["label"] for result in tested["results"]}}
