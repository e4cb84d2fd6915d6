"""In float32 a training step by kernels should be 1.7 times as fast as transformers', and use the processor's multiply-adds.

For processors without bfloat16 (AVX2). The model and batch of `training_throughput`: forward, loss, backward and optimizer,
ours with Muon and with AdamW, by kernels and by PyTorch (not compiled), theirs Qwen3ForCausalLM with its own loss and torch's
AdamW; and the share of the rate at which the processor multiplies and adds, measured in between. With `--busy`, only the steps by
kernels, in bfloat16 too where the processor has it, by turns with and without a process at equal priority that keeps a core
busy: 60 % of the rate should be left. All by turns, with all cores and by the clock.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import training_throughput as sizes
from common import conclude, machine
from groundup import kernels
from groundup.core.device import choose
from groundup.core.executor import cores
from groundup.kernels import Unavailable
from groundup.model.base import initialise
from groundup.model.decoder import Decoder
from groundup.training.objectives import next_token
from groundup.training.optimizer import Optimizer, one_lr, pretraining_lrs

CLAIM, BAR = "training step in float32, 6 x 256, over transformers'", 1.7
RATE_BAR, BUSY_BAR = 0.7, 0.6
Step = Callable[[], None]


def pretraining(muon: bool, native: bool, format: torch.dtype = torch.float32) -> Step:
    model = Decoder(sizes.our_config())
    initialise(model, 0)
    if native:
        model.use_kernels(sizes.CONTEXT, format)
    optimizer = Optimizer(model, pretraining_lrs(sizes.WIDTH)[0] if muon else one_lr(1e-3), kernels=native)
    ids, shape = sizes.random_ids(sizes.VOCABULARY), (sizes.ROWS, sizes.CONTEXT)
    batch = {"ids": ids[:, :-1], "targets": ids[:, 1:], "weight": torch.full(shape, 1 / (shape[0] * shape[1]))}

    def step() -> None:
        next_token(model, batch, format)[0].backward()
        optimizer.step(1.0)

    return step


def multiply_adds(folder: Path) -> Callable[[], float]:
    """Measures the operations a second that the processor's cores can do together, by a program put into the folder."""
    flags = [flag for flag in kernels.FLOAT32_FLAGS if flag != "-fPIC"]
    source = Path(__file__).with_name("multiply_adds.cpp")
    command = ["g++", *flags, *(f"-m{name}" for name in kernels.float32_vectors()), str(source), "-o", str(folder / "rate")]
    subprocess.run(command, check=True)

    def measure() -> float:
        return 1e9 * float(subprocess.run([folder / "rate", str(cores())], check=True, capture_output=True).stdout)

    return measure


def by_turns(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Seconds of each, the median; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def beside_a_busy_process(rounds: int) -> None:
    formats = [dtype for dtype in (torch.float32, torch.bfloat16) if kernels.are_there(torch.device("cpu"), dtype)]
    steps = {
        f"{name} in {str(dtype).removeprefix('torch.')}": pretraining(name == "Muon", True, dtype)
        for dtype in formats
        for name in ("Muon", "AdamW")
    }
    turns: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for busy in (False, True) * 2:
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        with kernels.only_in_kernels():  # as in pre-training
            turns[busy].append(by_turns(steps, rounds))
        if other:
            other.kill()
            other.wait()
    shares = {name: min(turn[name] for turn in turns[False]) / max(turn[name] for turn in turns[True]) for name in steps}
    print(machine(), *(f"{name}: {share:.0%} of the rate is left" for name, share in shares.items()), sep="\n")
    conclude("training rate beside a busy process over that without", min(shares.values()), "times", BUSY_BAR,
             min(shares.values()) >= BUSY_BAR)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=sizes.WIDTH, help="64 a layer; 256 has 6 layers")
    parser.add_argument("--busy", action="store_true", help="beside a busy process")
    options = parser.parse_args()
    if options.busy and "GOMP_SPINCOUNT" not in os.environ:  # as the command line sets it; read when torch is imported
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GOMP_SPINCOUNT": "10000"})
    choose()
    if options.width != sizes.WIDTH:
        sizes.WIDTH, sizes.LAYERS = options.width, options.width // 64
    try:
        kernels.float32_library()
        if options.busy:
            return beside_a_busy_process(options.rounds)
        steps = {f"{name} by kernels": pretraining(name == "Muon", True) for name in ("Muon", "AdamW")}
        import transformers  # noqa: F401
    except (Unavailable, ImportError) as error:
        return conclude(CLAIM, None, "times", BAR, None, reason=str(error))
    print(machine(), flush=True)
    steps |= {f"{name} by PyTorch": pretraining(name == "Muon", False) for name in ("Muon", "AdamW")}
    steps["transformers"] = sizes.their_step(sizes.PEERS[0])
    with tempfile.TemporaryDirectory() as folder:
        measure_rate = multiply_adds(Path(folder))
        rates = [measure_rate()]
        seconds = by_turns(steps, options.rounds)
        rates.append(measure_rate())
    print(f"multiply-adds: {min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f} GFLOP/s")
    for name, value in seconds.items():
        reached = sizes.step_flops() / value
        print(f"{name:<18} {1e3 * value:6.0f} ms, {reached / 1e9:5.1f} GFLOP/s, {reached / max(rates):.0%}, "
              f"{seconds['transformers'] / value:.2f} times transformers", flush=True)  # fmt: skip
    slowest = max(seconds["Muon by kernels"], seconds["AdamW by kernels"])
    over, share = seconds["transformers"] / slowest, sizes.step_flops() / slowest / max(rates)
    holds = over >= BAR and share >= RATE_BAR
    conclude(CLAIM, over, "times", BAR, holds, peer="share of the multiply-adds (bar 0.7)", peer_figure=share)


if __name__ == "__main__":
    main()
