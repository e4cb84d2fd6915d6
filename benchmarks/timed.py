"""What several benchmarks need: openstax split by document and cut into tokens, and training for a given time.

The learning rate follows the share of the time that has passed, not the steps. So every model ends its decay when its time is
over, however fast the machine is and whatever a step of the model costs.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from groundup.core.device import choose
from groundup.data import token_files
from groundup.data.token_files import TokenFile
from groundup.kernels import Unavailable
from groundup.model.base import LanguageModel
from groundup.model.likelihood import bits_per_byte, score
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.data_order import Stream
from groundup.training.objectives import BalancedNextToken, next_token
from groundup.training.optimizer import Optimizer, pretraining_lrs
from groundup.training.parallel import Objective
from groundup.training.schedule import warmup_stable_decay


def openstax(data: Path) -> tuple[list[str], list[str]]:
    """Training and held-out documents: shuffled, 5 % held out."""
    texts = pq.read_table(data / "text" / "openstax.parquet", columns=["text"])["text"].to_pylist()
    order = np.random.default_rng(0).permutation(len(texts))
    held_out = len(texts) // 20
    return [texts[n] for n in order[held_out:]], [texts[n] for n in order[:held_out]]


def byte_pairs(texts: list[str], vocabulary: int = 4096) -> Tokenizer:
    return Tokenizer.from_merges(bpe.train(bpe.count_pretokens(texts), vocabulary))


def encoded(path: Path, texts: list[str], tokenizer: Tokenizer) -> TokenFile:
    """Written to `path` and opened: each document after the end-of-text token."""
    sequences = [np.array([tokenizer.end_of_text, *ids]) for ids in tokenizer.encode_batch(texts, 2)]
    token_files.write(path, sequences, token_files.dtype_for(tokenizer.size))
    return TokenFile(path)


def stream(file: TokenFile, tokenizer: Tokenizer, context: int, seed: int = 0) -> Stream:
    """All documents of a file, once through, in rows of `context` tokens."""
    order = np.random.default_rng(seed).permutation(len(file))
    return Stream(file, [order], context, tokenizer.end_of_text, seed)


def use_kernels(model: LanguageModel, context: int) -> bool:
    """Use kernels where they are available, as a run does; whether they are used."""
    device = choose()
    if device.torch_device.type != "cpu":
        return False
    try:
        model.use_kernels(context, device.training_dtype)
    except Unavailable:
        model.drop_kernels()
        return False
    return True


def train(
    model: LanguageModel, rows: Stream, rows_a_step: int, seconds: float, balance: float = 0.02, steps: int | None = None
) -> int:
    """Pre-train for `seconds`, or for `steps`, with pre-training's learning rates; returns the number of tokens read.

    By steps it is the same model whatever else the machine does.
    """
    device = choose()
    dtype = device.training_dtype
    model.to(device.torch_device).train()
    sparse = getattr(model.config, "num_experts", 0) > 0
    objective: Objective = BalancedNextToken(dtype, balance) if sparse else partial(next_token, dtype=dtype)
    kernels = use_kernels(model, rows.context_length)
    optimizer = Optimizer(model, pretraining_lrs(model.config.hidden_size)[0], dtype=dtype, kernels=kernels)
    step, start = 0, time.perf_counter()
    while (share := step / steps if steps else (time.perf_counter() - start) / seconds) < 1:
        for batch in rows.batches(step, rows_a_step, rows_a_step, device.torch_device):
            objective(model, batch)[0].backward()
        optimizer.step(warmup_stable_decay(int(share * 1000), 1000, 20, 400))
        step += 1
    return step * rows_a_step * rows.context_length


def held_out_bits(texts: list[str], tokenizer: Tokenizer, nats: Callable[[list[list[int]]], float]) -> float:
    """Bits per byte of whole documents; `nats` gives those of token sequences that begin with the end of text."""
    size = sum(len(text.encode()) for text in texts)
    return bits_per_byte(nats([[tokenizer.end_of_text, *tokenizer.encode(text)] for text in texts]), size)


def nats_of(model: LanguageModel) -> Callable[[list[list[int]]], float]:
    return lambda sequences: -sum(float(log_probabilities.sum(dtype=np.float64)) for log_probabilities in score(model, sequences))


def seconds_since(start: float) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
