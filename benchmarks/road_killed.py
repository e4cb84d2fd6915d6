"""Killed twenty times at random moments (SIGKILL), the laptop run ends with the same bytes as an undisturbed one."""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, conclude, finished_run
from groundup.files import digest

SAME = (
    "corpus/documents.parquet",
    "corpus/dropped.parquet",
    "corpus/funnel.json",
    "tokenizer/tokenizer.json",
    "tokens/train.bin",
    "tokens/train.idx",
    "tokens/held_out.bin",
    *(f"{stage}/model.safetensors" for stage in ("base", "sft", "reward", "dpo", "ppo")),
    *(f"{stage}/metrics.jsonl" for stage in ("base", "sft", "reward", "dpo", "ppo")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "laptop", help="the undisturbed run; made if absent")
    parser.add_argument("--killed", type=Path, default=ROOT / "runs" / "killed", help="the run that is killed")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="not used here")
    options = parser.parse_args()
    undisturbed = finished_run(options.run)
    shutil.rmtree(options.killed, ignore_errors=True)
    moments = random.Random(options.seed)
    total = undisturbed["seconds"]["all"]
    command = [sys.executable, "-m", "groundup", "run", "recipes/laptop.toml", "--run", str(options.killed)]
    kills = 0
    start = time.monotonic()
    while True:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        # Spread so that twenty kills fall over the whole run: each attempt lives a twentieth of it, more or less.
        wait = moments.uniform(0.2, 2.0) * total / options.kills if kills < options.kills else None
        try:
            _, errors = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            print(f"killed after {wait:.1f} s; at work: {[p.name for p in options.killed.glob('*.partial')]}", flush=True)
            continue
        if process.returncode:
            sys.exit(f"after {kills} kills the run failed: {errors.splitlines()[-1]}")
        break
    different = [name for name in SAME if digest(options.run / name) != digest(options.killed / name)]
    print(f"{kills} kills, {(time.monotonic() - start) / 60:.1f} min; undisturbed {total / 60:.1f} min; different: {different}")
    conclude("files that differ after twenty kills", len(different), "files", 0, not different and kills == options.kills)


if __name__ == "__main__":
    main()
