"""Models under evaluation, whoever computes them: how likely texts are, and what is written after a prompt.

A model needs three methods, those of lm-eval, for every task. `open_model` says which model a name stands for.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from groundup.data.messages import BadRow
from groundup.evaluation import continuations
from groundup.evaluation.continuations import Scored, ScoringRequest
from groundup.generation.engine import Sampling, generate, room_in
from groundup.generation.native_steps import Steps
from groundup.model import likelihood
from groundup.model.base import LanguageModel
from groundup.tokenizer.load import AnyTokenizer
from groundup.tokenizer.template import Before


class ContinuationScore(NamedTuple):
    nats: float  # log-probability of the continuation
    greedy: bool  # whether each of its tokens was the likeliest
    tokens: int  # of the continuation
    likeliest_text: str  # of the likeliest token after the context
    truncated: bool  # whether the context was cut from the left


class EvaluatedModel(Protocol):
    """What every task is scored with. `name` as it was given."""

    name: str

    def continuations(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[ContinuationScore | BadRow]:
        """Of each (context, continuation); BadRow, with the reason, for one that has no score."""

    def texts(self, texts: Sequence[str], windows: str, batch_size: int) -> list[float | BadRow]:
        """Log-probability of each whole text, in windows that are "disjoint" or overlap by "half"."""

    def written(
        self, prompts: Sequence[str], until: Sequence[str], max_tokens: int, batch_size: int
    ) -> Sequence[tuple[str, bool] | BadRow]:
        """What it writes after each prompt, always with the likeliest token, and whether the prompt was cut from the left;
        BadRow, with the reason, for a prompt that it does not answer.
        """


class TokenModel:
    """A model whose tokens are at hand. A subclass has the first six methods; the three of `EvaluatedModel` follow from them.

    `opening`: ids that its tokenizer puts before every text in other tools; may be empty.
    """

    context: int
    opening: list[int]
    begin_of_text: int

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def encode_after(self, text: str, before: Before) -> list[int]:
        """Of a text in the midst of others."""
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError

    def score(self, requests: Sequence[ScoringRequest], batch_size: int) -> list[Scored]:
        raise NotImplementedError

    def overlapping(self, sequences: Sequence[Sequence[int]], batch_size: int) -> list[float]:
        """Log-probability of each sequence's tokens but the first, in windows that overlap by half."""
        raise NotImplementedError

    def generate(self, prompts: Sequence[list[int]], until: tuple[str, ...], max_tokens: int) -> list[list[int]]:
        raise NotImplementedError

    def continuations(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[ContinuationScore | BadRow]:
        """White space at a context's end belongs to the continuation, and both are encoded together, as lm-eval does; where a
        token spans the border they are encoded apart. A context is cut from the left where both are too long.
        """
        encode = lru_cache(64)(self.encode)  # the answers to one question follow one another
        requests: list[ScoringRequest] = []
        truncated_flags: list[bool] = []
        for context, continuation in pairs:
            request, truncated = self._request(encode, context, continuation)
            requests.append(request)
            truncated_flags.append(truncated)
        scored = iter(self.score([request for request in requests if 0 < request.start < len(request.ids)], batch_size))
        results: list[ContinuationScore | BadRow] = []
        text_of = lru_cache(None)(lambda token: self.decode([token]))
        for request, truncated in zip(requests, truncated_flags, strict=True):
            if request.start < 1:
                results.append(BadRow("an answer longer than the model's context"))
                continue
            if request.start == len(request.ids):  # of characters that the tokenizer drops
                results.append(BadRow("an answer that has no token"))
                continue
            score = next(scored)
            tokens = len(request.ids) - request.start
            results.append(ContinuationScore(score.nats, score.greedy, tokens, text_of(score.likeliest), truncated))
        return results

    def _request(self, encode: Callable[[str], list[int]], context: str, continuation: str) -> tuple[ScoringRequest, bool]:
        """The request, and whether its context was cut from the left."""
        trimmed = context.rstrip()
        continuation, context = context[len(trimmed) :] + continuation, trimmed
        context_ids, all_ids = encode(context), self.encode(context + continuation)
        together = all_ids[: len(context_ids)] == context_ids and len(all_ids) > len(context_ids)
        added_ids = all_ids[len(context_ids) :] if together else self.encode_after(continuation, "text" if context else "nothing")
        opening = self.opening if context else self.opening or [self.begin_of_text]
        ids, start = (*opening, *context_ids, *added_ids), len(opening) + len(context_ids)
        if (excess := len(ids) - self.context - 1) > 0:
            return ScoringRequest(ids[excess:], start - excess), True
        return ScoringRequest(ids, start), False

    def texts(self, texts: Sequence[str], windows: str, batch_size: int) -> list[float | BadRow]:
        first_token = (self.opening or [self.begin_of_text])[-1]
        sequences = [[first_token, *self.encode(text)] for text in texts]
        if windows == "half":
            return [*self.overlapping(sequences, batch_size)]
        windows_per_text = [disjoint(ids, self.context) for ids in sequences]
        scored = iter(self.score([request for requests in windows_per_text for request in requests], batch_size))
        return [sum(next(scored).nats for _ in requests) for requests in windows_per_text]

    def written(
        self, prompts: Sequence[str], until: Sequence[str], max_tokens: int, batch_size: int
    ) -> list[tuple[str, bool]]:
        """A prompt that leaves no room for an answer is cut from the left."""
        max_prompt = room_in(self.context, max_tokens)
        encoded = [[*self.opening, *self.encode(prompt)] or [self.begin_of_text] for prompt in prompts]
        texts = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda number: len(encoded[number]))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            answers = self.generate([encoded[number][-max_prompt:] for number in batch], tuple(until), max_tokens)
            for number, ids in zip(batch, answers, strict=True):
                texts[number] = self.decode(ids)
        return [(text, len(ids) > max_prompt) for text, ids in zip(texts, encoded, strict=True)]


def disjoint(ids: Sequence[int], context: int) -> list[ScoringRequest]:
    """Every token but the first once, in windows of `context` tokens after one; the last window reaches back as far as it can."""
    ends = [*range(context, len(ids) - 1, context), len(ids) - 1] if len(ids) > 1 else []
    starts = [1, *(end + 1 for end in ends)]
    return [
        ScoringRequest(tuple(ids[max(0, end - context) : end + 1]), start - max(0, end - context))
        for start, end in zip(starts, ends, strict=False)
    ]


@dataclass
class FolderModel(TokenModel):
    """A model of a folder that groundup reads itself."""

    name: str
    folder: Path
    model: LanguageModel
    tokenizer: AnyTokenizer
    opening: list[int]

    @property
    def context(self) -> int:
        return self.model.config.max_position_embeddings

    @property
    def begin_of_text(self) -> int:
        return self.tokenizer.begin_of_text

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def encode_after(self, text: str, before: Before) -> list[int]:
        return self.tokenizer.encode_after(text, before)

    def decode(self, ids: Sequence[int]) -> str:
        # A model may have more rows than tokens, as Qwen's have, and the likeliest may be one without a token: it has no text.
        return self.tokenizer.decode_within([token for token in ids if token < self.tokenizer.size])

    @cached_property
    def steps(self) -> Steps | None:
        return continuations.native_steps(self.model)

    def score(self, requests: Sequence[ScoringRequest], batch_size: int) -> list[Scored]:
        return continuations.score(self.model, requests, batch_size, self.steps)

    def overlapping(self, sequences: Sequence[Sequence[int]], batch_size: int) -> list[float]:
        tokens = max(1, min(batch_size * 256, 16_384))
        nats = likelihood.score(self.model, sequences, batch_tokens=tokens)
        return [float(nats_T.sum(dtype=np.float64)) for nats_T in nats]

    def generate(self, prompts: Sequence[list[int]], until: tuple[str, ...], max_tokens: int) -> list[list[int]]:
        ends = stop_token_ids(self.tokenizer, self.model.generation.ends, until)
        return generate(self.model, prompts, ends, Sampling(max_tokens, temperature=0), 0)


def stop_token_ids(tokenizer: AnyTokenizer, ends: Collection[int], until: tuple[str, ...]) -> list[int]:
    """Tokens after which a continuation is over: those that end a text, and those that hold one of `until`."""
    stop_tokens = {tokenizer.end_of_text, *ends}
    for text in filter(None, until):
        stop_bytes = text.encode()
        stop_tokens |= {token for token in range(tokenizer.size) if stop_bytes in tokenizer.token_bytes(token)}
    return sorted(stop_tokens)
