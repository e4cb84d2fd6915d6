from typing import Any

from groundup.report.made import Made
from groundup.report.words import number

TITLE = "The plan: a size for the time"
STAGES = ("plan",)


def gather(made: Made) -> dict[str, Any]:
    """Prediction and outcome side by side, and what was decided between."""
    plan = made.results["plan"]
    expected, planned = plan["expected"], made.results.get("base", {}).get("planned") or {"loss": None}
    before = [name for name in plan["spent"] if name in made.seconds]
    after = list(made.seconds)[list(made.seconds).index("base") + 1 :] if "base" in made.seconds else []
    took = {
        "before": sum(made.seconds[name] for name in before),
        "plan": made.seconds["plan"],
        "base": made.seconds.get("base"),
        "after": sum(made.seconds[name] for name in after) if after else None,
        "all": sum(made.seconds.values()),
    }
    loss = expected["loss"]
    return {
        "facts": [("minutes that were given", number(plan["minutes"]))],
        "plan": plan,
        "loss": loss,
        "outcome": planned["loss"],
        "inside": None if not loss or planned["loss"] is None else loss["low"] <= planned["loss"] <= loss["high"],
        "parts": [
            {"what": what, "planned": expected["seconds"][name], "took": took[name]}
            for name, what in (
                ("before", "steps before it"), ("plan", "measuring and deciding"), ("base", "the base model"),
                ("after", "steps after it, but for this page"), ("all", "the whole run, but for this page"),
            )
        ],
    }  # fmt: skip
