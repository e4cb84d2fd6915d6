from typing import Any

from groundup.report import figures
from groundup.report.formats import number
from groundup.report.run_results import RunResults, column, measured

TITLE = "A longer context"
STAGES = ("long_context",)


def gather(run: RunResults) -> dict[str, Any]:
    found = run.results["long_context"]
    metrics = run.rows("long_context", "training/metrics.jsonl")
    millions = found["tokens"] / max(found["steps"], 1) / 1e6
    return {
        "facts": [("tokens that the model sees at once", number(found["context"]["after"]))],
        "found": found,
        "loss_figure": figures.loss(
            "long-loss",
            [millions * (row["step"] + 1) for row in metrics],
            column(metrics, "loss"),
            measured(metrics, "held_out", millions),
            column(metrics, "lr"),
        ),
    }
