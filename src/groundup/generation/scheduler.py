"""Continuous batching (Orca: Yu et al. 2022): requests join and leave one batch between steps.

One thread works in steps: admit requests that wait, read a part of a long prompt, then decode one token of every request (or
several, where all are greedy and a draft is accepted: `prompt_lookup`). The requests that are decoded have the first rows of one
cache, so that a step costs no more than these; where one leaves, the last takes its row. Each request has its own random
numbers: what is sampled depends on its seed and not on the other requests. A request that comes while a slot is free does not
wait for the current step: that is interrupted, once, and repeated when the prompt is read.
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
PART = 256  # tokens of a long prompt that are read between two steps of the other requests
AT_ONCE = 1024  # tokens of prompts that are read together
CACHE_MB = 2048
STOP_SECONDS = 10  # that `__exit__` waits for the current step; the thread ends with its process in any case
NOT_FINITE = "the model computes numbers that are not finite: its weights are damaged; train or download it again"


class Full(Exception):
    """No more requests may wait."""


class Scheduler:
    """Continues requests until they end. Start it as a context manager, or step by step with `step` in a test.

    `slots` requests are decoded together, of at most `length` tokens with their prompts; `waiting` more may wait.
    There are fewer slots where their cache would pass `cache_mb`; that and any other decision is in `decisions`.
    """

    def __init__(
        self, model: LanguageModel, slots: int = 16, waiting: int = 1024, length: int | None = None, cache_mb: int = CACHE_MB
    ) -> None:
        self.model, self.max_waiting = model.eval(), waiting
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
        self.prefilling: Request | None = None  # its prompt is read part by part, in the row after all slots
        self.waiting: deque[Request] = deque()
        self.joining: list[Request] = []  # their prompts are being read together
        self.lookups: dict[Request, PromptLookup] = {}
        self.unused_ids = torch.tensor(model.unused_ids, dtype=torch.long, device=self.device)
        self.counts: Counter[str] = Counter()
        self._arrived = c_int(0)  # 1: a request came that can be admitted at once
        self._may_interrupt = True
        self._work = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def _affordable(self, model: Decoder, slots: int, cache_mb: int) -> int:
        token_bytes, context = cache_bytes(model), model.config.max_position_embeddings
        cached_tokens = int(cache_mb * 1e6 / token_bytes)
        if cached_tokens < 2 * self.length:
            self.length = max(16, cached_tokens // 2)
            self.decisions.append(
                f"context {self.length:,} of {context:,} tokens: {cache_mb:,} MB hold no more than two"
            )
        if (affordable := max(1, cached_tokens // self.length - 1)) < slots:
            self.decisions.append(
                f"{affordable} requests at once instead of {slots}: keys and values of one take "
                f"{token_bytes * self.length / 1e6:,.0f} of {cache_mb:,} MB"
            )
            return affordable
        return slots

    def __enter__(self) -> "Scheduler":
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all requests as cancelled."""
        with self._work:
            self._closed = True
            self._work.notify()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue all of them or none. Raises Full; UserError for a prompt without a token, or without room for its answer."""
        for request in requests:
            if not request.prompt:
                raise UserError("the prompt is empty: it has no token to continue")
            if len(request.prompt) + request.max_tokens > self.length:
                raise UserError(
                    f"the prompt has {len(request.prompt):,} tokens and {request.max_tokens:,} are asked for; the model's "
                    f"context is {self.length:,}: shorten the prompt or lower max_tokens"
                )
        with self._work:
            if self._closed or len(self.waiting) + len(requests) > self.max_waiting:
                raise Full
            self.waiting.extend(requests)
            at_once = len(self.running) < self.slots and self.prefilling is None and not _read_in_parts(self.waiting[0])
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
            except Exception as error:  # whatever it is, no request may wait for ever
                logger.exception("a step failed")
                self._end_all("error", str(error) if isinstance(error, UserError) else "the server failed")
        self._end_all("cancelled", "the server stops")
        for request in self.waiting:
            request.on_end("cancelled", "the server stops")

    def _end_all(self, reason: str, what: str) -> None:
        at_work = dict.fromkeys([*self.running, *self.joining, *([self.prefilling] if self.prefilling else [])])
        self.running, self.joining, self.prefilling = [], [], None
        self.lookups.clear()
        for request in at_work:
            request.on_end(reason, what)

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting or self.prefilling)

    @torch.inference_mode()
    def step(self) -> None:
        """Read a part of a long prompt, admit requests that wait, decode once."""
        self._drop_cancelled()
        for request in [request for request in self.running if request.cancelled]:
            self._leave(request, "cancelled")
        self._prefill_part()
        self._admit()
        if self.running:
            self._decode()

    def _drop_cancelled(self) -> None:
        """Take cancelled requests out of the queue."""
        with self._work:
            cancelled = [request for request in self.waiting if request.cancelled]
            for request in cancelled:
                self.waiting.remove(request)
        for request in cancelled:
            self.counts["cancelled"] += 1
            request.on_end("cancelled", "")

    def _admit(self) -> None:
        """Read the prompts of as many waiting requests as there are free slots; a long one is left to `_prefill_part`."""
        admitted: list[Request] = []
        with self._work:
            self._arrived.value = 0
            while self.waiting and self.prefilling is None and len(self.running) + len(admitted) < self.slots:
                request = self.waiting[0]
                if _read_in_parts(request):
                    if admitted:
                        break
                    self.prefilling = self.waiting.popleft()
                    self._reset_row(self.slots)
                    break
                if sum(len(one.prompt) for one in [*admitted, request]) > AT_ONCE:
                    break
                admitted.append(self.waiting.popleft())
        if not admitted:
            return
        self.joining, first = admitted, len(self.running)
        for row in range(first, first + len(admitted)):
            self._reset_row(row)
        logits_BV = self.state.prefill([request.prompt for request in admitted], first)
        self.counts["prompt tokens"] += sum(len(request.prompt) for request in admitted)
        self.running, self.joining = self.running + admitted, []
        self._advance(admitted, logits_BV[:, None], [[]] * len(admitted))

    def _reset_row(self, row: int) -> None:
        self.state.lengths[row] = 0

    def _prefill_part(self) -> None:
        request = self.prefilling
        if request is None:
            return
        if request.cancelled:
            self.prefilling = None
            self.counts["cancelled"] += 1
            request.on_end("cancelled", "")
            return
        row = self.slots
        start = self.state.lengths[row]
        part = request.prompt[start : start + PART]
        logits_NV = self.state.extend(row, part, request.prompt_logprobs)
        self.counts["prompt tokens"] += len(part)
        if request.prompt_logprobs:
            first = [Token(part[0])] if start == 0 else []
            targets = request.prompt[start + 1 : start + len(part) + 1]
            request.on_prompt(first + tokens_of(targets, self._pickable(logits_NV[: len(targets)]), request.logprobs or 0))
        if start + len(part) < len(request.prompt):
            return
        if not request.max_tokens:
            self.prefilling = None
            request.on_end("length", "")
            return
        self.state.move(row, len(self.running))
        self.running.append(request)
        self.prefilling = None
        self._advance([request], logits_NV[None, -1:], [[]])

    def _decode(self) -> None:
        drafted: list[list[int]] = [[]] * len(self.running)
        if isinstance(self.state, Decoding) and all(request.may_be_drafted for request in self.running):
            lookups = [self.lookups.setdefault(request, PromptLookup(request.text)) for request in self.running]
            free = min(self.length - len(request.text) for request in self.running)
            max_length = min(max(request.max_tokens - request.answer_length for request in self.running), free)
            drafted = drafts(lookups, max_length - 1)
        inputs = [[request.text[-1], *draft] for request, draft in zip(self.running, drafted, strict=True)]
        # No two steps in a row are interrupted: else many short requests would keep the others from continuing.
        stop = self._arrived if self._may_interrupt else None
        try:
            logits_BTV = self.state.decode(torch.tensor(inputs, device=self.device), stop)
        except Interrupted:
            self._may_interrupt = False
            return
        self._may_interrupt = True
        self.counts["steps"] += 1
        self._advance(list(self.running), logits_BTV, drafted)

    def _advance(self, requests: Sequence[Request], logits_BTV: Tensor, drafted: Sequence[list[int]]) -> None:
        """Choose the next token of each, or the accepted part of its draft and one more; requests that end leave."""
        finite_B = finite_rows(logits_BTV)
        logits_BTV = self._pickable(logits_BTV)
        likeliest_BT = likeliest(logits_BTV).tolist()
        # All are chosen before the first is delivered: threads that wait for it would run between two rows.
        chosen = [
            likeliest_BT[row] if request.may_be_drafted else [request.choose(logits_BTV[row, 0])] if finite_B[row] else []
            for row, request in enumerate(requests)
        ]
        rejected: list[int] = []
        ended: list[tuple[Request, str, str]] = []
        for number, (request, draft) in enumerate(zip(requests, drafted, strict=True)):
            if not finite_B[number]:
                ended.append((request, "error", NOT_FINITE))
                rejected.append(0)
                continue
            accepted = next((offset for offset, token in enumerate(draft) if token != chosen[number][offset]), len(draft))
            rejected.append(len(draft) - accepted)
            for offset in range(accepted + 1):
                if reason := self._deliver(request, chosen[number][offset], logits_BTV, number, offset):
                    ended.append((request, reason, ""))
                    break
        if any(rejected) and isinstance(self.state, Decoding):
            self.state.rollback(rejected)
        for request, reason, what in ended:
            self._leave(request, reason, what)

    def _deliver(self, request: Request, token: int, logits_BTV: Tensor, row: int, offset: int) -> str:
        """Deliver a token; returns why the request ends with it, "" if it does not."""
        if request.logprobs is None:
            delivered = Token(token)
        else:
            delivered = tokens_of([token], logits_BTV[row, offset : offset + 1], request.logprobs)[0]
        request.add(token)
        self.counts["tokens"] += 1
        stopped = request.on_token(delivered)
        if stopped or token in request.ends:
            return "stop"
        return "length" if request.answer_length >= request.max_tokens else ""

    def _leave(self, request: Request, reason: str, what: str = "") -> None:
        """End a request; the last one takes its row."""
        row, last = self.running.index(request), len(self.running) - 1
        if row != last:
            self.state.move(last, row)
            self.running[row] = self.running[last]
        self.running.pop()
        self.lookups.pop(request, None)
        self.counts[reason] += 1
        request.on_end(reason, what)

    def _pickable(self, logits: Tensor) -> Tensor:
        return logits if not len(self.unused_ids) else logits.index_fill(-1, self.unused_ids, -torch.inf)


def _read_in_parts(request: Request) -> bool:
    """Whether its prompt is read part by part between the steps of other requests, not at once before the next step."""
    return len(request.prompt) > PART or request.prompt_logprobs or not request.max_tokens


class OneByOne:
    """Rows of an architecture without `Decoding`: each has a state of its own, and they are continued one after the other."""

    def __init__(self, model: LanguageModel, rows: int, length: int) -> None:
        self.model, self.length = model, length
        self.states: list[GenericState | None] = [None] * rows
        self.lengths = [0] * rows

    def prefill(self, prompts: Sequence[Sequence[int]], first: int) -> Tensor:
        return torch.cat([self.extend(row, prompt) for row, prompt in enumerate(prompts, first)])

    def extend(self, row: int, tokens: Sequence[int], all_tokens: bool = False) -> Tensor:
        if self.lengths[row] == 0:
            self.states[row] = GenericState(self.model, 1, self.length)
        state = self.states[row]
        assert state is not None
        self.lengths[row] += len(tokens)
        logits_NV = state.decode(torch.tensor([tokens], device=state.device))[0]
        return logits_NV if all_tokens else logits_NV[-1:]

    def move(self, row: int, to: int) -> None:
        self.states[to], self.lengths[to] = self.states[row], self.lengths[row]
        self.states[row] = None

    def decode(self, tokens_BT: Tensor, stop: c_int | None = None) -> Tensor:
        return torch.stack([self.extend(row, tokens, all_tokens=True) for row, tokens in enumerate(tokens_BT.tolist())])
