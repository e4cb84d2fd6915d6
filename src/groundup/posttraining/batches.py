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

Question = str | Sequence[Mapping[str, Any]]  # the user's only message, or all messages before an answer
Row = tuple[list[int], list[int]]  # token ids and, for each, 1 where the assistant speaks


def collate(rows: Sequence[Row], pad: int, device: torch.device) -> Batch:
    """ids, targets (batch, time) int64 and mask (batch, time) float32: 1 where the target is the assistant's.

    Padded on the right: a causal model never sees it, and the mask keeps it out of every loss.
    """
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), longest)
    for index, (row_ids, spoken) in enumerate(rows):
        ids[index, : len(row_ids)] = torch.tensor(row_ids)
        mask[index, : len(row_ids)] = torch.tensor(spoken, dtype=torch.float32)
    return {
        "ids": ids[:, :-1].contiguous().to(device),
        "targets": ids[:, 1:].contiguous().to(device),
        "mask": mask[:, 1:].contiguous().to(device),
    }


def parts_by_length(indices: Sequence[int], pairs: Sequence[Sequence[Row]], at_once: int) -> list[list[int]]:
    """The `indices` of pairs as micro-batches of `at_once`, pairs of similar length together, so that little is padded.

    The longest come first, so that the first batch shows whether memory suffices. 0: all in one, in their order.
    """
    if not at_once:
        return [list(indices)]
    return micro_batches(sorted(indices, key=lambda index: -max(len(ids) for ids, _ in pairs[index])), at_once)


def pair_batches(
    step: int, pairs: Sequence[Sequence[Row]], pad: int, device: torch.device, batch: int, at_once: int, runtime: Runtime,
    extra_columns: Callable[[list[int]], Batch],
) -> list[Batch]:  # fmt: skip
    """This process's micro-batches of a step over `pairs` (chosen, rejected): all chosen rows, then all rejected ones.

    `share` () is the micro-batch's part of the step over all processes. `extra_columns`: further tensors for the loss, of the
    pairs with these indices.
    """
    chosen = chosen_rows(step, batch, len(pairs), runtime.seed)
    mine, counts = runtime.processes.mine(len(chosen))
    return [
        collate([pairs[index][side] for side in (0, 1) for index in part], pad, device)
        | {"share": torch.tensor(counts * len(part) / len(chosen)), **extra_columns(part)}
        for part in parts_by_length([chosen[index] for index in mine], pairs, at_once)
    ]


def answer_log_probabilities(
    model: Decoder, batch: Batch, dtype: torch.dtype = torch.float32, temperature: float = 1.0
) -> Tensor:
    """Log-probability (batch, time) in nats of each of the assistant's tokens, zero elsewhere."""
    return token_log_probabilities(
        model, batch["ids"], batch["targets"], dtype=dtype, wanted_BT=batch["mask"], temperature=temperature
    )


def row_of(tokenizer: Tokenizer, question: Question, answer: str) -> Row:
    """A question and its answer in the chat format, ending with the token that ends the answer."""
    return render(tokenizer, [*messages_of(question), {"role": "assistant", "content": answer}])


def answer_of(row: Row, prompt: Sequence[int]) -> list[int]:
    """The answer's tokens in a row of one question: those of the assistant after the `prompt`, its end included."""
    ids, spoken = row
    return [token for token, is_spoken in zip(ids[len(prompt) :], spoken[len(prompt) :], strict=True) if is_spoken]


def prompt_of(tokenizer: Tokenizer, question: Question) -> list[int]:
    """Token ids up to where the answer begins."""
    return render(tokenizer, messages_of(question), add_generation_prompt=True)[0]


def messages_of(question: Question) -> Sequence[Mapping[str, Any]]:
    return [{"role": "user", "content": question}] if isinstance(question, str) else question


def question_of(row: Mapping[str, Any]) -> Question:
    """All messages of a row before its last answer; a single one as its text."""
    messages = row["messages"]
    history = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return text_of(history[0]) if len(history) == 1 else history


def question_text(question: Question) -> str:
    """For people; each message with its role where there are several."""
    return question if isinstance(question, str) else "\n".join(f"{turn['role']}: {text_of(turn).strip()}" for turn in question)
