"""One process against two, by torchrun on this machine: the same losses over 50 steps in float32, and memory by process.

DDP holds the whole model, gradients and optimizer state in each process, FSDP2 its rows of them: "held" is parameters and
state. "Peak" is the most memory that a process had, less what it had before the model was made: FSDP2 makes the model
whole, cuts it up, and puts blocks together while they are at work.
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from common import ROOT, conclude

BAR, STEPS, ROWS, CONTEXT = 1e-5, 50, 4, 64
SHAPE = {"vocab_size": 16_384, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 768, "max_position_embeddings": CONTEXT}  # fmt: skip


def main() -> None:
    claim = "two processes (DDP, FSDP2) against one: largest difference of a loss over 50 steps in float32"
    with tempfile.TemporaryDirectory() as folder:
        alone = run([sys.executable, __file__, "alone"], Path(folder) / "alone")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
                    "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", __file__]  # fmt: skip
        processes_of = {how: run([*torchrun, how], Path(folder) / how) for how in ("DDP", "FSDP2")}
    parameters = alone[0]["parameters"]
    print(f"{parameters:,} parameters, float32")
    print(f"{'':12} {'held':>8} {'peak':>8}")
    print(f"{'one process':12} {alone[0]['held']:5.0f} MB {alone[0]['peak']:5.0f} MB  last loss {alone[0]['losses'][-1]:.6f}")
    worst = 0.0
    for how, processes in processes_of.items():
        for process in processes:
            apart = max(abs(a - b) for a, b in zip(alone[0]["losses"], process["losses"], strict=True))
            worst = max(worst, apart)
            memory = f"{process['held']:5.0f} MB {process['peak']:5.0f} MB"
            print(f"{how:12} {memory}  last loss {process['losses'][-1]:.6f}, at most {apart:.1e} apart")
    conclude(claim, worst, "nats", BAR, worst <= BAR)


def run(command: list[str], folder: Path) -> list[dict]:
    folder.mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"), "OUT": str(folder), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def train(how: str) -> None:
    import resource

    import torch

    from groundup.model.base import initialise
    from groundup.model.decoder import Decoder, DecoderConfig
    from groundup.training import loop, parallel
    from groundup.training.objectives import next_token
    from groundup.training.optimizer import Optimizer, pretraining_lrs

    torch.set_num_threads(1)
    processes = parallel.start(shard=how == "FSDP2")
    folder, device = Path(os.environ["OUT"]), torch.device("cpu")
    generator = np.random.default_rng(0)
    texts = torch.from_numpy(np.cumsum(generator.integers(1, 9, size=(STEPS * ROWS, CONTEXT + 1)), axis=1) % 16_384)

    def batches(step: int) -> list[dict]:
        rows = texts[step * ROWS : (step + 1) * ROWS].chunk(processes.world)[processes.rank]
        ids, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        return [{"ids": ids, "targets": targets, "weight": torch.full(ids.shape, 1 / (ROWS * CONTEXT))}]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = Decoder(DecoderConfig(**SHAPE))
    initialise(model, 0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    objective = processes.spread(model, partial(next_token, dtype=torch.float32), device)
    optimizer = Optimizer(model, pretraining_lrs(SHAPE["hidden_size"])[0], processes=processes)
    work = folder / "work"
    history = loop.train(model, objective, batches, optimizer, lambda step: 0.3, STEPS, work, how, processes=processes)
    held = [parallel.local(tensor) for tensor in (*model.parameters(), *optimizer.state.values())]
    result = {
        "losses": [row["loss"] for row in history],
        "held": sum(t.numel() * t.element_size() for t in held) / 2**20,
        "peak": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "parameters": parameters,
    }
    (folder / f"{processes.rank}.json").write_text(json.dumps(result))
    processes.end()


if __name__ == "__main__":
    train(sys.argv[1]) if sys.argv[1:] else main()
