from typing import Any

from groundup.report import figures
from groundup.report.formats import number
from groundup.report.run_results import RunResults, column, measured

TITLE = "A longer context"
STAGES = ("long_context",)


def gather(run: RunResults) -> dict[str, Any]:
    trained = run.results["long_context"]
    metrics = run.rows("long_context", "training/metrics.jsonl")
    millions = trained["tokens"] / max(trained["steps"], 1) / 1e6
    return {
        "facts": [("tokens that the model sees at once", number(trained["context"]["after"]))],
        "trained": trained,
        "loss_figure": figures.loss(
            "long-loss",
            [millions * (row["step"] + 1) for row in metrics],
            column(metrics, "loss"),
            measured(metrics, "held_out", millions),
            column(metrics, "lr"),
        ),
    }
