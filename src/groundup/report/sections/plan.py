from typing import Any

from groundup.report.formats import number
from groundup.report.run_results import RunResults

TITLE = "The plan: a size for the time"
STAGES = ("plan",)


def gather(run: RunResults) -> dict[str, Any]:
    """Prediction and outcome side by side, and what was decided between."""
    plan = run.results["plan"]
    expected, planned = plan["expected"], run.results.get("base", {}).get("planned") or {"loss": None}
    before = [name for name in plan["spent"] if name in run.seconds]
    after = list(run.seconds)[list(run.seconds).index("base") + 1 :] if "base" in run.seconds else []
    took = {
        "before": sum(run.seconds[name] for name in before),
        "plan": run.seconds["plan"],
        "base": run.seconds.get("base"),
        "after": sum(run.seconds[name] for name in after) if after else None,
        "all": sum(run.seconds.values()),
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
