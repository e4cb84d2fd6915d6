"""Models of folders that transformers reads and groundup does not: `hf:FOLDER`, any architecture it has. Needs the extra `hf`.

Nothing of the folder is run or unpickled: its weights must be safetensors, and its code is not used. Each request is a row of
its own, except that requests of the same tokens share one, as the letters after one question do.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.evaluation.continuations import Scored, ScoringRequest
from groundup.evaluation.evaluated_models import TokenModel
from groundup.generation.engine import room_in
from groundup.tokenizer.hf_tokenizer import ids_before
from groundup.tokenizer.library_rules import ContinuationEncoder
from groundup.tokenizer.template import Before

MAX_LOGITS = 1 << 27  # at once, half a gigabyte: rows x tokens x vocabulary
DEFAULT_CONTEXT = 2048  # where the folder does not say: lm-eval's default too


class TransformersModel(TokenModel):
    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        """Raises UserError for a model or a tokenizer that cannot be evaluated."""
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self._continuations: ContinuationEncoder | None = None
        config = getattr(model.config, "text_config", model.config)
        self.vocabulary = int(config.vocab_size)
        self.context = _context_length(config, tokenizer)
        self.opening = ids_before(self.encode("a"), tokenizer.encode("a"))
        ends = model.generation_config.eos_token_id if model.generation_config else None
        ends = [tokenizer.eos_token_id] if ends is None else ends
        self.ends = [token for token in (ends if isinstance(ends, list) else [ends]) if token is not None]
        if not self.ends:
            raise UserError(f"{name}: its tokenizer has no token that ends a text, so it is not that of a language model")
        # As in lm-eval and our own reader: the token that begins texts, where there is one, even if the tokenizer adds none.
        candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, self.ends[0])
        self.begin_of_text = next(token for token in candidates if token is not None)

    def encode(self, text: str) -> list[int]:
        """Text that looks like a special token is text."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def encode_after(self, text: str, before: Before) -> list[int]:
        """As Llama 2's and Mistral's tokenizers put a space before a text, but not before what continues one."""
        if before == "nothing":
            return self.encode(text)
        if self._continuations is None:
            backend = getattr(self.tokenizer, "backend_tokenizer", None)
            description = json.loads(backend.to_str()) if backend is not None else {}
            self._continuations = ContinuationEncoder(description, Path(self.name))
        ids = self._continuations.encode(text, before)
        return self.encode(text) if ids is None else ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoringRequest], batch_size: int) -> list[Scored]:
        rows: dict[tuple[int, ...], list[int]] = {}
        for number, (ids, _) in enumerate(requests):
            rows.setdefault(ids[:-1], []).append(number)
        order = sorted(rows, key=lambda ids: (len(ids), ids))
        results: list[Scored | None] = [None] * len(requests)
        while order:
            count = max(1, min(batch_size, MAX_LOGITS // (len(order[-1]) * self.vocabulary)))
            batch = order[-count:]  # the longest first, so that a lack of memory shows at once
            del order[-count:]
            first = min(requests[number].start for ids in batch for number in rows[ids]) - 1
            for ids, logits in zip(batch, self._logits(batch, first), strict=True):
                for number in rows[ids]:
                    results[number] = _score(logits, requests[number], first)
        return [result for result in results if result is not None]

    def _logits(self, rows: Sequence[Sequence[int]], first: int) -> torch.Tensor:
        """(rows, tokens from `first` on, vocabulary). Padding is behind the tokens, so no token attends to it."""
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)], mask[index, : len(row)] = torch.tensor(row), 1
        device = self.model.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        return logits[:, first:].float()

    def overlapping(self, sequences: Sequence[Sequence[int]], batch_size: int) -> list[float]:
        windows_per_text = [_half_overlapping(ids, self.context) for ids in sequences]
        scored = iter(self.score([window for windows in windows_per_text for window in windows], batch_size))
        return [sum(next(scored).nats for _ in windows) for windows in windows_per_text]

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]], until: tuple[str, ...], max_tokens: int) -> list[list[int]]:
        """Prompts of one length at a time, without padding: architectures differ on its side and positions."""
        ends = self.ends + self._tokens_holding(until)
        max_tokens = min(max_tokens, self.context - room_in(self.context, max_tokens))
        answers: list[list[int]] = [[] for _ in prompts]
        for length in sorted({*map(len, prompts)}):
            numbers = [number for number, prompt in enumerate(prompts) if len(prompt) == length]
            ids = torch.tensor([prompts[number] for number in numbers], device=self.model.device)
            written = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, num_beams=1,
                temperature=None, top_p=None, top_k=None, eos_token_id=ends, pad_token_id=self.ends[0],
            )  # fmt: skip
            for number, row in zip(numbers, written[:, length:].tolist(), strict=True):
                stop = next((index for index, token in enumerate(row) if token in ends), len(row))
                answers[number] = row[: stop + 1]
        return answers

    def _tokens_holding(self, until: tuple[str, ...]) -> list[int]:
        """Tokens that hold one of `until`."""
        stop_texts = [text for text in until if text]
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))]) if stop_texts else []
        return [token for token, text in enumerate(texts) if any(stop_text in text for stop_text in stop_texts)]


def _score(logits_TV: torch.Tensor, request: ScoringRequest, first: int) -> Scored:
    targets = torch.tensor(request.ids[request.start :], device=logits_TV.device)
    logits_NV = logits_TV[request.start - 1 - first : len(request.ids) - 1 - first]
    nats = torch.log_softmax(logits_NV, -1).gather(1, targets[:, None]).double().sum()
    if not torch.isfinite(nats):
        raise UserError("the model computes numbers that are not finite: its weights are damaged; train or download it again")
    likeliest = logits_NV.argmax(-1)
    return Scored(float(nats), bool((likeliest == targets).all()), int(likeliest[0]))


def _half_overlapping(ids: Sequence[int], context: int) -> list[ScoringRequest]:
    """Every token but the first once, in windows that overlap by half, as in `likelihood.score`."""
    windows, start, scored = [], 0, 1
    while scored < len(ids):
        end = min(start + context + 1, len(ids))
        windows.append(ScoringRequest(tuple(ids[start:end]), scored - start))
        scored, start = end, end - context // 2
    return windows


def _context_length(config: Any, tokenizer: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        if isinstance(length := getattr(config, name, None), int) and length > 0:
            return length
    max_length = tokenizer.model_max_length
    return int(max_length) if isinstance(max_length, int) and 0 < max_length < 1 << 24 else DEFAULT_CONTEXT


def open_by_transformers(name: str, folder: Path) -> TransformersModel:
    """Raises UserError without transformers, and for what it cannot open; nothing is looked up on the web."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json there; give the folder of a model")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise UserError("transformers is not installed; pip install 'groundup[hf]'") from None
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **options)
    except Exception as error:  # it raises any class
        message = " ".join(str(error).split())[:150]
        raise UserError(f"{folder}: transformers does not open it: {message}"[:300]) from None
    return TransformersModel(name, model.to(choose().torch_device).eval(), tokenizer)
