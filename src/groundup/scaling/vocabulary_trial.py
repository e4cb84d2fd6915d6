"""One size of a sweep: a model trained with one vocabulary for a given number of operations, scored on held-out text."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from groundup.core.device import Device
from groundup.core.files import replacing
from groundup.data import token_files
from groundup.model import model_folder as model_folder
from groundup.model.base import parameter_counts
from groundup.model.decoder import Decoder, shape_for
from groundup.model.flops import training_flops
from groundup.model.likelihood import bits_per_byte, score
from groundup.tokenizer import documents
from groundup.tokenizer.sample import Document
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.config import PretrainingConfig
from groundup.training.pretraining import pretrain
from groundup.training.runtime import Runtime

BATCH_TOKENS = 4096


def flop_per_token(depth: int, vocabulary: int, context: int) -> float:
    """Operations that training takes for one token, the head's included."""
    config, _ = shape_for(depth, vocabulary, context)
    with torch.device("meta"):
        counts = parameter_counts(Decoder(config))
    return training_flops(counts["without_embedding"], depth, config.hidden_size, context, 1)


def _step_tokens(context: int) -> int:
    return max(1, BATCH_TOKENS // context) * context


def steps_for(flop: float, depth: int, vocabulary: int, context: int) -> int:
    return round(flop / flop_per_token(depth, vocabulary, context) / _step_tokens(context))


def measure(
    folder: Path, tokenizer: Tokenizer, settings: dict[str, Any], texts: Path, held_out: Sequence[Document], device: Device
) -> dict[str, Any]:
    """Train a model with this vocabulary, save it, and score the held-out documents."""
    depth, context, seed = settings["depth"], settings["context"], settings["seed"]
    step_tokens = _step_tokens(context)
    steps = steps_for(settings["flop"], depth, tokenizer.size, context)
    budget = steps * step_tokens
    sequences = [np.array([tokenizer.end_of_text, *tokenizer.encode(document.text)]) for document in held_out]
    # A context more, since the last row is cut short at the end of the stream.
    _write_tokens(folder / "tokens", tokenizer, texts, budget + context, sequences)
    base = PretrainingConfig(
        depth=depth,
        context_length=context,
        tokens=budget,
        batch_tokens=step_tokens,
        micro_batch_tokens=step_tokens,
        anneal_data_fraction=0.0,
    )
    runtime = Runtime(device, folder, f"vocabulary {tokenizer.size}", seed, lambda text: None)
    model, trained = pretrain(tokenizer, folder / "tokens", base, runtime)
    nats = [-float(log_probabilities.sum()) for log_probabilities in score(model, sequences)]
    model_folder.save(folder, model, tokenizer, chat=False)
    counts = [len(sequence) - 1 for sequence in sequences]
    available = sum(int(pc.sum(pc.binary_length(batch)).as_py()) for batch in _training(texts))
    return {
        "vocabulary": tokenizer.size,
        "parameters": trained["parameters"]["total"],
        "vocabulary_share": 2 * tokenizer.size * model.config.hidden_size / trained["parameters"]["total"],
        "steps": steps,
        "tokens": budget,
        "flop": trained["flop"],
        "passes": budget * sum(document.size for document in held_out) / sum(counts) / available,
        "bytes_per_token": _by_kind(held_out, counts, lambda tokens, size: size / tokens),
        "bits_per_byte": _by_kind(held_out, nats, bits_per_byte),
        "nats": nats,
    }


def _training(texts: Path) -> Iterator[pa.Array]:
    return (batch for shard in documents.find([texts]) for batch, _ in documents.read(shard, "train"))


def _write_tokens(
    folder: Path, tokenizer: Tokenizer, texts: Path, enough: int, held_out: Sequence[np.ndarray]
) -> None:
    """Token files as `pretrain` reads them, and its table of training documents: no more than `enough` tokens of them."""
    table: list[dict[str, Any]] = []

    def sequences() -> Iterator[np.ndarray]:
        total = 0
        for shard in documents.find([texts]):
            for batch, domains in documents.read(shard, "train"):
                for ids, domain in zip(tokenizer.encode_batch(batch.to_pylist()), domains.to_pylist(), strict=True):
                    table.append({"split": "train", "domain": domain, "tokens": len(ids) + 1, "best": False})
                    yield np.concatenate(([tokenizer.end_of_text], ids))
                    total += len(ids) + 1
                    if total >= enough:
                        return

    folder.mkdir(parents=True, exist_ok=True)
    kind = token_files.dtype_for(tokenizer.size)
    token_files.write(folder / "train", sequences(), kind)
    token_files.write(folder / "held_out", held_out, kind)
    with replacing(folder / "documents.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(table), temporary)


def _by_kind(
    held_out: Sequence[Document], values: Sequence[float], ratio: Callable[[float, int], float]
) -> dict[str, Any]:
    """`ratio` of the sum of values and the bytes, over all documents, each domain and each known language."""

    def ratio_of(indices: list[int]) -> float:
        return ratio(sum(values[i] for i in indices), sum(held_out[i].size for i in indices))

    def each(names: list[str]) -> dict[str, float]:
        return {name: ratio_of([i for i, value in enumerate(names) if value == name]) for name in sorted({*names} - {""})}

    return {
        "all": ratio_of(list(range(len(held_out)))),
        "domain": each([document.domain for document in held_out]),
        "language": each([document.language for document in held_out]),
    }
