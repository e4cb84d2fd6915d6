"""A run's n-gram model, in every table with its networks: what counting the same tokens knows of a test."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from groundup.core.errors import UserError
from groundup.core.files import digest
from groundup.data.token_files import TokenFile
from groundup.evaluation.continuations import Scored, ScoringRequest
from groundup.evaluation.evaluated_models import TokenModel, stop_token_ids
from groundup.model.ngram import KneserNey
from groundup.tokenizer.load import load as load_tokenizer

NGRAM = "ngram:"  # of a name: ngram:RUN
ORDER = 5
MAX_COUNTED_TOKENS = 50_000_000  # the first of a file: sorting them takes 8 GB


class NgramModel(TokenModel):
    """Kneser-Ney over the training tokens of a run, with its tokenizer. A token's history is the four before it."""

    context = 1 << 20  # of a prompt: nothing is ever cut

    def __init__(self, name: str) -> None:
        self.name, run = name, run_of(name)
        self.tokenizer = load_tokenizer(run / "tokenizer")
        self.opening: list[int] = []
        self.begin_of_text = self.tokenizer.begin_of_text
        tokens = np.asarray(TokenFile(run / "tokens" / "train").tokens[:MAX_COUNTED_TOKENS])
        self.model = KneserNey.fit(tokens, ORDER, self.tokenizer.size, self.begin_of_text)
        self._likeliest = lru_cache(1 << 16)(lambda history: int(self.model.next_token(np.array(history)).argmax()))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def likeliest(self, history: Sequence[int]) -> int:
        return self._likeliest(tuple(history[-(ORDER - 1) :]))

    def score(self, requests: Sequence[ScoringRequest], batch_size: int) -> list[Scored]:
        # Only a token's history matters, so all requests can be one stream.
        parts = [ids[max(0, start - ORDER + 1) :] for ids, start in requests]
        sums = self._sums(parts, [len(ids) - start for ids, start in requests])
        results = []
        for nats, (ids, start) in zip(sums, requests, strict=True):
            greedy = all(self.likeliest(ids[:index]) == ids[index] for index in range(start, len(ids)))
            results.append(Scored(nats, greedy, self.likeliest(ids[:start])))
        return results

    def overlapping(self, sequences: Sequence[Sequence[int]], batch_size: int) -> list[float]:
        return self._sums(sequences, [len(ids) - 1 for ids in sequences])

    def _sums(self, parts: Sequence[Sequence[int]], counts: Sequence[int]) -> list[float]:
        """For each part, the log-probability of its last `count` tokens."""
        if not parts:
            return []
        nats = self.model.log_probabilities(np.array([token for part in parts for token in (self.begin_of_text, *part)]))
        ends = np.cumsum([len(part) + 1 for part in parts])
        return [float(nats[end - count : end].sum()) for end, count in zip(ends.tolist(), counts, strict=True)]

    def generate(self, prompts: Sequence[list[int]], until: tuple[str, ...], max_tokens: int) -> list[list[int]]:
        ends = set(stop_token_ids(self.tokenizer, [], until))
        written = []
        for prompt in prompts:
            ids = list(prompt)
            while len(ids) - len(prompt) < max_tokens:
                ids.append(self.likeliest(ids))
                if ids[-1] in ends:
                    break
            written.append(ids[len(prompt) :])
        return written


def run_of(name: str) -> Path:
    run = Path(name.removeprefix(NGRAM))
    if not (run / "tokens" / "train.bin").is_file() or not (run / "tokenizer" / "tokenizer.json").is_file():
        raise UserError(f"{name}: no tokens/ and tokenizer/ in {run}, which the n-gram model counts; give the folder of a run")
    return run


def key_of(name: str) -> dict[str, str]:
    run = run_of(name)
    return {
        "ngram": str(ORDER),
        "train.bin": digest(run / "tokens" / "train.bin"),
        "tokenizer.json": digest(run / "tokenizer" / "tokenizer.json"),
    }


def ngram_models_of(models: Sequence[str]) -> list[str]:
    """The names of the n-gram models of the runs that these models belong to, without those already among them."""
    names = []
    for model in models:
        for run in (Path(model), Path(model).parent):
            if all((run / file).is_file() for file in ("tokens/train.bin", "tokenizer/tokenizer.json")):
                names.append(f"{NGRAM}{run}")
                break
    return [model for model in dict.fromkeys(names) if model not in models]
