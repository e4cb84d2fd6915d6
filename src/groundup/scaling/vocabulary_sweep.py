"""Choosing a vocabulary: sizes are compared by the bits per byte of models trained for equal compute.

A larger vocabulary makes fewer tokens of the same text, but its head costs more for each of them. So every size trains
the same small model for the same number of operations, the head's included: the larger the vocabulary, the fewer the
steps, though each sees more text. Bits per byte of the same held-out documents then say which pays. That is the
comparison of Tao et al. 2024 (arXiv 2407.13623), who find that the best size grows with the compute.

The merges of a small BPE vocabulary are the first of a larger one's, so counting and merging are done once. Each size
has its folder, which is a model with its tokenizer; its `result.json` is written last, so a killed sweep resumes.
"""

import logging
import shutil
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from groundup.core.device import Device, choose
from groundup.core.errors import UserError
from groundup.core.files import replacing, write_json
from groundup.core.locks import alone
from groundup.core.outputs import require_made_with
from groundup.core.seals import SEAL, is_sealed, read_sealed, seal, write_sealed
from groundup.core.statistics import Z95
from groundup.model.likelihood import bits_per_byte
from groundup.scaling.vocabulary_trial import flop_per_token, measure, steps_for
from groundup.tokenizer import documents
from groundup.tokenizer.bpe import ALPHABET, SPECIAL_TOKENS
from groundup.tokenizer.sample import Document, sample
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import train_bpe
from groundup.training import checkpoint
from groundup.training.runtime import TRAINING

logger = logging.getLogger(__name__)

SMALLEST = len(ALPHABET) + len(SPECIAL_TOKENS)
MOST_HELD_OUT = 0.2  # of the text
FEWEST_DOCUMENTS = 10
FEWEST_STEPS = 10
TEXTS = "documents.parquet"


def sweep(
    inputs: Sequence[Path],
    sizes: Sequence[int],
    out: Path,
    *,
    depth: int = 2,
    tokens: int = 2_000_000,
    context: int = 256,
    pattern_name: str = "qwen2",
    held_out_kb: int = 1000,
    text_mb: int = 256,
    seed: int = 0,
    workers: int | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """Measure every size, write `out`/sweep.json, and return what it holds.

    depth: of the model that each size trains. tokens: what the smallest size trains on; the others get as many
    operations. held_out_kb: text that is never trained on, by which they are judged; the documents of the split
    `held_out`, where there is such a column. text_mb: of the inputs, a random sample of this size is used.
    workers: processes that encode. threads: that train, 0 for one per core.
    Raises UserError for impossible sizes, too few documents, or an `out` that holds another sweep or where another process works.
    """
    sizes = sorted(set(sizes))
    if sizes[0] < SMALLEST:
        raise UserError(f"a vocabulary of {sizes[0]} is too small: bytes and special tokens alone are {SMALLEST}")
    device = choose(threads)
    flop = tokens * flop_per_token(depth, sizes[0], context)
    if steps_for(flop, depth, sizes[-1], context) < FEWEST_STEPS:
        raise UserError(
            f"{tokens:,} tokens for a vocabulary of {sizes[0]} are less than {FEWEST_STEPS} steps for one of {sizes[-1]} at "
            "equal compute: give more tokens"
        )
    shards = documents.find(inputs)
    settings = {
        "text": blake2b("\n".join(sorted(shard.name for shard in shards)).encode(), digest_size=16).hexdigest(),
        **{"text_mb": text_mb, "held_out_kb": held_out_kb, "pattern": pattern_name, "seed": seed},
        **{"depth": depth, "context": context, "flop": flop},
    }
    with alone(out):
        _claim(out, settings)
        return _sweep(shards, sizes, out, settings, workers, device)


def _sweep(
    shards: Sequence[documents.Shard], sizes: Sequence[int], out: Path, settings: dict[str, Any], workers: int | None,
    device: Device,
) -> dict[str, Any]:  # fmt: skip
    texts, held_out_kb, text_mb = out / TEXTS, settings["held_out_kb"], settings["text_mb"]
    if not is_sealed(texts):
        _write_documents(texts, split(sample(shards, text_mb * 1_000_000, settings["seed"]), held_out_kb * 1000))
    largest = _largest(texts, out / "tokenizer", sizes[-1], settings["pattern"], workers)
    held_out = [Document(**row) for row in pq.read_table(texts, filters=[("split", "=", "held_out")]).to_pylist()]
    results = []
    for size in sizes:
        folder = out / str(size)
        result = read_sealed(folder / "result.json")
        if result is None:
            tokenizer = Tokenizer.from_merges(largest.merges[: size - SMALLEST], largest.pattern)
            measured = measure(folder, tokenizer, settings, texts, held_out, device)
            result = write_sealed(folder / "result.json", measured)
            del result[SEAL]
        checkpoint.clear(folder / TRAINING)
        shutil.rmtree(folder / "tokens", ignore_errors=True)
        results.append(result)
        bits = results[-1]["bits_per_byte"]["all"]
        message = f"  {size}: {bits:.4f} bits per byte, {results[-1]['bytes_per_token']['all']:.2f} bytes a token"
        logger.info(message)
    conclusion = {**settings, **verdict(results, np.array([document.size for document in held_out]))}
    write_json(out / "sweep.json", conclusion)
    return conclusion


def parse_sizes(text: str) -> list[int]:
    """"512,1024" -> [512, 1024]. Raises UserError for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"sizes {text!r}: expected whole numbers with commas between them, such as 1024,2048,4096") from None


def split(sampled: Sequence[Document], held_out_bytes: int) -> list[Document]:
    """The documents with split "train" or "held_out": as their column states, or else with the first of them held out.

    Documents of other splits, and held-out ones beyond `held_out_bytes`, are left out. Raises UserError when one side
    would have too few.
    """
    sampled = [document for document in sampled if document.split in ("", "train", "held_out")]
    given = any(document.split == "held_out" for document in sampled)
    room = held_out_bytes if given else min(held_out_bytes, MOST_HELD_OUT * sum(document.size for document in sampled))
    sides: dict[str, list[Document]] = {"held_out": [], "train": []}
    for document in sampled:
        side = document.split if given else "held_out" if room > 0 else "train"
        if side == "held_out":
            if room <= 0:
                continue
            room -= document.size
        sides[side or "train"].append(Document(document.text, document.domain, document.language, side or "train"))
    if len(sampled) < FEWEST_DOCUMENTS or len(sides["held_out"]) < 2 or not sides["train"]:
        raise UserError(
            f"{len(sides['train'])} different documents to train on and {len(sides['held_out'])} to hold out are too few: "
            f"give at least {FEWEST_DOCUMENTS}, 2 of them held out"
        )
    return [*sides["held_out"], *sides["train"]]


def verdict(results: Sequence[dict[str, Any]], sizes: np.ndarray) -> dict[str, Any]:
    """The conclusion from the results: the smallest vocabulary that cannot be told from the best, and why.

    sizes (held-out documents,): their bytes, on which the results' `nats` were spent.
    """
    best = min(results, key=lambda result: result["bits_per_byte"]["all"])
    rows = []
    for result in results:
        behind, error = paired_difference(np.array(result["nats"]) - np.array(best["nats"]), sizes)
        reported = {name: value for name, value in result.items() if name != "nats"}
        rows.append({**reported, "behind": behind, "standard_error": error, "as_good": behind <= Z95 * error})
    chosen = next(row for row in rows if row["as_good"])
    name, winner = chosen["vocabulary"], best["vocabulary"]
    if name == winner:
        reason = f"it has the lowest bits per byte, {best['bits_per_byte']['all']:.4f}, and no smaller one comes near it"
    else:
        reason = (
            f"the lowest bits per byte are those of {winner}, but {name} is only {chosen['behind']:.4f} behind, within "
            f"{Z95 * chosen['standard_error']:.4f}, the noise (95 %) of that difference over {len(sizes)} documents"
        )
    if len(rows) > 1 and winner == rows[0]["vocabulary"]:
        reason += "; it is the smallest that was tried: try smaller ones"
    if len(rows) > 1 and winner == rows[-1]["vocabulary"]:
        reason += f"; {winner} is the largest that was tried: try larger ones"
    return {"recommended": name, "reason": reason, "sizes": rows}


def paired_difference(nats: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Bits per byte that one model needs more than another on the same documents, and its standard error.

    nats (documents,): the difference on each; sizes (documents,): bytes. The error is that of a ratio of two sums over
    documents that were drawn at random (linearised; Cochran 1977, section 6.3).
    """
    ratio = nats.sum() / sizes.sum()
    spread = ((nats - ratio * sizes) ** 2).sum() * len(sizes) / (len(sizes) - 1)
    return bits_per_byte(float(nats.sum()), int(sizes.sum())), bits_per_byte(float(np.sqrt(spread)), int(sizes.sum()))


def _claim(out: Path, settings: dict[str, Any]) -> None:
    path = out / "settings.json"
    require_made_with(path, out / "sweep.json", out / "sweep.html", out / TEXTS)
    # Without the file of texts the earlier ones were refused, and others are given now.
    before = (read_sealed(path) if (out / TEXTS).exists() else None) or settings
    different = [
        f"{name} {before.get(name)}, now {value}" for name, value in settings.items() if before.get(name) != value
    ]
    if different:
        raise UserError(
            f"{out}: holds a sweep with other settings ({'; '.join(different)}); choose another folder "
            "(the operations, flop, follow from the tokens, the depth and the smallest size)"
        )
    write_sealed(path, settings)


def _write_documents(path: Path, sampled: Sequence[Document]) -> None:
    columns = {
        "text": pa.array([document.text for document in sampled], pa.large_string()),
        **{name: pa.array([getattr(document, name) for document in sampled], pa.string()) for name in documents.ANNOTATIONS},
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd", row_group_size=4096)
    seal(path)


def _largest(texts: Path, folder: Path, vocabulary: int, pattern_name: str, workers: int | None) -> Tokenizer:
    """The tokenizer of the largest size, from this sweep or the one that it continues."""
    path = folder / "tokenizer.json"
    if not is_sealed(path) or Tokenizer.load(folder).size < vocabulary:
        train_bpe([texts], folder, vocabulary, pattern_name, workers=workers)
        seal(path)
    trained = Tokenizer.load(folder)
    if trained.size < vocabulary:
        raise UserError(f"this text has pairs for {trained.size} tokens only; leave out the sizes above, or give more text")
    return trained
