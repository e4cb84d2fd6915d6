"""What the sections of DPO, PPO and GRPO share: the new model's answers against those that it began with, and the rollouts."""

from typing import Any

from groundup.report import figures
from groundup.report.formats import comparison, interval, percent
from groundup.report.run_results import RunResults, column, shown

SHOWN_ROLLOUTS = 24  # answers: two of each rollout that was kept


def gather(run: RunResults, stage: str) -> dict[str, Any]:
    one, name = run.results[stage]["against_sft"], stage.upper()
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
        "annotator": run.results.get("preferences", {}).get("annotator", "simulated"),
        "preferred_figure": figures.intervals(
            f"{stage}-preferred", [(name, one["win_rate"], one["low"], one["high"])],
            "prompts on which it is preferred over SFT, %", ("equal", 0.5),
        ),
        "samples": run.samples(stage),
    }  # fmt: skip


def rollouts(run: RunResults, stage: str, curves: dict[str, str]) -> dict[str, Any]:
    """The curves of PPO's and GRPO's rollouts, and what is wrong with the form of their answers."""
    rows = run.rows(stage, "training/rollouts.jsonl")
    curves = {
        **curves,
        "length, tokens an answer": "length",
        "answers that end by themselves, share": "ended",
        "reward against length, correlation": "reward_length_correlation",
    }
    series = {label: column(rows, name) for label, name in curves.items() if name in rows[0]}
    written = run.rows(stage, "training/rollout_samples.jsonl")
    of_each = [row for number, row in enumerate(written) if number < 2 or written[number - 2]["iteration"] != row["iteration"]]
    return {
        **gather(run, stage),
        stage: run.results[stage],
        "on_held_out": run.results[stage].get("held_out"),
        "while_training": shown(of_each[:SHOWN_ROLLOUTS]),
        f"{stage}_figure": figures.panels(stage, "iteration", column(rows, "iteration"), series),
    }
