"""Reward against divergence: DPO and PPO on the sentiment of movie reviews, three seeds, as in the DPO paper's figure 2.

A small model is fine-tuned to continue sentences of reviews. The reward is the log-odds of a naive Bayes classifier of the
continuation, which both methods are given: DPO as preferences between two continuations of a prompt, PPO as it is. Each
setting's model continues prompts that none was trained on; a point is the mean reward and the divergence from the fine-tuned
model in nats a continuation; lines are means over the seeds. `--svg FILE` is where the figure goes.
"""

import argparse
import copy
import logging
import math
import random
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from common import ROOT, conclude, machine
from groundup.core.device import choose
from groundup.generation.engine import Sampling
from groundup.model.base import initialise
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.posttraining import dpo, ppo, sft
from groundup.posttraining.batches import answer_log_probabilities, prompt_of
from groundup.posttraining.config import DpoConfig, PpoConfig, SftConfig
from groundup.posttraining.rewards import ProgramReward, Prompt
from groundup.posttraining.rollouts import answers_of
from groundup.report import figures
from groundup.tokenizer import bpe
from groundup.tokenizer.chat import answer_ends
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.runtime import Runtime

ASKED, CONTINUED, MOST, VOCABULARY = 6, 10, 24, 1024  # words of a prompt, of its continuation; tokens of an answer
BETAS, COEFFICIENTS = (0.05, 0.2, 1.0), (0.02, 0.1, 0.5)
BOUND = 5.0  # nats


class Sentiment:
    """Log-odds that a text is positive, by the words in it; the words of the reviews, each counted once a review."""

    def __init__(self, reviews: list[dict[str, str]]) -> None:
        counts = {"pos": Counter[str](), "neg": Counter[str]()}
        for row in reviews:
            counts[row["label"]].update(set(row["text"].split()))
        longer = sum(counts["pos"].values()) / sum(counts["neg"].values())  # positive reviews have more words
        self.odds = {
            word: math.log((counts["pos"][word] + 1) / (counts["neg"][word] + 1) / longer)
            for word in counts["pos"] | counts["neg"]
            if counts["pos"][word] + counts["neg"][word] >= 5
        }

    def __call__(self, prompts: list, completions: list[str]) -> list[float]:
        return [sum(self.odds.get(word, 0.0) for word in set(text.split())) for text in completions]


def rows_of(reviews: list[dict[str, str]], each: int, seed: int) -> list[dict[str, str]]:
    """`each` places of every review: some words, and those that follow them."""
    chance, rows = random.Random(seed), []
    for review in reviews:
        words = review["text"].split()
        for _ in range(each):
            start = chance.randrange(max(1, len(words) - ASKED - CONTINUED))
            passage = words[start : start + ASKED + CONTINUED]
            if len(passage) == ASKED + CONTINUED:
                rows.append({"prompt": " ".join(passage[:ASKED]), "completion": " ".join(passage[ASKED:])})
    chance.shuffle(rows)
    return rows


class Bench:
    """What does not change between the settings."""

    def __init__(self, data: Path, folder: Path, rows: int) -> None:
        reviews = pq.read_table(data / "text" / "movie_reviews.parquet", columns=["text", "label"]).to_pylist()
        random.Random(0).shuffle(reviews)
        train, held_out = reviews[200:], reviews[:200]
        self.folder, self.device, self.sentiment = folder, choose(1), Sentiment(train)
        odds = self.sentiment([], [row["text"] for row in held_out])
        right = [(score > 0) == (row["label"] == "pos") for row, score in zip(held_out, odds, strict=True)]
        print(f"{machine()}; the classifier is right on {np.mean(right):.0%} of 200 whole reviews that it was not made of")
        self.tokenizer = Tokenizer.from_merges(bpe.train(bpe.count_pretokens(row["text"] for row in train), VOCABULARY))
        self.reward = ProgramReward("sentiment", self.sentiment, self.tokenizer, self.device.torch_device)
        self.ends = answer_ends(self.tokenizer)
        taught = rows_of(train, 1 + rows // len(train), 1)[:rows]
        self.model = Decoder(DecoderConfig(self.tokenizer.size, 64, 2, 4, 4, 16, 192, 64))
        initialise(self.model, 0)
        self.model.to(self.device.torch_device)
        settings = SftConfig(epochs=2, batch_examples=64, learning_rate=2e-3, max_answer_tokens=MOST + 24)
        sft.train(self.model, self.tokenizer, taught, settings, self.runtime("sft", 0))
        self.asked = [row["prompt"] for row in rows_of(train, 2, 2)]
        self.unseen = [Prompt(row["prompt"], prompt_of(self.tokenizer, row["prompt"])) for row in rows_of(held_out, 2, 3)[:256]]

    def runtime(self, name: str, seed: int) -> Runtime:
        return Runtime(self.device, self.folder / name, name, seed)

    @torch.no_grad()
    def point(self, policy: Decoder, seed: int) -> tuple[float, float]:
        """(divergence in nats a continuation, mean reward) on the prompts that nothing was trained on."""
        answers = answers_of(policy, self.unseen, self.ends, self.tokenizer.pad, Sampling(MOST), 1000 + seed)
        dtype = self.device.training_dtype
        ours, theirs = (answer_log_probabilities(model, answers.batch, dtype).sum(1) for model in (policy, self.model))
        return (ours - theirs).mean().item(), self.reward(self.unseen, answers.ids).mean().item()

    def pairs(self, count: int, seed: int) -> list[dict[str, str]]:
        prompts = [Prompt(asked, prompt_of(self.tokenizer, asked)) for asked in self.asked[:count]]
        two = []
        for number in (0, 1):
            answers = answers_of(self.model, prompts, self.ends, self.tokenizer.pad, Sampling(MOST), 2 * seed + number)
            texts = [self.tokenizer.decode(ids).strip() for ids in answers.ids]
            two.append(list(zip(self.sentiment([], texts), texts, strict=True)))
        pairs = []
        for prompt, *scored in zip(prompts, *two, strict=True):
            (low, worse), (high, better) = sorted(scored)
            if low < high and worse and better:
                pairs.append({"prompt": prompt.question, "chosen": better, "rejected": worse})
        return pairs

    def by_dpo(self, pairs: list[dict[str, str]], beta: float, seed: int) -> tuple[float, float]:
        policy = copy.deepcopy(self.model)
        settings = DpoConfig(beta=beta, learning_rate=2e-3, batch_pairs=32, epochs=1)
        dpo.train(policy, self.tokenizer, pairs, settings, self.runtime(f"dpo {beta} {seed}", seed))
        return self.point(policy, seed)

    def by_ppo(self, iterations: int, coefficient: float, seed: int) -> tuple[float, float]:
        policy = copy.deepcopy(self.model)
        settings = PpoConfig(
            iterations=iterations, rollouts=96, minibatches=2, learning_rate=3e-3, kl_coefficient=coefficient,
            missing_end_reward="off",
        )  # fmt: skip
        runtime = self.runtime(f"ppo {coefficient} {seed}", seed)
        ppo.train(policy, self.tokenizer, self.asked, settings, runtime, self.reward, MOST)
        return self.point(policy, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    parser.add_argument("--svg", type=Path, help="where the figure goes")
    parser.add_argument("--rows", type=int, default=6_000, help="of fine-tuning")
    parser.add_argument("--pairs", type=int, default=1_200)
    parser.add_argument("--iterations", type=int, default=12, help="of PPO, of 96 continuations")
    parser.add_argument("--seeds", type=int, default=3)
    options, _ = parser.parse_known_args()
    claim = f"sentiment gained over SFT within {BOUND:g} nats of it, the lesser of DPO's and PPO's, mean of seeds"
    if not (options.data / "text" / "movie_reviews.parquet").is_file():
        conclude(claim, None, "nats", 0.0, None, reason=f"no {options.data / 'text' / 'movie_reviews.parquet'}")
        return
    logging.disable(logging.INFO)
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.data, Path(folder), options.rows)
        start = bench.point(bench.model, 0)[1]
        print(f"SFT: reward {start:.2f}; {time.process_time() - begun:.0f} s of processor time so far")
        runs: dict[str, dict[float, list[tuple[float, float]]]] = {
            "DPO": {beta: [] for beta in BETAS}, "PPO": {coefficient: [] for coefficient in COEFFICIENTS}
        }  # fmt: skip
        gained: dict[str, list[float]] = {"DPO": [], "PPO": []}
        for seed in range(options.seeds):
            pairs = bench.pairs(options.pairs, seed)
            for method, settings in runs.items():
                for setting, points in settings.items():
                    ran = partial(bench.by_dpo, pairs) if method == "DPO" else partial(bench.by_ppo, options.iterations)
                    points.append(ran(setting, seed))
                point_of = {setting: points[-1] for setting, points in settings.items()}
                gained[method].append(max((reward - start for nats, reward in point_of.values() if nats <= BOUND), default=0.0))
                listed = "; ".join(f"{setting:g}: {nats:.2f} nats, {reward:.2f}" for setting, (nats, reward) in point_of.items())
                print(f"seed {seed}, {method} by {'beta' if method == 'DPO' else 'KL coefficient'}: {listed}", flush=True)
    groups = {f"SFT, {start:.1f}": [(0.0, start)]}
    groups |= {method: [point for points in settings.values() for point in points] for method, settings in runs.items()}
    lines = {
        method: sorted(tuple(np.mean(points, axis=0).tolist()) for points in settings.values())
        for method, settings in runs.items()
    }  # fmt: skip
    if options.svg:
        axes = "divergence from SFT, nats a continuation", "sentiment, log-odds"
        options.svg.write_text(figures.as_file(figures.scatter("frontier", groups, *axes, lines)))
    means = {method: float(np.mean(values)) for method, values in gained.items()}
    print(f"gained within {BOUND:g} nats: " + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items()), end="; ")
    print(f"{time.process_time() - begun:.0f} s of processor time")
    figure = min(means.values())
    lowest = min(min(values) for values in gained.values())
    conclude(claim, figure, "log-odds", 0.0, lowest > 0, peer="the other method", peer_figure=max(means.values()))


if __name__ == "__main__":
    main()
