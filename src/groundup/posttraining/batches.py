"""Conversations as padded batches, in an order that is a function of the step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from groundup.data.messages import text_of
from groundup.model.decoder import Decoder
from groundup.model.likelihood import token_log_probabilities
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.epoch_order import chosen_rows, micro_batches
from groundup.training.objectives import Batch
from groundup.training.runtime import Runtime

Asked = str | Sequence[Mapping[str, Any]]  # one question, or the messages before an answer
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


def parts_by_length(numbers: Sequence[int], pairs: Sequence[Sequence[Row]], at_once: int) -> list[list[int]]:
    """The `numbers` of pairs as micro-batches of `at_once`, those alike in length together, so that little is padded.

    The longest come first, which says at the first one whether memory suffices. 0: all in one, as they stand.
    """
    if not at_once:
        return [list(numbers)]
    return micro_batches(sorted(numbers, key=lambda number: -max(len(ids) for ids, _ in pairs[number])), at_once)


def pair_batches(
    step: int, pairs: Sequence[Sequence[Row]], pad: int, device: torch.device, batch: int, at_once: int, runtime: Runtime,
    more: Callable[[list[int]], Batch],
) -> list[Batch]:  # fmt: skip
    """This process's micro-batches of a step over `pairs` (chosen, rejected): all chosen rows, then all rejected ones.

    `share` () is that of a micro-batch in the step of all processes; `more`: what the loss takes besides, of pairs by number.
    """
    chosen = chosen_rows(step, batch, len(pairs), runtime.seed)
    mine, counts = runtime.processes.mine(len(chosen))
    return [
        collate([pairs[number][side] for side in (0, 1) for number in part], pad, device)
        | {"share": torch.tensor(counts * len(part) / len(chosen)), **more(part)}
        for part in parts_by_length([chosen[index] for index in mine], pairs, at_once)
    ]


def answer_log_probabilities(
    model: Decoder, batch: Batch, dtype: torch.dtype = torch.float32, temperature: float = 1.0
) -> Tensor:
    """Log-probability (batch, time) in nats of each of the assistant's tokens, zero elsewhere."""
    return token_log_probabilities(
        model, batch["ids"], batch["targets"], dtype=dtype, wanted_BT=batch["mask"], temperature=temperature
    )


def row_of(tokenizer: Tokenizer, asked: Asked, answer: str) -> Row:
    """What was asked and its answer as the chat format has them, ending with the token that ends the answer."""
    return render(tokenizer, [*messages_of(asked), {"role": "assistant", "content": answer}])


def answer_of(row: Row, prompt: Sequence[int]) -> list[int]:
    """Of one question's row what the assistant writes after the `prompt`, its end included."""
    ids, spoken = row
    return [token for token, says in zip(ids[len(prompt) :], spoken[len(prompt) :], strict=True) if says]


def prompt_of(tokenizer: Tokenizer, asked: Asked) -> list[int]:
    """Ids up to where the answer begins."""
    return render(tokenizer, messages_of(asked), add_generation_prompt=True)[0]


def messages_of(asked: Asked) -> Sequence[Mapping[str, Any]]:
    return [{"role": "user", "content": asked}] if isinstance(asked, str) else asked


def asked_of(row: Mapping[str, Any]) -> Asked:
    """What a row of `messages` asks last, with all that was said before: a question alone is its text."""
    messages = row["messages"]
    history = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return text_of(history[0]) if len(history) == 1 else history


def shown(asked: Asked) -> str:
    """For people, with who says what where there is more than one message."""
    return asked if isinstance(asked, str) else "\n".join(f"{one['role']}: {text_of(one).strip()}" for one in asked)
