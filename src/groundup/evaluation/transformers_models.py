"""Models of folders that transformers reads and we do not: `hf:FOLDER`, any architecture that it has. Needs the extra `hf`.

Nothing of the folder is run or unpickled: its weights must be safetensors, and code that it brings is not taken. Each request
is a row of its own, but for those of the same tokens, as the letters after one question are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.evaluation.continuations import Scored, ScoringRequest
from groundup.evaluation.evaluated_models import TokenModel, before
from groundup.generation.engine import room_in

LOGITS = 1 << 27  # numbers at once, half a gigabyte: rows x tokens x vocabulary
CONTEXT = 2048  # where the folder does not say: lm-eval's default, too


class TransformersModel(TokenModel):
    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        """Raises UserError for a model or a tokenizer that this cannot ask."""
        self.name, self.model, self.tokenizer = name, model, tokenizer
        config = getattr(model.config, "text_config", model.config)
        self.vocabulary = int(config.vocab_size)
        self.context = _context(config, tokenizer)
        self.opening = before(self.encode("a"), tokenizer.encode("a"))
        ends = model.generation_config.eos_token_id if model.generation_config else None
        ends = [tokenizer.eos_token_id] if ends is None else ends
        self.ends = [one for one in (ends if isinstance(ends, list) else [ends]) if one is not None]
        if not self.ends:
            raise UserError(f"{name}: its tokenizer has no token that ends a text, so it is not that of a language model")
        # As lm-eval has it, and our own reader: the token that begins texts, where there is one, though none is put before them.
        named = (tokenizer.bos_token_id, tokenizer.eos_token_id, self.ends[0])
        self.begin_of_text = next(token for token in named if token is not None)

    def encode(self, text: str) -> list[int]:
        """Text that looks like a special token is text."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoringRequest], batch_size: int) -> list[Scored]:
        rows: dict[tuple[int, ...], list[int]] = {}
        for number, (ids, _) in enumerate(requests):
            rows.setdefault(ids[:-1], []).append(number)
        order = sorted(rows, key=lambda ids: (len(ids), ids))
        found: list[Scored | None] = [None] * len(requests)
        while order:
            count = max(1, min(batch_size, LOGITS // (len(order[-1]) * self.vocabulary)))
            some = order[-count:]  # the longest first, so that a lack of memory shows at once
            del order[-count:]
            first = min(requests[number].start for ids in some for number in rows[ids]) - 1
            for ids, logits in zip(some, self._logits(some, first), strict=True):
                for number in rows[ids]:
                    found[number] = _scored(logits, requests[number], first)
        return [one for one in found if one is not None]

    def _logits(self, rows: Sequence[Sequence[int]], first: int) -> torch.Tensor:
        """Of each row (rows, tokens from `first` on, vocabulary). Padding is behind the tokens, where none looks."""
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
        device = self.model.device
        every = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        return every[:, first:].float()

    def overlapping(self, sequences: Sequence[Sequence[int]], batch_size: int) -> list[float]:
        windows = [_halves(ids, self.context) for ids in sequences]
        scored = iter(self.score([one for some in windows for one in some], batch_size))
        return [sum(next(scored).nats for _ in some) for some in windows]

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]], until: tuple[str, ...], max_tokens: int) -> list[list[int]]:
        """Prompts of one length at a time: no padding, on whose side and positions architectures differ."""
        ends = self.ends + self._holding(until)
        max_tokens = min(max_tokens, self.context - room_in(self.context, max_tokens))
        found: list[list[int]] = [[] for _ in prompts]
        for length in sorted({*map(len, prompts)}):
            some = [number for number, prompt in enumerate(prompts) if len(prompt) == length]
            ids = torch.tensor([prompts[number] for number in some], device=self.model.device)
            written = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, num_beams=1,
                temperature=None, top_p=None, top_k=None, eos_token_id=ends, pad_token_id=self.ends[0],
            )  # fmt: skip
            for number, row in zip(some, written[:, length:].tolist(), strict=True):
                end = next((place for place, token in enumerate(row) if token in ends), len(row))
                found[number] = row[: end + 1]
        return found

    def _holding(self, until: tuple[str, ...]) -> list[int]:
        """Tokens that hold a text that ends an answer."""
        sought = [text for text in until if text]
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))]) if sought else []
        return [token for token, text in enumerate(texts) if any(one in text for one in sought)]


def _scored(logits_TV: torch.Tensor, request: ScoringRequest, first: int) -> Scored:
    targets = torch.tensor(request.ids[request.start :], device=logits_TV.device)
    asked = logits_TV[request.start - 1 - first : len(request.ids) - 1 - first]
    nats = torch.log_softmax(asked, -1).gather(1, targets[:, None]).double().sum()
    if not torch.isfinite(nats):
        raise UserError("the model computes numbers that are not finite: its weights are damaged; train or download it again")
    likeliest = asked.argmax(-1)
    return Scored(float(nats), bool((likeliest == targets).all()), int(likeliest[0]))


def _halves(ids: Sequence[int], context: int) -> list[ScoringRequest]:
    """Every token but the first once, in windows that overlap by half, as `likelihood.score` has them."""
    windows, start, scored = [], 0, 1
    while scored < len(ids):
        end = min(start + context + 1, len(ids))
        windows.append(ScoringRequest(tuple(ids[start:end]), scored - start))
        scored, start = end, end - context // 2
    return windows


def _context(config: Any, tokenizer: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        if isinstance(found := getattr(config, name, None), int) and found > 0:
            return found
    longest = tokenizer.model_max_length
    return int(longest) if isinstance(longest, int) and 0 < longest < 1 << 24 else CONTEXT


def open_by_transformers(name: str, folder: Path) -> TransformersModel:
    """Raises UserError without transformers, and for what it cannot open; nothing is looked up on the web."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json there; give the folder of a model")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise UserError("transformers is not installed; pip install 'groundup[hf]'") from None
    here = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **here)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **here)
    except Exception as error:  # it raises any class
        said = " ".join(str(error).split())[:150]
        raise UserError(f"{folder}: transformers does not open it: {said}"[:300]) from None
    return TransformersModel(name, model.to(choose().torch_device).eval(), tokenizer)
