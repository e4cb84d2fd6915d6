from typing import Any

from groundup.report.run_results import RunResults

TITLE = "Preferences: which answer is better"
STAGES = ("preferences",)


def gather(run: RunResults) -> dict[str, Any]:
    return {"preferences": run.results["preferences"]}
