"""Killed twenty times at random moments (SIGKILL), a run ends with the same bytes as an undisturbed one.

A run that ends before its twentieth kill is followed by another. The tiny recipe by default: same stages, same code, a
minute; `--recipe laptop` takes half an hour. What is killed saves a state of training twice a second instead of
every 15, so that what was killed goes on within a stage.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, conclude, finished_run
from groundup.core.files import digest

OFTEN = (
    "import groundup.training.loop as loop; loop.CHECKPOINT_SECONDS = 0.5\n"
    "from groundup.cli import main\n"
    "if __name__ == '__main__': main()\n"
)
STARTUP_SECONDS = 2.0  # until a resumed run is at work again: it imports torch and checks what is done

SAME = (
    "corpus/documents.parquet",
    "corpus/dropped.parquet",
    "corpus/funnel.json",
    "tokenizer/tokenizer.json",
    "tokens/train.bin",
    "tokens/train.idx",
    "tokens/held_out.bin",
    *(f"{stage}/model.safetensors" for stage in ("base", "sft", "reward", "dpo", "ppo")),
    *(f"{stage}/training/metrics.jsonl" for stage in ("base", "sft", "reward", "dpo", "ppo")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=Path("tiny"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--undisturbed", type=Path, help="a finished run of the recipe to compare with; made if not given")
    options, _ = parser.parse_known_args()  # run_all hands every script the same arguments
    with tempfile.TemporaryDirectory() as folder:
        kill(options, options.undisturbed or Path(folder) / "undisturbed", Path(folder) / "killed")


def kill(options: argparse.Namespace, undisturbed_folder: Path, killed: Path) -> None:
    undisturbed = finished_run(undisturbed_folder, options.recipe)
    moments = random.Random(options.seed)
    total = undisturbed["seconds"]["all"]
    kills, runs, done = 0, 0, False
    start = time.monotonic()
    different: set[str] = set()
    while not done:
        run = killed / str(runs)
        command = [sys.executable, "-c", OFTEN, "run", str(options.recipe), "--run", str(run)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        # Spread so that twenty kills fall over the whole run: each attempt works for a twentieth of it, more or less.
        work = moments.uniform(0, 2) * total / options.kills
        wait = STARTUP_SECONDS + work if kills < options.kills else None
        try:
            _, errors = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            print(f"killed after {wait:.1f} s; at work: {[p.name for p in run.glob('*.partial')]}", flush=True)
            continue
        if process.returncode:
            sys.exit(f"after {kills} kills the run failed: {errors.splitlines()[-1]}")
        different |= {name for name in SAME if digest(undisturbed_folder / name) != digest(run / name)}
        runs, done = runs + 1, kills == options.kills
    minutes = (time.monotonic() - start) / 60
    print(f"{kills} kills of {runs} runs, {minutes:.1f} min; undisturbed {total / 60:.1f}; different: {sorted(different)}")
    claim = f"files that differ after twenty kills ({options.recipe.stem} recipe)"
    conclude(claim, len(different), "files", 0, not different)


if __name__ == "__main__":
    main()
