"""Clients of models that complete prompts, behind an OpenAI-compatible address or of a folder; a log keeps every answer.

An answer is on disk before it is used, and is never asked for again: a command that was killed pays for nothing twice.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from groundup.core.errors import UserError
from groundup.core.files import digest, replacing
from groundup.core.openai_address import OpenAIAddress, RequestRefused
from groundup.core.plain_files import expanded
from groundup.core.text import well_formed

logger = logging.getLogger(__name__)

ADDRESSES = ("http://", "https://")
STOPPED, CUT, REFUSED = "stop", "length", "refused"


@dataclass(frozen=True)
class PromptRequest:
    """One request. `seed` distinguishes it from others with the same prompt."""

    prompt: str
    max_tokens: int
    stops: tuple[str, ...]  # at most four
    temperature: float = 0.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """`end`: STOPPED, CUT at max_tokens, or REFUSED, where `text` says why. Tokens are None where nobody counted them."""

    text: str
    end: str
    prompt_tokens: int | None = None
    answer_tokens: int | None = None


class CompletionClient(Protocol):
    """`key` identifies the model and how it is asked. Several threads call it at once."""

    key: str

    def __call__(self, request: PromptRequest) -> Completion: ...


class ServedClient(OpenAIAddress):
    """`chat`: asks by `/chat/completions`, all that many servers have, instead of `/completions`."""

    def __init__(self, name: str, chat: bool) -> None:
        super().__init__(name)
        self.chat, self.key = chat, f"{self.model} {'chat' if chat else 'text'}"

    def __call__(self, request: PromptRequest) -> Completion:
        """Raises UserError where there is no answer, or none that can be read."""
        body: dict[str, Any] = {"model": self.model, **asdict(request), "stop": [*request.stops]}
        prompt, _ = body.pop("prompt"), body.pop("stops")
        body |= {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        try:
            reply = self.request("/chat/completions" if self.chat else "/completions", body)
        except RequestRefused as error:
            return Completion(well_formed(str(error)), REFUSED)
        choices = reply.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = choice.get("message") if self.chat else choice
        text = message.get("content" if self.chat else "text") if isinstance(message, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{self.address}: an answer without text; is it an OpenAI-compatible server?")
        usage = reply.get("usage")
        counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
        counts = [count if type(count) is int and 0 <= count < 2**53 else None for count in counts]
        return Completion(well_formed(text), CUT if choice.get("finish_reason") == "length" else STOPPED, *counts)


class FolderClient:
    """The model of a folder or of a run. Requests are decoded together, each with its own random numbers."""

    def __init__(self, folder: Path, chat: bool, at_once: int) -> None:
        """Raises UserError where there is no model that writes text, and, with `chat`, where it was not trained to chat."""
        from groundup.core.device import choose
        from groundup.generation.open_folder import model_folder
        from groundup.generation.scheduler import Scheduler
        from groundup.model.model_folder import load_decoder
        from groundup.tokenizer.chat import answer_ends
        from groundup.tokenizer.load import of_model

        folder, self.chat = model_folder(folder), chat
        self.tokenizer = of_model(folder)
        model = load_decoder(folder).to(choose().torch_device)
        stated = model.generation.ends
        if chat and self.tokenizer.message_end not in stated:
            raise UserError(f"{folder}: it was not trained to chat; ask it to continue texts, or fine-tune it first")
        self.ends = frozenset(answer_ends(self.tokenizer, stated) if chat else [self.tokenizer.end_of_text, *stated])
        files = [folder / "config.json", folder / "tokenizer.json", *sorted(folder.glob("*.safetensors"))]
        self.key = f"{_digest([digest(path) for path in files])} {'chat' if chat else 'text'}"
        self.scheduler = Scheduler(model, at_once)
        for decision in self.scheduler.decisions:
            logger.info("%s: %s", folder, decision)

    def __enter__(self) -> "FolderClient":
        self.scheduler.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.scheduler.__exit__()

    def __call__(self, request: PromptRequest) -> Completion:
        """Raises UserError where the model computes nothing that can be used."""
        from groundup.generation.request import Request, RequestSampling
        from groundup.tokenizer.chat import render
        from groundup.tokenizer.tokenizer import StreamDecoder

        tokenizer = self.tokenizer
        if self.chat:
            prompt = render(tokenizer, [{"role": "user", "content": request.prompt}], add_generation_prompt=True)[0]
        else:
            prompt = tokenizer.prompt(request.prompt)
        room = self.scheduler.length - len(prompt)
        if room < 1:
            return Completion(f"the prompt has {len(prompt):,} tokens, the model's context {self.scheduler.length:,}", REFUSED)
        text, ended, end = "", threading.Event(), ("", "")
        decoder, longest_stop = StreamDecoder(tokenizer, within=not self.chat), max(map(len, request.stops), default=0)

        def on_token(token: Any) -> bool:
            nonlocal text
            piece = "" if token.id in self.ends else decoder.push(token.id)
            text += piece
            recent = text[max(0, len(text) - len(piece) - longest_stop) :]
            return any(stop in recent for stop in request.stops)

        def on_end(*ending: str) -> None:
            nonlocal end
            end = (ending[0], ending[1])
            ended.set()

        sampling = RequestSampling(
            request.max_tokens, request.temperature, request.top_p, presence_penalty=request.presence_penalty
        )
        max_tokens = min(request.max_tokens, room)
        engine_request = Request(prompt, sampling, self.ends, request.seed, on_token, on_end, max_tokens)
        self.scheduler.submit([engine_request])
        ended.wait()
        if end[0] not in (STOPPED, CUT):
            raise UserError(end[1] or "the model was stopped before its answer was whole")
        text += decoder.finish()
        stop_offsets = [offset for stop in request.stops if (offset := text.find(stop)) >= 0]
        return Completion(text[: min(stop_offsets)] if stop_offsets else text, end[0], len(prompt), engine_request.answer_length)


@contextlib.contextmanager
def open_client(name: str, chat: bool, at_once: int) -> Iterator[CompletionClient]:
    """Of `http://HOST/v1#MODEL`, or of a folder."""
    if name.startswith(ADDRESSES):
        yield ServedClient(name, chat)
        return
    with FolderClient(expanded(name), chat, at_once) as client:
        yield client


class AnswerLog:
    """The answers of a client, in a file of JSON lines; what it has already is not asked for again."""

    def __init__(self, path: Path, client: CompletionClient, at_once: int) -> None:
        """`at_once`: requests in flight; no answer depends on it. Answers that were damaged on disk are dropped, and said."""
        self.path, self.client, self.at_once = path, client, at_once
        self.lock = threading.Lock()
        self.answers, damaged, appendable = _read_log(path)
        if damaged:
            logger.warning("%s: damaged answers, which are asked for again: %d", path, damaged)
        if not appendable:
            with replacing(path) as temporary:
                temporary.write_bytes(b"".join(_log_line(key, *entry) for key, entry in self.answers.items()))

    def complete(self, requests: Sequence[PromptRequest]) -> list[Completion]:
        """The answer to each. Raises UserError where the model refuses them all, and never answered before."""
        keys = [_digest([self.client.key, asdict(request)]) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.answers}
        refused: dict[str, Completion] = {}

        def complete_one(key: str) -> None:
            answer = self.client(missing[key])
            if answer.end == REFUSED:
                refused[key] = answer
            else:
                self._store(key, missing[key], answer)

        pool = ThreadPoolExecutor(self.at_once, thread_name_prefix="client")
        try:
            for _ in pool.map(complete_one, missing):
                pass
        finally:  # requests in flight are paid for: wait for their answers and store them
            pool.shutdown(wait=True, cancel_futures=True)
        if refused and not self.answers:  # the settings or the server are at fault: nothing to store
            raise UserError(f"every request is refused: {next(iter(refused.values())).text}"[:300])
        for key in [key for key in missing if key in refused]:
            self._store(key, missing[key], refused[key])
        return [self.answers[key][1] for key in keys]

    def _store(self, key: str, request: PromptRequest, answer: Completion) -> None:
        with self.lock:
            with self.path.open("ab") as file:
                file.write(_log_line(key, request, answer))
                file.flush()
                os.fsync(file.fileno())
            self.answers[key] = (request, answer)


def _log_line(key: str, request: PromptRequest, answer: Completion) -> bytes:
    row: dict[str, Any] = {"key": key, "ask": asdict(request), "answer": asdict(answer)}
    return (json.dumps({**row, "seal": _digest(row)}, ensure_ascii=False) + "\n").encode()


def _read_log(path: Path) -> tuple[dict[str, tuple[PromptRequest, Completion]], int, bool]:
    """Answers by key, how many lines are damaged (cut by a kill, or altered), and whether the file can be appended to."""
    answers: dict[str, tuple[PromptRequest, Completion]] = {}
    damaged = 0
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a plain file")
    content = path.read_bytes() if path.exists() else b""
    for line in content.split(b"\n"):
        if not line:
            continue
        try:
            row = json.loads(line)
            if row.pop("seal") != _digest(row):
                raise ValueError
            request = PromptRequest(**{**row["ask"], "stops": tuple(row["ask"]["stops"])})
            answers[row["key"]] = (request, Completion(**row["answer"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += 1
    return answers, damaged, not damaged and content[-1:] in (b"", b"\n")


def _digest(value: Any) -> str:
    return blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
