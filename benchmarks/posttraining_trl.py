"""SFT, DPO and reward modelling train at least 3 times as many examples a second as TRL's trainers, in half the memory.

A dense model of 6 layers x 256, conversations of Alpaca and preferences of HH-RLHF. A call of each is a process of its own: the
same folder, rows, batches and order of magnitude of the rate, by turns; timed from rows in memory to a trained model in
memory, imports apart; the peak is the whole process's. TRL runs as it does best here: without gradient checkpointing, in
bfloat16 where the processor has it. `--before DIR` runs an earlier checkout of ours beside both. A kind takes two minutes a
round: `--kinds`, `--rounds` and `--results FILE`, which keeps what is measured for the next call, cut it to what time there is.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import conclude, machine

KINDS, SIDES, BEFORE = ("sft", "dpo", "reward"), ("groundup", "TRL"), "before"
EXAMPLES, PAIRS, BATCH, CONTEXT, VOCABULARY, ROUNDS = 256, 128, 16, 512, 8192, 2


def prepare(data: Path, folder: Path) -> None:
    """A model's folder and rows that fit its context."""
    from groundup.data.contracts import read_conversations, read_preferences
    from groundup.model import model_folder as model_files
    from groundup.model.base import initialise
    from groundup.model.decoder import Decoder, DecoderConfig
    from groundup.posttraining.reward import from_policy
    from groundup.posttraining.tokenize_rows import conversation, pair
    from groundup.tokenizer import bpe
    from groundup.tokenizer.tokenizer import Tokenizer

    talks = read_conversations([data / "sft" / "alpaca_demo_999.json.gz"]).rows
    pairs = read_preferences([data / "preferences" / "hh_harmless_test.jsonl.gz"]).rows
    texts = (message.content for talk in talks for message in talk.messages)
    tokenizer = Tokenizer.from_merges(bpe.train(bpe.count_pretokens(texts), VOCABULARY))
    config = DecoderConfig(
        vocab_size=tokenizer.size, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
        head_dim=64, intermediate_size=768, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    model = Decoder(config)
    initialise(model, 0)
    model_files.save(folder / "model", model, tokenizer, chat=True)
    model_files.save(folder / "reward", from_policy(model, 0), tokenizer, chat=True)
    rows = [{"messages": talk.rows} for talk in talks]
    fits = [row for row in rows if len(conversation(tokenizer, row)[0]) <= CONTEXT][:EXAMPLES]
    preferences = [preference.row for preference in pairs]
    short = [row for row in preferences if max(len(side[0]) for side in pair(tokenizer, row)[:2]) <= CONTEXT][:PAIRS]
    for name, content in (("talks", fits), ("pairs", [{k: v for k, v in row.items() if k != "margin"} for row in short])):
        (folder / f"{name}.json").write_text(json.dumps(content))


def ours(kind: str, folder: Path, rows: list[dict]) -> float:
    """Seconds."""
    from groundup.core.device import choose
    from groundup.model.model_folder import load_decoder
    from groundup.posttraining import dpo, reward, sft
    from groundup.posttraining.config import DpoConfig, RewardConfig, SftConfig
    from groundup.tokenizer.tokenizer import Tokenizer
    from groundup.training.runtime import Runtime

    tokenizer, model, device = Tokenizer.load(folder / "model"), load_decoder(folder / "model"), choose()
    runtime = Runtime(device, folder / f"work-{time.monotonic_ns()}", kind)
    start = time.monotonic()
    if kind == "sft":
        settings = SftConfig(batch_examples=BATCH, max_answer_tokens=CONTEXT, packing=True)
        assert sft.train(model, tokenizer, rows, settings, runtime) == EXAMPLES // BATCH
    elif kind == "dpo":
        settings = DpoConfig(batch_pairs=BATCH, pairs_at_once=BATCH // 4)
        assert dpo.train(model, tokenizer, rows, settings, runtime) == PAIRS // BATCH
    else:
        settings = RewardConfig(batch_pairs=BATCH, pairs_at_once=BATCH // 4)
        reward.train(model, tokenizer, rows, settings, runtime)
    return time.monotonic() - start


def theirs(kind: str, folder: Path, rows: list[dict]) -> float:
    """Seconds."""
    import datasets
    import torch
    import transformers
    import trl

    from groundup.core.device import has_bfloat16_vectors
    from groundup.core.executor import cores

    torch.set_num_threads(cores())
    datasets.disable_progress_bars()
    name = {"sft": "SFT", "dpo": "DPO", "reward": "Reward"}[kind]
    common = {
        "output_dir": str(folder / "trl"), "num_train_epochs": 1, "per_device_train_batch_size": BATCH, "save_strategy": "no",
        "report_to": "none", "use_cpu": True, "bf16": has_bfloat16_vectors(), "gradient_checkpointing": False,
        "disable_tqdm": True, "logging_steps": 1000, "max_length": CONTEXT,
    }  # fmt: skip
    more = {"sft": {"assistant_only_loss": True}, "dpo": {"precompute_ref_log_probs": True}, "reward": {}}[kind]
    auto = transformers.AutoModelForSequenceClassification if kind == "reward" else transformers.AutoModelForCausalLM
    source = folder / ("reward" if kind == "reward" else "model")
    model = auto.from_pretrained(source, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    start = time.monotonic()
    config = getattr(trl, f"{name}Config")(**common, **more)
    trainer = getattr(trl, f"{name}Trainer")(
        model=model, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    return time.monotonic() - start


def call(kind: str, side: str, folder: Path, before: Path | None) -> dict[str, float]:
    command = [sys.executable, __file__, "--call", kind, side, str(folder)]
    other = {"PYTHONPATH": f"{before}/src"} if side == BEFORE else {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | other)
    if done.returncode:
        sys.exit(f"{kind} by {side} failed: {done.stderr.splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--before", type=Path, help="an earlier checkout")
    parser.add_argument("--results", type=Path, help="what this and other calls measured")
    parser.add_argument("--call", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        kind, side, folder = options.call[0], options.call[1], Path(options.call[2])
        rows = json.loads((folder / ("talks.json" if kind == "sft" else "pairs.json")).read_text())
        seconds = (theirs if side == "TRL" else ours)(kind, folder, rows)
        print(json.dumps({"speed": len(rows) / seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    claim, bar = "examples a second of SFT, DPO and reward modelling over TRL's trainers, the least", 3.0
    try:
        import trl
    except ImportError:
        conclude(claim, None, "times", bar, None, reason="TRL is not installed")
        return
    if not (options.data / "sft").is_dir():
        conclude(claim, None, "times", bar, None, reason=f"no conversations in {options.data}")
        return
    print(f"{machine()}, TRL {trl.__version__}")
    results = json.loads(options.results.read_text()) if options.results and options.results.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(options.data, Path(folder))
        for kind in options.kinds:
            runs: dict[str, list[dict[str, float]]] = {side: [] for side in (*SIDES, *([BEFORE] if options.before else []))}
            for _ in range(options.rounds):
                for side in runs:
                    runs[side].append(call(kind, side, Path(folder), options.before))
            results[kind] = runs
            print_measured(kind, runs)
            if options.results:
                options.results.write_text(json.dumps(results))
    ratios = {kind: median(runs, "speed", "groundup") / median(runs, "speed", "TRL") for kind, runs in results.items()}
    shares = [median(runs, "mb", "groundup") / median(runs, "mb", "TRL") for runs in results.values()]
    each = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios.items())
    note = f"{each}; share of its peak memory, the most"
    lowest, largest_share = min(ratios.values()), max(shares)
    conclude(claim, lowest, "times", bar, lowest >= bar and largest_share <= 0.5, peer=note, peer_figure=largest_share)


def median(runs: dict[str, list[dict[str, float]]], figure: str, side: str) -> float:
    return statistics.median(run[figure] for run in runs[side])


def print_measured(kind: str, runs: dict[str, list[dict[str, float]]]) -> None:
    speed, peak = median(runs, "speed", "groundup"), median(runs, "mb", "groundup")
    print(f"{kind:>7}: {speed:6.2f} a second, peak {peak:,.0f} MB")
    for side in runs:
        if side != "groundup":
            theirs, memory = median(runs, "speed", side), median(runs, "mb", side)
            print(f"{side:>15}: {theirs:6.2f}, {memory:,.0f} MB: {speed / theirs:.2f} times, {peak / memory:.2f} of the memory")


if __name__ == "__main__":
    main()
