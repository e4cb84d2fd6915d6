from typing import Any

from groundup.report.run_results import RunResults
from groundup.report.sections import policy

TITLE = "GRPO: better answers from comparing one's own"
STAGES = ("grpo",)


def gather(run: RunResults) -> dict[str, Any]:
    curves = {
        "reward": "reward",
        "prompts whose answers all earned the same, share": "without_difference",
        "distance from SFT, nats an answer (KL)": "kl",
    }
    return policy.rollouts(run, "grpo", curves)
