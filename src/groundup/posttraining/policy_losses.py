"""From advantages to a loss: the clipped objectives of PPO and GRPO's kin, and what is watched of an update.

Shape suffixes: B answers, T tokens; a tensor (B, 1) counts for all tokens of an answer.
"""

import math

import torch
from torch import Tensor

VESPO_SHAPES = (2.0, 3.0), (3.0, 2.0)  # power and decay, of answers no worse than expected and of worse ones (arXiv 2602.10693)
SAPO_TEMPERATURES = 1.0, 1.05  # of answers better and worse than expected (Gao et al. 2025)


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return (values_BT * mask_BT).sum() / mask_BT.sum()


def clipped_surrogate(ratio_BT: Tensor, advantages_BT: Tensor, low: float, high: float) -> Tensor:
    """The clipped surrogate objective of each token: the ratio pays only from 1 - low to 1 + high (Schulman et al. 2017)."""
    return torch.minimum(ratio_BT * advantages_BT, ratio_BT.clamp(1 - low, 1 + high) * advantages_BT)


def is_clipped(ratio_BT: Tensor, advantages_BT: Tensor, low: float, high: float) -> Tensor:
    """Which tokens are clipped (B, T) bool: these have no gradient. Their share of all tokens is the clip fraction."""
    return ((ratio_BT < 1 - low) & (advantages_BT < 0)) | ((ratio_BT > 1 + high) & (advantages_BT > 0))


def clipped_value_errors(values_BT: Tensor, before_BT: Tensor, returns_BT: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Half the squared errors of values (B, T) that may move by `clip` from those of the rollout, and where they are clipped.

    The larger of the two errors counts: a value is not held back from where it was wrong by more.
    """
    near = before_BT + (values_BT - before_BT).clamp(-clip, clip)
    free, held = (values_BT - returns_BT).square(), (near - returns_BT).square()
    return 0.5 * torch.maximum(free, held), (held > free).float()


def approximate_kl(logp_BT: Tensor, before_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Nats a token from the policy that answered to this one, by 1/2 (log ratio)^2: Schulman's k2, never negative."""
    return 0.5 * masked_mean((logp_BT - before_BT).square(), mask_BT)


def reference_divergence(logp_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """Nats a token (B, T) from the reference by Schulman's k3, exp(-d) + d - 1 of d = log pi - log pi_ref: never negative."""
    difference = reference_BT - logp_BT
    return difference.exp() - difference - 1


def importance(logp_BT: Tensor, before_BT: Tensor, mask_BT: Tensor, level: str) -> Tensor:
    """pi / pi_before of each "token" (B, T), or the geometric mean of an answer's, of a "sequence" (B, 1): GSPO."""
    ratio = logp_BT - before_BT
    if level == "sequence":
        ratio = (ratio * mask_BT).sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)
    return ratio.exp()


def group_losses(ratio_BT: Tensor, advantages_B1: Tensor, logp_BT: Tensor, loss_type: str, low: float, high: float) -> Tensor:
    """The loss of each token by its type, as TRL has them; how tokens are averaged, `token_weights` says.

    "cispo" (MiniMax 2025) cuts off the weight, at `high` itself, and never the gradient; "sapo" lets it fade.
    """
    if loss_type == "cispo":
        return -ratio_BT.clamp(max=high).detach() * advantages_B1 * logp_BT
    if loss_type == "sapo":
        better, worse = SAPO_TEMPERATURES
        temperature = torch.where(advantages_B1 > 0, better, worse)
        return -torch.sigmoid(temperature * (ratio_BT - 1)) * 4 / temperature * advantages_B1
    return -clipped_surrogate(ratio_BT, advantages_B1, low, high)


def vespo_losses(logp_BT: Tensor, before_BT: Tensor, mask_BT: Tensor, advantages_B1: Tensor) -> Tensor:
    """The loss of each token (B, T), weighted by e^decay w^power e^(-decay w) of its whole answer's ratio w, as TRL has it.

    That is 1 where w is, and fades on both sides of it: no answer that the policy has left far behind has a say.
    """
    better, worse = VESPO_SHAPES
    power, decay = (torch.where(advantages_B1 >= 0, *pair) for pair in zip(better, worse, strict=True))
    ratio = ((logp_BT.detach() - before_BT).clamp(-20, 20) * mask_BT).sum(1, keepdim=True).clamp(math.log(1e-8), 20)
    weight = torch.exp(decay + power * ratio - decay * ratio.exp())
    return -weight * advantages_B1 * logp_BT


def token_weights(mask_BT: Tensor, loss_type: str, max_tokens: int, tokens: float) -> Tensor:
    """How much each token of an update counts in its loss (B, T).

    "grpo", "sapo": answers count alike, so a token of a long one less; "bnpo": all tokens alike; "dr_grpo": alike, by a
    constant that does not depend on lengths; "dapo", "cispo", "vespo": alike, by `tokens`, the mean number of them over
    the updates of the rollout; "luspo": each answer its length.
    """
    answers = len(mask_BT)
    if loss_type in ("grpo", "sapo"):
        return mask_BT / mask_BT.sum(1, keepdim=True).clamp(min=1) / answers
    if loss_type == "bnpo":
        return mask_BT / mask_BT.sum().clamp(min=1)
    if loss_type == "dr_grpo":
        return mask_BT / (answers * max_tokens)
    if loss_type in ("dapo", "cispo", "vespo"):
        return mask_BT / max(tokens, 1.0)
    return mask_BT / answers
