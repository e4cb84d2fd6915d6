from typing import Any

from groundup.report import figures
from groundup.report.run_results import RunResults

TITLE = "Benchmarks: tests that others use"
STAGES = ("benchmarks",)


def gather(run: RunResults) -> dict[str, Any]:
    tested = run.results["benchmarks"]
    tasks = []
    for name in tested["tasks"]:
        some = [one for one in tested["results"] if one["task"] == name]
        first = some[0]
        bins = first["calibration"]["bins"] if "calibration" in first else []
        columns = [one["label"] for one in some] + list(first.get("baselines", {}))
        tasks.append({
            "name": name,
            "results": some,
            "heads": [("Convention", ""), *((column, "n") for column in columns)],
            "conventions": list(first.get("accuracy", {})),
            "figures": list(dict.fromkeys(name for one in some for name in one.get("figures", {}))),
            "figure_heads": [("Figure", ""), *((one["label"], "n") for one in some)],
            "baselines": first.get("baselines", {}),
            "comparisons": [one for one in tested["comparisons"] if one["task"] == name],
            "reliability": figures.reliability(f"reliability-{len(tasks)}", bins, "this model") if bins else "",
            "contamination": tested["contamination"].get(name),
            "board": next((one for one in tested["leaderboard"] if one["task"] == name), None),
        })  # fmt: skip
    return {"tasks": tasks, "labels": {one["model"]: one["label"] for one in tested["results"]}}
