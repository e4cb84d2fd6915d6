"""Models behind an address that speaks OpenAI's `/completions`: `http://HOST/v1#MODEL`, such as vLLM's or groundup's own.

Texts are scored by `echo` with `logprobs`: the server gives the log-probability of each token of the prompt itself. The server
tokenizes, so a token that spans the border of context and answer counts as the answer's. The first token of a prompt has no
probability, so a text without a context is scored after a line break.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

from groundup.core.errors import UserError
from groundup.core.openai_address import OpenAIAddress, RequestRefused
from groundup.data.messages import BadRow
from groundup.evaluation.evaluated_models import ContinuationScore

MAX_PROMPTS = 16  # in a request
EMPTY_CONTEXT = "\n"  # in place of an empty context
MAX_STOP_TEXTS = 4  # the interface allows no more


class RemoteModel(OpenAIAddress):
    def continuations(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[ContinuationScore | BadRow]:
        requests = [(context or EMPTY_CONTEXT, continuation) for context, continuation in pairs]
        settings = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        choices = self._choices([context + continuation for context, continuation in requests], settings, batch_size)
        return [
            choice if isinstance(choice, BadRow) else self._continuation_score(choice, *pair)
            for pair, choice in zip(requests, choices, strict=True)
        ]

    def texts(self, texts: Sequence[str], windows: str, batch_size: int) -> list[float | BadRow]:
        """Of whole texts: one longer than the server's context is BadRow, whatever the windows."""
        scores = self.continuations([(EMPTY_CONTEXT, text) for text in texts], batch_size)
        return [score if isinstance(score, BadRow) else score.nats for score in scores]

    def written(
        self, prompts: Sequence[str], until: Sequence[str], max_tokens: int, batch_size: int
    ) -> list[tuple[str, bool] | BadRow]:
        settings: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0}
        if stop_texts := [text for text in until if text][:MAX_STOP_TEXTS]:
            settings["stop"] = stop_texts
        answers: list[tuple[str, bool] | BadRow] = []
        for choice in self._choices([prompt or EMPTY_CONTEXT for prompt in prompts], settings, batch_size):
            if isinstance(choice, BadRow):
                answers.append(choice)
                continue
            if not isinstance(choice.get("text"), str):
                raise UserError(f"{self.address}: an answer without text; is it an OpenAI-compatible server?")
            answers.append((choice["text"], False))
        return answers

    def _choices(self, prompts: Sequence[str], settings: dict[str, Any], batch_size: int) -> list[dict[str, Any] | BadRow]:
        size = min(batch_size, MAX_PROMPTS)
        choices: list[dict[str, Any] | BadRow] = []
        for first in range(0, len(prompts), size):
            batch = prompts[first : first + size]
            try:
                choices += self._batch(batch, settings)
            except RequestRefused:
                choices += [self._choice(prompt, settings) for prompt in batch]  # a bad one among good ones
        return choices

    def _choice(self, prompt: str, settings: dict[str, Any]) -> dict[str, Any] | BadRow:
        try:
            return self._batch([prompt], settings)[0]
        except RequestRefused as error:
            return BadRow(f"the server refuses it: {error}")

    def _batch(self, prompts: Sequence[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self.request("/completions", {"model": self.model, "prompt": [*prompts], **settings})
        choices = answer.get("choices")
        by_index = {choice.get("index"): choice for choice in _objects(choices) if isinstance(choice.get("index"), int)}
        if sorted(by_index, key=str) != sorted(range(len(prompts)), key=str):
            raise UserError(f"{self.address}: {len(prompts)} prompts, but choices {str([*by_index])[:60]} in the answer")
        return [by_index[number] for number in range(len(prompts))]

    def _continuation_score(self, choice: dict[str, Any], context: str, continuation: str) -> ContinuationScore | BadRow:
        """Raises UserError where the answer does not echo the prompt with its probabilities."""
        logprobs = choice.get("logprobs")
        if not isinstance(logprobs, dict):
            raise UserError(f"{self.address}: no logprobs in the answer; the server must support `echo` with `logprobs`")
        tokens, nats, tops = (logprobs.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
        if not (isinstance(tokens, list) and isinstance(nats, list) and isinstance(tops, list)):
            raise UserError(f"{self.address}: logprobs lack tokens, token_logprobs or top_logprobs")
        offsets = logprobs.get("text_offset") or _offsets(tokens)
        if not isinstance(offsets, list) or not len(tokens) == len(nats) == len(tops) == len(offsets):
            raise UserError(f"{self.address}: logprobs of different lengths for one answer")
        if not all(map(_is_finite, offsets)):
            raise UserError(f"{self.address}: a text_offset that is no number")
        # White space at a context's end belongs to the continuation, as for other models.
        prompt, start, end = context + continuation, len(context.rstrip()) or len(context), len(context) + len(continuation)
        by_tokens = offsets == _offsets(tokens)
        if by_tokens and not "".join(map(str, tokens)).startswith(prompt):
            if (realigned := _realigned_offsets(tokens, prompt)) is not None:
                offsets = realigned
            elif tokens and _normalised(str(choice.get("text"))).startswith(_normalised(prompt)):
                return BadRow("the server's tokens do not spell the prompt")
            else:
                raise UserError(f"{self.address}: the prompt is not echoed; the server must support `echo` with `logprobs`")
        ends = [*offsets[1:], end]
        # Tokens that are parts of one character all have its offset, so all but the last seem to end where it begins.
        scored = [index for index in range(len(tokens)) if offsets[index] < end and max(offsets[index] + 1, ends[index]) > start]
        if not scored or offsets[0] > start or ends[scored[-1]] < end:
            raise UserError(f"{self.address}: the prompt is not echoed; the server must support `echo` with `logprobs`")
        if not by_tokens and not str(choice.get("text")).startswith(prompt):  # offsets are of another text, as a normalised one
            return BadRow("the server's tokens do not spell the prompt")
        if not all(_is_finite(nats[index]) and _all_finite(tops[index]) for index in scored):
            raise UserError(f"{self.address}: a token of the prompt without its probability, as where `echo` is ignored")
        best_nats = [max(tops[index].values()) for index in scored]
        likeliest_text = max(tops[scored[0]], key=tops[scored[0]].__getitem__)
        greedy = all(nats[index] >= best for index, best in zip(scored, best_nats, strict=True))
        return ContinuationScore(float(sum(nats[index] for index in scored)), greedy, len(scored), likeliest_text, False)


def _offsets(tokens: Sequence[Any]) -> list[int]:
    """Where each token begins, for a server that does not say so."""
    offsets, end = [], 0
    for token in tokens:
        offsets.append(end)
        end += len(str(token))
    return offsets


def _normalised(text: str) -> str:
    """As tokenizers may change a text: composed letters, other white space."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def _objects(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _realigned_offsets(tokens: Sequence[Any], prompt: str) -> list[int] | None:
    """Where each token begins, for a server whose offsets add up lengths of tokens that differ from the prompt's text: a first
    token that begins all texts and is not in the prompt, as vLLM's, or words without their space, as SentencePiece's. None where
    the others do not spell the prompt.
    """
    offsets, end = [], 0
    for index, token in enumerate(map(str, tokens)):
        offsets.append(end)
        if end == len(prompt):  # what is generated
            continue
        if (space := not prompt.startswith(token, end)) and not prompt.startswith(f" {token}", end):
            if index:
                return None
            continue
        end += len(token) + space
    return offsets if end == len(prompt) else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) != float("inf")


def _all_finite(top: Any) -> bool:
    return isinstance(top, dict) and bool(top) and all(map(_is_finite, top.values()))
