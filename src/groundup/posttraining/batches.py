"""Conversations as padded batches, in an order that is a function of the step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from groundup.model.decoder import Decoder
from groundup.model.likelihood import token_log_probabilities
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.objectives import Batch

Row = tuple[list[int], list[int]]  # token ids and, for each, 1 where the assistant speaks


def collate(rows: Sequence[Row], pad: int, device: torch.device) -> Batch:
    """ids, targets (batch, time) int64 and mask (batch, time) float32: 1 where the target is the assistant's.

    Padded on the right: a causal model never sees it, and the mask keeps it out of every loss.
    """
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), longest)
    for index, (row, spoken) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = torch.tensor(spoken, dtype=torch.float32)
    return {
        "ids": ids[:, :-1].contiguous().to(device),
        "targets": ids[:, 1:].contiguous().to(device),
        "mask": mask[:, 1:].contiguous().to(device),
    }


def answer_log_probabilities(model: Decoder, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log-probability (batch, time) in nats of each of the assistant's tokens, zero elsewhere."""
    return token_log_probabilities(model, batch["ids"], batch["targets"], dtype=dtype, wanted_BT=batch["mask"])


def row_of(tokenizer: Tokenizer, question: str, answer: str) -> Row:
    """One question and its answer as the chat format has them, ending with the token that ends the answer."""
    return render(tokenizer, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def answer_of(row: Row, prompt: Sequence[int]) -> list[int]:
    """Of one question's row what the assistant writes after the `prompt`, its end included."""
    ids, spoken = row
    return [token for token, says in zip(ids[len(prompt) :], spoken[len(prompt) :], strict=True) if says]


def prompt_of(tokenizer: Tokenizer, question: str) -> list[int]:
    """Ids up to where the answer begins."""
    return render(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True)[0]
