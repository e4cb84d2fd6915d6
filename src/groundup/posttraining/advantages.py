"""From the rewards of answers to the advantage of each token: the reward side of PPO and GRPO, each detail a function.

The list is that of Huang et al. 2024, "The N+ implementation details of RLHF with PPO", whose worked numbers are tests.
Shape suffixes: B answers, T tokens, P prompts, G answers of one prompt.
"""

import torch
from torch import Tensor

EPSILON = 1e-8  # added to a variance
GROUP_EPSILON = 1e-4  # added to the standard deviation of a group, as in TRL
KL_STEP = 0.2  # largest relative error that changes the adaptive coefficient after a rollout (Ziegler et al. 2019)


def normalised(rewards_B: Tensor, mean: float, std: float) -> Tensor:
    """Rewards scaled so that those of the initial model have mean 0 and standard deviation 1."""
    return (rewards_B - mean) / std


def with_missing_end(scores_B: Tensor, ended_B: Tensor, missing_end_reward: float | None) -> Tensor:
    """The scores, but a fixed reward for each answer that ran into the length limit; None: its score."""
    return scores_B if missing_end_reward is None else torch.where(ended_B, scores_B, missing_end_reward)


def last_tokens(mask_BT: Tensor) -> Tensor:
    """Index (B,) of each answer's last token, its end included."""
    return (mask_BT * torch.arange(mask_BT.shape[1], device=mask_BT.device)).argmax(dim=1)


def token_rewards(scores_B: Tensor, logp_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor, kl_coefficient: float) -> Tensor:
    """Every token pays for leaving the reference, the last one earns the score too (B, T).

    The divergence of a token is log pi - log pi_ref, Schulman's k1: without bias, and negative where the reference likes a
    token more.
    """
    rewards = -kl_coefficient * (logp_BT - reference_BT) * mask_BT
    rewards[torch.arange(len(rewards), device=rewards.device), last_tokens(mask_BT)] += scores_B
    return rewards


def adaptive_kl(coefficient: float, kl: float, target: float, answers: int, horizon: int) -> float:
    """The coefficient after a rollout of so many `answers` with a divergence of `kl` nats an answer (Ziegler et al. 2019).

    It rises where the divergence is above the `target`, and falls below, by at most answers / horizon x 0.2.
    """
    error = min(max(kl / target - 1, -KL_STEP), KL_STEP)
    return coefficient * (1 + error * answers / horizon)


def advantage_estimates(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016) over the tokens where mask is 1, which are contiguous."""
    advantages = torch.zeros_like(rewards_BT)
    running = torch.zeros_like(rewards_BT[:, 0])
    next_value = torch.zeros_like(running)
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        delta = rewards_BT[:, t] + gamma * next_value - values_BT[:, t]
        running = (delta + gamma * lam * running) * mask_BT[:, t]
        advantages[:, t] = running
        next_value = values_BT[:, t] * mask_BT[:, t]
    return advantages


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Mean zero and variance one over the positions where mask is 1; without `shift_mean` the mean stays, as of rewards it must.

    The variance is the biased one, as in the first RLHF code; OpenRLHF, verl and trlx divide by one less.
    """
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / count
    whitened = (values - mean) * torch.rsqrt(variance + EPSILON)
    return (whitened if shift_mean else whitened + mean) * mask


def group_advantages(rewards_PG: Tensor, scale: str) -> Tensor:
    """How much better each answer is than the mean of its prompt's (Shao et al. 2024), in deviations of `scale`.

    "group": of the prompt's answers; "batch": of all (Hu et al. 2025); "none": not divided, since dividing gives easy and hard
    prompts more weight (Dr. GRPO, Liu et al. 2025).
    """
    advantages = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    if scale == "none":
        return advantages
    std = rewards_PG.std() if scale == "batch" else rewards_PG.std(dim=1, keepdim=True)
    return advantages / (std + GROUP_EPSILON)


def leave_one_out(rewards_PG: Tensor) -> Tensor:
    """How much better each answer is than the mean of the prompt's others: RLOO (Ahmadian et al. 2024)."""
    others = rewards_PG.shape[1] - 1
    return rewards_PG - (rewards_PG.sum(dim=1, keepdim=True) - rewards_PG) / others


def without_difference(rewards_PG: Tensor) -> Tensor:
    """Whether all answers to a prompt earned the same (P,): nothing can be learned from them."""
    return (rewards_PG == rewards_PG[:, :1]).all(dim=1)
