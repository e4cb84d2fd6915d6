"""Masked-token training, from which an encoder learns a language (Devlin et al. 2019, section 3.1).

Of every row 15 % of the tokens are asked for: most stand as [MASK], some as a random token and some as they are, so that
the encoder must know every token in its place and not only at the masks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.encoder.bert import MaskedLanguageModel
from groundup.tokenizer.wordpiece import WordPiece
from groundup.training.objectives import Batch, Metrics

ASKED, AS_MASK, AS_RANDOM = 0.15, 0.8, 0.1


def masked(rows_BT: Tensor, tokenizer: WordPiece, seed: int) -> Batch:
    """ids, targets (batch, time) int64 and weight (batch, time) float32, which adds up to one over what is asked.

    Special tokens are never asked for, nor put in a token's place. The same seed asks for the same. Raises ValueError
    when all tokens are special.
    """
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(sorted(tokenizer.special_tokens.values()))
    ordinary = torch.arange(tokenizer.size)[~torch.isin(torch.arange(tokenizer.size), special)]
    eligible = ~torch.isin(rows_BT, special)
    if not eligible.any():
        raise ValueError("no token to mask: all are special")
    draw = torch.rand(rows_BT.shape, generator=generator).masked_fill(~eligible, 1.0)
    asked = draw <= max(ASKED, draw.min().item())  # at least one
    how = torch.rand(rows_BT.shape, generator=generator)
    others = ordinary[torch.randint(len(ordinary), rows_BT.shape, generator=generator)]
    ids = torch.where(asked & (how < AS_MASK), tokenizer.mask, rows_BT)
    ids = torch.where(asked & (how >= 1 - AS_RANDOM), others, ids)
    return {"ids": ids, "targets": rows_BT, "weight": asked / asked.sum()}


def masked_token(model: MaskedLanguageModel, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Metrics]:
    """Cross-entropy of the tokens asked for, in nats, and the share of them that is the likeliest.

    batch: as `masked` has it, and mask (batch, time) where rows are padded. Logits are computed only where asked.
    """
    hidden_BTD = model.bert(batch["ids"], mask_BT=batch.get("mask"), dtype=dtype)
    asked = batch["weight"] > 0
    logits_NV, targets_N, weight_N = model.logits(hidden_BTD[asked]).float(), batch["targets"][asked], batch["weight"][asked]
    loss = (F.cross_entropy(logits_NV, targets_N, reduction="none") * weight_N).sum()
    right = ((logits_NV.argmax(-1) == targets_N) * weight_N).sum()
    return loss, {"loss": loss.item(), "accuracy": right.item()}
