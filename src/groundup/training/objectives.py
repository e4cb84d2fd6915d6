"""What a run minimises: pure functions (model, batch) -> (loss, metrics).

A batch is a dictionary of tensors. `weight` (batch, time) says how much each target counts; the weights of all the
micro-batches of one step add up to one, so that accumulating gradients is exactly the gradient of the big batch.
"""

import torch
from torch import Tensor

from groundup.evaluation.likelihood import weighted_log_probability
from groundup.model.decoder import Decoder

Batch = dict[str, Tensor]
Metrics = dict[str, float]


def next_token(model: Decoder, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Metrics]:
    """Cross-entropy of the next token, in nats: pre-training, and fine-tuning where `weight` is zero on the prompt.

    batch: ids, targets (batch, time) int64; weight (batch, time) float32; documents (batch, time) or absent.
    """
    loss = -weighted_log_probability(
        model, batch["ids"], batch["targets"], batch["weight"], batch.get("documents"), dtype
    )
    return loss, {"loss": loss.item()}
