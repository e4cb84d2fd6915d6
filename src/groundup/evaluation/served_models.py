"""Models behind an address that speaks OpenAI's `/completions`: `http://HOST/v1#MODEL`, as of vLLM or of us.

Texts are scored by `echo` with `logprobs`: the server gives the log-probability of each token of the prompt itself. It cuts the
tokens, so where one spans the border of context and answer it counts to the answer; and the first token of a prompt has no
probability, so a text without a context is scored after a line break.
"""

from collections.abc import Sequence
from typing import Any

from groundup.core.errors import UserError
from groundup.core.openai_address import OpenAIAddress, RequestRefused
from groundup.data.messages import BadRow
from groundup.evaluation.evaluated_models import Continued

AT_ONCE = 16  # prompts in a request
BEFORE_ALL = "\n"  # stands before a text without a context
STOPS = 4  # the interface allows no more


class RemoteModel(OpenAIAddress):
    def continuations(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[Continued | BadRow]:
        asked = [(context or BEFORE_ALL, continuation) for context, continuation in pairs]
        settings = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        choices = self._choices([context + continuation for context, continuation in asked], settings, batch_size)
        return [
            choice if isinstance(choice, BadRow) else self._continued(choice, *pair)
            for pair, choice in zip(asked, choices, strict=True)
        ]

    def texts(self, texts: Sequence[str], windows: str, batch_size: int) -> list[float | BadRow]:
        """Whole texts: one that is longer than the server's context is BadRow, whatever the windows."""
        found = self.continuations([(BEFORE_ALL, text) for text in texts], batch_size)
        return [one if isinstance(one, BadRow) else one.nats for one in found]

    def written(
        self, prompts: Sequence[str], until: Sequence[str], max_tokens: int, batch_size: int
    ) -> list[tuple[str, bool] | BadRow]:
        settings: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0}
        if stops := [text for text in until if text][:STOPS]:
            settings["stop"] = stops
        found: list[tuple[str, bool] | BadRow] = []
        for choice in self._choices([prompt or BEFORE_ALL for prompt in prompts], settings, batch_size):
            if isinstance(choice, BadRow):
                found.append(choice)
                continue
            if not isinstance(choice.get("text"), str):
                raise UserError(f"{self.address}: an answer without text; is it an OpenAI-compatible server?")
            found.append((choice["text"], False))
        return found

    def _choices(self, prompts: Sequence[str], settings: dict[str, Any], batch_size: int) -> list[dict[str, Any] | BadRow]:
        size = min(batch_size, AT_ONCE)
        found: list[dict[str, Any] | BadRow] = []
        for first in range(0, len(prompts), size):
            some = prompts[first : first + size]
            try:
                found += self._batch(some, settings)
            except RequestRefused:
                found += [self._one(prompt, settings) for prompt in some]  # a bad one among good ones
        return found

    def _one(self, prompt: str, settings: dict[str, Any]) -> dict[str, Any] | BadRow:
        try:
            return self._batch([prompt], settings)[0]
        except RequestRefused as error:
            return BadRow(f"the server refuses it: {error}")

    def _batch(self, prompts: Sequence[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self.request("/completions", {"model": self.model, "prompt": [*prompts], **settings})
        choices = answer.get("choices")
        by_index = {one.get("index"): one for one in _objects(choices) if isinstance(one.get("index"), int)}
        if sorted(by_index, key=str) != sorted(range(len(prompts)), key=str):
            raise UserError(f"{self.address}: {len(prompts)} prompts, but choices {str([*by_index])[:60]} in the answer")
        return [by_index[number] for number in range(len(prompts))]

    def _continued(self, choice: dict[str, Any], context: str, continuation: str) -> Continued | BadRow:
        """Raises UserError where the answer is not that of a prompt that was echoed with its probabilities."""
        noted = choice.get("logprobs")
        if not isinstance(noted, dict):
            raise UserError(f"{self.address}: no logprobs in the answer; the server must support `echo` with `logprobs`")
        tokens, nats, tops = (noted.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
        if not (isinstance(tokens, list) and isinstance(nats, list) and isinstance(tops, list)):
            raise UserError(f"{self.address}: logprobs lack tokens, token_logprobs or top_logprobs")
        offsets = noted.get("text_offset") or _offsets(tokens)
        if not isinstance(offsets, list) or not len(tokens) == len(nats) == len(tops) == len(offsets):
            raise UserError(f"{self.address}: logprobs of different lengths for one answer")
        if not all(map(_number, offsets)):
            raise UserError(f"{self.address}: a text_offset that is no number")
        prompt, start, end = context + continuation, len(context), len(context) + len(continuation)
        if offsets == _offsets(tokens) and not "".join(map(str, tokens)).startswith(prompt):
            if (placed := _placed(tokens, prompt)) is not None:
                offsets = placed
            elif tokens and str(choice.get("text")).startswith(prompt):
                return BadRow("the server's tokens do not spell the prompt")
            else:
                raise UserError(f"{self.address}: the prompt is not echoed; the server must support `echo` with `logprobs`")
        ends = [*offsets[1:], end]
        asked = [place for place in range(len(tokens)) if ends[place] > start and offsets[place] < end]
        if not asked or offsets[0] > start or ends[asked[-1]] < end:
            raise UserError(f"{self.address}: the prompt is not echoed; the server must support `echo` with `logprobs`")
        if not all(_number(nats[place]) and _all_numbers(tops[place]) for place in asked):
            raise UserError(f"{self.address}: a token of the prompt without its probability, as where `echo` is ignored")
        best = [max(tops[place].values()) for place in asked]
        said = max(tops[asked[0]], key=tops[asked[0]].__getitem__)
        greedy = all(nats[place] >= most for place, most in zip(asked, best, strict=True))
        return Continued(float(sum(nats[place] for place in asked)), greedy, len(asked), said, False)


def _offsets(tokens: Sequence[Any]) -> list[int]:
    """Where each token begins, of a server that does not say so."""
    offsets, end = [], 0
    for token in tokens:
        offsets.append(end)
        end += len(str(token))
    return offsets


def _objects(values: Any) -> list[dict[str, Any]]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def _placed(tokens: Sequence[Any], prompt: str) -> list[int] | None:
    """Where each token begins, of a server that adds up lengths: of a first token that begins all texts and is not in the prompt,
    as vLLM's, or of words whose space is not told, as of SentencePiece; None where the others do not spell the prompt.
    """
    offsets, end = [], 0
    for place, token in enumerate(map(str, tokens)):
        offsets.append(end)
        if end == len(prompt):  # what is generated
            continue
        if (space := not prompt.startswith(token, end)) and not prompt.startswith(f" {token}", end):
            if place:
                return None
            continue
        end += len(token) + space
    return offsets if end == len(prompt) else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) != float("inf")


def _all_numbers(top: Any) -> bool:
    return isinstance(top, dict) and bool(top) and all(map(_number, top.values()))
