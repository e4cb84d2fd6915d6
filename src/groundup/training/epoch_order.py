"""Which rows a step trains on, as a function of the step."""

from collections.abc import Callable

import numpy as np


def chosen_rows(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Which of `count` rows step `step` trains on: every epoch is a fresh permutation, cut into equal batches.

    The last, incomplete batch of an epoch is left out.
    """
    batch = min(batch, count)
    steps_per_epoch = count // batch
    epoch, batch_index = divmod(step, steps_per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[batch_index * batch : (batch_index + 1) * batch].tolist()


def steps_for(epochs: int, batch: int, count: int) -> int:
    return epochs * (count // min(batch, count))


def log_steps(log: Callable[[str], None], label: str, epochs: int, batch: int, count: int) -> int:
    """The number of steps, logged with the rows that fill no batch: of few rows and large batches these are many."""
    steps, batch = steps_for(epochs, batch, count), min(batch, count)
    unused = f", of which {count % batch:,} fill no batch and are left out, others in each epoch" if count % batch else ""
    log(f"{label}: {steps:,} step{'s'[: steps > 1]} of {batch:,} rows; epochs: {epochs}, of {count:,} rows{unused}")
    return steps


def micro_batches(rows: list[int], at_once: int) -> list[list[int]]:
    """The rows of a step as micro-batches of `at_once` rows, the last one of the rest; 0: all in one."""
    return [rows[start : start + at_once] for start in range(0, len(rows), at_once)] if at_once else [rows]
