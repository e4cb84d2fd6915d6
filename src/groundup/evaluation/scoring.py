"""What a model does with examples: one record for each, from which every convention's figure follows.

Choices are scored under all conventions from one pass over the model, because they disagree: LLaMA-65B has 63.7 % on MMLU
when it is asked for the letter and 48.8 % when whole answers are compared (Hugging Face, "What's going on with the Open LLM
Leaderboard?", 2023). `CONVENTIONS` says what each one takes for the model's choice.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from groundup.core.answer_scores import exact_match, f1
from groundup.data.messages import BadRow
from groundup.evaluation import answer_extraction, hallucination, toxic_continuations
from groundup.evaluation.answer_keys import LETTERS
from groundup.evaluation.evaluated_models import ContinuationScore, EvaluatedModel
from groundup.evaluation.tasks import Example, Task

Record = dict[str, Any]


class _Requests:
    """What is asked of the model for some examples: collected, scored at once, and given back by number."""

    def __init__(self, model: EvaluatedModel) -> None:
        self.model = model
        self.pairs: list[tuple[str, str]] = []
        self.results: list[ContinuationScore | BadRow] = []

    def add(self, context: str, continuation: str) -> int:
        """Number of the request."""
        self.pairs.append((context, continuation))
        return len(self.pairs) - 1

    def score(self, batch_size: int) -> None:
        self.results = self.model.continuations(self.pairs, batch_size)

    def __getitem__(self, number: int) -> ContinuationScore:
        result = self.results[number]
        if isinstance(result, BadRow):
            raise result
        return result


def records_of(model: EvaluatedModel, task: Task, examples: Sequence[Example], batch_size: int = 64) -> list[Record]:
    """One record for each example: `example` (its row), `group`, `answer`, what the model made of it, and `skipped` with the
    reason where it made nothing.

    The same for any order and batch size, but in the last bits of float32.
    """
    outcomes = KINDS[task.settings.kind](model, task, examples, batch_size)
    return [
        {"example": ex.number, "group": ex.group, "answer": ex.answer, **({"by": ex.by} if ex.by else {}), **record}
        for ex, record in zip(examples, outcomes, strict=True)
    ]


def _by_requests(
    add_requests: Callable[[_Requests, Task, Example], dict[str, Any]],
    read_results: Callable[[_Requests, Example, dict[str, Any]], Record],
) -> Callable[[EvaluatedModel, Task, Sequence[Example], int], list[Record]]:
    """Records from likelihoods: `add_requests` adds an example's and returns their numbers, `read_results` makes the record."""

    def records(model: EvaluatedModel, task: Task, examples: Sequence[Example], batch_size: int) -> list[Record]:
        requests, ends = _Requests(model), []
        named_numbers: list[dict[str, Any]] = []
        for example in examples:
            named_numbers.append(add_requests(requests, task, example))
            ends.append(len(requests.pairs))
        requests.score(batch_size)
        return [
            _record(requests, range(start, end), read_results, example, numbers)
            for example, numbers, start, end in zip(examples, named_numbers, [0, *ends], ends, strict=False)
        ]

    return records


def _record(
    requests: _Requests, numbers: range, read_results: Callable[..., Record], example: Example, named_numbers: dict[str, Any]
) -> Record:
    try:
        truncated = sum(requests[number].truncated for number in numbers) > 0  # all: any of them may have none
        return read_results(requests, example, named_numbers) | {"truncated": truncated}
    except BadRow as error:
        return {"skipped": error.reason}


def _request_choices(requests: _Requests, task: Task, example: Example) -> dict[str, Any]:
    delimiter = task.settings.delimiter
    numbers = {
        "answers": [requests.add(example.prompt, delimiter + text) for text in example.texts],
        "alone": [requests.add("", delimiter + text) for text in example.texts],
    }
    if example.listed:
        named = [*zip(LETTERS, example.texts, strict=False)]
        numbers["letters"] = [requests.add(example.listed, delimiter + letter) for letter, _ in named]
        numbers["listed_answers"] = [requests.add(example.listed, f"{delimiter}{letter}. {text}") for letter, text in named]
    return numbers


def _choices_record(requests: _Requests, example: Example, numbers: dict[str, Any]) -> Record:
    record: Record = {
        name: [requests[number].nats for number in numbers[name]]
        for name in ("answers", "alone", "letters", "listed_answers")
        if name in numbers
    }
    record["tokens"] = [requests[number].tokens for number in numbers["answers"]]
    record["characters"] = [len(text) for text in example.texts]
    record["bytes"] = [len(text.encode()) for text in example.texts]
    if "letters" in numbers:
        letters = [requests[number] for number in numbers["letters"]]
        record["letter_of_all"] = next((index for index, letter in enumerate(letters) if letter.greedy), -1)
        likeliest_text = letters[0].likeliest_text.strip()
        record["generated"] = LETTERS.find(likeliest_text, 0, len(letters)) if len(likeliest_text) == 1 else -1
    return record


def _request_pairs(requests: _Requests, task: Task, example: Example) -> dict[str, Any]:
    delimiter = task.settings.delimiter
    if example.prompt:  # what all alternatives continue with
        return {"pairs": [requests.add(text, delimiter + example.prompt) for text in example.texts]}
    return {"pairs": [requests.add("", delimiter + text) for text in example.texts]}


def _pairs_record(requests: _Requests, example: Example, numbers: dict[str, Any]) -> Record:
    return {"answers": [requests[number].nats for number in numbers["pairs"]]}


def _request_last_word(requests: _Requests, task: Task, example: Example) -> dict[str, Any]:
    return {"word": requests.add(example.prompt, task.settings.delimiter + example.texts[0])}


def _last_word_record(requests: _Requests, example: Example, numbers: dict[str, Any]) -> Record:
    word = requests[numbers["word"]]
    return {"nats": word.nats, "right": float(word.greedy)}


def _generation(model: EvaluatedModel, task: Task, examples: Sequence[Example], batch_size: int) -> list[Record]:
    settings = task.settings
    written = model.written([example.prompt for example in examples], settings.until, settings.max_tokens, batch_size)
    return [
        {"skipped": answer.reason}
        if isinstance(answer, BadRow)
        else {**grade_answer(answer[0], task, example.texts), "truncated": answer[1]}
        for answer, example in zip(written, examples, strict=True)
    ]


def _existence(model: EvaluatedModel, task: Task, examples: Sequence[Example], batch_size: int) -> list[Record]:
    """Answers, and how sure the model is of their text."""
    settings = task.settings
    written = model.written([example.prompt for example in examples], settings.until, settings.max_tokens, batch_size)
    texts = ["" if isinstance(answer, BadRow) else answer_extraction.cut(answer[0], settings.until) for answer in written]
    pairs = [(example.prompt, text) for example, text in zip(examples, texts, strict=True) if text.strip()]
    scores = iter(model.continuations(pairs, batch_size))
    records: list[Record] = []
    for example, text, answer in zip(examples, texts, written, strict=True):
        score = next(scores) if text.strip() else None
        if isinstance(answer, BadRow):
            records.append({"skipped": answer.reason})
            continue
        confidence = float(np.exp(score.nats / score.tokens)) if isinstance(score, ContinuationScore) else 0.0
        records.append(hallucination.record(text, example, settings, confidence) | {"truncated": answer[1]})
    return records


def grade_answer(text: str, task: Task, accepted: Sequence[str]) -> Record:
    """The record of a continuation: the answer in it, and whether that is one of the accepted ones."""
    settings = task.settings
    text = answer_extraction.cut(text, settings.until)
    answer = answer_extraction.extract(text, settings.extract, settings.extract_which)
    record: Record = {"text": text, "found": answer}
    if settings.match == "words":
        return record | {
            "right": max(exact_match(answer or "", target) for target in accepted),
            "f1": max(f1(answer or "", target) for target in accepted),
        }
    targets = [answer_extraction.extract(target, settings.extract, settings.extract_which) or target for target in accepted]
    return record | {"right": float(answer is not None and any(answer_extraction.same(answer, target) for target in targets))}


def _perplexity(model: EvaluatedModel, task: Task, examples: Sequence[Example], batch_size: int) -> list[Record]:
    texts = [example.texts[0] for example in examples]
    return [
        {"skipped": nats.reason}
        if isinstance(nats, BadRow)
        else {"nats": float(nats), "bytes": len(text.encode()), "words": len(text.split()), "truncated": False}
        for nats, text in zip(model.texts(texts, task.settings.windows, batch_size), texts, strict=True)
    ]


KINDS: dict[str, Callable[[EvaluatedModel, Task, Sequence[Example], int], list[Record]]] = {
    "choices": _by_requests(_request_choices, _choices_record),
    "pairs": _by_requests(_request_pairs, _pairs_record),
    "last word": _by_requests(_request_last_word, _last_word_record),
    "generation": _generation,
    "perplexity": _perplexity,
    "toxicity": toxic_continuations.records,
    "existence": _existence,
}


def _argmax(name: str, divide: str = "") -> Callable[[Record], int]:
    """The choice with the highest sum, or quotient; of equals the first."""

    def choice(record: Record) -> int:
        values = np.array(record[name])
        return int((values / np.array(record[divide]) if divide else values).argmax())

    return choice


# What each convention takes for the model's choice: its index, -1 for none.
CONVENTIONS: dict[str, Callable[[Record], int]] = {
    "letter": _argmax("letters"),
    "letter of vocabulary": lambda record: record["letter_of_all"],
    "generated letter": lambda record: record["generated"],
    "answer": _argmax("answers"),
    "answer per token": _argmax("answers", "tokens"),
    "answer per character": _argmax("answers", "characters"),
    "answer per byte": _argmax("answers", "bytes"),
    "answer PMI": lambda record: int((np.array(record["answers"]) - np.array(record["alone"])).argmax()),
    "listed answer": _argmax("listed_answers"),
}
LETTER_CONVENTIONS = ("letter", "letter of vocabulary", "generated letter", "listed answer")


def conventions_of(record: Record) -> list[str]:
    """Those that a record can be scored under."""
    if "tokens" not in record:
        return ["answer"]
    return [name for name in CONVENTIONS if "letters" in record or name not in LETTER_CONVENTIONS]
