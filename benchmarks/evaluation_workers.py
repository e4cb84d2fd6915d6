"""Twelve tasks x three models in one command: how many times faster two processes are than one, both of one thread a process.

The models are those of `evaluation_lm_eval.py` with other weights; records must be the same bytes. Both sides alternate, and of
several rounds the fastest of each counts.
"""

import argparse
import tempfile
import time
from pathlib import Path

from common import ROOT, conclude, groundup
from evaluation_lm_eval import save
from groundup.core.executor import cores
from groundup.model.model_folder import load_decoder, save_weights

BAR = 1.8
TASKS = (
    "mmlu", "arc_easy", "arc_challenge", "piqa", "hellaswag", "copa", "blimp", "winogrande", "wsc", "crows_pairs", "lambada",
    "arithmetic",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    parser.add_argument("--limit", type=int, default=200, help="examples of each task")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    claim = __doc__.splitlines()[0]
    data = options.data / "benchmarks"
    if not (data / "mmlu_test.csv.gz").exists():
        return conclude(claim, None, "times", BAR, None, reason="the benchmarks' files are missing; give --data DIR")
    if cores() < 2:
        return conclude(claim, None, "times", BAR, None, reason="two cores are needed")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        models = three(work, data)
        words = [*models, *(word for task in TASKS for word in ("--task", task))]
        words += ["--data", str(data), "--limit", str(options.limit)]
        for number in range(options.rounds):
            for workers in seconds:
                out = work / f"{workers}-{number}"
                start = time.monotonic()
                done = groundup("evaluate", *words, "--out", str(out), "--workers", str(workers))
                if done.returncode:
                    raise SystemExit(done.stderr[-2000:])
                seconds[workers].append(time.monotonic() - start)
                print(f"{workers} processes: {seconds[workers][-1]:.1f} s", flush=True)
        same = records(work / "1-0") == records(work / "2-0") and len(records(work / "1-0")) == 36
    ratio = min(seconds[1]) / min(seconds[2])
    print(f"records of 36 files: {'the same bytes' if same else 'NOT THE SAME'}")
    conclude(claim, ratio, "times", BAR, ratio >= BAR and same)


def three(work: Path, data: Path) -> list[str]:
    save(work / "one", data)
    for number, name in enumerate(("two", "three"), 2):
        (work / name).mkdir()
        for path in (work / "one").iterdir():
            if path.suffix != ".safetensors":
                (work / name / path.name).write_bytes(path.read_bytes())
        model = load_decoder(work / "one")
        for parameter in model.parameters():
            parameter.data *= 1 + 0.01 * number
        save_weights(model, work / name)
    return [str(work / name) for name in ("one", "two", "three")]


def records(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*.jsonl")}


if __name__ == "__main__":
    main()
