from typing import Any

from groundup.core.cost import cost
from groundup.report.made import Made
from groundup.report.words import number, seconds
from groundup.scaling.training_cost import LLAMA3_405B

TITLE = "What it cost"
STAGES = ()  # of every run


def gather(made: Made) -> dict[str, Any]:
    settings, everything = made.recipe["report"], sum(made.seconds.values())
    spent = {
        stage: {"seconds": time, **cost(time, **settings)}
        for stage, time in {**made.seconds, "all": everything}.items()
    }
    return {
        "facts": [
            ("time, all stages", seconds(everything)),
            ("energy, estimated", f"{number(1000 * spent['all']['kwh'])} Wh"),
        ],
        "name": made.recipe["name"],
        "settings": settings,
        "cost": spent,
        "llama": LLAMA3_405B,
        "base": made.results.get("base"),
    }
