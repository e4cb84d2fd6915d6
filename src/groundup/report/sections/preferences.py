from typing import Any

from groundup.report.made import Made

TITLE = "Preferences: which answer is better"
STAGES = ("preferences",)


def gather(made: Made) -> dict[str, Any]:
    return {"preferences": made.results["preferences"]}
