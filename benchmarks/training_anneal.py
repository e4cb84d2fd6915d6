"""The last 15 % of pre-training on the best data, against the same tokens without it: held-out bits per byte, 3 seeds.

The best data are textbooks; the rest is documentation, novels and reviews, all shuffled together. Both runs read as many
tokens and have the same rate at each step; one sees only textbooks at the end (as Llama 3's annealing, 2024). With
`--tokens 1000000`, one seed of the three loses (docs/log.md).
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import timed
from common import ROOT, conclude
from groundup.core.device import choose
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.config import PretrainingConfig
from groundup.training.pretraining import pretrain
from groundup.training.runtime import Runtime

BEST, OTHERS = "openstax", ("msdocs", "novels100", "movie_reviews")
CHARACTERS, LONGEST = 4_000_000, 20_000  # of each domain; of a document
HELD_OUT_CHARACTERS = 100_000  # of each domain
SHARE, SEEDS = 0.15, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="of each run")
    options = parser.parse_args()
    claim = "annealing on the best data: held-out bits per byte of it, less than without, in each of 3 seeds"
    folder = options.data / "text"
    if not all((folder / f"{name}.parquet").exists() for name in (BEST, *OTHERS)):
        return conclude(claim, None, "bits/byte", 0, None, reason=f"{folder} is incomplete; give --data DIR")
    training, held_out = {}, {}
    for name in (BEST, *OTHERS):
        held_out[name], training[name] = documents(folder / f"{name}.parquet")
    tokenizer = timed.byte_pairs([text for texts in training.values() for text in texts], 2048)
    gains: dict[str, list[float]] = {BEST: [], "others": []}
    print(f"{'seed':>4} {'anneal':>7} {BEST:>9} {'others':>9}")
    with tempfile.TemporaryDirectory() as work:
        tokens = Path(work) / "tokens"
        write(tokens, training, held_out, tokenizer)
        for seed in range(SEEDS):
            bits_of_share = {}
            for share in (0.0, SHARE):
                settings = PretrainingConfig(
                    depth=options.depth, context_length=256, tokens=options.tokens, batch_tokens=4096, anneal_data_fraction=share
                )
                model, _ = pretrain(
                    tokenizer, tokens, settings,
                    Runtime(choose(), Path(work) / f"{seed}-{share}", "anneal", seed, lambda text: None),
                )  # fmt: skip
                nats = timed.nats_of(model)
                others = [text for name in OTHERS for text in held_out[name]]
                bits_of_share[share] = {
                    BEST: timed.held_out_bits(held_out[BEST], tokenizer, nats),
                    "others": timed.held_out_bits(others, tokenizer, nats),
                }
                bits = bits_of_share[share]
                print(f"{seed:4} {'yes' if share else 'no':>7} {bits[BEST]:9.4f} {bits['others']:9.4f}", flush=True)
            for name, values in gains.items():
                values.append(bits_of_share[0.0][name] - bits_of_share[SHARE][name])
    for name, values in gains.items():
        print(f"gained on {name}: {', '.join(f'{value:+.4f}' for value in values)} bits per byte")
    conclude(claim, statistics.median(gains[BEST]), "bits/byte gained", 0.0, min(gains[BEST]) > 0)


def documents(path: Path) -> tuple[list[str], list[str]]:
    """Held-out and training documents, cut to LONGEST characters, in the order of the file."""
    texts = [text[:LONGEST] for text in pq.read_table(path, columns=["text"])["text"].to_pylist()]
    ends, total = [], 0
    for text in texts:
        total += len(text)
        ends.append(total)
    first = next(n for n, end in enumerate(ends) if end >= HELD_OUT_CHARACTERS) + 1
    last = next((n for n, end in enumerate(ends) if end >= CHARACTERS), len(texts))
    return texts[:first], texts[first:last]


def write(folder: Path, training: dict[str, list[str]], held_out: dict[str, list[str]], tokenizer: Tokenizer) -> None:
    """Token files and their table, as the stage before pre-training leaves them."""
    folder.mkdir()
    table = []
    for split, by_domain in (("train", training), ("held_out", held_out)):
        file = timed.encoded(folder / split, [text for texts in by_domain.values() for text in texts], tokenizer)
        domains = [name for name, texts in by_domain.items() for _ in texts]
        table += [
            {"split": split, "domain": domain, "best": domain == BEST, "tokens": int(length)}
            for domain, length in zip(domains, file.lengths, strict=True)
        ]
    pq.write_table(pa.Table.from_pylist(table), folder / "documents.parquet")


if __name__ == "__main__":
    main()
