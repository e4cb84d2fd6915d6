"""A choice of an answer as it is made: tokens become text, text ends at a stop string, and both go to the waiting client."""

import asyncio
import json
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from groundup.generation.request import Request, RequestSampling, Token
from groundup.serving.loaded_models import ServedModel
from groundup.serving.protocol import RequestError
from groundup.tokenizer.tokenizer import StreamDecoder

encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one for each token of a stream


class TokenAtOffset(NamedTuple):
    """A token, and how many characters of the text come before it; tokens that are parts of one character all have its offset."""

    token: Token
    offset: int


class Piece(NamedTuple):
    """The newest part of a choice: text, its tokens where log-probabilities are asked for, and, at its end, the reason."""

    choice: int
    text: str
    tokens: list[TokenAtOffset]
    reason: str = ""
    problem: str = ""


class Choice:
    """One answer to one prompt. `request` is for the scheduler, whose thread calls `deliver` with each piece.

    `only_end`: one piece is delivered at the end, with all of the text, since nobody reads before.
    """

    def __init__(
        self, index: int, model: ServedModel, prompt: list[int], sampling: RequestSampling, max_tokens: int, seed: int,
        ends: frozenset[int], stops: Sequence[str], logprobs: int | None, echo: bool, only_end: bool, chat: bool,
        deliver: Callable[[Piece], None],
    ) -> None:  # fmt: skip
        self.index, self.stops, self.only_end, self.deliver = index, stops, only_end, deliver
        self.echo, self.ends, self.logprobs = echo, ends, logprobs
        self.tokenizer = model.tokenizer
        self.decoder = StreamDecoder(model.tokenizer, within=not chat)
        self.held = ""  # text that may be the beginning of a stop string
        self.text: list[str] = []  # not delivered yet
        self.tokens: list[TokenAtOffset] = []
        self.characters = 0  # of all tokens so far
        self.unseen = b""  # bytes of the last tokens, which have brought no text yet
        self.stopped = False
        self.prompt_tokens = len(prompt)
        self.request = Request(
            prompt, sampling, ends, seed, self._on_token, self._on_end, max_tokens, logprobs,
            prompt_logprobs=echo and logprobs is not None, on_prompt=self._on_prompt,
        )  # fmt: skip
        self.echo_decoder = StreamDecoder(model.tokenizer)
        if echo:
            self.text.append(self.tokenizer.decode(prompt))

    def _on_prompt(self, tokens: Sequence[Token]) -> None:
        for token in tokens:
            self._add(token, self.echo_decoder.push(token.id))
        if len(self.tokens) == self.prompt_tokens:
            self.characters, self.unseen = self.characters + len(self.echo_decoder.finish()), b""

    def _add(self, token: Token, text: str) -> None:
        """Count the text that came with a token, which may be that of bytes before it too."""
        if self.logprobs is not None:
            token_string = token_text(self.tokenizer, token.id)
            before = len(text) - len(token_string) if text.endswith(token_string) else 0
            if not text:  # SentencePiece's tokens of single bytes bring theirs all at once, after the last of them
                before = len(self.unseen.decode("utf-8", "ignore"))
            # Spaces that bring no text are those that the tokenizer put before it.
            self.unseen = b"" if text else self.unseen + self.tokenizer.token_bytes(token.id).strip(b" ")
            self.tokens.append(TokenAtOffset(token, self.characters + before))
        self.characters += len(text)

    def _on_token(self, token: Token) -> bool:
        text = "" if token.id in self.ends else self.decoder.push(token.id)
        self._add(token, text)
        if text:
            self.held += text
            self._release()
        if not self.only_end and (self.text or self.tokens):
            self._send()
        return self.stopped

    def _release(self, everything: bool = False) -> None:
        """Move text from `held` to `text`, up to a stop string or to what may be the beginning of one."""
        starts = [start for stop in self.stops if (start := self.held.find(stop)) >= 0]
        if starts:
            self.stopped, self.held, kept = True, self.held[: min(starts)], 0
        else:
            kept = 0 if everything else max((_overlap(self.held, stop) for stop in self.stops), default=0)
        cut = len(self.held) - kept
        if cut:
            self.text.append(self.held[:cut])
        self.held = self.held[cut:]

    def _send(self, reason: str = "", problem: str = "") -> None:
        self.deliver(Piece(self.index, "".join(self.text), self.tokens, reason, problem))
        self.text, self.tokens = [], []

    def _on_end(self, reason: str, problem: str) -> None:
        if not self.stopped:
            self.held += self.decoder.finish()
            self._release(everything=True)
        self._send("stop" if self.stopped else reason, problem)


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


class Pieces:
    """The pieces of all choices of a request, from the scheduler's threads to the one that answers."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.post = _posts.setdefault(loop, _Post(loop))
        self.queue: asyncio.Queue[Piece] = asyncio.Queue()

    def put(self, piece: Piece) -> None:
        """From any thread."""
        self.post.put(self.queue, piece)

    async def get(self) -> Piece:
        """Raises RequestError for an answer that failed or was cancelled."""
        piece = await self.queue.get()
        if piece.reason == "error":
            raise RequestError(piece.problem, status=500, kind="server_error")
        if piece.reason == "cancelled":
            raise RequestError(piece.problem or "cancelled", status=503, kind="server_error")
        return piece


class _Post:
    """Pieces on their way to a loop. It is woken once for the pieces of a step: more often, it would run between two rows."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = weakref.ref(loop)
        self.arrived: list[tuple[asyncio.Queue[Piece], Piece]] = []
        self.lock = threading.Lock()

    def put(self, queue: asyncio.Queue[Piece], piece: Piece) -> None:
        with self.lock:
            self.arrived.append((queue, piece))
            if len(self.arrived) > 1:
                return
        loop = self.loop()
        if loop and not loop.is_closed():  # else nobody waits for the piece any more
            loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        with self.lock:
            arrived, self.arrived = self.arrived, []
        for queue, piece in arrived:
            queue.put_nowait(piece)


_posts: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Post] = weakref.WeakKeyDictionary()


def token_text(tokenizer: Any, token: int) -> str:
    """A token as clients see it: its text; bytes that are no text as `bytes:\\xe2\\x82`, as OpenAI writes them; or its name."""
    data: bytes = tokenizer.token_bytes(token)
    if not data:
        return next((name for name, number in tokenizer.special_tokens.items() if number == token), "")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def completion_logprobs(tokenizer: Any, tokens: Sequence[TokenAtOffset], alternatives: int) -> dict[str, Any]:
    """In the words of /v1/completions."""

    def top(token: Token) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        logprob_of_text: dict[str, float] = {}
        for token_id, logprob in [(token.id, token.logprob), *token.top][: alternatives + 1]:
            # Of two tokens of one text: the sampled one's, or the likelier one's.
            logprob_of_text.setdefault(token_text(tokenizer, token_id), logprob)
        return logprob_of_text

    return {
        "tokens": [token_text(tokenizer, token.id) for token, _ in tokens],
        "token_logprobs": [token.logprob for token, _ in tokens],
        "top_logprobs": [top(token) for token, _ in tokens] if alternatives else None,
        "text_offset": [offset for _, offset in tokens],
    }


def chat_logprobs(tokenizer: Any, tokens: Sequence[TokenAtOffset]) -> dict[str, Any]:
    """In the words of /v1/chat/completions."""

    def shown(token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": token_text(tokenizer, token), "logprob": logprob, "bytes": list(tokenizer.token_bytes(token))}

    content = [{**shown(token.id, token.logprob), "top_logprobs": [shown(*top) for top in token.top]} for token, _ in tokens]
    return {"content": content, "refusal": None}


def event(value: dict[str, Any]) -> str:
    return f"data: {encode(value)}\n\n"
