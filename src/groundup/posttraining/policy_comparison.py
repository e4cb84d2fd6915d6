"""Comparisons of two sampled answers to each prompt, and of two models.

The judgements are a labelling log, the format of people's labels too; here a simulated annotator makes them.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from groundup.data.simulated_annotator import judgement, preferences, side_shown_left
from groundup.generation.engine import Sampling
from groundup.model.decoder import Decoder
from groundup.posttraining.batches import question_of, question_text
from groundup.posttraining.config import PreferencesConfig
from groundup.posttraining.reference_answers import answer, head_to_head, with_room
from groundup.tokenizer.tokenizer import Tokenizer


def label(
    model: Decoder, tokenizer: Tokenizer, questions: Sequence[dict[str, Any]], settings: PreferencesConfig, max_tokens: int,
    seed: int, split: str, left_out: Counter[str] | None = None, most_prompts: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    """Two answers of the model to each of the first `most_prompts` questions (rows with `messages` and `reference`), judged.

    Questions that cannot be asked, or leave no room for an answer, are counted in `left_out`. Raises UserError when none stays.

    Returns (the log of judgements, preference rows as TRL reads them; ties are in the first only).
    """
    questions = with_room(model, tokenizer, questions, max_tokens, "preferences", left_out, most_prompts)
    asked = [question_of(row) for row in questions]
    sampling = Sampling(max_tokens, settings.temperature)
    first, second = (answer(model, tokenizer, asked, sampling, seed * 2 + side) for side in (0, 1))
    judgements = []
    for number, (row, prompt, (a, _), (b, _)) in enumerate(zip(questions, asked, first, second, strict=True)):
        pair_id = f"{split}-{number:05d}"
        shown_left = side_shown_left(pair_id)
        judgements.append(judgement(prompt, a, b, row["reference"], pair_id, settings.min_gap, shown_left))
    return judgements, preferences(judgements)


def compare_policies(
    policy: Decoder, baseline: Decoder, tokenizer: Tokenizer, questions: Sequence[dict[str, Any]], temperature: float,
    max_tokens: int, seed: int, left_out: Counter[str] | None = None, most_prompts: int | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """Both models answer the first `most_prompts` held-out questions at the same temperature; (figures, samples of both).

    Questions that cannot be asked, or leave no room for an answer, are counted in `left_out`. Raises UserError when none stays.
    """
    questions = with_room(policy, tokenizer, questions, max_tokens, "preferences", left_out, most_prompts)
    asked = [question_of(row) for row in questions]
    references = [row["reference"] for row in questions]
    sampling = Sampling(max_tokens, temperature)
    ours = answer(policy, tokenizer, asked, sampling, seed + 1)
    theirs = answer(baseline, tokenizer, asked, sampling, seed + 2)
    samples = [
        {"question": question_text(question), "reference": reference, "before": old, "after": new}
        for question, reference, (new, _), (old, _) in zip(asked, references, ours, theirs, strict=True)
    ]
    return head_to_head(ours, theirs, references), samples[:40]
