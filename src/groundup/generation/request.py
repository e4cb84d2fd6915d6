"""A request to the scheduler, and how one token is chosen from its logits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from groundup.generation.engine import MIN_TEMPERATURE, Sampling, pick


@dataclass(frozen=True)
class RequestSampling(Sampling):
    """`Sampling`, and settings that change the logits before it. The defaults change nothing.

    repetition_penalty divides positive logits of tokens that are in the prompt or the answer, and multiplies negative ones
    (Keskar et al. 2019). frequency_penalty is subtracted from a token's logit once for each time that it is in the answer,
    presence_penalty once in all (as OpenAI documents them). logit_bias is added. min_p keeps tokens of at least that share
    of the likeliest one's probability (Nguyen et al. 2024).
    """

    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def changes_logits(self) -> bool:
        penalties = (self.repetition_penalty - 1, self.presence_penalty, self.frequency_penalty)
        return any(penalties) or bool(self.logit_bias)


class Token(NamedTuple):
    """One token of a prompt or an answer; `logprob` and `top` (pairs of id and log-probability) if they were asked for.

    They are the model's own: before temperature, penalties and bias, as vLLM's. The first token of a prompt has none.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Request:
    """A prompt to continue. The scheduler calls `on_token` in its own thread, and `on_end` once, with the reason of the end.

    `on_token` returns True to stop there. `max_tokens` of 0 only reads the prompt. `logprobs`: how many alternatives to give
    with each token, None for no log-probabilities at all; `prompt_logprobs` asks for those of the prompt too.
    """

    prompt: list[int]
    sampling: RequestSampling
    ends: frozenset[int]
    seed: int
    on_token: Callable[[Token], bool]
    on_end: Callable[[str, str], None]  # reason: "stop", "length", "cancelled" or "error"; and what is wrong
    max_tokens: int = 64
    logprobs: int | None = None
    prompt_logprobs: bool = False
    on_prompt: Callable[[list[Token]], None] = lambda tokens: None
    cancelled: bool = False
    text: list[int] = field(default_factory=list)  # prompt and answer so far
    counts: dict[int, int] = field(default_factory=dict)  # of the answer's tokens

    def __post_init__(self) -> None:
        self.text = list(self.prompt)
        self.generator = torch.Generator().manual_seed(self.seed)
        bias = self.sampling.logit_bias
        self.biased, self.biases = torch.tensor([*bias], dtype=torch.long), torch.tensor([*bias.values()], dtype=torch.float32)

    def cancel(self) -> None:
        """Ask for its end: its slot is free after the current step."""
        self.cancelled = True

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature < MIN_TEMPERATURE

    @property
    def may_be_drafted(self) -> bool:
        """Whether the tokens are the model's own choice, so that several can be checked in one pass."""
        return self.greedy and not self.sampling.changes_logits and self.logprobs is None

    def choose(self, logits_V: Tensor) -> int:
        """The next token, by this request's own random numbers; they are always made on the processor."""
        sampling, logits_V = self.sampling, logits_V.cpu()
        logits = self._penalised(logits_V) if sampling.changes_logits else logits_V
        if sampling.min_p > 0 and not self.greedy:
            scaled = torch.log_softmax(logits.float() / sampling.temperature, dim=-1)
            logits = logits.masked_fill(scaled < scaled.max() + torch.log(torch.tensor(sampling.min_p)), -torch.inf)
        return int(pick(logits[None], sampling, self.generator))

    def _penalised(self, logits_V: Tensor) -> Tensor:
        sampling, logits = self.sampling, logits_V.clone()
        if sampling.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(self.text)))
            values = logits[seen]
            logits[seen] = torch.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
        if self.counts and (sampling.presence_penalty or sampling.frequency_penalty):
            ids, counts = torch.tensor([*self.counts]), torch.tensor([*self.counts.values()], dtype=logits.dtype)
            logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        if sampling.logit_bias:
            logits.index_add_(0, self.biased, self.biases.to(logits.dtype))
        return logits

    def add(self, token: int) -> None:
        self.text.append(token)
        self.counts[token] = self.counts.get(token, 0) + 1

    @property
    def answer_length(self) -> int:
        return len(self.text) - len(self.prompt)


def tokens_of(ids: Sequence[int], logits_NV: Tensor, top: int) -> list[Token]:
    """The ids with their log-probabilities by the logits that each was chosen from, and with the `top` likeliest tokens."""
    logp_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    logprobs = logp_NV[torch.arange(len(ids)), torch.tensor(ids, dtype=torch.long)].tolist()  # `ids` may be empty
    values, top_ids = logp_NV.topk(max(top, 1), dim=-1)
    tops = [tuple(zip(row, logps, strict=True))[:top] for row, logps in zip(top_ids.tolist(), values.tolist(), strict=True)]
    return [Token(*fields) for fields in zip(ids, logprobs, tops, strict=True)]
