"""The instruments of length and form: PPO paid for length, with and without the price of a missing end, and for a counted word.

A toy model answers in a few tokens and ends. Paid for mere length it must be seen to: reward goes with length, answers grow,
and where a missing end costs nothing they stop ending. The length-controlled win rate must find the effect that simulated
comparisons have, where the plain one is misled.
"""

import copy
import logging
import tempfile
from pathlib import Path

import numpy as np
import torch

from common import arguments, conclude, machine
from groundup.core.device import Device
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.posttraining.batches import collate, row_of
from groundup.posttraining.config import PpoConfig
from groundup.posttraining.length import length_controlled
from groundup.posttraining.ppo import train
from groundup.posttraining.rewards import open_reward
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.objectives import next_token
from groundup.training.runtime import Runtime

TEXT = ["what does the function return", "it returns the path of the file", "def path(file):\n    return file\n"]
QUESTIONS = ["what is the path", "what does it return", "the file", "return"]
ANSWERS = ["the path", "it returns the file", "def path file", "file", "path of the file"]
CPU = torch.device("cpu")
FLOAT32 = Device(CPU, torch.float32, 1, "cpu", ())
RUNS = {
    "length": {"reward": "length"},
    "length, a missing end costs nothing": {"reward": "length", "missing_end_reward": "off"},
    "count of a word, KL held at 2 nats": {
        "reward": "count=the", "kl_coefficient": 0.1, "kl_target": 2.0, "kl_horizon": 24
    },
}  # fmt: skip


def main() -> None:
    arguments(__doc__)
    logging.disable(logging.INFO)
    torch.set_num_threads(1)  # a model this small waits for more
    print(machine())
    tokenizer = Tokenizer.from_merges(bpe.train(bpe.count_pretokens(TEXT * 9), 300))
    policy = fine_tuned(tokenizer)
    print(f"{'reward':<38}{'reward':>14}{'length':>14}{'ended':>12}{'correlation':>14}{'KL':>6}")
    first_and_last = {}
    for name, changes in RUNS.items():
        settings = PpoConfig(**{
            "iterations": 20, "rollouts": 24, "minibatches": 1, "epochs": 2, "learning_rate": 4e-3, "kl_coefficient": 0.02,
            **changes,
        })  # fmt: skip
        reward = open_reward(settings.reward, tokenizer, torch.float32, CPU)
        with tempfile.TemporaryDirectory() as folder:
            result = train(
                copy.deepcopy(policy), tokenizer, QUESTIONS * 6, settings, Runtime(FLOAT32, Path(folder), "ppo"), reward, 12
            )
        first_and_last[name] = first, last = result["first"], result["last"]
        columns = [(first[column], last[column]) for column in ("reward", "length", "ended", "reward_length_correlation")]
        print(f"{name:<38}" + "".join(f"{a:7.2f} ->{b:5.2f}" for a, b in columns) + f"{last['kl']:6.1f}")
        for concern in result["concerns"]:
            print(f"    {concern}")
    error, plain = simulated_error()
    print(f"win rate at a true 50 %, ours longer: length-controlled off by {error:.3f}, the plain one by {plain:.3f}")
    (paid, unpriced, counted) = first_and_last.values()
    sound = (
        all(last["reward"] > 1.5 * first["reward"] for first, last in first_and_last.values())
        and paid[1]["ended"] > 0.8 and unpriced[1]["ended"] < 0.5 and counted[1]["kl"] < 6 and error < 0.03
    )  # fmt: skip
    conclude(
        "Answers that end at a reward for length, by the price of a missing end", paid[1]["ended"], "share", 0.8, sound
    )


def fine_tuned(tokenizer: Tokenizer) -> Decoder:
    """A model whose answers are short and end."""
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=tokenizer.size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    policy = Decoder(config)
    with torch.no_grad():
        for parameter in policy.parameters():
            noise = 0.1 * torch.randn(parameter.shape)
            parameter.copy_(1 + noise if parameter.dim() == 1 else noise)
    batch = collate([row_of(tokenizer, question, text) for question in QUESTIONS[:2] for text in ANSWERS], tokenizer.pad, CPU)
    batch["weight"] = batch["mask"] / batch["mask"].sum()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for _ in range(40):  # longer, and it is too sure of itself to try anything else
        next_token(policy, batch, torch.float32)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


def simulated_error() -> tuple[float, float]:
    """How far the length-controlled and the plain win rate are from 50 %, on comparisons that length alone decides."""
    generator = np.random.default_rng(0)
    theirs = generator.integers(20, 80, 4000)
    ours = theirs + generator.normal(30, 20, 4000)
    preferred = 1 / (1 + np.exp(-2 * np.tanh((ours - theirs) / (ours - theirs).std())))
    outcomes = (generator.random(4000) < preferred).astype(float)
    return abs(length_controlled(outcomes, ours, theirs)["win_rate"] - 0.5), abs(outcomes.mean() - 0.5)


if __name__ == "__main__":
    main()
