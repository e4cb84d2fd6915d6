from typing import Any

from groundup.report import figures
from groundup.report.made import Made, column
from groundup.report.sections import policy

TITLE = "PPO: better answers from the judge"
STAGES = ("ppo",)


def gather(made: Made) -> dict[str, Any]:
    rollouts = made.rows("ppo", "rollouts.jsonl")
    return {
        **policy.gather(made, "ppo"),
        "ppo": made.results["ppo"],
        "ppo_figure": figures.panels(
            "ppo",
            "iteration",
            column(rollouts, "iteration"),
            {
                "score from the reward model": column(rollouts, "score"),
                "distance from SFT, nats an answer (KL)": column(rollouts, "kl"),
                "length, tokens an answer": column(rollouts, "length"),
            },
        ),
    }
