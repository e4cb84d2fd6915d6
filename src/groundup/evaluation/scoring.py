"""What a model does with examples: one record for each, from which every convention's figure follows.

Choices are scored under all conventions from one pass over the model, because they disagree: LLaMA-65B has 63.7 % on MMLU
when it is asked for the letter and 48.8 % when whole answers are compared (Hugging Face, "What's going on with the Open LLM
Leaderboard?", 2023). `CONVENTIONS` says what each one takes for the model's choice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from groundup.core.answer_scores import exact_match, f1
from groundup.core.errors import UserError
from groundup.core.seals import MANIFEST
from groundup.data.messages import BadRow
from groundup.evaluation import answers, continuations
from groundup.evaluation.continuations import Request, Scored
from groundup.evaluation.tasks import LETTERS, Example, Task
from groundup.generation.engine import Sampling, generate, room
from groundup.generation.open_folder import model_folder
from groundup.model import likelihood
from groundup.model.base import LanguageModel
from groundup.model.folder import load_decoder
from groundup.tokenizer.load import AnyTokenizer
from groundup.tokenizer.load import load as load_tokenizer

Record = dict[str, Any]


@dataclass
class Model:
    """`opening`: ids that its tokenizer puts before a text, as other tools have them; maybe none."""

    name: str
    folder: Path
    model: LanguageModel
    tokenizer: AnyTokenizer
    opening: list[int]

    @property
    def context(self) -> int:
        return self.model.config.max_position_embeddings


def open_model(name: str) -> Model:
    """Of a run's dpo stage, or its last one before that; of a stage, or a model's folder.

    Raises UserError where there is none that we load.
    """
    finished = [stage for stage in ("dpo", "sft", "base") if (Path(name) / stage / MANIFEST).is_file()]
    folder = model_folder(Path(name), finished[0] if finished else None)
    tokenizer = load_tokenizer(folder)
    if not hasattr(tokenizer, "end_of_text"):
        raise UserError(f"{folder}: its tokenizer has no token that ends a text, so it is not that of a language model")
    return Model(name, folder, load_decoder(folder), tokenizer, opening_of(folder))


def opening_of(folder: Path) -> list[int]:
    """Ids that a folder's tokenizer puts before every text: what lm-eval and transformers put there."""
    backend = tokenizers.Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    plain = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a").ids
    starts = [place for place in range(len(whole)) if whole[place : place + len(plain)] == plain]
    return whole[: starts[0]] if starts else []


class _Requests:
    """What is asked of the model for some examples: collected, scored at once, and given back by number."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.requests: list[Request] = []
        self.truncated = 0
        self._encode = lru_cache(4096)(model.tokenizer.encode)

    def add(self, context: str, continuation: str) -> int:
        """Number of the request, whose context is cut from the left where both are too long.

        White space at a context's end belongs to the continuation, and both are encoded together, as lm-eval does; where a
        token spans the border they are encoded apart. Raises BadRow for a continuation that leaves no room for context.
        """
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        first, whole = self._encode(context), self.model.tokenizer.encode(context + continuation)
        together = whole[: len(first)] == first and len(whole) > len(first)
        before = "text" if context else "nothing"
        rest = whole[len(first) :] if together else self.model.tokenizer.encode_after(continuation, before)
        opening = self.model.opening if context else self.model.opening or [self.model.tokenizer.begin_of_text]
        ids, start = (*opening, *first, *rest), len(opening) + len(first)
        if (beyond := len(ids) - self.model.context - 1) > 0:
            ids, start = ids[beyond:], start - beyond
            self.truncated += 1
        if start < 1:
            raise BadRow("an answer longer than the model's context")
        self.requests.append(Request(ids, start))
        return len(self.requests) - 1

    def tokens(self, number: int) -> int:
        """Of the continuation."""
        request = self.requests[number]
        return len(request.ids) - request.start

    def score(self, batch_size: int) -> list[Scored]:
        return continuations.score(self.model.model, self.requests, batch_size)


def records_of(model: Model, task: Task, examples: Sequence[Example], batch_size: int = 64) -> list[Record]:
    """One record for each example: `example` (its row), `group`, `answer`, what the model made of it, and `skipped` with the
    reason where it made nothing.

    The same for any order and batch size, but in the last bits of float32.
    """
    made = KINDS[task.settings.kind](model, task, examples, batch_size)
    return [
        {"example": one.number, "group": one.group, "answer": one.answer, **record}
        for one, record in zip(examples, made, strict=True)
    ]


def _by_requests(
    ask: Callable[[_Requests, Task, Example], dict[str, Any]],
    tell: Callable[[_Requests, list[Scored], Example, dict[str, Any]], Record],
) -> Callable[[Model, Task, Sequence[Example], int], list[Record]]:
    """Records by likelihoods: `ask` notes which requests an example makes, `tell` reads the results."""

    def records(model: Model, task: Task, examples: Sequence[Example], batch_size: int) -> list[Record]:
        requests = _Requests(model)
        asked: list[dict[str, Any]] = []
        for example in examples:
            before, cut = len(requests.requests), requests.truncated
            try:
                asked.append(ask(requests, task, example) | {"truncated": requests.truncated > cut})
            except BadRow as error:
                del requests.requests[before:]
                requests.truncated = cut
                asked.append({"skipped": error.reason})
        scored = requests.score(batch_size)
        return [
            one if "skipped" in one else tell(requests, scored, example, one) | {"truncated": one["truncated"]}
            for example, one in zip(examples, asked, strict=True)
        ]

    return records


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


def _tell_choices(requests: _Requests, scored: list[Scored], example: Example, asked: dict[str, Any]) -> Record:
    record: Record = {
        name: [scored[number].nats for number in asked[name]]
        for name in ("answers", "alone", "letters", "listed_answers")
        if name in asked
    }
    record["tokens"] = [requests.tokens(number) for number in asked["answers"]]
    record["characters"] = [len(text) for text in example.texts]
    record["bytes"] = [len(text.encode()) for text in example.texts]
    if "letters" in asked:
        letters = [scored[number] for number in asked["letters"]]
        record["letter_of_all"] = next((place for place, one in enumerate(letters) if one.greedy), -1)
        said = requests.model.tokenizer.decode([letters[0].likeliest]).strip()
        record["generated"] = LETTERS.find(said, 0, len(letters)) if len(said) == 1 else -1
    return record


def _ask_pairs(requests: _Requests, task: Task, example: Example) -> dict[str, Any]:
    space = task.settings.delimiter
    if example.prompt:  # what all alternatives go on with
        return {"pairs": [requests.add(text, space + example.prompt) for text in example.texts]}
    return {"pairs": [requests.add("", space + text) for text in example.texts]}


def _tell_pairs(requests: _Requests, scored: list[Scored], example: Example, asked: dict[str, Any]) -> Record:
    return {"answers": [scored[number].nats for number in asked["pairs"]]}


def _ask_last_word(requests: _Requests, task: Task, example: Example) -> dict[str, Any]:
    return {"word": requests.add(example.prompt, task.settings.delimiter + example.texts[0])}


def _tell_last_word(requests: _Requests, scored: list[Scored], example: Example, asked: dict[str, Any]) -> Record:
    found = scored[asked["word"]]
    return {"nats": found.nats, "right": float(found.greedy)}


def _generation(model: Model, task: Task, examples: Sequence[Example], batch_size: int) -> list[Record]:
    """Greedy answers. A prompt that leaves no room for one is cut from the left."""
    settings, tokenizer = task.settings, model.tokenizer
    most = room(model.model, settings.max_tokens)
    prompts, cut = [], []
    for example in examples:
        ids = [*model.opening, *tokenizer.encode(example.prompt)] or [tokenizer.begin_of_text]
        cut.append(len(ids) > most)
        prompts.append(ids[-most:])
    ends = _ends(model, tuple(settings.until))
    written: list[list[int]] = [[] for _ in examples]
    order = sorted(range(len(examples)), key=lambda number: len(prompts[number]))
    for first in range(0, len(order), batch_size):
        some = order[first : first + batch_size]
        sampling = Sampling(settings.max_tokens, temperature=0)
        for number, ids in zip(some, generate(model.model, [prompts[n] for n in some], ends, sampling, 0), strict=True):
            written[number] = ids
    return [
        {**judged(tokenizer.decode(ids), task, example.texts), "truncated": was_cut}
        for ids, example, was_cut in zip(written, examples, cut, strict=True)
    ]


def _ends(model: Model, until: tuple[str, ...]) -> list[int]:
    """Tokens after which a continuation is over: those that end a text, and those that hold a text that ends it."""
    tokenizer = model.tokenizer
    ends = {tokenizer.end_of_text, *model.model.generation.ends}
    for text in filter(None, until):
        sought = text.encode()
        ends |= {token for token in range(tokenizer.size) if sought in tokenizer.token_bytes(token)}
    return sorted(ends)


def judged(text: str, task: Task, accepted: Sequence[str]) -> Record:
    """What counts of a continuation, and whether it is one of the accepted answers."""
    settings = task.settings
    text = answers.cut(text, settings.until)
    found = answers.extract(text, settings.extract, settings.extract_which)
    record: Record = {"text": text, "found": found}
    if settings.match == "words":
        return record | {
            "right": max(exact_match(found or "", one) for one in accepted),
            "f1": max(f1(found or "", one) for one in accepted),
        }
    targets = [answers.extract(one, settings.extract, settings.extract_which) or one for one in accepted]
    return record | {"right": float(found is not None and any(answers.same(found, one) for one in targets))}


def _perplexity(model: Model, task: Task, examples: Sequence[Example], batch_size: int) -> list[Record]:
    first = (model.opening or [model.tokenizer.begin_of_text])[-1]
    texts = [one.texts[0] for one in examples]
    sequences = [[first, *model.tokenizer.encode(text)] for text in texts]
    if task.settings.windows == "half":
        tokens = max(1, min(batch_size * 256, 16_384))
        nats = [some.sum(dtype=np.float64) for some in likelihood.score(model.model, sequences, batch_tokens=tokens)]
    else:
        windows = [disjoint(ids, model.context) for ids in sequences]
        scored = iter(continuations.score(model.model, [one for some in windows for one in some], batch_size))
        nats = [sum(next(scored).nats for _ in some) for some in windows]
    return [
        {"nats": float(found), "bytes": len(text.encode()), "words": len(text.split()), "truncated": False}
        for found, text in zip(nats, texts, strict=True)
    ]


def disjoint(ids: Sequence[int], context: int) -> list[Request]:
    """Every token but the first once, in windows of `context` after one token; the last one reaches back as far as it can."""
    ends = [*range(context, len(ids) - 1, context), len(ids) - 1] if len(ids) > 1 else []
    starts = [1, *(end + 1 for end in ends)]
    return [
        Request(tuple(ids[max(0, end - context) : end + 1]), start - max(0, end - context))
        for start, end in zip(starts, ends, strict=False)
    ]


KINDS: dict[str, Callable[[Model, Task, Sequence[Example], int], list[Record]]] = {
    "choices": _by_requests(_ask_choices, _tell_choices),
    "pairs": _by_requests(_ask_pairs, _tell_pairs),
    "last word": _by_requests(_ask_last_word, _tell_last_word),
    "generation": _generation,
    "perplexity": _perplexity,
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
