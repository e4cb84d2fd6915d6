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

THREADED_BYTES = 4000  # of a request: encoding more takes so long that it is done in a thread, while others are answered
MAX_TOKENS = 16  # of /v1/completions where the client gives none, as OpenAI has it


@dataclass
class PendingRequest:
    """A request whose choices the scheduler has."""

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


async def submit(request: ChatRequest | CompletionRequest, model: ServedModel, size: int) -> PendingRequest:
    """Submit a request of `size` bytes. Raises RequestError for what cannot be done, and where too many wait (429)."""
    try:
        # The way to another thread and back takes longer than encoding a short text, and delays the first token.
        prompts = await run_in_threadpool(_prompts, request, model) if size > THREADED_BYTES else _prompts(request, model)
        pending = _pending(request, model, prompts)
        model.scheduler.submit([choice.request for choice in pending.choices])
    except UserError as error:
        raise RequestError(str(error), "messages" if isinstance(request, ChatRequest) else "prompt") from None
    except Full:
        max_waiting, count = model.scheduler.max_waiting, len(pending.choices)
        message = f"{max_waiting} requests are waiting already; try again later" if count <= max_waiting else (
            f"{count} answers are asked for, and {max_waiting} may wait: ask for fewer at a time"
        )
        raise RequestError(message, status=429, kind="rate_limit_exceeded", code="queue_full") from None
    return pending


def _prompts(request: ChatRequest | CompletionRequest, model: ServedModel) -> list[list[int]]:
    if isinstance(request, ChatRequest):
        return [model.prompt_of_messages(request.messages)]
    prompt: Any = request.prompt
    if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
        prompt = [prompt]
    size = model.scheduler.model.config.vocab_size
    ids = [model.prompt_of_text(text_or_ids) if isinstance(text_or_ids, str) else list(text_or_ids) for text_or_ids in prompt]
    for prompt_ids in ids:
        if bad := next((token for token in prompt_ids if token >= size), None):
            raise RequestError(f"prompt: token {bad} is none of the model's {size:,}", "prompt")
    return ids


def _pending(request: ChatRequest | CompletionRequest, model: ServedModel, prompts: list[list[int]]) -> PendingRequest:
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
    for number, prompt in enumerate(prompt for prompt in prompts for _ in range(count)):
        max_tokens = max(1, model.context_length - len(prompt)) if limit is None else limit  # a chat answers until it ends
        choices.append(Choice(
            number, model, prompt, sampling, max_tokens, (seed + number % count) % 2**63, model.ends(chat), request.stops,
            alternatives, echo, not request.stream, chat, pieces.put,
        ))  # fmt: skip
    return PendingRequest(request, model, choices, pieces)


def _sampling(request: GenerationBody, model: ServedModel) -> RequestSampling:
    """Sampling as the client asks; else as the model's folder states; else neutral."""
    defaults, size = model.generation_defaults, model.scheduler.model.config.vocab_size
    bias = {}
    for name, value in (request.logit_bias or {}).items():
        if not (name.isascii() and name.isdigit() and len(name) < 10 and name == str(int(name)) and int(name) < size):
            raise RequestError(f"logit_bias: {name[:40]!r} is no id of the model's {size:,} tokens", "logit_bias")
        bias[int(name)] = value

    def given(name: str, otherwise: Any) -> Any:
        value = getattr(request, name)
        return otherwise if value is None else value

    return RequestSampling(
        temperature=float(given("temperature", defaults.temperature)), top_p=float(given("top_p", defaults.top_p)),
        top_k=max(given("top_k", defaults.top_k), 0), min_p=float(given("min_p", 0.0)),
        repetition_penalty=float(given("repetition_penalty", 1.0)), presence_penalty=float(given("presence_penalty", 0.0)),
        frequency_penalty=float(given("frequency_penalty", 0.0)), logit_bias=bias,
    )  # fmt: skip


async def answer(pending: PendingRequest, receive: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    """The whole answer. `receive`: of ASGI, after the body. Raises RequestError; a client that leaves frees its slots."""
    watcher = asyncio.create_task(_cancel_on_disconnect(pending, receive))
    try:
        ended: dict[int, Piece] = {}
        while len(ended) < len(pending.choices):
            piece = await pending.pieces.get()
            ended[piece.choice] = piece
    finally:
        watcher.cancel()
        pending.cancel()
    choices = []
    for number, piece in sorted(ended.items()):
        content = {"message": {"role": "assistant", "content": piece.text}} if pending.chat else {"text": piece.text}
        choices.append({"index": number, **content, "logprobs": pending.logprobs(piece), "finish_reason": piece.reason})
    return {**pending.head(streamed=False), "choices": choices, "usage": pending.usage()}


async def _cancel_on_disconnect(pending: PendingRequest, receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    pending.cancel()


async def stream(pending: PendingRequest) -> AsyncIterator[str]:
    """Server-sent events; an error after the first is an event too. The work is cancelled when the client leaves."""
    try:
        usage = {"usage": None} if (options := pending.request.stream_options) and options.include_usage else {}
        if pending.chat:
            for choice in pending.choices:
                start = {"index": choice.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield event({**pending.head(True), "choices": [start], **usage})
        open_choices = len(pending.choices)
        while open_choices:
            piece = await pending.pieces.get()
            open_choices -= bool(piece.reason)
            delta = {"content": piece.text} if piece.text else {}
            content: dict[str, Any] = {"delta": delta} if pending.chat else {"text": piece.text}
            reason = piece.reason or None
            part = {"index": piece.choice, **content, "logprobs": pending.logprobs(piece), "finish_reason": reason}
            yield event({**pending.head(True), "choices": [part], **usage})
        if usage:
            yield event({**pending.head(True), "choices": [], "usage": pending.usage()})
        yield "data: [DONE]\n\n"
    except RequestError as error:
        yield event(error.body)
    finally:
        pending.cancel()
