"""Supervised fine-tuning: the next-token loss on desired answers, given their questions (Ouyang et al. 2022).

The questions carry no loss: the model learns to answer, not to ask. Answers end with `<|im_end|>`, which is learned too,
so that a chat model knows when to stop.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from groundup.device import Device
from groundup.errors import UserError
from groundup.model.decoder import Decoder
from groundup.posttraining.answers import answer, answer_bits_per_byte, answer_plainly, mean_overlap, plain_prompt
from groundup.posttraining.batches import Row, chosen_rows, collate, prompt_of, row_of, steps_for
from groundup.recipe import Sft
from groundup.serving.engine import Sampling
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.loop import tune
from groundup.training.objectives import Batch, next_token

Questions = Sequence[dict[str, Any]]


def finetune(
    model: Decoder, tokenizer: Tokenizer, questions: Questions, settings: Sft, device: Device, folder: Path, seed: int
) -> int:
    """Train `model` in place on `questions` (rows with `messages`); returns the number of steps.

    Raises UserError when there are no questions, or none whose answer fits.
    """
    rows = [row_of(tokenizer, *(message["content"] for message in row["messages"])) for row in questions]
    longest = model.config.max_position_embeddings + 1
    rows = [row for row in rows if len(row[0]) <= longest and sum(row[1]) <= settings.max_answer_tokens]
    if not rows:
        raise UserError(
            f"sft: no questions to learn from: of {len(questions)} none has an answer of at most "
            f"sft.max_answer_tokens = {settings.max_answer_tokens} and fits the context of {longest - 1} tokens"
        )
    check_rows(rows, tokenizer)
    steps = steps_for(settings.epochs, settings.batch_examples, len(rows))

    def batches(step: int) -> list[Batch]:
        chosen = [rows[index] for index in chosen_rows(step, settings.batch_examples, len(rows), seed)]
        batch = collate(chosen, tokenizer.pad, device.torch_device)
        return [batch | {"weight": batch["mask"] / batch["mask"].sum()}]

    objective = partial(next_token, dtype=device.training_dtype)
    tune(model, objective, batches, settings.learning_rate, steps, folder, "sft", decay=2)
    return steps


def check_rows(rows: Sequence[Row], tokenizer: Tokenizer) -> None:
    """Refuse what would train for hours to no end: no answer in the mask, or an end that is never learned."""
    for ids, spoken in rows:
        if not any(spoken):
            raise UserError("sft: a conversation has no assistant tokens to learn from; its mask is all zero")
        if ids[-1] != tokenizer.message_end or not spoken[-1]:
            raise UserError("sft: an answer does not end with the end-of-message token; the model would never stop")


def compare_with_base(
    tuned: Decoder, base: Decoder, tokenizer: Tokenizer, questions: Questions, max_answer_tokens: int, seed: int
) -> dict[str, Any]:
    """Both models on held-out questions: bits per byte of the right answer, and overlap of their own greedy answers.

    The base model has never seen the chat format, so it is asked in plain text: "Question: ... Answer:".
    """
    asked = [row["messages"][0]["content"] for row in questions]
    references = [row["reference"] for row in questions]
    answers = [[*tokenizer.encode(text.strip()), tokenizer.message_end] for text in references]
    plain = [tokenizer.encode(" " + text) for text in references]
    sampling = Sampling(max_answer_tokens, temperature=0)
    tuned_answers = [text for text, _ in answer(tuned, tokenizer, asked, sampling, seed)]
    base_answers = answer_plainly(base, tokenizer, asked, sampling, seed)
    by_kind = {
        kind: [number for number, row in enumerate(questions) if row["kind"] == kind]
        for kind in sorted({row["kind"] for row in questions})
    }
    return {
        "held_out": {
            "bits_per_byte": {
                "base": answer_bits_per_byte(base, [plain_prompt(tokenizer, q) for q in asked], plain, references),
                "sft": answer_bits_per_byte(tuned, [prompt_of(tokenizer, q) for q in asked], answers, references),
            },
            "overlap": {"base": mean_overlap(base_answers, references), "sft": mean_overlap(tuned_answers, references)},
            "overlap_by_kind": {
                kind: {
                    name: mean_overlap([texts[n] for n in numbers], [references[n] for n in numbers])["overlap"]
                    for name, texts in (("base", base_answers), ("sft", tuned_answers))
                }
                for kind, numbers in by_kind.items()
            },
        },
        "samples": [
            {"kind": row["kind"], "question": question, "reference": reference, "base": before, "sft": after}
            for row, question, reference, before, after in zip(
                questions, asked, references, base_answers, tuned_answers, strict=True
            )
        ][:40],
    }
