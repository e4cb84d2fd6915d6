"""From a context of 256 to 1,024 by the step long_context: held-out loss of what stands beyond 256, before and after.

Openstax, and among it made documents that hide a number and ask for it at their end. Passkeys are counted as found when
the right number is the likeliest of ten, and when the model writes it out.
"""

import argparse
import tempfile
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import timed
from common import ROOT, conclude
from groundup.core.device import choose
from groundup.generation.engine import Sampling, generate
from groundup.model.decoder import Decoder
from groundup.model.likelihood import score, token_log_probabilities
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.config import LongContextConfig, PretrainingConfig
from groundup.training.long_context import train_longer
from groundup.training.pretraining import pretrain
from groundup.training.runtime import Runtime

SHORT, LONG = 256, 1024
RANGES = ((0, 128), (128, 256), (256, 512), (512, 768), (768, 1024))
TRAINING_DOCUMENTS, MADE, LONG_ROWS = 1_500, 1_500, 64
DISTANCES, QUESTIONS, CANDIDATES = (50, 200, 400, 800), 20, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1_500_000, help="at the short context")
    parser.add_argument("--long-tokens", type=int, default=600_000)
    options = parser.parse_args()
    claim = f"longer context: nats a token at places {LONG - 256} to {LONG} of held-out rows, less than before"
    if not (options.data / "text" / "openstax.parquet").exists():
        return conclude(claim, None, "nats/token", 0, None, reason="openstax is missing; give --data DIR")
    training, held_out = timed.openstax(options.data)
    training = training[:TRAINING_DOCUMENTS]
    tokenizer = timed.byte_pairs(training, 2048)
    filler = [line for text in training for line in text.split("\n") if line.count(" ") > 10]
    unseen = [line for text in held_out for line in text.split("\n") if line.count(" ") > 10]
    generator = np.random.default_rng(0)
    made = [passkey(tokenizer, filler, int(generator.integers(20, 900)), generator) for _ in range(MADE)]
    questions = [passkey(tokenizer, unseen, distance, generator) for distance in DISTANCES for _ in range(QUESTIONS)]
    models: dict[str, Decoder] = {}
    with tempfile.TemporaryDirectory() as work:
        write(Path(work) / "tokens", {"train": training, "held_out": held_out}, made, tokenizer)
        settings = PretrainingConfig(
            depth=options.depth, context_length=SHORT, tokens=options.tokens, batch_tokens=4096, anneal_data_fraction=0,
        )  # fmt: skip
        more = LongContextConfig(context_length=LONG, tokens=options.long_tokens, batch_tokens=4096)
        models["before"], _ = pretrain(
            tokenizer, Path(work) / "tokens", settings, Runtime(choose(), Path(work) / "before", "before", 0, lambda text: None)
        )
        models["after"], _ = train_longer(
            deepcopy(models["before"]), tokenizer, Path(work) / "tokens", more,
            Runtime(choose(), Path(work) / "after", "after", 0, print),
        )
        for model in models.values():  # both are given the whole text; positions do not depend on this
            model.config = replace(model.config, max_position_embeddings=2 * LONG)
    by_range = {name: losses(model, held_out, tokenizer) for name, model in models.items()}
    print("\nnats a token at places", " ".join(f"{f'{first}-{last}':>9}" for first, last in RANGES))
    for name, nats in by_range.items():
        print(f"{name:22}", " ".join(f"{value:9.3f}" for value in nats))
    print("passkey at distance   ", " ".join(f"{distance:9}" for distance in DISTANCES))
    for name, model in models.items():
        for how, is_right in (("of ten", likeliest), ("written", written)):
            shares = np.array(is_right(model, tokenizer, questions)).reshape(len(DISTANCES), QUESTIONS).mean(1)
            print(f"{f'{name}, {how}':22}", " ".join(f"{share:9.0%}" for share in shares))
    before, after = by_range["before"][-1], by_range["after"][-1]
    conclude(claim, after, "nats/token", before, after < before, peer="before", peer_figure=before)


def passkey(tokenizer: Tokenizer, lines: list[str], distance: int, generator: np.random.Generator) -> tuple[str, str]:
    """A text that says a number and, about `distance` tokens later, asks for it; and the number."""
    number = str(generator.integers(10_000, 100_000))
    between, length = [], 0
    while length < distance:
        line = lines[generator.integers(len(lines))]
        ids = tokenizer.encode(line)[: distance - length]
        between.append(tokenizer.decode(ids))
        length += len(ids)
    text = "\n".join(between)
    return f"The pass key is {number}. Remember it.\n{text}\nWhat is the pass key? The pass key is", number


def write(folder: Path, texts: dict[str, list[str]], made: list[tuple[str, str]], tokenizer: Tokenizer) -> None:
    """Token files and their table, as the stage before pre-training leaves them."""
    folder.mkdir()
    table = []
    for split, documents in texts.items():
        more = [f"{text} {number}." for text, number in made] if split == "train" else []
        file = timed.encoded(folder / split, [*documents, *more], tokenizer)
        table += [{"split": split, "domain": "text", "best": False, "tokens": int(length)} for length in file.lengths]
    pq.write_table(pa.Table.from_pylist(table), folder / "documents.parquet")


@torch.no_grad()
def losses(model: Decoder, texts: list[str], tokenizer: Tokenizer) -> list[float]:
    """Mean loss at each of RANGES over rows of LONG tokens, each the beginning of one long document."""
    rows = [ids for ids in ([tokenizer.end_of_text, *tokenizer.encode(text)] for text in texts) if len(ids) > LONG]
    device = model.lm_head.weight.device
    ids = torch.tensor([row[: LONG + 1] for row in rows[:LONG_ROWS]]).to(device)
    parts = [-token_log_probabilities(model, part[:, :-1], part[:, 1:]) for part in ids.split(8)]
    mean = torch.cat(parts).mean(0)
    return [mean[first:last].mean().item() for first, last in RANGES]


def likeliest(model: Decoder, tokenizer: Tokenizer, questions: list[tuple[str, str]]) -> list[bool]:
    """Whether the right number is the likeliest of CANDIDATES."""
    generator = np.random.default_rng(1)
    prompts, sequences = [], []
    for text, number in questions:
        prompt = [tokenizer.end_of_text, *tokenizer.encode(text)]
        others = [str(n) for n in generator.integers(10_000, 100_000, CANDIDATES - 1)]
        prompts.append(len(prompt))
        sequences += [prompt + tokenizer.encode(f" {candidate}") for candidate in (number, *others)]
    log_probabilities = score(model, sequences)
    sums = [
        [float(nats[prompts[n] - 1 :].sum()) for nats in log_probabilities[n * CANDIDATES : (n + 1) * CANDIDATES]]
        for n in range(len(questions))
    ]
    return [max(row) == row[0] for row in sums]


def written(model: Decoder, tokenizer: Tokenizer, questions: list[tuple[str, str]]) -> list[bool]:
    """Whether the model, taking the likeliest token each time, writes the number."""
    prompts = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text, _ in questions]
    answers = generate(model, prompts, [tokenizer.end_of_text], Sampling(8, temperature=0.0), 0)
    return [tokenizer.decode(ids).strip().startswith(number) for ids, (_, number) in zip(answers, questions, strict=True)]


if __name__ == "__main__":
    main()
