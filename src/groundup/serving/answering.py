"""Requests for text, from the protocol to the scheduler and back."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from groundup.core.errors import UserError
from groundup.generation.request import RequestSampling
from groundup.generation.scheduler import Full
from groundup.serving.answer import Choice, Piece, Pieces, chat_logprobs, completion_logprobs, event
from groundup.serving.loaded_models import ServedModel
from groundup.serving.protocol import MOST_CHOICES, ChatRequest, CompletionRequest, GenerationBody, RequestError

LONG = 4000  # bytes of a request: encoding more takes so long that others are to be answered meanwhile
MAX_TOKENS = 16  # of /v1/completions, where none is asked for, as OpenAI has it


@dataclass
class Asked:
    """A request with its choices at work."""

    request: ChatRequest | CompletionRequest
    model: ServedModel
    choices: list[Choice]
    pieces: Pieces
    started: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.chat = isinstance(self.request, ChatRequest)
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex

    def cancel(self) -> None:
        for choice in self.choices:
            choice.request.cancel()

    def usage(self) -> dict[str, int]:
        # Of n answers to one prompt the prompt counts once, as OpenAI counts it.
        prompts = sum(choice.prompt_tokens for choice in self.choices[:: self.request.n or 1])
        answers = sum(choice.request.answer_length for choice in self.choices)
        return {"prompt_tokens": prompts, "completion_tokens": answers, "total_tokens": prompts + answers}

    def head(self, streamed: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if streamed else "chat.completion") if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.started, "model": self.request.model}

    def logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if not self.request.logprobs and not (isinstance(self.request, CompletionRequest) and self.request.logprobs == 0):
            return None
        if isinstance(self.request, ChatRequest):
            return chat_logprobs(self.model.tokenizer, piece.tokens)
        return completion_logprobs(self.model.tokenizer, piece.tokens, self.request.logprobs or 0)


async def ask(request: ChatRequest | CompletionRequest, model: ServedModel, size: int) -> Asked:
    """Put a request of `size` bytes to work. Raises RequestError for what cannot be done, and for too many that wait (429)."""
    try:
        # To another thread and back takes longer than to encode a short text: a first token comes later by it.
        prompts = await run_in_threadpool(_prompts, request, model) if size > LONG else _prompts(request, model)
        asked = _asked(request, model, prompts)
        model.scheduler.submit([choice.request for choice in asked.choices])
    except UserError as error:
        raise RequestError(str(error), "messages" if isinstance(request, ChatRequest) else "prompt") from None
    except Full:
        most, count = model.scheduler.max_waiting, len(asked.choices)
        said = f"{most} requests are waiting already; try again later" if count <= most else (
            f"{count} answers are asked for, and {most} may wait: ask for fewer at a time"
        )
        raise RequestError(said, status=429, kind="rate_limit_exceeded", code="queue_full") from None
    return asked


def _prompts(request: ChatRequest | CompletionRequest, model: ServedModel) -> list[list[int]]:
    if isinstance(request, ChatRequest):
        return [model.prompt_of_messages(request.messages)]
    prompt: Any = request.prompt
    if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
        prompt = [prompt]
    size = model.scheduler.model.config.vocab_size
    ids = [model.prompt_of_text(one) if isinstance(one, str) else list(one) for one in prompt]
    for some in ids:
        if bad := next((token for token in some if token >= size), None):
            raise RequestError(f"prompt: token {bad} is none of the model's {size:,}", "prompt")
    return ids


def _asked(request: ChatRequest | CompletionRequest, model: ServedModel, prompts: list[list[int]]) -> Asked:
    chat, count = isinstance(request, ChatRequest), request.n or 1
    if len(prompts) * count > MOST_CHOICES:
        raise RequestError(f"{len(prompts)} prompts times n = {count} are more than {MOST_CHOICES} answers", "n")
    if isinstance(request, ChatRequest):
        alternatives = (request.top_logprobs or 0) if request.logprobs else None
        echo, limit = False, request.max_completion_tokens or request.max_tokens
    else:
        alternatives, echo = request.logprobs, bool(request.echo)
        limit = MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if limit == 0 and not echo:
        raise RequestError("max_tokens = 0: give at least 1" if chat else "max_tokens = 0: only with echo = true", "max_tokens")
    sampling = _sampling(request, model)
    seed = int.from_bytes(os.urandom(7)) if request.seed is None else request.seed % 2**63
    pieces = Pieces()
    choices = []
    for number, prompt in enumerate(one for one in prompts for _ in range(count)):
        most = max(1, model.length - len(prompt)) if limit is None else limit  # a chat answers until it ends
        choices.append(Choice(
            number, model, prompt, sampling, most, (seed + number % count) % 2**63, model.ends(chat), request.stops,
            alternatives, echo, not request.stream, chat, pieces.put,
        ))  # fmt: skip
    return Asked(request, model, choices, pieces)


def _sampling(request: GenerationBody, model: ServedModel) -> RequestSampling:
    """As the client asks; where it does not, as the model's folder states, and neutral where that does not either."""
    own, size = model.stated, model.scheduler.model.config.vocab_size
    bias = {}
    for name, value in (request.logit_bias or {}).items():
        if not (name.isascii() and name.isdigit() and len(name) < 10 and name == str(int(name)) and int(name) < size):
            raise RequestError(f"logit_bias: {name[:40]!r} is no id of the model's {size:,} tokens", "logit_bias")
        bias[int(name)] = value

    def given(name: str, otherwise: Any) -> Any:
        value = getattr(request, name)
        return otherwise if value is None else value

    return RequestSampling(
        temperature=float(given("temperature", own.temperature)), top_p=float(given("top_p", own.top_p)),
        top_k=max(given("top_k", own.top_k), 0), min_p=float(given("min_p", 0.0)),
        repetition_penalty=float(given("repetition_penalty", 1.0)), presence_penalty=float(given("presence_penalty", 0.0)),
        frequency_penalty=float(given("frequency_penalty", 0.0)), logit_bias=bias,
    )  # fmt: skip


async def answer(asked: Asked, receive: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    """The whole answer. `receive`: of ASGI, after the body. Raises RequestError; a client that leaves frees its slots."""
    watcher = asyncio.create_task(_cancel_when_gone(asked, receive))
    try:
        ended: dict[int, Piece] = {}
        while len(ended) < len(asked.choices):
            piece = await asked.pieces.get()
            ended[piece.choice] = piece
    finally:
        watcher.cancel()
        asked.cancel()
    choices = []
    for number, piece in sorted(ended.items()):
        said = {"message": {"role": "assistant", "content": piece.text}} if asked.chat else {"text": piece.text}
        choices.append({"index": number, **said, "logprobs": asked.logprobs(piece), "finish_reason": piece.reason})
    return {**asked.head(streamed=False), "choices": choices, "usage": asked.usage()}


async def _cancel_when_gone(asked: Asked, receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    asked.cancel()


async def stream(asked: Asked) -> AsyncIterator[str]:
    """Server-sent events; what goes wrong after the first is one, too. Ends the work when the client leaves."""
    try:
        usage = {"usage": None} if (options := asked.request.stream_options) and options.include_usage else {}
        if asked.chat:
            for choice in asked.choices:
                start = {"index": choice.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield event({**asked.head(True), "choices": [start], **usage})
        open_choices = len(asked.choices)
        while open_choices:
            piece = await asked.pieces.get()
            open_choices -= bool(piece.reason)
            delta = {"content": piece.text} if piece.text else {}
            said: dict[str, Any] = {"delta": delta} if asked.chat else {"text": piece.text}
            one = {"index": piece.choice, **said, "logprobs": asked.logprobs(piece), "finish_reason": piece.reason or None}
            yield event({**asked.head(True), "choices": [one], **usage})
        if usage:
            yield event({**asked.head(True), "choices": [], "usage": asked.usage()})
        yield "data: [DONE]\n\n"
    except RequestError as error:
        yield event(error.body)
    finally:
        asked.cancel()
