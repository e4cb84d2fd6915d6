"""Supervised fine-tuning: the next-token loss on desired answers, given their questions (Ouyang et al. 2022).

The questions carry no loss: the model learns to answer, not to ask. Answers end with `<|im_end|>`, which is learned too,
so that a chat model knows when to stop.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from groundup.core.errors import UserError
from groundup.core.files import read_jsonl, write_jsonl
from groundup.data.conversations import conversation_of
from groundup.generation.engine import Sampling, room
from groundup.model.decoder import Decoder
from groundup.posttraining import data_checks, lora
from groundup.posttraining.batches import (
    Question,
    Row,
    answer_of,
    messages_of,
    prompt_of,
    question_of,
    question_text,
    row_of,
)
from groundup.posttraining.config import SftConfig
from groundup.posttraining.packing import weighted_batch, weights_of
from groundup.posttraining.reference_answers import (
    answer,
    answer_bits_per_byte,
    answer_loss,
    answer_plainly,
    form_of,
    mean_overlap,
    overlap_gain,
    plain_prompt,
    with_room,
)
from groundup.posttraining.tokenize_rows import conversation, longest_answer, too_long, top_reasons, usable_rows
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.by_kernels import by_kernels
from groundup.training.epoch_order import chosen_rows, log_steps, micro_batches
from groundup.training.loop import mean_loss, tune
from groundup.training.objectives import Batch, Metrics, next_token
from groundup.training.parallel import ALONE, Processes
from groundup.training.runtime import Runtime

HELD_OUT_ROWS = 64  # that are measured during training, as in pre-training
SHOWN_ANSWERS, SHOWN_TOKENS = 4, 64  # questions that are answered at the same steps, and tokens of an answer
Questions = Sequence[dict[str, Any]]


def train(
    model: Decoder, tokenizer: Tokenizer, questions: Questions, settings: SftConfig, runtime: Runtime, held_out: Questions = ()
) -> int:
    """Train `model` in place on `questions` (rows with `messages`); returns the number of steps.

    The loss on the first of the `held_out` questions is in the metrics of some steps, as `held_out`.

    Rows that are no conversation, are longer than the context or have longer answers than `settings` says are left out,
    and counted in `runtime.left_out` by reason. Raises UserError when none stays.
    """
    longest = model.config.max_position_embeddings + 1  # the last token is a target only
    left_out, label, device = runtime.left_out, runtime.label, runtime.device.torch_device

    def unfit(row: Row) -> str | None:
        if longest_answer(row) > settings.max_answer_tokens:
            return f"with an answer of more than max_answer_tokens = {settings.max_answer_tokens}"
        return too_long(longest, row) or data_checks.no_answer(row)

    rows = usable_rows(questions, lambda row: conversation(tokenizer, row), unfit, left_out)
    if not rows:
        reasons = top_reasons(left_out) or "none"
        raise UserError(f"{label}: no questions to learn from; of {len(questions)} rows left out: {reasons}")
    data_checks.report_findings(label, data_checks.of_conversations(rows, tokenizer, left_out), settings.strict)
    steps = log_steps(runtime.log, runtime.label, settings.epochs, settings.batch_examples, len(rows))

    def batches(step: int) -> list[Batch]:
        chosen = [rows[index] for index in chosen_rows(step, settings.batch_examples, len(rows), runtime.seed)]
        return batches_of(chosen, tokenizer.pad, settings, device, runtime.processes)

    objective = partial(next_token, dtype=runtime.device.training_dtype)
    held_out_rows = usable_rows(held_out, lambda row: conversation(tokenizer, row), unfit, left_out)[:HELD_OUT_ROWS]
    probe = batches_of(held_out_rows, tokenizer.pad, settings, device) if held_out_rows else []

    shown_tokens = min(settings.max_answer_tokens, SHOWN_TOKENS)
    shown_questions = _questions_to_show(model, tokenizer, held_out, shown_tokens)

    def observe() -> Metrics:
        if runtime.processes.first:
            _log_answers(model, tokenizer, shown_questions, shown_tokens, runtime)
        return {"held_out": mean_loss(model, objective, probe)}

    with by_kernels([model], runtime), lora.adapted(model, settings.lora_rank, runtime.seed, runtime.folder):
        tune(
            model, objective, batches, settings.learning_rate, steps, runtime, decay=2, observe=observe if probe else None
        )
    return steps


def _questions_to_show(model: Decoder, tokenizer: Tokenizer, questions: Questions, max_tokens: int) -> list[Question]:
    """The first of the questions that can be asked."""

    def read(row: dict[str, Any]) -> tuple[Question, int]:
        question = question_of({"messages": conversation_of(row).rows})
        return question, len(prompt_of(tokenizer, question))

    longest = room(model, max_tokens)
    askable = usable_rows(questions[:HELD_OUT_ROWS], read, lambda asked: "too long" if asked[1] > longest else None, Counter())
    return [question for question, _ in askable[:SHOWN_ANSWERS]]


def _log_answers(model: Decoder, tokenizer: Tokenizer, asked: Sequence[Question], max_tokens: int, runtime: Runtime) -> None:
    """Add the greedy answers of the model as it is now to answers.jsonl, for people to read.

    The step is that of metrics.jsonl. Training that resumes has cut that file back to its state; the answers are cut here.
    """
    path = runtime.training / "answers.jsonl"
    step = len(read_jsonl(runtime.training / "metrics.jsonl"))
    before = [row for row in (read_jsonl(path) if path.is_file() else []) if row["step"] < step]
    answers = answer(model, tokenizer, asked, Sampling(max_tokens, temperature=0), runtime.seed)
    rows = [
        {"step": step, "question": question_text(question), "answer": text, "ended": ended}
        for question, (text, ended) in zip(asked, answers, strict=True)
    ]
    write_jsonl(path, [*before, *rows])


def batches_of(
    rows: Sequence[Row], pad: int, settings: SftConfig, device: torch.device, processes: Processes = ALONE
) -> list[Batch]:
    """This process's micro-batches of a step, whose weights add up to one over all processes.

    Accumulated, they are the big batch, to the last rounding.
    """
    order, counts = processes.mine(len(rows))
    weights = [counts * weight for weight in weights_of(rows, settings.weighting)]
    if settings.examples_at_once:
        order.sort(key=lambda index: -len(rows[index][0]))  # similar lengths: little padding; longest first: shows what fits
    return [
        weighted_batch([rows[i] for i in part], [weights[i] for i in part], pad, device, settings.packing)
        for part in micro_batches(order, settings.examples_at_once)
    ]


def compare_with_base(
    tuned: Decoder, base: Decoder, tokenizer: Tokenizer, questions: Questions, max_answer_tokens: int, seed: int,
    left_out: Counter[str] | None = None, most_questions: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Both models on the first `most_questions` held-out questions that can be asked: bits per byte of the right answer, and
    overlap of their own greedy answers.

    "gain" is the difference of the overlaps, question by question, with its interval; "answer_loss" is in nats per token of
    all answers of the conversations, both models reading the chat format.

    The base model has never seen the chat format, so it is asked in plain text: "Question: ... Answer:". Questions that
    leave no room for an answer, or that the chat template does not take, are counted in `left_out`. Raises UserError when none
    stays.
    """
    def answered_row(row: dict[str, Any]) -> Row:
        message = {"role": "assistant", "content": row["reference"]}
        return conversation(tokenizer, {"messages": [*messages_of(question_of(row)), message]})

    questions = with_room(tuned, tokenizer, questions, max_answer_tokens, "sft", left_out, most_questions, answered_row)
    asked = [question_of(row) for row in questions]
    references = [row["reference"] for row in questions]
    prompts = [prompt_of(tokenizer, question) for question in asked]
    answers = [
        answer_of(row_of(tokenizer, question, text), prompt)
        for question, text, prompt in zip(asked, references, prompts, strict=True)
    ]
    plain = [tokenizer.encode_after(" " + text, "text") for text in references]
    sampling = Sampling(max_answer_tokens, temperature=0)
    answered = answer(tuned, tokenizer, asked, sampling, seed)
    tuned_answers = [text for text, _ in answered]
    base_answers = answer_plainly(base, tokenizer, asked, sampling, seed)
    by_kind = {
        kind: [number for number, row in enumerate(questions) if row["kind"] == kind]
        for kind in sorted({row["kind"] for row in questions})
    }
    rows = [answered_row(row) for row in questions]
    return {
        "held_out": {
            "answer_loss": {
                "base": answer_loss(base, rows),
                "sft": answer_loss(tuned, rows),
                "conversations": len(rows),
                "tokens": sum(sum(spoken) for _, spoken in rows),
            },
            "bits_per_byte": {
                "base": answer_bits_per_byte(base, [plain_prompt(tokenizer, q) for q in asked], plain, references),
                "sft": answer_bits_per_byte(tuned, prompts, answers, references),
            },
            "overlap": {"base": mean_overlap(base_answers, references), "sft": mean_overlap(tuned_answers, references)},
            "gain": overlap_gain(tuned_answers, base_answers, references),
            "form": {**form_of(answered), "reference_words": sum(len(text.split()) for text in references) / len(references)},
            "overlap_by_kind": {
                kind: {
                    **{
                        name: mean_overlap([texts[n] for n in numbers], [references[n] for n in numbers])["overlap"]
                        for name, texts in (("base", base_answers), ("sft", tuned_answers))
                    },
                    "gain": overlap_gain(
                        *([texts[n] for n in numbers] for texts in (tuned_answers, base_answers, references))
                    ),
                }
                for kind, numbers in by_kind.items()
            },
        },
        "samples": [
            {"kind": row["kind"], "question": question_text(question), "reference": reference, "base": before, "sft": after}
            for row, question, reference, before, after in zip(
                questions, asked, references, base_answers, tuned_answers, strict=True
            )
        ][:40],
    }
