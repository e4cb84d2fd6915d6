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
from groundup.evaluation.evaluated_models import Continued, EvaluatedModel
from groundup.evaluation.tasks import LETTERS, Example, Task

Record = dict[str, Any]


class _Requests:
    """What is asked of the model for some examples: collected, scored at once, and given back by number."""

    def __init__(self, model: EvaluatedModel) -> None:
        self.model = model
        self.pairs: list[tuple[str, str]] = []
        self.scored: list[Continued | BadRow] = []

    def add(self, context: str, continuation: str) -> int:
        """Number of the request."""
        self.pairs.append((context, continuation))
        return len(self.pairs) - 1

    def score(self, batch_size: int) -> None:
        self.scored = self.model.continuations(self.pairs, batch_size)

    def __getitem__(self, number: int) -> Continued:
        found = self.scored[number]
        if isinstance(found, BadRow):
            raise found
        return found


def records_of(model: EvaluatedModel, task: Task, examples: Sequence[Example], batch_size: int = 64) -> list[Record]:
    """One record for each example: `example` (its row), `group`, `answer`, what the model made of it, and `skipped` with the
    reason where it made nothing.

    The same for any order and batch size, but in the last bits of float32.
    """
    made = KINDS[task.settings.kind](model, task, examples, batch_size)
    return [
        {"example": one.number, "group": one.group, "answer": one.answer, **({"by": one.by} if one.by else {}), **record}
        for one, record in zip(examples, made, strict=True)
    ]


def _by_requests(
    ask: Callable[[_Requests, Task, Example], dict[str, Any]],
    tell: Callable[[_Requests, Example, dict[str, Any]], Record],
) -> Callable[[EvaluatedModel, Task, Sequence[Example], int], list[Record]]:
    """Records by likelihoods: `ask` notes which requests an example makes, `tell` reads the results."""

    def records(model: EvaluatedModel, task: Task, examples: Sequence[Example], batch_size: int) -> list[Record]:
        requests, ends = _Requests(model), []
        asked: list[dict[str, Any]] = []
        for example in examples:
            asked.append(ask(requests, task, example))
            ends.append(len(requests.pairs))
        requests.score(batch_size)
        return [
            _told(requests, range(start, end), tell, example, one)
            for example, one, start, end in zip(examples, asked, [0, *ends], ends, strict=False)
        ]

    return records


def _told(
    requests: _Requests, numbers: range, tell: Callable[..., Record], example: Example, asked: dict[str, Any]
) -> Record:
    try:
        truncated = sum(requests[number].truncated for number in numbers) > 0  # all: any of them may have none
        return tell(requests, example, asked) | {"truncated": truncated}
    except BadRow as error:
        return {"skipped": error.reason}


def _ask_choices(requests: _Requests, task: Task, example: Example) -> dict[str, Any]:
    space = task.settings.delimiter
    asked = {
        "answers": [requests.add(example.prompt, space + text) for text in example.texts],
        "alone": [requests.add("", space + text) for text in example.texts],
    }
    if example.listed:
        named = [*zip(LETTERS, example.texts, strict=False)]
        asked["letters"] = [requests.add(example.listed, space + letter) for letter, _ in named]
        asked["listed_answers"] = [requests.add(example.listed, f"{space}{letter}. {text}") for letter, text in named]
    return asked


def _tell_choices(requests: _Requests, example: Example, asked: dict[str, Any]) -> Record:
    record: Record = {
        name: [requests[number].nats for number in asked[name]]
        for name in ("answers", "alone", "letters", "listed_answers")
        if name in asked
    }
    record["tokens"] = [requests[number].tokens for number in asked["answers"]]
    record["characters"] = [len(text) for text in example.texts]
    record["bytes"] = [len(text.encode()) for text in example.texts]
    if "letters" in asked:
        letters = [requests[number] for number in asked["letters"]]
        record["letter_of_all"] = next((place for place, one in enumerate(letters) if one.greedy), -1)
        said = letters[0].said.strip()
        record["generated"] = LETTERS.find(said, 0, len(letters)) if len(said) == 1 else -1
    return record


def _ask_pairs(requests: _Requests, task: Task, example: Example) -> dict[str, Any]:
    space = task.settings.delimiter
    if example.prompt:  # what all alternatives continue with
        return {"pairs": [requests.add(text, space + example.prompt) for text in example.texts]}
    return {"pairs": [requests.add("", space + text) for text in example.texts]}


def _tell_pairs(requests: _Requests, example: Example, asked: dict[str, Any]) -> Record:
    return {"answers": [requests[number].nats for number in asked["pairs"]]}


def _ask_last_word(requests: _Requests, task: Task, example: Example) -> dict[str, Any]:
    return {"word": requests.add(example.prompt, task.settings.delimiter + example.texts[0])}


def _tell_last_word(requests: _Requests, example: Example, asked: dict[str, Any]) -> Record:
    found = requests[asked["word"]]
    return {"nats": found.nats, "right": float(found.greedy)}


def _generation(model: EvaluatedModel, task: Task, examples: Sequence[Example], batch_size: int) -> list[Record]:
    settings = task.settings
    written = model.written([one.prompt for one in examples], settings.until, settings.max_tokens, batch_size)
    return [
        {"skipped": one.reason} if isinstance(one, BadRow) else {**judged(one[0], task, example.texts), "truncated": one[1]}
        for one, example in zip(written, examples, strict=True)
    ]


def _existence(model: EvaluatedModel, task: Task, examples: Sequence[Example], batch_size: int) -> list[Record]:
    """Answers, and how sure the model is of their text."""
    settings = task.settings
    written = model.written([one.prompt for one in examples], settings.until, settings.max_tokens, batch_size)
    texts = ["" if isinstance(one, BadRow) else answer_extraction.cut(one[0], settings.until) for one in written]
    pairs = [(one.prompt, text) for one, text in zip(examples, texts, strict=True) if text.strip()]
    scored = iter(model.continuations(pairs, batch_size))
    made: list[Record] = []
    for example, text, answer in zip(examples, texts, written, strict=True):
        one = next(scored) if text.strip() else None
        if isinstance(answer, BadRow):
            made.append({"skipped": answer.reason})
            continue
        sure = float(np.exp(one.nats / one.tokens)) if isinstance(one, Continued) else 0.0
        made.append(hallucination.record(text, example, settings, sure) | {"truncated": answer[1]})
    return made


def judged(text: str, task: Task, accepted: Sequence[str]) -> Record:
    """What counts of a continuation, and whether it is one of the accepted answers."""
    settings = task.settings
    text = answer_extraction.cut(text, settings.until)
    found = answer_extraction.extract(text, settings.extract, settings.extract_which)
    record: Record = {"text": text, "found": found}
    if settings.match == "words":
        return record | {
            "right": max(exact_match(found or "", one) for one in accepted),
            "f1": max(f1(found or "", one) for one in accepted),
        }
    targets = [answer_extraction.extract(one, settings.extract, settings.extract_which) or one for one in accepted]
    return record | {"right": float(found is not None and any(answer_extraction.same(found, one) for one in targets))}


def _perplexity(model: EvaluatedModel, task: Task, examples: Sequence[Example], batch_size: int) -> list[Record]:
    texts = [one.texts[0] for one in examples]
    return [
        {"skipped": nats.reason}
        if isinstance(nats, BadRow)
        else {"nats": float(nats), "bytes": len(text.encode()), "words": len(text.split()), "truncated": False}
        for nats, text in zip(model.texts(texts, task.settings.windows, batch_size), texts, strict=True)
    ]


KINDS: dict[str, Callable[[EvaluatedModel, Task, Sequence[Example], int], list[Record]]] = {
    "choices": _by_requests(_ask_choices, _tell_choices),
    "pairs": _by_requests(_ask_pairs, _tell_pairs),
    "last word": _by_requests(_ask_last_word, _tell_last_word),
    "generation": _generation,
    "perplexity": _perplexity,
    "toxicity": toxic_continuations.records,
    "existence": _existence,
}


def _most(name: str, divide: str = "") -> Callable[[Record], int]:
    """The choice with the highest sum, or quotient; of equals the first."""

    def chosen(record: Record) -> int:
        values = np.array(record[name])
        return int((values / np.array(record[divide]) if divide else values).argmax())

    return chosen


# What each convention takes for the model's choice: its index, -1 for none.
CONVENTIONS: dict[str, Callable[[Record], int]] = {
    "letter": _most("letters"),
    "letter of vocabulary": lambda record: record["letter_of_all"],
    "generated letter": lambda record: record["generated"],
    "answer": _most("answers"),
    "answer per token": _most("answers", "tokens"),
    "answer per character": _most("answers", "characters"),
    "answer per byte": _most("answers", "bytes"),
    "answer PMI": lambda record: int((np.array(record["answers"]) - np.array(record["alone"])).argmax()),
    "listed answer": _most("listed_answers"),
}
OF_LETTERS = ("letter", "letter of vocabulary", "generated letter", "listed answer")


def conventions_of(record: Record) -> list[str]:
    """Those that a record can be scored under."""
    if "tokens" not in record:
        return ["answer"]
    return [name for name in CONVENTIONS if "letters" in record or name not in OF_LETTERS]
