"""The losses of direct preference optimisation: pure functions of log-probabilities, under the names of TRL.

Of a pair with answers w (chosen) and l (rejected), h is the log-ratio log pi(y) - log ref(y) of an answer, s its score, which
is h but for other divergences than the reverse KL, and d = s(w) - s(l). b is `beta`, e `label_smoothing`, |y| an answer's tokens.

    sigmoid       -log sigmoid(b d)                              Rafailov et al. 2023
    conservative  -(1 - e) log sigmoid(b d) - e log sigmoid(-b d)      cDPO, Mitchell 2023: a share e of the labels is wrong
    robust        the same with -e of the flipped one, over 1 - 2e     Chowdhury et al. 2024: without bias for such labels
    hinge         max(0, 1 - b d)                                SLiC, Zhao et al. 2023
    ipo           (s(w) / |w| - s(l) / |l| - 1 / (2b))^2         Azar et al. 2023, by answers' means as its authors ran it
    sigmoid_norm  -log sigmoid(b (s(w) / |w| - s(l) / |l|))      length-normalised, Lambert et al. 2024
    simpo         -log sigmoid(b (log pi(w) / |w| - log pi(l) / |l|) - simpo_margin)      Meng et al. 2024; no reference
    exo_pair      KL from sigmoid(b d) to (1 - e, e)             Ji et al. 2024
    nca_pair      -log sigmoid(b h(w)) - log sigmoid(-b h(w)) / 2 - log sigmoid(-b h(l)) / 2      Chen et al. 2024
    bco_pair      -log sigmoid(b h(w)) - log sigmoid(-b h(l))    Jung et al. 2024
    sppo_hard     (h(w) - 1 / (2b))^2 + (h(l) + 1 / (2b))^2      Wu et al. 2024
    aot           conservative, of h sorted by log pi(w) - log pi(l) and log ref(w) - log ref(l)      Melnyk et al. 2024
    aot_unpaired  conservative, of h(w) and h(l), each sorted
    apo_zero      1 - sigmoid(b h(w)) + sigmoid(b h(l))          D'Oosterlinck et al. 2024
    apo_down      sigmoid(b h(w)) + 1 - sigmoid(b (h(w) - h(l)))
    discopop      logistic and exponential loss, mixed by sigmoid(b d / discopop_tau)      Lu et al. 2024
    sft           the next-token loss of the chosen answers      to compare with

With `ld_alpha` below one every log-probability counts tokens beyond the shorter answer of the pair that much (LD-DPO, Liu et
al. 2024). At the start, where pi = ref, sigmoid, conservative and robust are ln 2, hinge one, and ipo 1 / (4 b^2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.posttraining.config import DpoConfig

_LARGEST = 80.0  # exponent: exp() of more than 88 overflows float32


@dataclass(frozen=True)
class Pairs:
    """Log-probabilities in nats of answers; every tensor is (pairs,)."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor  # counts, as floats
    rejected_tokens: Tensor
    chosen_unweighted: Tensor  # as `chosen`, but every token counts 1, also with ld_alpha

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected


def length_desensitised(logp_BT: Tensor, mask_BT: Tensor, alpha: float) -> Tensor:
    """Sums (batch,) over the answers of rows (all chosen, then all rejected), in which tokens beyond the shorter of a pair
    count `alpha`."""
    position_BT = mask_BT.cumsum(dim=1)
    chosen, rejected = mask_BT.sum(dim=1).chunk(2)
    shared_B1 = torch.minimum(chosen, rejected).repeat(2)[:, None]
    return (logp_BT * mask_BT * torch.where(position_BT <= shared_B1, 1.0, alpha)).sum(dim=1)


def scores(pairs: Pairs, settings: DpoConfig) -> tuple[Tensor, Tensor]:
    """f'(pi / ref) of both answers, up to what cancels between them: the log-ratio for the reverse KL (Wang et al. 2023)."""
    def score(ratio: Tensor) -> Tensor:
        if settings.divergence == "forward_kl":
            return 1 - torch.exp(-ratio)
        if settings.divergence == "js_divergence":
            return math.log(2) + F.logsigmoid(ratio)
        power = settings.alpha_divergence - 1
        if settings.divergence == "alpha_divergence" and abs(power) >= 1e-6:
            return (torch.exp((power * ratio).clamp(max=_LARGEST)) - 1) / power
        return ratio

    chosen, rejected = pairs.ratios
    return score(chosen), score(rejected)


def loss_of(pairs: Pairs, settings: DpoConfig) -> Tensor:
    """Loss (pairs,) of each pair, by the table above; of those in `config.OF_THE_BATCH` only the mean has a meaning.

    Several losses add up by their weights, as in mixed preference optimisation (Wang et al. 2024).
    """
    return torch.stack([weight * LOSSES[name](pairs, settings) for name, weight in settings.losses.items()]).sum(dim=0)


def rewards(pairs: Pairs, settings: DpoConfig) -> tuple[Tensor, Tensor]:
    """Implicit rewards of the chosen and the rejected: beta times the log-ratio, or simpo's alone, the mean log-probability."""
    chosen, rejected = pairs.ratios
    if set(settings.losses) == {"simpo"}:
        chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    return settings.beta * chosen, settings.beta * rejected


def _difference(pairs: Pairs, settings: DpoConfig) -> Tensor:
    chosen, rejected = scores(pairs, settings)
    return settings.beta * (chosen - rejected)


def _mean_difference(pairs: Pairs, settings: DpoConfig) -> Tensor:
    chosen, rejected = scores(pairs, settings)
    return chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens


def _smoothed(logit: Tensor, flipped: float) -> Tensor:
    return -(1 - flipped) * F.logsigmoid(logit) - flipped * F.logsigmoid(-logit)


def _sigmoid(pairs: Pairs, settings: DpoConfig) -> Tensor:
    return -F.logsigmoid(_difference(pairs, settings))


def _conservative(pairs: Pairs, settings: DpoConfig) -> Tensor:
    return _smoothed(_difference(pairs, settings), settings.label_smoothing)


def _robust(pairs: Pairs, settings: DpoConfig) -> Tensor:
    logit, flipped = _difference(pairs, settings), settings.label_smoothing
    return (-(1 - flipped) * F.logsigmoid(logit) + flipped * F.logsigmoid(-logit)) / (1 - 2 * flipped)


def _hinge(pairs: Pairs, settings: DpoConfig) -> Tensor:
    return torch.relu(1 - _difference(pairs, settings))


def _ipo(pairs: Pairs, settings: DpoConfig) -> Tensor:
    return (_mean_difference(pairs, settings) - 1 / (2 * settings.beta)).square()


def _sigmoid_norm(pairs: Pairs, settings: DpoConfig) -> Tensor:
    return -F.logsigmoid(settings.beta * _mean_difference(pairs, settings))


def _simpo(pairs: Pairs, settings: DpoConfig) -> Tensor:
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    return -F.logsigmoid(settings.beta * (chosen - rejected) - settings.simpo_margin)


def _exo_pair(pairs: Pairs, settings: DpoConfig) -> Tensor:
    logit, flipped = _difference(pairs, settings), settings.label_smoothing
    right = torch.sigmoid(logit) * (F.logsigmoid(logit) - math.log1p(-flipped))
    return right + torch.sigmoid(-logit) * (F.logsigmoid(-logit) - math.log(flipped))


def _nca_pair(pairs: Pairs, settings: DpoConfig) -> Tensor:
    chosen, rejected = rewards(pairs, settings)
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def _bco_pair(pairs: Pairs, settings: DpoConfig) -> Tensor:
    chosen, rejected = rewards(pairs, settings)
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def _sppo_hard(pairs: Pairs, settings: DpoConfig) -> Tensor:
    chosen, rejected = pairs.ratios
    return (chosen - 0.5 / settings.beta).square() + (rejected + 0.5 / settings.beta).square()


def _aot(pairs: Pairs, settings: DpoConfig) -> Tensor:
    ours, theirs = pairs.chosen - pairs.rejected, pairs.reference_chosen - pairs.reference_rejected
    return _smoothed(settings.beta * (ours.sort().values - theirs.sort().values), settings.label_smoothing)


def _aot_unpaired(pairs: Pairs, settings: DpoConfig) -> Tensor:
    chosen, rejected = pairs.ratios
    return _smoothed(settings.beta * (chosen.sort().values - rejected.sort().values), settings.label_smoothing)


def _apo_zero(pairs: Pairs, settings: DpoConfig) -> Tensor:
    chosen, rejected = rewards(pairs, settings)
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def _apo_down(pairs: Pairs, settings: DpoConfig) -> Tensor:
    chosen, rejected = rewards(pairs, settings)
    return torch.sigmoid(chosen) + 1 - torch.sigmoid(chosen - rejected)


def _discopop(pairs: Pairs, settings: DpoConfig) -> Tensor:
    logit = _difference(pairs, settings)
    exponential = torch.sigmoid(logit / settings.discopop_tau)
    return -F.logsigmoid(logit) * (1 - exponential) + torch.exp(-logit) * exponential


def _sft(pairs: Pairs, settings: DpoConfig) -> Tensor:
    return (-pairs.chosen_unweighted.sum() / pairs.chosen_tokens.sum()).expand(len(pairs.chosen))


LOSSES: dict[str, Callable[[Pairs, DpoConfig], Tensor]] = {
    "sigmoid": _sigmoid, "conservative": _conservative, "robust": _robust, "hinge": _hinge, "ipo": _ipo,
    "sigmoid_norm": _sigmoid_norm, "simpo": _simpo, "exo_pair": _exo_pair, "nca_pair": _nca_pair, "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard, "aot": _aot, "aot_unpaired": _aot_unpaired, "apo_zero": _apo_zero, "apo_down": _apo_down,
    "discopop": _discopop, "sft": _sft,
}  # fmt: skip
