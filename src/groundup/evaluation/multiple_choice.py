"""Multiple choice in the manner of MMLU (Hendrycks et al. 2021), from held-out documentation, scored three ways.

The same test scored under two conventions gives two results. LLaMA-65B has 63.7 % on MMLU in HELM and 48.8 % in the
evaluation harness of January 2023 ("What's going on with the Open LLM Leaderboard?", Hugging Face 2023): HELM and
MMLU's authors (63.6 %) ask for the letter, that harness compared the probabilities of whole answers. Neither is wrong;
a figure without its convention is. So every convention is compared with the others, with the spread between them:

    letter            choices listed A to D in the prompt; the most probable of " A", " B", " C", " D" (MMLU's authors)
    answer            only the question in the prompt; the answer text with the highest sum of log-probabilities (the
                      rule of the old harness; it favours short answers)
    answer per byte   that sum divided by the bytes of the answer, so that length costs nothing

Small models answer " A" whatever is asked, so expect chance from `letter` long before it is beaten by the other two.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.core.statistics import proportion
from groundup.data.docstring_questions import DocumentedObject, digest, documented, first_sentence
from groundup.data.simulated_annotator import overlap

LETTERS = "ABCD"
ALL_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # for a user's own questions
NEAR_IDENTICAL = 0.7  # F1 of words between two choices

LogLikelihood = Callable[[list[tuple[str, str]]], list[float]]


# --- making the test ----------------------------------------------------------------------------------------------


def from_documents(documents: Iterable[tuple[str, str]], questions: int, seed: int) -> list[dict[str, Any]]:
    """At most `questions` rows {"question", "choices": [4], "answer": 0..3, "object"} from (url, text) documents.

    The right choice is the first sentence of the object's docstring. The others describe other objects of its kind (a
    class reads unlike a function), of the same module where that has enough. No two choices are nearly identical, and
    none contains the name of its own object or of the one asked about: that would answer without knowledge.
    """
    pool = [(item, first_sentence(item.docstring)) for item in documented(documents) if item.kind != "module"]
    pool = [(item, choice) for item, choice in pool if choice and not _contains_name(choice, item)]
    pool.sort(key=lambda pair: digest(seed, pair[0].name))
    rows = []
    for item, right in pool:
        if len(rows) == questions:
            break
        choices = [right, *_distractors(item, right, pool, seed)]
        if len(choices) < len(LETTERS):
            continue
        shuffled = sorted(choices, key=lambda choice: digest(seed, item.name, choice))
        question = f"What is `{item.name}`?" if item.kind == "class" else f"What does `{item.name}` do?"
        rows.append({"question": question, "choices": shuffled, "answer": shuffled.index(right), "object": item.name})
    return rows


def _distractors(
    item: DocumentedObject, right: str, pool: Sequence[tuple[DocumentedObject, str]], seed: int
) -> list[str]:
    """Three wrong choices, those of the same module first and then by digest; fewer when the pool has no more."""
    candidates = [(other, choice) for other, choice in pool if other.kind == item.kind and other is not item]
    candidates.sort(key=lambda pair: (pair[0].module != item.module, digest(seed, item.name, pair[0].name)))
    distractors: list[str] = []
    for _, choice in candidates:
        if _contains_name(choice, item) or any(overlap(choice, taken) >= NEAR_IDENTICAL for taken in [right, *distractors]):
            continue
        distractors.append(choice)
        if len(distractors) == len(LETTERS) - 1:
            break
    return distractors


def _contains_name(choice: str, item: DocumentedObject) -> bool:
    name = item.name.rpartition(".")[2].lower()
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", choice.lower()) is not None


# --- scoring it ---------------------------------------------------------------------------------------------------


def listed(row: dict[str, Any]) -> str:
    """The prompt of the "letter" convention, up to and including "Answer:"."""
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(_letters(row), row["choices"], strict=True))
    return f"Question: {row['question']}\n{choices}Answer:"


def _letters(row: dict[str, Any]) -> str:
    return ALL_LETTERS[: len(row["choices"])]


def score(rows: Sequence[dict[str, Any]], log_likelihood: LogLikelihood) -> dict[str, Any]:
    """{"letter" | "answer" | "answer per byte": {"accuracy", "low", "high", "n"}, "chance": 0.25, "spread": max - min}.

    "chance" is 0.25 for four choices each; rows may have from 2 to 26.

    `log_likelihood` takes (context, continuation) pairs and gives the sum of log-probabilities of each
    continuation in nats. It is called once, with all pairs of all rows. Of equal choices the first counts as chosen.
    Raises UserError without rows.
    """
    if not rows:
        raise UserError("multiple choice: no questions to score; hold out more documentation")
    letters = [(listed(row), f" {letter}") for row in rows for letter in _letters(row)]
    answers = [(f"Question: {row['question']}\nAnswer:", f" {choice}") for row in rows for choice in row["choices"]]
    nats = np.array(log_likelihood(letters + answers))
    by_letter, by_answer = np.split(nats, 2)
    bytes_ = np.array([len(text.encode()) for _, text in answers])
    ends = np.cumsum([len(row["choices"]) for row in rows])

    def right(values: np.ndarray) -> int:
        return sum(int(scores.argmax()) == row["answer"] for row, scores in zip(rows, np.split(values, ends[:-1]), strict=True))

    scores = {
        convention: proportion(right(values), len(rows))
        for convention, values in (
            ("letter", by_letter),
            ("answer", by_answer),
            ("answer per byte", by_answer / bytes_),
        )
    }
    accuracies = [interval["accuracy"] for interval in scores.values()]
    chance = float(np.mean([1 / len(row["choices"]) for row in rows]))
    return {**scores, "chance": chance, "spread": max(accuracies) - min(accuracies)}
