"""Several conversations in one row, none of which sees another: less padding, the same losses and gradients.

Each keeps a number of its own in `documents`, by which attention is masked in blocks, an LSTM begins anew and a convolution
reads nothing from before it. Rotary positions are relative, so a conversation is the same wherever in a row it begins.
Rows are no longer than the longest conversation, so that attention, which grows with the square, never costs more than unpacked.
"""

from collections.abc import Sequence

import torch

from groundup.model.ragged import bins
from groundup.posttraining.batches import Row, collate
from groundup.training.objectives import Batch


def weighted(rows: Sequence[Row], weights: Sequence[float], pad: int, device: torch.device, pack: bool) -> Batch:
    """A batch of `next_token` in which each token that is learned counts the weight of its row.

    Packed it has `documents` (batch, time); what is padded is a document of its own.
    """
    if not pack:
        batch = collate(rows, pad, device)
        return {**batch, "weight": batch["mask"] * torch.tensor(weights, device=device)[:, None]}
    lengths = [len(ids) - 1 for ids, _ in rows]  # the last token is a target only
    places = bins(lengths, max(lengths))
    shape = (len(places), max(sum(lengths[index] for index in place) for place in places))
    ids, targets = torch.full(shape, pad), torch.full(shape, pad)
    mask, weight, documents = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
    for number, place in enumerate(places):
        start = 0
        for document, index in enumerate(place, start=1):
            tokens, spoken = torch.tensor(rows[index][0]), torch.tensor(rows[index][1][1:], dtype=torch.float32)
            here = slice(start, start + lengths[index])
            ids[number, here], targets[number, here] = tokens[:-1], tokens[1:]
            mask[number, here], weight[number, here] = spoken, spoken * weights[index]
            documents[number, here] = document
            start += lengths[index]
    found = {"ids": ids, "targets": targets, "mask": mask, "weight": weight, "documents": documents}
    return {name: tensor.to(device) for name, tensor in found.items()}


def weights_of(rows: Sequence[Row], weighting: str) -> list[float]:
    """What a learned token of each row counts, so that all of a step add up to one: alike in the step, or in its row.

    `weighting` "token": 1 / tokens of the step; "example": 1 / (rows x tokens of the row).
    """
    counts = [sum(spoken[1:]) for _, spoken in rows]
    if weighting == "token":
        return [1 / sum(counts)] * len(rows)
    return [1 / (len(rows) * count) for count in counts]
