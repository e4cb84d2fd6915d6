from typing import Any

from groundup.core.cost import cost
from groundup.report.formats import number, seconds
from groundup.report.run_results import RunResults
from groundup.scaling.training_cost import LLAMA3_405B

TITLE = "What it cost"
STAGES = ()  # of every run


def gather(run: RunResults) -> dict[str, Any]:
    settings, everything = run.recipe["report"], sum(run.seconds.values())
    spent = {
        stage: {"seconds": time, **cost(time, **settings)}
        for stage, time in {**run.seconds, "all": everything}.items()
    }
    return {
        "facts": [
            ("time, all stages", seconds(everything)),
            ("energy, estimated", f"{number(1000 * spent['all']['kwh'])} Wh"),
        ],
        "name": run.recipe["name"],
        "settings": settings,
        "cost": spent,
        "llama": LLAMA3_405B,
        "base": run.results.get("base"),
    }
