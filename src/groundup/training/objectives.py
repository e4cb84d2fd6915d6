"""What training minimises: pure functions (model, batch) -> (loss, metrics).

A batch is a dictionary of tensors. `weight` (batch, time) says how much each target counts; the weights of all the
micro-batches of one step add up to one, so that accumulating gradients is exactly the gradient of the big batch.
"""

import torch
from torch import Tensor

from groundup.model import moe
from groundup.model.base import LanguageModel
from groundup.model.likelihood import weighted_log_probability

Batch = dict[str, Tensor]
Metrics = dict[str, float]

Z_LOSS = 0.001  # coefficient of the router z-loss (Zoph et al. 2022)


def next_token(model: LanguageModel, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Metrics]:
    """Cross-entropy of the next token, in nats: pre-training, and fine-tuning where `weight` is zero on the prompt.

    batch: ids, targets (batch, time) int64; weight (batch, time) float32; documents (batch, time) or absent.
    """
    loss = weighted_log_probability(
        model, batch["ids"], batch["targets"], -batch["weight"], batch.get("documents"), dtype
    )
    return loss, {"loss": loss.item()}


class BalancedNextToken:
    """`next_token` of a mixture of experts, and the losses that keep its router even; one object for one training.

    The load is counted over all processes and the step's micro-batches so far, as Qiu et al. (2025) buffer it: in the
    last micro-batch it is the whole batch's. Held-out text (no gradient) is not balanced.
    """

    def __init__(self, dtype: torch.dtype, balance: float, world: int = 1) -> None:
        """`balance`: coefficient of the balance loss; `world`: processes whose metrics are added up."""
        self.dtype, self.balance, self.world = dtype, balance, world
        self.load: Tensor | float = 0.0

    def __call__(self, model: LanguageModel, batch: Batch) -> tuple[Tensor, Metrics]:
        """batch: as of `next_token`, and `last`, whether it ends a step; tokens of weight zero are not counted."""
        if not torch.is_grad_enabled():
            return next_token(model, batch, self.dtype)
        with moe.recorded(model) as routings:
            loss, metrics = next_token(model, batch, self.dtype)
        counted, share = batch["weight"] > 0, batch["weight"].sum()
        load = self.load + moe.load(routings, counted)
        self.load = 0.0 if batch["last"] else load
        router_metrics = moe.metrics(routings, load, counted)
        if share:
            balance_loss, z_loss = moe.auxiliary_losses(routings, load, counted)
            loss = loss + share * (self.balance * balance_loss + Z_LOSS * z_loss)
            metrics["router_entropy"] = router_metrics["router_entropy"] * share.item()
        else:  # this process has no row of this micro-batch
            metrics["router_entropy"] = 0.0
        for name in ("max_load", "dead_experts"):  # of the whole batch, and the same on every process
            metrics[name] = router_metrics[name] / self.world if batch["last"] else 0.0
        return loss, metrics
