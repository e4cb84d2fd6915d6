"""Architectures on one axis: how fast the loss falls with size and data, and where in the context it is lost.

Kaplan et al. 2020, figure 7: a transformer goes on using more context, a recurrent model soon no longer does.
"""

from collections.abc import Sequence

import numpy as np

from groundup.model.base import LanguageModel
from groundup.model.likelihood import score


def loss_by_place(model: LanguageModel, documents: Sequence[np.ndarray], context: int) -> list[float]:
    """Nats a token after 1, 2 to 3, 4 to 7, ... tokens of context, over the beginnings of documents that fill it.

    Empty where no document does.
    """
    long = [one[: context + 1] for one in documents if len(one) > context]
    if not long:
        return []
    nats = -np.stack(score(model, long)).mean(0, dtype=np.float64)
    return [float(part.mean()) for part in np.split(nats, 2 ** np.arange(1, (context - 1).bit_length()) - 1)]
