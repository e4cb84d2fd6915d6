"""A toy pre-training, for one process or for torchrun: `python toy_training.py FOLDER NAME:MODE:STEPS ...`.

MODE: replicated or sharded; NAME: with "experts" in it, a mixture of them. Sizes are odd on purpose: nothing divides
by the number of processes.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from groundup.data import token_files
from groundup.data.token_files import TokenFile
from groundup.model.base import initialise
from groundup.model.decoder import Decoder, DecoderConfig, with_experts
from groundup.training import parallel
from groundup.training.data_order import Stream
from groundup.training.loop import mean_loss, train
from groundup.training.objectives import BalancedNextToken, next_token
from groundup.training.optimizer import Optimizer, pretraining_lrs
from groundup.training.parallel import Processes
from groundup.training.schedule import warmup_stable_decay

CPU = torch.device("cpu")
CONFIG = DecoderConfig(51, 33, 3, 3, 3, 12, 49, 32)
ROWS, MICRO_ROWS, ALL_STEPS = 5, 1, 30


def tokens(folder: Path) -> TokenFile:
    """Documents whose next token follows from the one before, mostly; token 0 begins each."""
    if not (folder / "tokens.idx").exists():
        generator = np.random.default_rng(7)
        documents = [np.cumsum(generator.integers(1, 4, size=40)) % 50 + 1 for _ in range(60)]
        token_files.write(folder / "tokens", [np.array([0, *some]) for some in documents], np.dtype(np.uint16))
    return TokenFile(folder / "tokens")


def run(file: TokenFile, folder: Path, steps: int, processes: Processes) -> list[dict[str, float]]:
    stream = Stream(file, [np.arange(len(file))], 32, 0, seed=3)
    plain = partial(next_token, dtype=torch.float32)
    config, objective, micro_rows = CONFIG, plain, MICRO_ROWS
    if "experts" in folder.name:
        config, _ = with_experts(replace(CONFIG, intermediate_size=50), 5, 2)
        # In one micro-batch: in several, the load is known only so far, and how far differs with the processes.
        objective, micro_rows = BalancedNextToken(torch.float32, 0.1, processes.world), ROWS
    model = Decoder(config)
    initialise(model, 1)
    objective = processes.spread(model, objective, CPU)
    optimizer = Optimizer(model, pretraining_lrs(33)[0], processes=processes)
    probe = stream.batches(1000, 7, MICRO_ROWS, CPU, processes)
    return train(
        model,
        objective,
        lambda step: stream.batches(step, ROWS, micro_rows, CPU, processes),
        optimizer,
        lambda step: warmup_stable_decay(step, ALL_STEPS, 5, 12),
        steps,
        folder,
        "toy",
        max_grad_norm=0.5,
        observe=lambda: {"held_out": mean_loss(model, objective, probe, processes)},
        observe_every=10,
        processes=processes,
    )


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    started = parallel.start(shard=False)
    for job in sys.argv[2:]:
        name, mode, steps = job.split(":")
        run(tokens(folder), folder / name, int(steps), Processes(started.rank, started.world, mode == "sharded"))
    started.end()


if __name__ == "__main__":
    main()
