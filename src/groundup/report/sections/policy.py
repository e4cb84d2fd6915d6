"""What the sections of DPO, PPO and GRPO share: the new model's answers against those that it began with, and the rollouts."""

from typing import Any

from groundup.report import figures
from groundup.report.made import Made, column, shown
from groundup.report.words import comparison, interval, percent

SHOWN_ROLLOUTS = 24  # answers: two of each rollout that was kept


def gather(made: Made, stage: str) -> dict[str, Any]:
    one, name = made.results[stage]["against_sft"], stage.upper()
    if one is None:  # the model of sft was given, without held-out questions
        return {"against_sft": None}
    return {
        "compared": [
            comparison(
                f"Is {name} preferred over SFT?", f"{percent(one['win_rate'])} ({interval(one)})", "equal: 50\u00a0%",
                *(one[key] - 0.5 for key in ("win_rate", "low", "high")),
            )
        ],
        "name": name,
        "against_sft": one,
        "annotator": made.results.get("preferences", {}).get("annotator", "simulated"),
        "preferred_figure": figures.intervals(
            f"{stage}-preferred", [(name, one["win_rate"], one["low"], one["high"])],
            "prompts on which it is preferred over SFT, %", ("equal", 0.5),
        ),
        "samples": made.samples(stage),
    }  # fmt: skip


def rollouts(made: Made, stage: str, curves: dict[str, str]) -> dict[str, Any]:
    """The curves of PPO's and GRPO's rollouts, and what is wrong with the form of their answers."""
    rows = made.rows(stage, "training/rollouts.jsonl")
    curves = {
        **curves,
        "length, tokens an answer": "length",
        "answers that end by themselves, share": "ended",
        "reward against length, correlation": "reward_length_correlation",
    }
    series = {label: column(rows, name) for label, name in curves.items() if name in rows[0]}
    written = made.rows(stage, "training/rollout_samples.jsonl")
    of_each = [row for number, row in enumerate(written) if number < 2 or written[number - 2]["iteration"] != row["iteration"]]
    return {
        **gather(made, stage),
        stage: made.results[stage],
        "on_held_out": made.results[stage].get("held_out"),
        "while_training": shown(of_each[:SHOWN_ROLLOUTS]),
        f"{stage}_figure": figures.panels(stage, "iteration", column(rows, "iteration"), series),
    }
