"""SFT, DPO and reward modelling train at least 3 times as many examples a second as TRL's trainers, in half the memory.

A dense model of 6 layers x 256, conversations of Alpaca and preferences of HH-RLHF. A call of each is a process of its own: the
same folder, rows, batches and order of magnitude of the rate, by turns; timed from rows in memory to a trained model in
memory, imports apart; the peak is the whole process's. TRL runs as it does best here: without gradient checkpointing, in
bfloat16 where the processor has it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import conclude, machine

KINDS, SIDES = ("sft", "dpo", "reward"), ("groundup", "TRL")
EXAMPLES, PAIRS, BATCH, CONTEXT, VOCABULARY, ROUNDS = 256, 128, 16, 512, 8192, 2


def prepare(data: Path, folder: Path) -> None:
    """A model's folder and rows that fit its context."""
    from groundup.data.contracts import read_conversations, read_preferences
    from groundup.model import folder as model_files
    from groundup.model.base import initialise
    from groundup.model.decoder import Decoder, DecoderConfig
    from groundup.posttraining.reward import from_policy
    from groundup.posttraining.rows import conversation, pair
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
    short = [one.row for one in pairs if max(len(side[0]) for side in pair(tokenizer, one.row)[:2]) <= CONTEXT][:PAIRS]
    for name, some in (("talks", fits), ("pairs", [{k: v for k, v in row.items() if k != "margin"} for row in short])):
        (folder / f"{name}.json").write_text(json.dumps(some))


def ours(kind: str, folder: Path, rows: list[dict]) -> float:
    """Seconds."""
    from groundup.core.device import choose
    from groundup.model.folder import load_decoder
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
    place = folder / ("reward" if kind == "reward" else "model")
    model = auto.from_pretrained(place, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    start = time.monotonic()
    config = getattr(trl, f"{name}Config")(**common, **more)
    trainer = getattr(trl, f"{name}Trainer")(
        model=model, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    return time.monotonic() - start


def call(kind: str, side: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--call", kind, side, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{kind} by {side} failed: {done.stderr.splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--call", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.call:
        kind, side, folder = given.call[0], given.call[1], Path(given.call[2])
        rows = json.loads((folder / ("talks.json" if kind == "sft" else "pairs.json")).read_text())
        seconds = (ours if side == "groundup" else theirs)(kind, folder, rows)
        print(json.dumps({"speed": len(rows) / seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    claim, bar = "examples a second of SFT, DPO and reward modelling over TRL's trainers, the least", 3.0
    try:
        import trl
    except ImportError:
        conclude(claim, None, "times", bar, None, reason="TRL is not installed")
        return
    if not (given.data / "sft").is_dir():
        conclude(claim, None, "times", bar, None, reason=f"no conversations in {given.data}")
        return
    print(f"{machine()}, TRL {trl.__version__}")
    ratios, shares = [], []
    with tempfile.TemporaryDirectory() as folder:
        prepare(given.data, Path(folder))
        for kind in KINDS:
            found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
            for _ in range(ROUNDS):
                for side in SIDES:
                    found[side].append(call(kind, side, Path(folder)))
            speed = {side: statistics.median(one["speed"] for one in calls) for side, calls in found.items()}
            peak = {side: statistics.median(one["mb"] for one in calls) for side, calls in found.items()}
            ratios.append(speed["groundup"] / speed["TRL"])
            shares.append(peak["groundup"] / peak["TRL"])
            print(
                f"{kind:>7}: {speed['groundup']:6.1f} a second, TRL {speed['TRL']:6.1f}: {ratios[-1]:.2f} times; peak "
                f"{peak['groundup']:,.0f} MB, TRL {peak['TRL']:,.0f} MB: {shares[-1]:.2f}"
            )
    conclude(claim, min(ratios), "times", bar, min(ratios) >= bar and max(shares) <= 0.5, peer="TRL", peer_figure=1.0)


if __name__ == "__main__":
    main()
