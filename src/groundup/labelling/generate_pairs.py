"""Pairs to label: two models answer each prompt."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.core.plain_files import expanded
from groundup.data.contracts import read_prompts
from groundup.generation.engine import Sampling
from groundup.generation.open_folder import model_folder
from groundup.labelling.store import Pair, Store, pair_id_of
from groundup.model.model_folder import load_decoder
from groundup.posttraining.batches import question_of
from groundup.posttraining.reference_answers import answer, answer_plainly, with_room
from groundup.tokenizer.load import of_model


def generate_pairs(
    store: Store, models: tuple[str, str], prompts: Sequence[Path], max_tokens: int, temperature: float | None, seed: int,
    changes: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Add a pair a prompt to a project; two models may be one, whose answers differ by chance.

    Returns {"pairs", "already_there", "dropped"}. Raises UserError where there is no prompt or no model that writes text, and
    where no prompt leaves room for an answer.
    """
    loaded, dropped = read_prompts(prompts), Counter[str]()
    dropped.update(loaded.dropped)
    # Of prompts that differ in nothing one is enough.
    rows = [{"messages": [message.row for message in prompt]} for prompt in dict.fromkeys(loaded.rows)]
    opened = [_open(spec) for spec in models]
    for model, tokenizer, _ in opened:
        rows = with_room(model, tokenizer, rows, max_tokens, "label make", dropped)
    answers = []
    for number, (model, tokenizer, chats) in enumerate(opened):
        sampling, asked = Sampling.from_config(model.generation, max_tokens, temperature), [question_of(row) for row in rows]
        if chats:
            answers.append([text for text, _ in answer(model, tokenizer, asked, sampling, seed * 2 + number)])
        else:
            answers.append(answer_plainly(model, tokenizer, asked, sampling, seed * 2 + number))
    counts = Counter[str]()
    with store.transaction() as connection:
        store.change_settings(connection, changes)
        for row, *both in zip(rows, *answers, strict=True):
            a, b = (text.rstrip("\ufffd").strip() for text in both)  # the limit may have cut a character in two
            if not a or not b:
                dropped["an empty answer"] += 1
            elif "\0" in a + b or "\ufffd" in a + b:
                dropped["an answer that is no text"] += 1  # no reader of preferences would take it
            elif a == b:
                dropped["two equal answers"] += 1
            else:
                messages = row["messages"]
                pair = Pair(pair_id_of(messages, a, b), messages, a, b, *models)
                counts["pairs" if store.add(connection, pair) else "already_there"] += 1
    if not counts:
        raise UserError(f"label make: no pair to label ({', '.join(f'{name}: {n}' for name, n in dropped.items())})")
    return {"pairs": counts["pairs"], "already_there": counts["already_there"], "dropped": dict(sorted(dropped.items()))}


def _open(spec: str) -> tuple[Any, Any, bool]:
    """Model, tokenizer, and whether it ends its answers with the end of a message."""
    folder = model_folder(expanded(spec))
    model, tokenizer = load_decoder(folder).to(choose().torch_device), of_model(folder)
    return model, tokenizer, tokenizer.message_end in model.generation.ends
