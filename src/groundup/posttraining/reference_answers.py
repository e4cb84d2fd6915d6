"""Answers of a model to questions with a reference, and two models compared on them."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.core.statistics import bootstrap, difference, win_rate
from groundup.data.simulated_annotator import compare, overlap
from groundup.generation.engine import Sampling, generate, room
from groundup.model.decoder import Decoder
from groundup.model.likelihood import bits_per_byte, score
from groundup.posttraining.batches import Question, Row, prompt_of, question_of, question_text
from groundup.posttraining.length import length_comparison
from groundup.posttraining.tokenize_rows import top_reasons, usable_rows
from groundup.tokenizer.chat import answer_ends
from groundup.tokenizer.tokenizer import Tokenizer

BATCH = 256  # answers generated at once


def with_room(
    model: Decoder, tokenizer: Tokenizer, rows: Sequence[dict[str, Any]], max_tokens: int, stage: str,
    left_out: Counter[str] | None = None, most_rows: int | None = None,
    also_read: Callable[[dict[str, Any]], object] = lambda row: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The first `most_rows` of the rows (`messages`) that can be asked: the chat template takes them, with room for an answer.

    `also_read` is called with each row, which is left out where that fails. Rows that cannot be asked are counted in `left_out`,
    by reason. Raises UserError when none stays.
    """
    longest, counted, fitting = room(model, max_tokens), Counter[str](), list[dict[str, Any]]()

    def read(row: dict[str, Any]) -> tuple[dict[str, Any], int]:
        also_read(row)
        question = question_of(row)
        return row, max(len(prompt_of(tokenizer, question)), len(plain_prompt(tokenizer, question)))

    def unfit(row_and_length: tuple[dict[str, Any], int]) -> str | None:
        return f"longer than {longest} tokens" if row_and_length[1] > longest else None

    for row in rows:
        if len(fitting) == most_rows:
            break
        fitting += [fitting_row for fitting_row, _ in usable_rows([row], read, unfit, counted)]
    if left_out is not None:
        left_out.update(counted)
    if rows and not fitting and most_rows != 0:
        why = f"{stage}: none of {len(rows)} questions has at most {longest} tokens and can be asked; the rest is for the answer"
        raise UserError(f"{why}: {top_reasons(counted)}"[:300])
    return fitting


def answer(
    model: Decoder, tokenizer: Tokenizer, questions: Sequence[Question], sampling: Sampling, seed: int
) -> list[tuple[str, bool]]:
    """Each question's answer, and whether it ended by itself, from a chat model."""
    prompts = [prompt_of(tokenizer, question) for question in questions]
    ends = answer_ends(tokenizer, model.generation.ends)
    answers = _generated(model, prompts, ends, sampling, seed)
    return [(tokenizer.decode(ids).strip(), ids[-1] in ends) for ids in answers]


def form_of(answers: Sequence[tuple[str, bool]]) -> dict[str, float]:
    """Mean number of words of answers, and the share that ended by themselves."""
    return {
        "words": float(np.mean([len(text.split()) for text, _ in answers])),
        "ended": float(np.mean([ended for _, ended in answers])),
    }


def answer_plainly(
    model: Decoder, tokenizer: Tokenizer, questions: Sequence[Question], sampling: Sampling, seed: int
) -> list[str]:
    """Answers of a base model, which knows no chat format: it continues "Question: ... Answer:" to the end of the line."""
    prompts = [plain_prompt(tokenizer, question) for question in questions]
    answers = _generated(model, prompts, [tokenizer.end_of_text], sampling, seed)
    return [tokenizer.decode(ids).strip().split("\n")[0] for ids in answers]


def _generated(
    model: Decoder, prompts: list[list[int]], ends: list[int], sampling: Sampling, seed: int
) -> list[list[int]]:
    starts = range(0, len(prompts), BATCH)
    parts = (generate(model, prompts[start : start + BATCH], ends, sampling, seed + start) for start in starts)
    return [ids for part in parts for ids in part]


def plain_prompt(tokenizer: Tokenizer, asked: Question) -> list[int]:
    """Ids of "Question: ... Answer:"; of several messages each as a line "user: ..." before the last "assistant:"."""
    text = f"Question: {asked}\nAnswer:" if isinstance(asked, str) else f"{question_text(asked)}\nassistant:"
    return tokenizer.prompt(text)


def answer_bits_per_byte(
    model: Decoder, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], texts: Sequence[str]
) -> float:
    """Bits per byte of the answers given their prompts; `texts` are the answers as text."""
    scores = score(model, [[*prompt, *ids] for prompt, ids in zip(prompts, answers, strict=True)])
    nats = -sum(float(log_probs[len(prompt) - 1 :].sum()) for log_probs, prompt in zip(scores, prompts, strict=True))
    return bits_per_byte(nats, sum(len(text.encode()) for text in texts))


def answer_loss(model: Decoder, rows: Sequence[Row]) -> float:
    """Nats per token of all that the assistant writes in the rows, ends of answers included: the loss of fine-tuning.

    Raises ValueError where it writes nothing.
    """
    scores = score(model, [ids for ids, _ in rows])
    masks = [np.array(spoken[1:], dtype=bool) for _, spoken in rows]
    return -float(np.concatenate([log_probs[mask] for log_probs, mask in zip(scores, masks, strict=True)]).mean(dtype=np.float64))


def overlap_gain(after: Sequence[str], before: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """How much more the answers after overlap with the references than those before, question by question."""
    return difference(_overlaps(after, references), _overlaps(before, references))


def _overlaps(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    return [overlap(text, reference) for text, reference in zip(answers, references, strict=True)]


def mean_overlap(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean overlap with the references, with a 95 % bootstrap interval."""
    values = _overlaps(answers, references)
    low, high = bootstrap(values)
    return {"overlap": float(np.mean(values)), "low": low, "high": high, "n": len(values)}


def head_to_head(
    challenger: Sequence[tuple[str, bool]], baseline: Sequence[tuple[str, bool]], references: Sequence[str]
) -> dict[str, Any]:
    """How often the simulated annotator prefers the challenger, ties counting half, with a 95 % interval, and at equal length."""
    outcome_of = {"a": 1.0, "tie": 0.5, "b": 0.0}
    ours, theirs = [text for text, _ in challenger], [text for text, _ in baseline]
    outcomes = [
        outcome_of[compare(new, old, reference, 0.0)] for new, old, reference in zip(ours, theirs, references, strict=True)
    ]
    return {
        **win_rate(outcomes),
        "overlap": mean_overlap(ours, references),
        "baseline_overlap": mean_overlap(theirs, references),
        "gain": overlap_gain(ours, theirs, references),
        "mean_words": float(np.mean([len(text.split()) for text in ours])),
        "baseline_mean_words": float(np.mean([len(text.split()) for text in theirs])),
        "ended": float(np.mean([ended for _, ended in challenger])),
        "length": length_comparison(outcomes, challenger, baseline),
    }
