from typing import Any

from groundup.report import figures
from groundup.report.run_results import RunResults, column, epoch_ends, measured
from groundup.report.sections import policy

TITLE = "DPO: better answers from the comparisons"
STAGES = ("dpo",)


def gather(run: RunResults) -> dict[str, Any]:
    dpo, epochs = run.results["dpo"], run.recipe["dpo"]["epochs"]
    metrics = run.rows("dpo", "training/metrics.jsonl")
    loss, accuracy = "loss (0.69 is undecided)", "pairs ranked as the annotator did, share"
    return {
        **policy.gather(run, "dpo"),
        "dpo": dpo,
        "epochs": epochs,
        "held_out_pairs": next((int(row["held_out_pairs"]) for row in metrics if "held_out_pairs" in row), 0),
        "last": metrics[-1] if metrics else {},
        "dpo_figure": figures.panels(
            "dpo",
            "step",
            column(metrics, "step"),
            {loss: column(metrics, "loss"), accuracy: column(metrics, "accuracy")},
            {loss: measured(metrics, "held_out_loss"), accuracy: measured(metrics, "held_out_accuracy")},
            epoch_ends(dpo["steps"], epochs),
        ),
    }
