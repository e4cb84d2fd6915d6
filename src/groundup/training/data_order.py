"""The order of training data as a function of the step: resuming needs a step number and nothing else.

Documents are put in an order once, from the seed, and concatenated; the stream is cut into rows of `context_length` tokens,
and the rows are shuffled, since neighbours in a long document would make a batch of one subject. Each document begins
with the end-of-text token, which the model sees as the beginning of a text and predicts as the end of the one before. Where
a tokenizer has two tokens, as Llama's, a document begins with the one and ends with the other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from groundup.core.errors import UserError
from groundup.data.config import MixtureConfig
from groundup.data.mixture import plan
from groundup.data.token_files import TokenFile
from groundup.training.objectives import Batch
from groundup.training.parallel import ALONE, Processes

CHECKED_AT_ONCE = 1 << 24  # token ids
# Up to so many times the tokens that a training reads are drawn as documents, and its rows come from all over them. After 2M of
# 16M tokens of textbooks in whole documents three models have 4.244 nats (standard deviation 0.024); after rows of all, 4.210.
MOST_SPARE = 16

Shares = dict[str, dict[str, float]]  # of each domain: share, passes and tokens


class Stream:
    """Documents of a token file as rows of `context_length` tokens and their targets; the rows of each phase are shuffled."""

    def __init__(
        self, file: TokenFile, phases: list[np.ndarray], context_length: int, separator: int, seed: int,
        max_rows: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """`phases`: document indices, with repeats; all rows of a phase come before those of the next. `max_rows`: by phase."""
        self.file, self.context_length, self.separator = file, context_length, separator
        self.order = np.concatenate(phases)
        # (documents + 1,): offset in the stream at which each document begins
        self.starts = np.concatenate(([0], np.cumsum(file.lengths[self.order], dtype=np.int64)))
        ends = self.starts[np.cumsum([len(phase) for phase in phases])]
        generator = np.random.default_rng(seed)
        rows = [
            generator.permutation(np.arange(begin, end - context_length, context_length))[:count]
            for begin, end, count in zip([0, *ends[:-1]], ends, max_rows or [None] * len(ends), strict=True)
        ]
        self.offsets = np.concatenate(rows)  # (rows,): offset in the stream at which each row begins

    @property
    def rows(self) -> int:
        return len(self.offsets)

    def row(self, index: int) -> np.ndarray:
        """The `context_length` + 1 tokens of a row."""
        start = int(self.offsets[index])
        position = int(np.searchsorted(self.starts, start, side="right")) - 1
        pieces, needed, skip = [], self.context_length + 1, start - int(self.starts[position])
        while needed:
            piece = self.file[self.order[position]][skip : skip + needed]
            pieces.append(piece)
            needed, skip, position = needed - len(piece), 0, position + 1
        return np.concatenate(pieces)

    def batches(
        self, step: int, rows: int, micro_rows: int, device: torch.device, processes: Processes = ALONE
    ) -> list[Batch]:
        """This process's micro-batches of one step: `rows` rows over all processes, each token of equal weight.

        A micro-batch holds at most `micro_rows` rows a process. All processes have equally many; one without a row computes
        one of weight zero. `last` marks the micro-batch that ends the step.
        """
        result, rank, world = [], processes.rank, processes.world
        for first in range(step * rows, (step + 1) * rows, micro_rows * world):
            count = min(micro_rows * world, (step + 1) * rows - first)
            mine = range(first + count * rank // world, first + count * (rank + 1) // world)
            tokens = torch.from_numpy(np.stack([self.row(r % self.rows) for r in mine or [first]]))
            tokens = tokens.to(device, torch.long)
            ids = tokens[:, :-1].contiguous()
            result.append(
                {
                    "ids": ids,
                    "targets": tokens[:, 1:].contiguous(),
                    "documents": (ids == self.separator).cumsum(1),
                    "weight": torch.full(ids.shape, 1 / (rows * self.context_length) if mine else 0.0, device=device),
                    "last": torch.tensor(first + count == (step + 1) * rows),  # of the step
                }
            )
        return result


def check_ids(file: TokenFile, vocabulary: int, name: str) -> None:
    """Raises UserError for an id outside the vocabulary: on a GPU it would end training without saying why."""
    for start in range(0, len(file.tokens), CHECKED_AT_ONCE):
        ids = file.tokens[start : start + CHECKED_AT_ONCE]
        if ids.max() >= vocabulary or ids.min() < 0:
            offset = start + int(np.argmax((ids >= vocabulary) | (ids < 0)))
            document = int(np.searchsorted(np.cumsum(file.lengths, dtype=np.int64), offset, side="right"))
            raise UserError(
                f"{name}: document {document} holds token id {file.tokens[offset]}, the vocabulary has {vocabulary}; "
                "encode the documents with the model's own tokenizer"
            )


def document_order(
    table: list[dict[str, Any]], mixture: MixtureConfig, anneal_data_fraction: float, tokens: int, seed: int
) -> tuple[list[np.ndarray], dict[str, Shares]]:
    """Which documents a run reads, in order: a mixture of the domains, at the end of their best documents only.

    `table`: the training documents in the order of the token file (`domain`, `tokens`, `best`). The phases hold at least
    `tokens` tokens where `mixture.max_repeats` allows it; what the best documents cannot give comes from all of them.
    Returns document indices by phase, and by phase and domain the share, the number of passes and the tokens to read, which
    are fewer than the documents hold: rows come from all over them.
    """
    domains = np.array([row["domain"] for row in table])
    lengths = np.array([row["tokens"] for row in table])
    best = np.array([row["best"] for row in table], dtype=bool)
    of_mixture = np.isin(domains, list(mixture.weights)) if mixture.weights else np.ones(len(table), dtype=bool)

    def drawn_from(
        allowed: np.ndarray, weights: dict[str, float], budget: int, drawn_before: dict[str, int]
    ) -> tuple[np.ndarray, Shares]:
        available = {str(name): int(lengths[allowed & (domains == name)].sum()) for name in np.unique(domains[allowed])}
        drawn = plan(available, weights, budget, mixture.max_repeats, drawn_before)
        spare = min((available[name] / count for name, count in drawn.tokens.items() if count), default=1)
        oversampling = min(max(1, spare), MOST_SPARE)
        parts = [
            draw(np.flatnonzero(allowed & (domains == name)), lengths, int(oversampling * count), seed + number)
            for number, (name, count) in enumerate(sorted(drawn.tokens.items()))
            if count
        ]
        nothing = np.zeros(0, dtype=np.int64)  # where max_repeats allows less than a token
        return np.random.default_rng(seed).permutation(np.concatenate([nothing, *parts])), {
            name: {"share": drawn.shares[name], "repeats": drawn.repeats[name], "tokens": drawn.tokens[name]}
            for name in available
        }

    phases: list[np.ndarray] = []
    phase_shares: dict[str, Shares] = {}
    annealed: dict[str, int] = {}  # tokens by domain: a domain's repeats are those of both phases
    remaining, anneal_tokens = tokens, tokens - round(tokens * (1 - anneal_data_fraction))
    if anneal_tokens and (best & of_mixture).any():
        weights = {name: weight for name, weight in mixture.weights.items() if name in domains[best]}
        documents, shares = drawn_from(best, weights, anneal_tokens, annealed)
        phases, phase_shares = [documents], {"best data": shares}
        annealed = {name: int(share["tokens"]) for name, share in shares.items()}
        remaining -= sum(annealed.values())
    if remaining:
        documents, shares = drawn_from(np.ones(len(table), dtype=bool), mixture.weights, remaining, annealed)
        phases, phase_shares = [documents, *phases], {"stable": shares, **phase_shares}
    return phases, phase_shares


def draw(documents: np.ndarray, lengths: np.ndarray, tokens: int, seed: int) -> np.ndarray:
    """An order over `documents` with at least `tokens` tokens: whole shuffled passes, then part of one more."""
    available = int(lengths[documents].sum())
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(documents) for _ in range(tokens // available + 1)])
    needed = int(np.searchsorted(np.cumsum(lengths[order]), tokens)) + 1
    return order[:needed]
