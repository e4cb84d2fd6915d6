"""The one generation engine: samples in evaluation, PPO rollouts and the chat all come from here.

A batch of prompts of any lengths shares one cache with a slot for every token. Each row is filled independently, so there is no
left padding. Finished rows leave when they are a quarter of the batch, since the cache is copied then. Decoders use `decoding`,
and in greedy decoding (temperature 0) several tokens per pass, by drafts of `prompt_lookup`; every other architecture continues
from its own cache.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from groundup.core.errors import UserError
from groundup.generation.decoding import Decoding, cache_bytes
from groundup.generation.one_thread import finite_rows, likeliest
from groundup.generation.prompt_lookup import PromptLookup, drafts
from groundup.model.base import LanguageModel
from groundup.model.decoder import Decoder
from groundup.model.generation import MAX_TEMPERATURE, Generation

MIN_TEMPERATURE = 1e-5  # below it decoding is greedy: a logit divided by it leaves float32; vLLM has the same limit
CACHE_BYTES = 4 << 30  # for keys and values of the rows that are continued together, on a processor
GPU_SHARE = 4  # on a GPU they get its memory divided by this
STAYING_SHARE = 0.75  # of a batch: when no more than this is unfinished, the finished rows leave


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_p keeps the most likely tokens up to that probability (Holtzman et al. 2019).

    top_k keeps so many of the most likely tokens, 0 all; it comes before top_p, as in transformers and vLLM.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        for name, kind, is_valid, expected in (
            ("max_tokens", int, lambda value: value >= 1, "a whole number, 1 or more"),
            (
                "temperature",
                int | float,
                lambda value: 0 <= value <= MAX_TEMPERATURE,
                f"a number from 0 to {MAX_TEMPERATURE:,.0f}",
            ),
            ("top_p", int | float, lambda value: 0 < value <= 1, "a number above 0, at most 1"),
            ("top_k", int, lambda value: value >= 0, "a whole number, 0 for all tokens"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind) or not is_valid(value):
                raise UserError(f"{name} is {str(value)[:40]}; it must be {expected}")

    @classmethod
    def from_config(cls, generation: Generation, max_tokens: int, temperature: float | None = None) -> Self:
        """The sampling that the model's folder states, but for a temperature that is given."""
        wanted = generation.temperature if temperature is None else temperature
        return cls(max_tokens, wanted, generation.top_p, generation.top_k)


def room(model: LanguageModel, max_tokens: int) -> int:
    """The most tokens that a prompt may have: the rest of the context is the answer's."""
    return room_in(model.config.max_position_embeddings, max_tokens)


def room_in(context: int, max_tokens: int) -> int:
    """The same for any context: an answer gets at most half of it."""
    return context - min(max_tokens, context // 2)


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    sampling: Sampling,
    seed: int,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt until one of the token ids `ends` (kept in the result) or `max_tokens`.

    Prompt and answer share the context: an answer has at most half of it. The same seed gives the same tokens.
    on_token(row, token) is called as tokens appear. If keys and values of all rows would take more than CACHE_BYTES (on a GPU
    a quarter of its memory), the rows are continued part by part.
    Raises ValueError for an empty prompt; UserError for one that is longer than `room`, since a cut prompt would be another
    question, and where the model's logits are not finite.
    """
    if not prompts:
        return []
    if not all(prompts):
        raise ValueError("a prompt without tokens has nothing to continue; begin it with the end-of-text token")
    max_tokens = min(sampling.max_tokens, model.config.max_position_embeddings // 2)
    if (longest := max(map(len, prompts))) > (limit := room(model, max_tokens)):
        raise UserError(
            f"a prompt has {longest:,} tokens; beside an answer of {max_tokens:,} the model's context has room for {limit:,}: "
            "ask for less, or for a shorter answer"
        )
    if len(prompts) > (at_once := _rows_at_once(model, longest + max_tokens)):
        continuations: list[list[int]] = []
        for start in range(0, len(prompts), at_once):
            on_part_token = on_token and (lambda row, token, first=start: on_token(first + row, token))
            continuations += generate(model, prompts[start : start + at_once], ends, sampling, seed + start, on_part_token)
        return continuations
    prompts = [list(prompt) for prompt in prompts]
    device = model.lm_head.weight.device
    generator = torch.Generator(device=device).manual_seed(seed)
    state_class = Decoding if isinstance(model, Decoder) else GenericState
    state = state_class(model, len(prompts), max(map(len, prompts)) + max_tokens)
    texts = [list(prompt) for prompt in prompts]
    ends_at = [len(prompt) + max_tokens for prompt in prompts]

    def finished(row: int) -> bool:
        return len(texts[row]) >= ends_at[row] or (texts[row][-1] in ends and len(texts[row]) > len(prompts[row]))

    # A draft is accepted as far as the model itself chooses its tokens: the result is the same with and without drafts.
    lookups = (
        [PromptLookup(text) for text in texts] if isinstance(model, Decoder) and sampling.temperature < MIN_TEMPERATURE else []
    )
    rows = list(range(len(prompts)))
    drafted: list[list[int]] = [[]] * len(prompts)
    logits = state.prefill(prompts)[:, None]
    while True:
        chosen = pick(_samplable(logits.flatten(0, 1), model), sampling, generator).view(len(rows), -1).tolist()
        rejected = []
        for row, draft, tokens in zip(rows, drafted, chosen, strict=True):
            accepted = next((index for index, token in enumerate(draft) if token != tokens[index]), len(draft))
            rejected.append(len(draft) - accepted)
            for token in tokens[: accepted + 1]:
                if finished(row):
                    break
                texts[row].append(token)
                if on_token:
                    on_token(row, token)
        if any(rejected):
            state.rollback(rejected)
        unfinished = [index for index, row in enumerate(rows) if not finished(row)]
        if not unfinished:
            return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
        if len(unfinished) <= STAYING_SHARE * len(rows):
            rows = [rows[index] for index in unfinished]
            state.select(unfinished)
        drafted = [[]] * len(rows)
        if lookups:
            drafted = drafts([lookups[row] for row in rows], max(ends_at[row] - len(texts[row]) for row in rows) - 1)
        inputs = [[texts[row][-1], *draft] for row, draft in zip(rows, drafted, strict=True)]
        logits = state.decode(torch.tensor(inputs, device=device))


def _rows_at_once(model: LanguageModel, length: int) -> int:
    """How many rows of `length` tokens are continued together: one row of a published model takes hundreds of MB."""
    if not isinstance(model, Decoder):
        return sys.maxsize
    device = model.lm_head.weight.device
    budget = torch.cuda.get_device_properties(device).total_memory // GPU_SHARE if device.type == "cuda" else CACHE_BYTES
    return max(1, budget // (length * cache_bytes(model)))


class GenericState:
    """The state of rows that are being continued, as `Decoding`, for any architecture; it cannot roll back."""

    def __init__(self, model: LanguageModel, rows: int, length: int) -> None:
        self.model, self.device = model, model.lm_head.weight.device
        self.cache = model.new_cache(rows, length, self.device)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long, device=self.device)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt, device=self.device)
        hidden = self.model.model(ids, cache=self.cache, lengths_B=lengths)
        return self.model.lm_head(hidden[torch.arange(len(prompts), device=self.device), lengths - 1])

    def decode(self, tokens_BT: Tensor) -> Tensor:
        return self.model.lm_head(self.model.model(tokens_BT, cache=self.cache))

    def select(self, rows: Sequence[int]) -> None:
        self.cache.select(torch.tensor(rows, device=self.device))


def _samplable(logits_NV: Tensor, model: LanguageModel) -> Tensor:
    """The logits, with -inf for ids that no token has.

    Raises UserError where they are not finite: whatever is sampled from them would look like an answer.
    """
    if not all(finite_rows(logits_NV)):
        raise UserError("the model computes numbers that are not finite: its weights are damaged; train or download it again")
    if not model.unused_ids:
        return logits_NV
    return logits_NV.index_fill(-1, torch.tensor(model.unused_ids, device=logits_NV.device), -torch.inf)


def pick(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """One token per row (batch,)."""
    if sampling.temperature < MIN_TEMPERATURE:
        return likeliest(logits_BV)
    logits_BV = logits_BV.float()
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        # Tokens that are equal to the last of the top_k are all kept, as in transformers.
        threshold = logits_BV.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < threshold, -torch.inf)
    probabilities = torch.softmax(logits_BV / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        sorted_probabilities, indices = probabilities.sort(dim=-1, descending=True, stable=True)
        excluded = sorted_probabilities.cumsum(-1) - sorted_probabilities >= sampling.top_p
        probabilities = torch.zeros_like(probabilities).scatter(-1, indices, sorted_probabilities.masked_fill(excluded, 0.0))
    # One random number per row, compared with the running sum: torch.multinomial draws one for every entry of the vocabulary.
    sums = probabilities.cumsum(-1)
    drawn = 1 - torch.rand(len(sums), 1, generator=generator, device=sums.device)  # in (0, 1]
    return torch.searchsorted(sums, drawn * sums[:, -1:]).squeeze(1)
