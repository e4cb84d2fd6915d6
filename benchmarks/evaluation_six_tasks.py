"""Six tasks without examples, each a whole process, over lm-eval's hf model: geometric mean of how many times faster.

PIQA, ARC easy, HellaSwag, WinoGrande, LAMBADA and BLiMP; the model is that of `evaluation_lm_eval.py`. Where answers can be
listed by letters ours has nine figures, lm-eval two. Both sides alternate; accuracies must be equal.
"""

import argparse
import gzip
import json
import math
import tempfile
import time
from itertools import islice
from pathlib import Path

from common import ROOT, conclude
from evaluation_lm_eval import CLOSE, OURS, PEER, measured, save, shown

BAR = 4.0
MULTIPLE = "output_type: multiple_choice\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
TASKS = {
    "piqa": MULTIPLE + 'doc_to_text: "{{query}}Answer:"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n',
    "arc_easy": MULTIPLE + 'doc_to_text: "{{query}}\\nAnswer:"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n',
    "hellaswag": MULTIPLE + 'doc_to_text: "{{query}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n',
    "winogrande": MULTIPLE
    + 'doc_to_text: gold\ndoc_to_choice: "{{context_options}}"\ndoc_to_target: "{{continuation}}"\n',
    "lambada": "output_type: loglikelihood\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    'doc_to_text: "{{context}}"\ndoc_to_target: " {{continuation}}"\n',
    "blimp": MULTIPLE + 'doc_to_text: ""\ndoc_to_choice: "{{[sentence_good, sentence_bad]}}"\ndoc_to_target: 0\n',
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    parser.add_argument("--examples", type=int, default=500, help="of each task")
    parser.add_argument("--batch", default="16", help="of lm-eval")
    parser.add_argument("--tasks", default=",".join(TASKS))
    options = parser.parse_args()
    claim = __doc__.splitlines()[0]
    data = options.data / "benchmarks"
    if not (data / "piqa.jsonl.gz").exists():
        return conclude(claim, None, "times", BAR, None, reason="the benchmarks' files are missing; give --data DIR")
    ratios, processor, same = [], [], True
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        save(work / "model", data)
        for task in options.tasks.split(","):
            write(work, data, task, options.examples)
            ours = measured(OURS, str(work / "model"), str(work / f"{task}.jsonl"), task, str(time.time()))
            theirs = measured(PEER, str(work / "model"), str(work), options.batch, f"plain_{task}", "0")
            [mine] = [one["accuracy"] for kind, one in ours["scores"].items() if kind == "answer"]
            same = same and abs(mine - theirs["scores"][f"plain_{task}"]["acc,none"]) < CLOSE
            ratios.append(theirs["seconds"] / ours["seconds"])
            processor.append(theirs["processor"] / ours["processor"])
            print(f"{task}: ours {shown(ours)}; lm-eval {shown(theirs)}: {ratios[-1]:.1f} times", flush=True)
    mean, of_processor = (math.exp(sum(map(math.log, some)) / len(some)) for some in (ratios, processor))
    print(f"geometric mean {mean:.1f} times, of processor time {of_processor:.1f}; accuracies {'equal' if same else 'NOT EQUAL'}")
    conclude(claim, mean, "times", BAR, mean >= BAR and same)


def write(work: Path, data: Path, task: str, count: int) -> None:
    """The same rows for both, and lm-eval's file for them."""
    path = data / f"{'hellaswag_1000' if task == 'hellaswag' else task}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        (work / f"{task}.jsonl").write_text("".join(islice(file, count)), encoding="utf-8")
    files = json.dumps({"test": str(work / f"{task}.jsonl")})
    (work / f"plain_{task}.yaml").write_text(
        f"task: plain_{task}\ndataset_path: json\ndataset_kwargs: {{cache_dir: {work}/cache, data_files: {files}}}\n"
        f"test_split: test\n{TASKS[task]}"
    )


if __name__ == "__main__":
    main()
