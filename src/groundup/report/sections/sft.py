from typing import Any

from groundup.report import figures
from groundup.report.formats import comparison, interval, percent
from groundup.report.run_results import RunResults, column, epoch_ends, measured, shown

TITLE = "Fine-tuning (SFT): learning to answer"
STAGES = ("sft",)
ANSWERS = "training/answers.jsonl"
SHOWN_ON_THE_WAY = 32


def gather(run: RunResults) -> dict[str, Any]:
    tuned = run.results["sft"]
    overlap, gain = tuned["held_out"]["overlap"], tuned["held_out"]["gain"]
    metrics = run.rows("sft", "training/metrics.jsonl")
    loss = "loss, nats per token"
    answers = run.rows("sft", ANSWERS) if (run.folders["sft"] / ANSWERS).is_file() else []  # none where none was held out
    return {
        "compared": [
            comparison(
                "Do its answers improve with fine-tuning (SFT)?",
                f"{percent(overlap['sft']['overlap'])} of the words right ({interval(overlap['sft'])})",
                f"base model: {percent(overlap['base']['overlap'])} ({interval(overlap['base'])})",
                gain["difference"], gain["low"], gain["high"],
            )
        ],
        "tuned": tuned,
        "gain": gain,
        "loss_figure": figures.panels(
            "sft-loss", "step", column(metrics, "step"), {loss: column(metrics, "loss")},
            {loss: measured(metrics, "held_out")}, epoch_ends(tuned["steps"], run.recipe["sft"]["epochs"]),
        ),
        "held_out_curve": measured(metrics, "held_out"),
        "epochs": run.recipe["sft"]["epochs"],
        "overlap_figure": figures.intervals(
            "overlap",
            [
                ("base" if name == "base" else "after SFT", score["overlap"], score["low"], score["high"])
                for name, score in overlap.items()
            ],
            "words shared with the right answer, %",
        ),
        "samples": run.samples("sft"),
        "while_training": shown(answers[-SHOWN_ON_THE_WAY:]),
    }  # fmt: skip
