"""Weights of four domains proposed from a swarm of small runs, against the natural and the equal mix: three seeds.

Loss: bits per byte of held-out text of the target domains. Runs of the swarm are half as long as those that confirm it. The
table of a swarm that was run is beside this file; `--swarm FILE` takes another, and runs and writes it where it is not there.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import timed
from common import ROOT, conclude
from groundup.core.device import choose
from groundup.data.config import MixtureConfig
from groundup.data.token_files import TokenFile
from groundup.model.base import LanguageModel
from groundup.scaling import mixture_laws
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.config import PretrainingConfig
from groundup.training.pretraining import pretrain
from groundup.training.runtime import Runtime
from training_anneal import write

DOMAINS, TARGETS = ("openstax", "novels100", "msdocs", "peps_rustbook"), ("openstax", "peps_rustbook")
SHARE = 0.1  # of each domain, so that their sizes stay those that they have
LONGEST, HELD_OUT_CHARACTERS = 20_000, 100_000
RUNS, SEEDS, LONGER = 20, 3, 2
MAX_REPEATS, PULL = 4.0, 0.02
KEPT = Path(__file__).with_suffix(".csv")


class Trial:
    """Small models on mixtures of the same token files."""

    def __init__(self, folder: Path, work: Path, depth: int, threads: int) -> None:
        training, held_out = {}, {}
        for name in DOMAINS:
            held_out[name], training[name] = documents(folder / f"{name}.parquet")
        self.tokenizer: Tokenizer = timed.byte_pairs([text for texts in training.values() for text in texts], 2048)
        self.held_out, self.work, self.depth, self.device = held_out, work, depth, choose(threads)
        write(work / "tokens", training, held_out, self.tokenizer)
        lengths, domains = TokenFile(work / "tokens" / "train").lengths, [name for name in DOMAINS for _ in training[name]]
        self.available = {name: float(lengths[[domain == name for domain in domains]].sum()) for name in DOMAINS}

    def bits(self, weights: dict[str, float], tokens: int, seed: int) -> dict[str, float]:
        """Bits per byte of each domain's held-out text, of a model trained on this mixture."""
        settings = PretrainingConfig(
            depth=self.depth, context_length=256, tokens=tokens, batch_tokens=2048, anneal_data_fraction=0.0
        )
        mixture = MixtureConfig(weights={name: share for name, share in weights.items() if share > 0}, max_repeats=MAX_REPEATS)
        with tempfile.TemporaryDirectory() as folder:
            runtime = Runtime(self.device, Path(folder), "mixture", seed, lambda text: None)
            model, _ = pretrain(self.tokenizer, self.work / "tokens", settings, runtime, mixture)
        return {name: self.score(model, name) for name in DOMAINS}

    def score(self, model: LanguageModel, name: str) -> float:
        return timed.held_out_bits(self.held_out[name], self.tokenizer, timed.nats_of(model))


def documents(path: Path) -> tuple[list[str], list[str]]:
    """Held-out and training documents of a share of the domain, shuffled."""
    texts = [text[at : at + LONGEST] for text in pq.read_table(path, columns=["text"])["text"].to_pylist()
             for at in range(0, len(text), LONGEST)]  # fmt: skip
    texts = [texts[n] for n in np.random.default_rng(0).permutation(len(texts))]
    ends = np.cumsum([len(text) for text in texts])
    first = int(np.searchsorted(ends, HELD_OUT_CHARACTERS)) + 1
    return texts[:first], texts[first : int(np.searchsorted(ends, SHARE * ends[-1])) + 1]


def swarm(trial: Trial, tokens: int, table: Path) -> None:
    natural = np.array([trial.available[name] for name in DOMAINS]) / sum(trial.available.values())
    drawn = np.random.default_rng(0)
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*(f"weight_{name}" for name in DOMAINS), *(f"loss_{name}" for name in DOMAINS)])
        for number in range(RUNS):
            # Half around the natural mix, as RegMix's; half around the equal one, so that small domains are seen large.
            centre = natural if number % 2 else np.full(len(DOMAINS), 1 / len(DOMAINS))
            weights = mixture_laws.capped(drawn.dirichlet(4 * centre)[None], caps(trial, tokens))[0]
            bits = trial.bits(dict(zip(DOMAINS, weights.tolist(), strict=True)), tokens, number)
            rows.writerow([*weights.round(6).tolist(), *bits.values()])
            file.flush()


def caps(trial: Trial, tokens: int) -> np.ndarray:
    return np.minimum(1.0, np.array([MAX_REPEATS * trial.available[name] / tokens for name in DOMAINS]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    parser.add_argument("--tokens", type=int, default=98_304, help="of each run of the swarm")
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--swarm", type=Path, default=KEPT)
    options = parser.parse_args()
    claim = f"proposed mixture: least gain over the natural and the equal one, bits per byte of {' and '.join(TARGETS)}, 3 seeds"
    folder = options.data / "text"
    if not all((folder / f"{name}.parquet").exists() for name in DOMAINS):
        return conclude(claim, None, "bits/byte", 0, None, reason=f"{folder} is incomplete; give --data DIR")
    with tempfile.TemporaryDirectory() as work:
        trial = Trial(folder, Path(work), options.depth, options.threads)
        if not options.swarm.exists():
            swarm(trial, options.tokens, options.swarm)
        longer = LONGER * options.tokens
        proposal = mixture_laws.propose(
            mixture_laws.read(options.swarm), TARGETS, trial.available, longer, MAX_REPEATS, PULL
        )
        law = proposal["law"]
        print(f"{law} law, rank correlation with unseen runs {proposal['unseen_rank_correlation'][law]:.3f}; "
              f"expected gain over the natural mix {proposal['gain']}")  # fmt: skip
        mixes = {
            "proposed": proposal["weights"], "natural": proposal["natural"], "equal": dict.fromkeys(DOMAINS, 1 / len(DOMAINS)),
        }  # fmt: skip
        worst = []
        for name, weights in mixes.items():
            print(f"{name:<9} {', '.join(f'{domain} {share:.1%}' for domain, share in weights.items())}", flush=True)
        for seed in range(SEEDS):
            bits = {name: trial.bits(weights, longer, 100 + seed) for name, weights in mixes.items()}
            mean = {name: sum(of_domain[target] for target in TARGETS) / len(TARGETS) for name, of_domain in bits.items()}
            worst.append(min(mean["natural"], mean["equal"]) - mean["proposed"])
            print(f"seed {seed}: {', '.join(f'{name} {value:.4f}' for name, value in mean.items())}", flush=True)
    conclude(claim, min(worst), "bits/byte gained", 0.0, min(worst) > 0)


if __name__ == "__main__":
    main()
