import math
from typing import Any

from groundup.report import figures
from groundup.report.formats import number
from groundup.report.run_results import RunResults, column, measured

TITLE = "Base model: learning to predict"
STAGES = ("base",)


def gather(run: RunResults) -> dict[str, Any]:
    base = run.results["base"]
    metrics = run.rows("base", "training/metrics.jsonl")
    millions = base["tokens"] / max(base["steps"], 1) / 1e6
    held_out = base["held_out_loss"]
    return {
        "facts": [
            ("parameters of the model", number(base["parameters"]["total"])),
            ("tokens read in training", number(base["tokens"])),
        ],
        "base": base,
        "seconds": run.seconds["base"],
        "blind": math.log(run.results["tokenizer"]["vocabulary"]) if "tokenizer" in run.results else math.nan,
        "held_out_perplexity": math.exp(held_out) if held_out is not None else math.nan,
        "loss_figure": figures.loss(
            "loss",
            [millions * (row["step"] + 1) for row in metrics],
            column(metrics, "loss"),
            measured(metrics, "held_out", millions),
            column(metrics, "lr"),
        ),
    }
