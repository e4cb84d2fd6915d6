from typing import Any

from groundup.report import figures
from groundup.report.formats import against, comparison, interval, percent
from groundup.report.run_results import RunResults

TITLE = "Reward model: a score for each answer"
STAGES = ("reward",)


def gather(run: RunResults) -> dict[str, Any]:
    reward = run.results["reward"]
    accuracy, ahead = reward["accuracy"], reward["ahead_of_longer"]
    scored = run.rows("reward", "training/scored.jsonl")
    agrees = comparison(
        "Does the reward model agree with the annotator?", f"{percent(accuracy['accuracy'])} ({interval(accuracy)})",
        f"always preferring the longer answer: {percent(reward['longer_wins'])}",
        ahead["difference"], ahead["low"], ahead["high"],
    )  # fmt: skip
    return {
        "compared": [agrees],
        "reward": reward,
        "ahead": ahead,
        "state": against(ahead["low"], ahead["high"], 0),
        "held_out_pairs": reward["pairs"]["held_out"],
        "reward_figure": figures.scatter(
            "reward",
            {
                side: [(row["tokens"], row["reward"]) for row in scored if row["side"] == side]
                for side in dict.fromkeys(row["side"] for row in scored)
            },
            "length of the answer, tokens",
            "reward",
        ),
    }  # fmt: skip
