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
class Ask:
    """One request. `seed` sets it apart from others of the same prompt."""

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
    """`key`: what tells this model, and how it is asked, from any other. Called by several threads at once."""

    key: str

    def __call__(self, ask: Ask) -> Completion: ...


class ServedClient(OpenAIAddress):
    """`chat`: asks by `/chat/completions`, the only way of many servers, and not by `/completions`."""

    def __init__(self, name: str, chat: bool) -> None:
        super().__init__(name)
        self.chat, self.key = chat, f"{self.model} {'chat' if chat else 'text'}"

    def __call__(self, ask: Ask) -> Completion:
        """Raises UserError where there is no answer, or none that can be read."""
        content: dict[str, Any] = {"model": self.model, **asdict(ask), "stop": [*ask.stops]}
        prompt, _ = content.pop("prompt"), content.pop("stops")
        content |= {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        try:
            found = self.request("/chat/completions" if self.chat else "/completions", content)
        except RequestRefused as error:
            return Completion(str(error), REFUSED)
        choices = found.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = choice.get("message") if self.chat else choice
        text = message.get("content" if self.chat else "text") if isinstance(message, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{self.address}: an answer without text; is it an OpenAI-compatible server?")
        usage = found.get("usage")
        counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
        counts = [count if type(count) is int and 0 <= count < 2**53 else None for count in counts]
        return Completion(well_formed(text), CUT if choice.get("finish_reason") == "length" else STOPPED, *counts)


class FolderClient:
    """The model of a folder, or of a run. Requests are decoded together, each with random numbers of its own."""

    def __init__(self, folder: Path, chat: bool, at_once: int) -> None:
        """Raises UserError where there is no model that writes text, or, to chat with, none that was trained to."""
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

    def __call__(self, ask: Ask) -> Completion:
        """Raises UserError where the model computes nothing that can be used."""
        from groundup.generation.request import Request, RequestSampling
        from groundup.tokenizer.chat import render
        from groundup.tokenizer.tokenizer import StreamDecoder

        tokenizer = self.tokenizer
        if self.chat:
            prompt = render(tokenizer, [{"role": "user", "content": ask.prompt}], add_generation_prompt=True)[0]
        else:
            prompt = [tokenizer.begin_of_text, *tokenizer.encode(ask.prompt)]
        room = self.scheduler.length - len(prompt)
        if room < 1:
            return Completion(f"the prompt has {len(prompt):,} tokens, the model's context {self.scheduler.length:,}", REFUSED)
        text, ended, end = "", threading.Event(), ("", "")
        decoder, longest = StreamDecoder(tokenizer, within=not self.chat), max(map(len, ask.stops), default=0)

        def on_token(token: Any) -> bool:
            nonlocal text
            piece = "" if token.id in self.ends else decoder.push(token.id)
            text += piece
            recent = text[max(0, len(text) - len(piece) - longest) :]
            return any(stop in recent for stop in ask.stops)

        def on_end(*why: str) -> None:
            nonlocal end
            end = (why[0], why[1])
            ended.set()

        sampling = RequestSampling(ask.max_tokens, ask.temperature, ask.top_p, presence_penalty=ask.presence_penalty)
        most = min(ask.max_tokens, room)
        request = Request(prompt, sampling, self.ends, ask.seed, on_token, on_end, most)
        self.scheduler.submit([request])
        ended.wait()
        if end[0] not in (STOPPED, CUT):
            raise UserError(end[1] or "the model was stopped before its answer was whole")
        text += decoder.finish()
        places = [place for stop in ask.stops if (place := text.find(stop)) >= 0]
        return Completion(text[: min(places)] if places else text, end[0], len(prompt), request.answered)


@contextlib.contextmanager
def open_client(name: str, chat: bool, at_once: int) -> Iterator[CompletionClient]:
    """Of `http://HOST/v1#MODEL`, or of a folder."""
    if name.startswith(ADDRESSES):
        yield ServedClient(name, chat)
        return
    with FolderClient(expanded(name), chat, at_once) as client:
        yield client


class AnswerLog:
    """The answers of a client, in a file of JSON lines; those that are there already are not asked for again."""

    def __init__(self, path: Path, client: CompletionClient, at_once: int) -> None:
        """`at_once`: requests in flight; no answer depends on it. Answers that were damaged on disk are dropped, and said."""
        self.path, self.client, self.at_once = path, client, at_once
        self.lock = threading.Lock()
        self.answers, damaged, whole = _read(path)
        if damaged:
            logger.warning("%s: damaged answers, which are asked for again: %d", path, damaged)
        if not whole:
            with replacing(path) as temporary:
                temporary.write_bytes(b"".join(_line(key, *both) for key, both in self.answers.items()))

    def ask(self, asks: Sequence[Ask]) -> list[Completion]:
        """The answer to each. Raises UserError where the model refuses them all, and never answered before."""
        keys = [_digest([self.client.key, asdict(ask)]) for ask in asks]
        missing = {key: ask for key, ask in zip(keys, asks, strict=True) if key not in self.answers}
        refused: dict[str, Completion] = {}

        def one(key: str) -> None:
            answer = self.client(missing[key])
            if answer.end == REFUSED:
                refused[key] = answer
            else:
                self._keep(key, missing[key], answer)

        pool = ThreadPoolExecutor(self.at_once, thread_name_prefix="client")
        try:
            for _ in pool.map(one, missing):
                pass
        finally:  # what is in flight is paid for: it is waited for and kept
            pool.shutdown(wait=True, cancel_futures=True)
        if refused and not self.answers:  # what is wrong is in the settings, or at the server: nothing is learnt of it
            raise UserError(f"every request is refused: {next(iter(refused.values())).text}"[:300])
        for key in [key for key in missing if key in refused]:
            self._keep(key, missing[key], refused[key])
        return [self.answers[key][1] for key in keys]

    def _keep(self, key: str, ask: Ask, answer: Completion) -> None:
        with self.lock:
            with self.path.open("ab") as file:
                file.write(_line(key, ask, answer))
                file.flush()
                os.fsync(file.fileno())
            self.answers[key] = (ask, answer)


def _line(key: str, ask: Ask, answer: Completion) -> bytes:
    row: dict[str, Any] = {"key": key, "ask": asdict(ask), "answer": asdict(answer)}
    return (json.dumps({**row, "seal": _digest(row)}, ensure_ascii=False) + "\n").encode()


def _read(path: Path) -> tuple[dict[str, tuple[Ask, Completion]], int, bool]:
    """Answers by their keys, how many lines are damaged (cut by a kill, or altered), and whether more can be added below."""
    found: dict[str, tuple[Ask, Completion]] = {}
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
            found[row["key"]] = (Ask(**{**row["ask"], "stops": tuple(row["ask"]["stops"])}), Completion(**row["answer"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += 1
    return found, damaged, not damaged and content[-1:] in (b"", b"\n")


def _digest(value: Any) -> str:
    return blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
