"""Masked-token training, from which an encoder learns a language (Devlin et al. 2019, section 3.1).

15 % of the tokens are to be predicted: most are replaced by [MASK], some by a random token, and some stay, so that the
encoder must represent every token and not only the masks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.encoder.bert import MaskedLanguageModel
from groundup.tokenizer.wordpiece import WordPiece
from groundup.training.objectives import Batch, Metrics

SELECTED_FRACTION, AS_MASK, AS_RANDOM = 0.15, 0.8, 0.1


def masked(rows_BT: Tensor, tokenizer: WordPiece, seed: int) -> Batch:
    """ids, targets (batch, time) int64 and weight (batch, time) float32, which adds up to one over the selected tokens.

    Special tokens are never selected, nor drawn as random tokens. The same seed selects the same. Raises ValueError when all
    tokens are special.
    """
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(sorted(tokenizer.special_tokens.values()))
    ordinary = torch.arange(tokenizer.size)[~torch.isin(torch.arange(tokenizer.size), special)]
    eligible = ~torch.isin(rows_BT, special)
    if not eligible.any():
        raise ValueError("no token to mask: all are special")
    draw = torch.rand(rows_BT.shape, generator=generator).masked_fill(~eligible, 1.0)
    selected = draw <= max(SELECTED_FRACTION, draw.min().item())  # at least one
    treatment = torch.rand(rows_BT.shape, generator=generator)
    random_tokens = ordinary[torch.randint(len(ordinary), rows_BT.shape, generator=generator)]
    ids = torch.where(selected & (treatment < AS_MASK), tokenizer.mask, rows_BT)
    ids = torch.where(selected & (treatment >= 1 - AS_RANDOM), random_tokens, ids)
    return {"ids": ids, "targets": rows_BT, "weight": selected / selected.sum()}


def masked_token(model: MaskedLanguageModel, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Metrics]:
    """Cross-entropy of the selected tokens, in nats, and the share of them that are the likeliest.

    batch: as returned by `masked`, and mask (batch, time) where rows are padded. Logits are computed for selected tokens only.
    """
    hidden_BTD = model.bert(batch["ids"], mask_BT=batch.get("mask"), dtype=dtype)
    selected = batch["weight"] > 0
    logits_NV = model.logits(hidden_BTD[selected]).float()
    targets_N, weight_N = batch["targets"][selected], batch["weight"][selected]
    loss = (F.cross_entropy(logits_NV, targets_N, reduction="none") * weight_N).sum()
    right = ((logits_NV.argmax(-1) == targets_N) * weight_N).sum()
    return loss, {"loss": loss.item(), "accuracy": right.item()}
