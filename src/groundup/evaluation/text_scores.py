"""How well a model predicts texts: bits per byte, which different tokenizers share, and perplexity per token."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.core.statistics import bootstrap
from groundup.core.text import well_formed
from groundup.model.base import LanguageModel
from groundup.model.likelihood import bits_per_byte, score
from groundup.tokenizer.tokenizer import Tokenizer

BATCH = 256  # documents scored at once


def score_texts(model: LanguageModel, tokenizer: Tokenizer, texts: Iterable[str], seed: int = 0) -> dict[str, Any]:
    """{"bits_per_byte", "low", "high", "perplexity", "documents", "tokens", "bytes", "empty"}, each text a document.

    A text begins after the token that begins one in training; one longer than the context is scored in windows
    (`likelihood.score`). The interval of the bits per byte resamples documents. Empty texts are only counted.
    Raises UserError where all are empty.
    """
    nats: list[float] = []
    sizes: list[int] = []
    tokens = empty = 0
    remaining = iter(texts)
    while batch := [*islice(remaining, BATCH)]:
        nonempty = [text for text in batch if text]
        empty += len(batch) - len(nonempty)
        scores = score(model, [[tokenizer.begin_of_text, *tokenizer.encode(text)] for text in nonempty])
        nats += [-float(nats_T.sum(dtype=np.float64)) for nats_T in scores]
        sizes += [len(well_formed(text).encode()) for text in nonempty]
        tokens += sum(map(len, scores))
    if not nats:
        raise UserError(f"no text to score{f'; {empty} are empty' if empty else ''}")
    low, high = bootstrap(np.column_stack((nats, sizes)), statistic=ratio_in_bits, seed=seed)
    return {
        "bits_per_byte": bits_per_byte(sum(nats), sum(sizes)),
        "low": low,
        "high": high,
        "perplexity": float(np.exp(sum(nats) / tokens)),
        "documents": len(nats),
        "tokens": tokens,
        "bytes": sum(sizes),
        "empty": empty,
    }


def ratio_in_bits(values: np.ndarray, axis: int) -> np.ndarray:
    """Bits per byte of documents [..., n, (nats, bytes)]."""
    nats, sizes = np.moveaxis(values.sum(axis=axis), -1, 0)
    return nats / np.log(2) / sizes
