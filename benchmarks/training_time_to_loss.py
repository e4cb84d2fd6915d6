"""Time to loss on tiny Shakespeare: nanoGPT's command for processors against a small Qwen3 of ours, whole processes.

nanoGPT's README trains characters in about three minutes on a laptop's processor (`--nanogpt DIR` is a checkout of it).
Ours reads the same text and split, trains by kernels where the processor has bfloat16, and ends with a folder that
transformers opens. Both are measured on the whole validation split, cut into rows of the model's context. Then the loss that
ours reaches in nanoGPT's own time.
"""

import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from common import ROOT, arguments, conclude

BEGUN = time.perf_counter()
BAR, GOAL, TARGET, LOSS_GOAL, ROUNDS = 6.0, 10.0, 1.898, 1.55, 3
COMMAND = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
)
# Shapes and rates were searched for this text; `steps` 0 means as many as fit the seconds given.
QUICK = {"width": 128, "heads": 4, "layers": 2, "context": 64, "rows": 16, "steps": 160, "muon": 0.1, "momentum": 0.8}
LONG = {"width": 192, "heads": 3, "layers": 4, "context": 128, "rows": 16, "steps": 0, "muon": 0.05, "momentum": 0.9}
EMBEDDING_RATE, DECAY_SHARE, WARMUP = 0.4, 0.9, 5
OF_THE_TIME, END_SECONDS = 0.9, 8.0  # for other programs; to save and measure what was trained
THEIR_LOSS = """
import json, sys
import numpy as np, torch
from model import GPT, GPTConfig
state = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**state["model_args"]))
model.load_state_dict(state["model"])
model.eval()
ids = torch.from_numpy(np.fromfile(sys.argv[2], dtype=np.uint16).astype(np.int64))
context = state["model_args"]["block_size"]
rows = (len(ids) - 1) // context
inputs, targets = ids[: rows * context].view(rows, -1), ids[1 : rows * context + 1].view(rows, -1)
with torch.no_grad():
    losses = [model(x, y)[1].item() * len(x) for x, y in zip(inputs.split(64), targets.split(64))]
print(json.dumps(sum(losses) / rows))
"""


def main() -> None:
    options = arguments(__doc__, nanogpt="../nanoGPT")
    claim = "time to 1.898 nats a character on tiny Shakespeare, whole process, over nanoGPT's command for processors"
    path = options.data / "text" / "tinyshakespeare.parquet"
    if not path.is_file() or not (options.nanogpt / "train.py").is_file():
        conclude(claim, None, "times", BAR, None, reason=f"{path} or a checkout of nanoGPT (--nanogpt DIR) is missing")
        return
    with tempfile.TemporaryDirectory() as work:
        ours = [run_ours(path, Path(work) / f"quick-{seed}", QUICK, seed) for seed in range(ROUNDS)]
        theirs = [run_nanogpt(options.nanogpt, path, Path(work)) for _ in range(ROUNDS)]
        allowed = statistics.median(run["seconds"] for run in theirs)
        long = run_ours(path, Path(work) / "long", LONG, 0, allowed)
        opens(Path(work) / "quick-0")
    for name, runs in (("groundup", ours), ("nanoGPT", theirs), ("groundup, in nanoGPT's time", [long])):
        for run in runs:
            print(f"{name:28} {run['seconds']:7.1f} s   {run['loss']:.4f} nats a character   {run['tokens']:,} tokens")
    ratio = allowed / statistics.median(run["seconds"] for run in ours)
    reached = max(run["loss"] for run in ours) <= TARGET
    print(f"{ratio:.1f} times sooner (goal {GOAL:g}); at equal time {long['loss']:.4f} nats (goal {LOSS_GOAL})")
    conclude(claim, ratio, "times", BAR, ratio >= BAR and reached and long["seconds"] <= allowed,
             peer="nanoGPT's loss; ours in the same time", peer_figure=long["loss"])  # fmt: skip


def run_ours(text: Path, folder: Path, shape: dict, seed: int, allowed: float = 0.0) -> dict:
    start = time.perf_counter()
    command = [sys.executable, __file__, "--train", json.dumps([str(text), str(folder), shape, seed, allowed])]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "GOMP_SPINCOUNT": "10000"}  # as the command line sets it
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": seconds}


def run_nanogpt(checkout: Path, text: Path, work: Path) -> dict:
    """In a copy, with its data as its own prepare.py writes them."""
    copy = work / "nanogpt"
    if not copy.exists():
        subprocess.run(["cp", "-r", str(checkout), str(copy)], check=True)
        data = copy / "data" / "shakespeare_char"
        characters, train, held_out = split_of(text)
        number = {character: index for index, character in enumerate(characters)}
        for name, part in (("train", train), ("val", held_out)):
            np.array([number[character] for character in part], np.uint16).tofile(data / f"{name}.bin")
        with (data / "meta.pkl").open("wb") as file:  # nanoGPT reads its vocabulary from a pickle
            pickle.dump({"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": number}, file)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *COMMAND.split()], cwd=copy, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    measure = [sys.executable, "-c", THEIR_LOSS, "out-shakespeare-char/ckpt.pt", "data/shakespeare_char/val.bin"]
    measured = subprocess.run(measure, cwd=copy, capture_output=True, text=True, check=True)
    return {"seconds": seconds, "loss": json.loads(measured.stdout.splitlines()[-1]), "tokens": 2000 * 12 * 64}


def split_of(path: Path) -> tuple[list[str], str, str]:
    """Characters, and nanoGPT's split: the first nine tenths to train on."""
    import pyarrow.parquet as pq

    text = "".join(pq.read_table(path, columns=["text"])["text"].to_pylist())
    cut = int(len(text) * 0.9)
    return sorted(set(text)), text[:cut], text[cut:]


def train_ours(text: str, folder: str, shape: dict, seed: int, allowed: float) -> None:
    """From the text to a saved folder and its loss on the whole validation split, as a process of its own."""
    import torch

    import timed
    from groundup.core.device import choose
    from groundup.data import token_files
    from groundup.model import model_folder as model_folder
    from groundup.model.base import initialise
    from groundup.model.decoder import Decoder, DecoderConfig
    from groundup.tokenizer.characters import Characters
    from groundup.training.data_order import Stream
    from groundup.training.loop import mean_loss, train
    from groundup.training.objectives import next_token
    from groundup.training.optimizer import Optimizer
    from groundup.training.schedule import warmup_stable_decay

    out, device = Path(folder), choose()
    characters, *parts = split_of(Path(text))
    tokenizer = Characters("".join(characters))
    out.mkdir()
    files = []
    for name, part in zip(("train", "held_out"), parts, strict=True):
        token_files.write(out / name, tokenizer.encode_batch([part]), np.uint16)
        files.append(token_files.TokenFile(out / name))
    width, context, rows = shape["width"], shape["context"], shape["rows"]
    config = DecoderConfig(
        vocab_size=tokenizer.size,
        hidden_size=width,
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        head_dim=width // shape["heads"],
        intermediate_size=3 * width,
        max_position_embeddings=context,
    )
    model = Decoder(config)
    initialise(model, seed)
    kernels = timed.use_kernels(model, context)

    def lr_of(name: str, parameter: torch.nn.Parameter) -> tuple[str, float]:
        if parameter.dim() == 2 and "layers" in name:
            return "muon", shape["muon"]
        return "adamw", EMBEDDING_RATE if "embed_tokens" in name else 0.02

    def objective(model: Decoder, batch: dict, dtype: torch.dtype = device.training_dtype) -> tuple:
        return next_token(model, batch | {"documents": None}, dtype)  # the play is one document

    stream, held_out = (Stream(file, [np.zeros(1, np.int64)], context, tokenizer.end_of_text, seed) for file in files)

    def run(steps: int, where: Path) -> None:
        optimizer = Optimizer(model, lr_of, momentum=shape["momentum"], dtype=device.training_dtype, kernels=kernels)
        train(
            model, objective, lambda step: stream.batches(step, rows, rows, device.torch_device), optimizer,
            lambda step: warmup_stable_decay(step, steps, WARMUP, round(DECAY_SHARE * steps)), steps, where, "train",
            tokens_per_step=rows * context,
        )  # fmt: skip

    steps = shape["steps"]
    if not steps:
        probe = 50
        start = time.perf_counter()
        run(probe, out / "probe")
        each = (time.perf_counter() - start) / probe
        initialise(model, seed)
        steps = int(OF_THE_TIME * (allowed - (time.perf_counter() - BEGUN) - END_SECONDS) / each)
    run(steps, out)
    model_folder.save(out, model, tokenizer, chat=False)
    batches = held_out.batches(0, held_out.rows, 32, device.torch_device)
    loss = mean_loss(model, partial(objective, dtype=torch.float32), batches)
    print(json.dumps({"loss": loss, "tokens": steps * rows * context}))


def opens(folder: Path) -> None:
    """transformers reads the folder and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("ROMEO:\n", return_tensors="pt")
    print(f"{type(model).__name__}: {tokenizer.decode(model.generate(**ids, max_new_tokens=60, do_sample=False)[0])!r}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train_ours(*json.loads(sys.argv[2]))
    else:
        main()
