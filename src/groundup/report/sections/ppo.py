from typing import Any

from groundup.report.run_results import RunResults
from groundup.report.sections import policy

TITLE = "PPO: better answers by the reward model"
STAGES = ("ppo",)


def gather(run: RunResults) -> dict[str, Any]:
    curves = {"score from the reward model": "score", "distance from SFT, nats an answer (KL)": "kl"}
    return policy.rollouts(run, "ppo", curves)
