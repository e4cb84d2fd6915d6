"""Muon against AdamW with its rate tuned: steps to the same held-out loss on textbooks, three seeds.

The same model, batches, warm-up and decay. AdamW trains everything at one rate, the best of five
over the whole horizon, betas 0.9 and 0.95. Muon has the rates that pre-training derives, untuned, and is given fewer and
fewer steps, each number a run of its own with its own decay; where its loss meets AdamW's is interpolated.
"""

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

import timed
from common import arguments, conclude
from groundup.core.device import choose
from groundup.model.base import initialise
from groundup.model.decoder import Decoder, shape_for
from groundup.training.data_order import Stream
from groundup.training.objectives import next_token
from groundup.training.optimizer import Optimizer, one_lr, pretraining_lrs
from groundup.training.schedule import warmup_stable_decay

BAR, STEPS, SHARES, SEEDS = 1.4, 400, (0.7, 0.5, 0.35), 3
ADAMW_RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
DEPTH, CONTEXT, ROWS, HELD_OUT_ROWS = 2, 128, 16, 256


def main() -> None:
    data = arguments(__doc__).data
    claim = "steps to AdamW's held-out loss, its rate tuned, over Muon's"
    if not (data / "text" / "openstax.parquet").is_file():
        conclude(claim, None, "times", BAR, None, reason=f"{data / 'text' / 'openstax.parquet'} is missing")
        return
    training, held_out = timed.openstax(data)
    encoder = timed.byte_pairs(training[:400])
    with tempfile.TemporaryDirectory() as folder:
        files = [timed.encoded(Path(folder) / name, texts, encoder)
                 for name, texts in (("train", training[:400]), ("held_out", held_out[:40]))]  # fmt: skip
        rows, probe = (timed.stream(file, encoder, CONTEXT) for file in files)
        run = partial(train, rows, probe, encoder.size)
        tuned = {lr: run(STEPS, 0, lr) for lr in ADAMW_RATES}
        for lr, (loss, seconds) in tuned.items():
            print(f"AdamW {lr:8.4f}  {STEPS} steps  {loss:.4f} nats  {seconds:5.1f} s", flush=True)
        best = min(tuned, key=lambda lr: tuned[lr][0])
        ratios, clocks = [], []
        for seed in range(SEEDS):
            target, adamw_seconds = tuned[best] if seed == 0 else run(STEPS, seed, best)
            runs = [(round(STEPS * share), *run(round(STEPS * share), seed, None)) for share in SHARES]
            needed = np.interp(-target, *zip(*sorted((-loss, steps) for steps, loss, _ in runs), strict=True))
            each = statistics.median(seconds / steps for steps, _, seconds in runs)
            ratios.append(STEPS / needed)
            clocks.append(adamw_seconds / (each * needed))
            shown = "  ".join(f"{steps}: {loss:.4f}" for steps, loss, _ in runs)
            print(f"seed {seed}: AdamW {target:.4f} after {STEPS}; Muon by steps {shown}; equal after {needed:.0f}: "
                  f"{ratios[-1]:.2f} times fewer steps, {clocks[-1]:.2f} times less time", flush=True)  # fmt: skip
    if best in (ADAMW_RATES[0], ADAMW_RATES[-1]):
        print(f"AdamW's best rate {best} is at the end of the range")
    print(f"time: {statistics.median(clocks):.2f} times less (median)")
    conclude(claim, statistics.median(ratios), "times", BAR, min(ratios) >= BAR)


def train(rows: Stream, probe: Stream, vocabulary: int, steps: int, seed: int, adamw_lr: float | None) -> tuple[float, float]:
    """Held-out loss in nats a token after `steps`, and the seconds that they took."""
    device = choose()
    config, _ = shape_for(DEPTH, vocabulary, CONTEXT)
    model = Decoder(config)
    initialise(model, seed)
    lr_of = one_lr(adamw_lr) if adamw_lr else pretraining_lrs(config.hidden_size)[0]
    optimizer = Optimizer(model, lr_of, dtype=device.training_dtype)
    start = time.perf_counter()
    for step in range(steps):
        [batch] = rows.batches(seed * STEPS + step, ROWS, ROWS, device.torch_device)
        next_token(model, batch, device.training_dtype)[0].backward()
        optimizer.step(warmup_stable_decay(step, steps, steps // 20, round(0.4 * steps)))
    seconds = time.perf_counter() - start
    batches = probe.batches(0, HELD_OUT_ROWS, 32, device.torch_device)
    return sum(next_token(model, batch, device.training_dtype)[0].item() for batch in batches), seconds


if __name__ == "__main__":
    main()
