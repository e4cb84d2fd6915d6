"""The statistical language model: n-grams with interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998).

Of tokens w after a history h of k - 1 tokens, where h' is h without its oldest token:

    p(w | h) = (c(h w) - D(c(h w))) / c(h)  +  gamma(h) p(w | h')      p(w | nothing) ends in the uniform 1 / vocabulary

At the highest order c counts occurrences; below it, how many different tokens were seen before h w: a short history
is used when the long one is new, so what matters is in how many contexts w occurs. D subtracts D1, D2 or D3+ from
counts of 1, 2, 3 and more (estimated from the counts of counts); gamma(h) redistributes what was subtracted: all sums are one.

A document's first tokens have the separator, repeated, for history. A history never reaches into the document before.

Counting is sorting: an n-gram's number is its rank among all (history, token) of that order, and stands for it
as a history one order up. So a key is rank * vocabulary + token, and fits in 64 bits at any order.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Order:
    """One order's n-grams, sorted. A history is the number of an n-gram one order below; the last one is padding."""

    keys: np.ndarray  # (n-grams,) int64: history * vocabulary + last token, ascending
    discounted: np.ndarray  # (n-grams,) float64: (c - D(c)) / c(history)
    gamma: np.ndarray  # (histories,) float64: weight of the order below; 1 for a history that nothing followed


class KneserNey:
    """Made by `KneserNey.fit`. Tokens are `separator, document, separator, document, ...`, ids below `vocabulary`."""

    def __init__(self, orders: list[Order], vocabulary: int, document_separator: int) -> None:
        self.orders, self.vocabulary, self.separator = orders, vocabulary, document_separator

    @property
    def order(self) -> int:
        """Tokens of the longest n-gram: the history is one less."""
        return len(self.orders)

    @classmethod
    def fit(cls, tokens: np.ndarray, order: int, vocabulary: int, document_separator: int) -> Self:
        """Count `tokens` (length,). Raises ValueError when there are none, one is no id, or `order` is below 1."""
        tokens = _checked(tokens, vocabulary)
        if order < 1 or not len(tokens):
            raise ValueError(f"order {order} over {len(tokens)} tokens: both must be at least 1")
        orders: list[Order] = []
        keys, ids, counts = np.unique(tokens, return_inverse=True, return_counts=True)
        histories = 1
        for _ in range(order - 1):
            history = _histories(ids, tokens, document_separator, padding=len(keys))
            longer_keys, firsts, longer_ids, counts = np.unique(
                history * vocabulary + tokens, return_index=True, return_inverse=True, return_counts=True
            )
            # Each n-gram one longer is one different token in front of the n-gram that it ends in.
            different = np.bincount(ids[firsts], minlength=len(keys))
            orders.append(_discounted(keys, different, histories, vocabulary))
            keys, ids, histories = longer_keys, longer_ids, len(keys) + 1
        orders.append(_discounted(keys, counts, histories, vocabulary))
        return cls(orders, vocabulary, document_separator)

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Natural log of each token's probability given the tokens before it in its document: (length,) float64.

        A separator is predicted like any token: it ends its document. The first token has only separators before it, so
        leave it out of a sum when it is the separator that opens the text.
        """
        tokens = _checked(tokens, self.vocabulary)
        probability = np.full(len(tokens), 1 / self.vocabulary)
        history = np.zeros(len(tokens), np.int64)  # -1: never seen, and so is every longer one
        for order in self.orders:
            seen = history >= 0
            probability *= np.where(seen, order.gamma[history], 1.0)
            keys = history * self.vocabulary + tokens
            ids = np.minimum(np.searchsorted(order.keys, keys), len(order.keys) - 1)
            known = seen & (order.keys[ids] == keys)
            probability += np.where(known, order.discounted[ids], 0.0)
            history = _histories(np.where(known, ids, -1), tokens, self.separator, padding=len(order.keys))
        return np.log(probability)

    def next_token(self, history: np.ndarray) -> np.ndarray:
        """Probability of every token after `history` (length,), which may be empty: (vocabulary,) float64."""
        padded = np.concatenate([[self.separator], np.asarray(history, np.int64)])
        recent = padded[max(len(padded) - self.order + 1, 0) :]
        candidates = np.arange(self.vocabulary)
        rows = np.column_stack([np.tile(recent, (self.vocabulary, 1)), candidates])
        # A row that is shorter than the order begins with the separator, so no row sees the one before.
        return np.exp(self.log_probabilities(rows.ravel()).reshape(rows.shape)[:, -1])


def _checked(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    tokens = np.asarray(tokens, np.int64)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise ValueError(f"tokens from {tokens.min()} to {tokens.max()} do not fit a vocabulary of {vocabulary}")
    return tokens


def _histories(ids: np.ndarray, tokens: np.ndarray, separator: int, padding: int) -> np.ndarray:
    """Each token's history, one order up: the n-gram that ends just before it, or `padding` where a document begins."""
    histories = np.empty_like(ids)
    histories[:1] = padding
    histories[1:] = np.where(tokens[:-1] == separator, padding, ids[:-1])
    return histories


def _discounted(keys: np.ndarray, counts: np.ndarray, histories: int, vocabulary: int) -> Order:
    history = keys // vocabulary
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(history, counts, histories)
    gamma = np.bincount(history, discounts, histories) / np.maximum(total, 1)
    gamma[total == 0] = 1.0
    return Order(keys, (counts - discounts) / total[history], gamma)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """(0, D1, D2, D3+) from the counts of counts 1 to 4 (Chen and Goodman 1998, equation 26)."""
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].tolist()
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        estimated = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if (estimated[1:] > 0).all():
            return estimated
    # Too few n-grams, or a small vocabulary in which none is rare, say nothing about D: it is half of its maximum then.
    return np.array([0, 0.5, 1.0, 1.5])
