"""Continuous batching (Orca: Yu et al. 2022): requests join and leave one batch between steps.

One thread works in steps: take in what is waiting, read a part of a long prompt, then decode a token of every request (or
several, where all are greedy and a draft is right: `prompt_lookup`). Those that are decoded lie in the first rows of one
cache, so that a step costs what they cost; where one leaves, the last takes its row. Random numbers are each request's own:
what is sampled depends on its seed and not on its company. Whoever comes while there is room does not wait for the step at
work: it is given up, once, and made again when the prompt is read.
"""

import logging
import threading
from collections import Counter, deque
from collections.abc import Sequence
from ctypes import c_int

import torch
from torch import Tensor

from groundup.core.errors import UserError
from groundup.generation.decoding import Decoding, cache_bytes
from groundup.generation.engine import GenericState
from groundup.generation.native_steps import Interrupted
from groundup.generation.one_thread import finite_rows, likeliest
from groundup.generation.prompt_lookup import PromptLookup, drafts
from groundup.generation.request import Request, Token, tokens_of
from groundup.model.base import LanguageModel
from groundup.model.decoder import Decoder

logger = logging.getLogger(__name__)
PART = 256  # tokens of a long prompt between two steps of the others
AT_ONCE = 1024  # tokens of prompts that are read together
CACHE_MB = 2048
STOP_SECONDS = 10  # for the step at work when it is to stop; the thread ends with its process in any case
NOT_FINITE = "the model computes numbers that are not finite: its weights are damaged; train or download it again"


class Full(Exception):
    """As many requests are waiting as may."""


class Scheduler:
    """Continues requests until they end. Start it as a context manager, or step by step with `step` in a test.

    `slots` requests are decoded together, of at most `length` tokens with their prompts; `waiting` more are kept.
    Fewer slots are taken where their cache would pass `cache_mb`; that and any other decision is in `decisions`.
    """

    def __init__(
        self, model: LanguageModel, slots: int = 16, waiting: int = 1024, length: int | None = None, cache_mb: int = CACHE_MB
    ) -> None:
        self.model, self.waiting_most = model.eval(), waiting
        self.device = model.lm_head.weight.device
        context = model.config.max_position_embeddings
        self.length = min(length or context, context)
        self.decisions: list[str] = []
        if isinstance(model, Decoder):
            slots = self._affordable(model, slots, cache_mb)
            self.state: Decoding | OneByOne = Decoding(model, slots + 1, self.length)
            if not self.state.steps:
                self.decisions.append(self.state.disabled)
        else:
            self.state = OneByOne(model, slots + 1, self.length)
        self.slots = slots
        self.running: list[Request] = []  # row by row
        self.reading: Request | None = None  # its prompt is longer than a part; it is in the row after all slots
        self.waiting: deque[Request] = deque()
        self.joining: list[Request] = []  # their prompts are being read
        self.lookups: dict[Request, PromptLookup] = {}
        self.without_token = torch.tensor(model.without_token, dtype=torch.long, device=self.device)
        self.counts: Counter[str] = Counter()
        self._arrived = c_int(0)  # 1: somebody who can be taken in at once
        self._may_interrupt = True
        self._work = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def _affordable(self, model: Decoder, slots: int, cache_mb: int) -> int:
        size, context = cache_bytes(model), model.config.max_position_embeddings
        most = int(cache_mb * 1e6 / size)
        if most < 2 * self.length:
            self.length = max(16, most // 2)
            self.decisions.append(
                f"context {self.length:,} of {context:,} tokens: {cache_mb:,} MB hold no more than two"
            )
        if (affordable := max(1, most // self.length - 1)) < slots:
            self.decisions.append(
                f"{affordable} requests at once instead of {slots}: keys and values of one take {size * self.length / 1e6:,.0f} "
                f"of {cache_mb:,} MB"
            )
            return affordable
        return slots

    def __enter__(self) -> "Scheduler":
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what is at work as cancelled."""
        with self._work:
            self._closed = True
            self._work.notify()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def submit(self, requests: Sequence[Request]) -> None:
        """All or none. Raises Full; UserError for a prompt that has no token, or no room for its answer."""
        for request in requests:
            if not request.prompt:
                raise UserError("the prompt is empty: it has no token to continue")
            if len(request.prompt) + request.max_tokens > self.length:
                raise UserError(
                    f"the prompt has {len(request.prompt):,} tokens and {request.max_tokens:,} are asked for; the model's "
                    f"context is {self.length:,}: shorten the prompt or lower max_tokens"
                )
        with self._work:
            if self._closed or len(self.waiting) + len(requests) > self.waiting_most:
                raise Full
            self.waiting.extend(requests)
            at_once = len(self.running) < self.slots and self.reading is None and not _read_in_parts(self.waiting[0])
            self._arrived.value = at_once
            self.counts["requests"] += len(requests)
            self._work.notify()

    def _run(self) -> None:
        while True:
            with self._work:
                while not (self._closed or self.busy):
                    self._work.wait()
                if self._closed:
                    break
            try:
                self.step()
            except Exception as error:  # whatever it is, nobody may wait for ever
                logger.exception("a step failed")
                self._end_all("error", str(error) if isinstance(error, UserError) else "the server failed")
        self._end_all("cancelled", "the server stops")
        for request in self.waiting:
            request.on_end("cancelled", "the server stops")

    def _end_all(self, reason: str, what: str) -> None:
        at_work = dict.fromkeys([*self.running, *self.joining, *([self.reading] if self.reading else [])])
        self.running, self.joining, self.reading = [], [], None
        self.lookups.clear()
        for request in at_work:
            request.on_end(reason, what)

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting or self.reading)

    @torch.inference_mode()
    def step(self) -> None:
        """Take in what is waiting, read on, decode once."""
        self._forget_cancelled()
        for request in [one for one in self.running if one.cancelled]:
            self._leave(request, "cancelled")
        self._read_on()
        self._admit()
        if self.running:
            self._decode()

    def _forget_cancelled(self) -> None:
        """Of those that wait, whose place somebody else may have."""
        with self._work:
            gone = [one for one in self.waiting if one.cancelled]
            for one in gone:
                self.waiting.remove(one)
        for one in gone:
            self.counts["cancelled"] += 1
            one.on_end("cancelled", "")

    def _admit(self) -> None:
        """Read the prompts of as many that wait as have room; one that is longer than a part is read beside the others."""
        taken: list[Request] = []
        with self._work:
            self._arrived.value = 0
            while self.waiting and self.reading is None and len(self.running) + len(taken) < self.slots:
                request = self.waiting[0]
                if _read_in_parts(request):
                    if taken:
                        break
                    self.reading = self.waiting.popleft()
                    self._forget_row(self.slots)
                    break
                if sum(len(one.prompt) for one in [*taken, request]) > AT_ONCE:
                    break
                taken.append(self.waiting.popleft())
        if not taken:
            return
        self.joining, first = taken, len(self.running)
        for row in range(first, first + len(taken)):
            self._forget_row(row)
        logits_BV = self.state.prefill([one.prompt for one in taken], first)
        self.counts["prompt tokens"] += sum(len(one.prompt) for one in taken)
        self.running, self.joining = self.running + taken, []
        self._take(taken, logits_BV[:, None], [[]] * len(taken))

    def _forget_row(self, row: int) -> None:
        self.state.lengths[row] = 0

    def _read_on(self) -> None:
        request = self.reading
        if request is None:
            return
        if request.cancelled:
            self.reading = None
            self.counts["cancelled"] += 1
            request.on_end("cancelled", "")
            return
        row = self.slots
        start = self.state.lengths[row]
        part = request.prompt[start : start + PART]
        logits_NV = self.state.extend(row, part, request.prompt_logprobs)
        self.counts["prompt tokens"] += len(part)
        if request.prompt_logprobs:
            found = [Token(part[0])] if start == 0 else []
            targets = request.prompt[start + 1 : start + len(part) + 1]
            request.on_prompt(found + tokens_of(targets, self._pickable(logits_NV[: len(targets)]), request.logprobs or 0))
        if start + len(part) < len(request.prompt):
            return
        if not request.max_tokens:
            self.reading = None
            request.on_end("length", "")
            return
        self.state.move(row, len(self.running))
        self.running.append(request)
        self.reading = None
        self._take([request], logits_NV[None, -1:], [[]])

    def _decode(self) -> None:
        drafted: list[list[int]] = [[]] * len(self.running)
        if isinstance(self.state, Decoding) and all(one.may_be_drafted for one in self.running):
            lookups = [self.lookups.setdefault(one, PromptLookup(one.text)) for one in self.running]
            room = min(self.length - len(one.text) for one in self.running)
            most = min(max(one.max_tokens - one.answered for one in self.running), room)
            drafted = drafts(lookups, most - 1)
        following = [[one.text[-1], *draft] for one, draft in zip(self.running, drafted, strict=True)]
        # After one that was given up the next is not: else many short requests would keep the others from going on.
        stop = self._arrived if self._may_interrupt else None
        try:
            logits_BTV = self.state.decode(torch.tensor(following, device=self.device), stop)
        except Interrupted:
            self._may_interrupt = False
            return
        self._may_interrupt = True
        self.counts["steps"] += 1
        self._take(list(self.running), logits_BTV, drafted)

    def _take(self, requests: Sequence[Request], logits_BTV: Tensor, drafted: Sequence[list[int]]) -> None:
        """Choose the next token of each, or as many as its draft had right and one more; those that end leave."""
        sound_B = finite_rows(logits_BTV)
        logits_BTV = self._pickable(logits_BTV)
        likeliest_BT = likeliest(logits_BTV).tolist()
        # All are chosen before the first is handed over: whom that wakes would run between two rows.
        chosen = [
            likeliest_BT[number] if request.may_be_drafted else [request.choose(logits_BTV[number, 0])] if sound_B[number] else []
            for number, request in enumerate(requests)
        ]
        wrong: list[int] = []
        ended: list[tuple[Request, str, str]] = []
        for number, (request, draft) in enumerate(zip(requests, drafted, strict=True)):
            if not sound_B[number]:
                ended.append((request, "error", NOT_FINITE))
                wrong.append(0)
                continue
            right = next((place for place, token in enumerate(draft) if token != chosen[number][place]), len(draft))
            wrong.append(len(draft) - right)
            for place in range(right + 1):
                if reason := self._give(request, chosen[number][place], logits_BTV, number, place):
                    ended.append((request, reason, ""))
                    break
        if any(wrong) and isinstance(self.state, Decoding):
            self.state.rollback(wrong)
        for request, reason, what in ended:
            self._leave(request, reason, what)

    def _give(self, request: Request, token: int, logits_BTV: Tensor, row: int, place: int) -> str:
        """Hand a token over; why the request ends with it, "" if it does not."""
        if request.logprobs is None:
            found = Token(token)
        else:
            found = tokens_of([token], logits_BTV[row, place : place + 1], request.logprobs)[0]
        request.add(token)
        self.counts["tokens"] += 1
        stopped = request.on_token(found)
        if stopped or token in request.ends:
            return "stop"
        return "length" if request.answered >= request.max_tokens else ""

    def _leave(self, request: Request, reason: str, what: str = "") -> None:
        """The last row takes its place."""
        row, last = self.running.index(request), len(self.running) - 1
        if row != last:
            self.state.move(last, row)
            self.running[row] = self.running[last]
        self.running.pop()
        self.lookups.pop(request, None)
        self.counts[reason] += 1
        request.on_end(reason, what)

    def _pickable(self, logits: Tensor) -> Tensor:
        return logits if not len(self.without_token) else logits.index_fill(-1, self.without_token, -torch.inf)


def _read_in_parts(request: Request) -> bool:
    """Beside the steps of the others, and not before the next."""
    return len(request.prompt) > PART or request.prompt_logprobs or not request.max_tokens


class OneByOne:
    """The rows of an architecture that has no `Decoding`: each a state of its own, continued one after the other."""

    def __init__(self, model: LanguageModel, rows: int, length: int) -> None:
        self.model, self.length = model, length
        self.states: list[GenericState | None] = [None] * rows
        self.lengths = [0] * rows

    def prefill(self, prompts: Sequence[Sequence[int]], first: int) -> Tensor:
        return torch.cat([self.extend(row, prompt) for row, prompt in enumerate(prompts, first)])

    def extend(self, row: int, tokens: Sequence[int], every: bool = False) -> Tensor:
        if self.lengths[row] == 0:
            self.states[row] = GenericState(self.model, 1, self.length)
        state = self.states[row]
        assert state is not None
        self.lengths[row] += len(tokens)
        logits_NV = state.decode(torch.tensor([tokens], device=state.device))[0]
        return logits_NV if every else logits_NV[-1:]

    def move(self, row: int, to: int) -> None:
        self.states[to], self.lengths[to] = self.states[row], self.lengths[row]
        self.states[row] = None

    def decode(self, tokens_BT: Tensor, stop: c_int | None = None) -> Tensor:
        return torch.stack([self.extend(row, tokens, every=True) for row, tokens in enumerate(tokens_BT.tolist())])
