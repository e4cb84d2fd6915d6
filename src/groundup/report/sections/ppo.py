from typing import Any

from groundup.report.made import Made
from groundup.report.sections import policy

TITLE = "PPO: better answers by the reward model"
STAGES = ("ppo",)


def gather(made: Made) -> dict[str, Any]:
    curves = {"score from the reward model": "score", "distance from SFT, nats an answer (KL)": "kl"}
    return policy.rollouts(made, "ppo", curves)
