"""Every architecture on openstax, each trained for the same time: the best network's bits per byte below the 5-gram's.

Vocabulary 4,096, bytes for the patches; depth 3 but for the n-gram, which counts all of the training text. Sentence pairs:
ten of each of BLiMP's 67 kinds, right when the good sentence is the likelier one.
"""

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import timed
from common import ROOT, conclude
from groundup.evaluation import sentence_pairs
from groundup.model import architectures, moe
from groundup.model.likelihood import score
from groundup.model.ngram import KneserNey
from groundup.tokenizer.tokenizer import Tokenizer

DEPTH, CONTEXT, ROWS = 3, 256, 16
PATCH_BYTES = 4  # about a token: rows of as much text as the others have
OF_EACH_KIND, HELD_OUT_BYTES = 10, 400_000

Scorer = Callable[[Sequence[Sequence[int]]], list[float]]  # log-likelihood of token sequences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    parser.add_argument("--minutes", type=float, default=5, help="of training for each architecture")
    options = parser.parse_args()
    claim = __doc__.splitlines()[0]
    blimp = options.data / "benchmarks" / "blimp.jsonl.gz"
    if not blimp.exists() or not (options.data / "text" / "openstax.parquet").exists():
        return conclude(claim, None, "bits/byte", 0, None, reason="openstax or blimp is missing; give --data DIR")
    training, held_out = timed.openstax(options.data)
    held_out = held_out[: 1 + np.searchsorted(np.cumsum([len(text.encode()) for text in held_out]), HELD_OUT_BYTES)]
    pairs = sampled_pairs(blimp)
    words, byte = timed.byte_pairs(training), Tokenizer.from_merges([])
    print(f"{len(training):,} documents; {options.minutes:g} minutes each; held out {len(held_out)}, {len(pairs)} pairs")
    print(f"{'':12} {'parameters':>12} {'a token':>11} {'bits/byte':>10} {'MB read':>8} {'kB/s':>7} {'BLiMP':>7}")
    bits = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {
            tokenizer: timed.encoded(Path(folder) / str(tokenizer.size), training, tokenizer)
            for tokenizer in (words, byte)
        }
        size = sum(len(text.encode()) for text in training)

        def show(name: str, parameters: str, tokenizer: Tokenizer, tokens: int, seconds: float, scorer: Scorer) -> None:
            read = tokens * size / len(files[tokenizer].tokens)
            bits[name] = timed.held_out_bits(held_out, tokenizer, lambda sequences: -sum(scorer(sequences)))
            right = sentence_pairs.score(
                pairs, lambda texts: scorer([[tokenizer.end_of_text, *tokenizer.encode(text)] for text in texts])
            )["all"]
            print(
                f"{name:12} {parameters} {bits[name]:10.3f} {read / 1e6:8.1f} {read / 1e3 / seconds:7.0f} "
                f"{right['accuracy']:7.1%}",
                flush=True,
            )

        start = time.perf_counter()
        counted = KneserNey.fit(np.asarray(files[words].tokens), 5, words.size, words.end_of_text)
        stored = sum(len(order.keys) for order in counted.orders)
        show("5-gram", f"{stored:12,} {'':>11}", words, len(files[words].tokens), timed.seconds_since(start),
             lambda sequences: ngram_scores(counted, sequences))  # fmt: skip
        for name in ("lstm", "convolution", "patches", "dense", "experts"):
            tokenizer, context = (byte, PATCH_BYTES * CONTEXT) if name == "patches" else (words, CONTEXT)
            model, _ = architectures.build(name, DEPTH, tokenizer.size, context, seed=0)
            seconds = 60 * options.minutes
            tokens = timed.train(model, timed.stream(files[tokenizer], tokenizer, context), ROWS, seconds)
            total = sum(parameter.numel() for parameter in model.parameters())
            show(name, f"{total:12,} {moe.active_parameters(model):11,}", tokenizer, tokens, seconds,
                 lambda sequences, model=model: [float(row.sum()) for row in score(model, sequences)])  # fmt: skip
    ngram = bits.pop("5-gram")
    best = min(bits, key=bits.__getitem__)
    conclude(
        claim, bits[best], "bits/byte", ngram, bits[best] < ngram, peer=f"5-gram (best network: {best})", peer_figure=ngram
    )


def sampled_pairs(path: Path) -> list[dict[str, str]]:
    """The same number of pairs of each kind, spread over it."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    kinds: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        kinds.setdefault(row["UID"], []).append(
            {"right": row["sentence_good"], "wrong": row["sentence_bad"], "how": row["field"]}
        )
    return [pair for kind in kinds.values() for pair in kind[:: len(kind) // OF_EACH_KIND][:OF_EACH_KIND]]


def ngram_scores(counted: KneserNey, sequences: Sequence[Sequence[int]]) -> list[float]:
    """The first token of each sequence, which opens it, is not scored."""
    log_probabilities = counted.log_probabilities(np.concatenate([np.asarray(sequence) for sequence in sequences]))
    ends = np.cumsum([len(sequence) for sequence in sequences])
    return [float(part[1:].sum()) for part in np.split(log_probabilities, ends[:-1])]


if __name__ == "__main__":
    main()
