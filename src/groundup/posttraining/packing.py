"""Several conversations in one row, none of which sees another: less padding, the same losses and gradients.

Each conversation has its own number in `documents`, by which attention is masked in blocks, an LSTM is reset and a convolution
reads nothing from before it. Rotary positions are relative, so it does not matter where in a row a conversation begins.
Rows are no longer than the longest conversation, so that attention, which grows with the square, never costs more than unpacked.
"""

from collections.abc import Sequence

import torch

from groundup.model.ragged import bins
from groundup.posttraining.batches import Row, collate
from groundup.training.objectives import Batch


def weighted_batch(rows: Sequence[Row], weights: Sequence[float], pad: int, device: torch.device, pack: bool) -> Batch:
    """A batch of `next_token` in which each learned token has the weight of its row.

    Packed, it has `documents` (batch, time); padding is a document of its own.
    """
    if not pack:
        batch = collate(rows, pad, device)
        return {**batch, "weight": batch["mask"] * torch.tensor(weights, device=device)[:, None]}
    lengths = [len(ids) - 1 for ids, _ in rows]  # the last token is a target only
    packed_rows = bins(lengths, max(lengths))
    shape = (len(packed_rows), max(sum(lengths[index] for index in members) for members in packed_rows))
    ids, targets = torch.full(shape, pad), torch.full(shape, pad)
    mask, weight, documents = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
    for row, members in enumerate(packed_rows):
        start = 0
        for document, index in enumerate(members, start=1):
            tokens, spoken = torch.tensor(rows[index][0]), torch.tensor(rows[index][1][1:], dtype=torch.float32)
            span = slice(start, start + lengths[index])
            ids[row, span], targets[row, span] = tokens[:-1], tokens[1:]
            mask[row, span], weight[row, span] = spoken, spoken * weights[index]
            documents[row, span] = document
            start += lengths[index]
    batch = {"ids": ids, "targets": targets, "mask": mask, "weight": weight, "documents": documents}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def weights_of(rows: Sequence[Row], weighting: str) -> list[float]:
    """The weight of a learned token of each row; over all tokens of a step the weights add up to one.

    `weighting` "token": 1 / tokens of the step; "example": 1 / (rows x tokens of the row).
    """
    counts = [sum(spoken[1:]) for _, spoken in rows]
    if weighting == "token":
        return [1 / sum(counts)] * len(rows)
    return [1 / (len(rows) * count) for count in counts]
