"""MMLU with 5 examples, all conventions, over lm-eval's hf model for the figures that it has: seconds of the whole process.

One folder (a Qwen3 of 6 x 256 with random weights, context 1,024) and the same questions of a few subjects. lm-eval runs its
`mmlu` (the letter) and `mmlu_continuation` (the answer by sum, by character, by byte, PMI), which are five of our nine figures;
it is not made to index its 14,000 tasks. Of several rounds the fastest of each counts.
"""

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from csv import DictReader, DictWriter
from pathlib import Path

import torch

from common import ROOT, conclude
from groundup.model import model_folder
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer

BAR, CLOSE = 8.0, 1e-3
SUBJECTS = ("anatomy", "astronomy", "marketing", "virology")
# Threads that wait without spinning for long, as our command line has them: both are faster where other programs run.
ENVIRONMENT = {**os.environ, "GOMP_SPINCOUNT": "10000", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
PEER = """
import json, resource, sys
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
folder, work, batch, tasks, shots = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].split(","), int(sys.argv[5])
evaluation = lm_eval.simple_evaluate(
    model=HFLM(folder, device="cpu", dtype="float32", batch_size=batch), tasks=tasks, num_fewshot=shots, bootstrap_iters=0,
    task_manager=TaskManager(include_path=work, include_defaults=False), log_samples=False,
)
scores = {task: {k: v for k, v in row.items() if isinstance(v, float)} for task, row in evaluation["results"].items()}
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"memory": used.ru_maxrss, "processor": used.ru_utime, "scores": scores}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    parser.add_argument("--questions", type=int, default=100, help="of each subject")
    parser.add_argument("--batches", default="8", help="sizes of batch of lm-eval, a round for each")
    options = parser.parse_args()
    claim = __doc__.splitlines()[0]
    if not (options.data / "benchmarks" / "mmlu_test.csv.gz").exists():
        return conclude(claim, None, "times", BAR, None, reason="the MMLU files are missing; give --data DIR")
    try:
        import lm_eval
    except ImportError:
        return conclude(claim, None, "times", BAR, None, reason="lm-eval is missing: pip install 'groundup[bench]'")
    built_in = Path(lm_eval.__file__).with_name("tasks") / "mmlu"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tasks = write(work, options.data / "benchmarks", options.questions, built_in)
        rounds = []
        for batch in options.batches.split(","):
            ours = evaluated(work / "model", work, "mmlu")
            theirs = measured(PEER, str(work / "model"), str(work), batch, ",".join(tasks), "5")
            print(f"ours {shown(ours)}; lm-eval, batch {batch}, {shown(theirs)}", flush=True)
            rounds.append((ours, theirs))
    ours, theirs = (min(side, key=lambda figures: figures["seconds"]) for side in zip(*rounds, strict=True))
    print(
        f"{ours['n']} questions, {ours['truncated']} truncated; first records after {ours['first']:.1f} s; "
        f"processor time {theirs['processor'] / ours['processor']:.1f} times"
    )
    letter, answer = (
        sum(theirs["scores"][task]["acc,none"] for task in kind) / len(SUBJECTS) for kind in (tasks[::2], tasks[1::2])
    )
    figures = [ours["scores"][name]["accuracy"] for name in ("letter", "answer")]
    same = abs(letter - figures[0]) < CLOSE and abs(answer - figures[1]) < CLOSE
    print(f"letter {letter:.4f}, answer {answer:.4f}: {'equal' if same else 'NOT EQUAL'}")
    ratio = theirs["seconds"] / ours["seconds"]
    memory = ours["memory"] / theirs["memory"]
    conclude(claim, ratio, "times", BAR, ratio >= BAR and same, peer="share of its peak memory", peer_figure=memory)


def measured(code: str, *words: str) -> dict:
    """What the code prints, and the seconds of its process."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    if done.returncode:
        sys.exit(f"it failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.monotonic() - start}


def evaluated(model: Path, data: Path, task: str) -> dict:
    """What `groundup evaluate` finds, what its process took, and when its first records were on the disk."""
    with tempfile.TemporaryDirectory() as name:
        out, first = Path(name), 0.0
        command = [sys.executable, "-m", "groundup", "evaluate", str(model), "--task", task, "--data", str(data)]
        environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
        start = time.monotonic()
        with (out / "said").open("w") as output, (out / "told").open("w") as errors:
            process = subprocess.Popen([*command, "--out", str(out / "records")], stdout=output, stderr=errors, env=environment)
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                if not first and any(path.stat().st_size for path in out.rglob("*.jsonl")):
                    first = time.monotonic() - start
                time.sleep(0.02)
            seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        if process.returncode:
            sys.exit(f"it failed: {(out / 'told').read_text()[-2000:]}")
        [result] = json.loads((out / "said").read_text().splitlines()[-1])["results"]
    figures = {"scores": result["accuracy"], "n": result["n"], "truncated": result["truncated"]}
    return {**figures, "seconds": seconds, "first": first, "memory": ended[2].ru_maxrss, "processor": ended[2].ru_utime}


def shown(side: dict) -> str:
    return f"{side['seconds']:.1f} s ({side['processor']:.1f} of processor time), {side['memory'] / 1024:.0f} MB"


def write(work: Path, data: Path, questions: int, built_in: Path) -> list[str]:
    """The model, our files of examples, and lm-eval's tasks by subject, the letter and the answer by turns."""
    rows_of: dict[str, list[dict]] = {}
    for name, count in (("test", questions), ("dev", 5)):
        with gzip.open(data / f"mmlu_{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
            rows = [row for row in DictReader(file) if row["subject"] in SUBJECTS]
        by_subject = {subject: [row for row in rows if row["subject"] == subject] for subject in SUBJECTS}
        rows_of[name] = [row for subject in SUBJECTS for row in by_subject[subject][:count]]
    shape = [
        {"question": row["question"], "subject": row["subject"], "choices": [row[letter] for letter in "ABCD"],
         "answer": "ABCD".index(row["answer"])}
        for row in (*rows_of["test"], *rows_of["dev"])
    ]  # fmt: skip
    names = []
    for subject in SUBJECTS:
        files = {}
        for name, rows in (("test", shape[: len(rows_of["test"])]), ("dev", shape[len(rows_of["test"]) :])):
            files[name] = str(work / f"{subject}_{name}.jsonl")
            of_subject = [row for row in rows if row["subject"] == subject]
            Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in of_subject), encoding="utf-8")
        for kind in ("default", "continuation"):
            task = f"ours_{kind}_{subject}"
            names.append(task)
            metrics = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info") if kind == "continuation" else ("acc",)
            listed = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]
            (work / f"{task}.yaml").write_text(
                f"include: {built_in / kind}/mmlu_{subject}.yaml\ntask: {task}\ntag: null\ndataset_path: json\n"
                f"dataset_name: null\ndataset_kwargs: {{cache_dir: {work}/cache, data_files: {json.dumps(files)}}}\n"
                f"metric_list: {json.dumps(listed)}\n"
            )
    for name, rows in rows_of.items():
        with (work / f"mmlu_{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    save(work / "model", data)
    return names


def save(folder: Path, data: Path) -> None:
    """The model that both evaluate."""
    tokenizer = trained(data)
    model = Decoder(DecoderConfig(tokenizer.size, 256, 6, 4, 2, 64, 768, 1024))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.dim() == 1 else 0.05 * noise)
    model_folder.save(folder, model, tokenizer, chat=False)


def trained(data: Path) -> Tokenizer:
    """Of the questions of all subjects, so that five of them fit the context."""
    with gzip.open(data / "mmlu_test.csv.gz", "rt", encoding="utf-8") as file:
        words = bpe.count_pretokens([re.sub(r"\s+", " ", line) for line in file])
    return Tokenizer.from_merges(bpe.train(words, 8192))


if __name__ == "__main__":
    main()
