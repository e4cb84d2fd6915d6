"""The parts that the sections of DPO, PPO and GRPO share: the new model's answers against the old one's, and the rollouts."""

from typing import Any

from groundup.report import figures
from groundup.report.formats import comparison, interval, percent
from groundup.report.run_results import RunResults, column, shown

SHOWN_ROLLOUTS = 24  # answers: two of each rollout that was kept


def gather(run: RunResults, stage: str) -> dict[str, Any]:
    against_sft, name = run.results[stage]["against_sft"], stage.upper()
    if against_sft is None:  # the model of sft is a user's own, without held-out questions
        return {"against_sft": None}
    return {
        "compared": [
            comparison(
                f"Is {name} preferred over SFT?",
                f"{percent(against_sft['win_rate'])} ({interval(against_sft)})",
                "equal: 50\u00a0%",
                *(against_sft[key] - 0.5 for key in ("win_rate", "low", "high")),
            )
        ],
        "name": name,
        "against_sft": against_sft,
        "annotator": run.results.get("preferences", {}).get("annotator", "simulated"),
        "preferred_figure": figures.intervals(
            f"{stage}-preferred", [(name, against_sft["win_rate"], against_sft["low"], against_sft["high"])],
            "prompts on which it is preferred over SFT, %", ("equal", 0.5),
        ),
        "samples": run.samples(stage),
    }  # fmt: skip


def rollouts(run: RunResults, stage: str, curves: dict[str, str]) -> dict[str, Any]:
    """The curves of PPO's and GRPO's rollouts, and samples of their answers."""
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
