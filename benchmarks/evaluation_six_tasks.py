"""Six tasks without examples, each a whole process, over lm-eval's hf model: geometric mean of how many times faster.

PIQA, ARC easy, HellaSwag, WinoGrande, LAMBADA and BLiMP; the model is that of `evaluation_lm_eval.py`, and as there lm-eval is
asked for those of our figures that it has: the answer by sum, by character, by byte and by PMI, and, where ours lists the
answers by letters, the letter. Both sides alternate; accuracies must be equal.
"""

import argparse
import gzip
import json
import math
import tempfile
from itertools import islice
from pathlib import Path

from common import ROOT, conclude
from evaluation_lm_eval import CLOSE, PEER, evaluated, measured, save, shown

BAR = 4.0
METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")


def multiple(*metrics: str) -> str:
    listed = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]
    return f"output_type: multiple_choice\nmetric_list: {json.dumps(listed)}\n"


TASKS = {
    "piqa": multiple(*METRICS) + 'doc_to_text: "{{query}}Answer:"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n',
    "arc_easy": multiple(*METRICS) + 'doc_to_text: "{{query}}\\nAnswer:"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n',
    "hellaswag": multiple(*METRICS) + 'doc_to_text: "{{query}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n',
    "winogrande": multiple("acc")
    + 'doc_to_text: gold\ndoc_to_choice: "{{context_options}}"\ndoc_to_target: "{{continuation}}"\n',
    "lambada": "output_type: loglikelihood\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    'doc_to_text: "{{context}}"\ndoc_to_target: " {{continuation}}"\n',
    "blimp": multiple("acc") + 'doc_to_text: ""\ndoc_to_choice: "{{[sentence_good, sentence_bad]}}"\ndoc_to_target: 0\n',
}
LISTED = "{% for one in choices %}{{ 'ABCDE'[loop.index0] }}. {{ one }}\\n{% endfor %}Answer:"
LETTERS = {
    task: multiple("acc") + f'doc_to_text: "{{{{query}}}}{between}{LISTED}"\n'
    'doc_to_choice: "{{ \'ABCDE\'[:choices | length] | list }}"\ndoc_to_target: gold\n'
    for task, between in (("piqa", ""), ("arc_easy", "\\n"))
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
            ours = evaluated(work / "model", work / f"{task}.jsonl", task)
            peer_tasks = [f"plain_{task}", *([f"letter_{task}"] if task in LETTERS else [])]
            theirs = measured(PEER, str(work / "model"), str(work), options.batch, ",".join(peer_tasks), "0")
            for name, convention in zip(peer_tasks, ("answer", "letter"), strict=False):
                mine = ours["scores"][convention]["accuracy"]
                same = same and abs(mine - theirs["scores"][name]["acc,none"]) < CLOSE
            ratios.append(theirs["seconds"] / ours["seconds"])
            processor.append(theirs["processor"] / ours["processor"])
            print(f"{task}: ours {shown(ours)}; lm-eval {shown(theirs)}: {ratios[-1]:.1f} times", flush=True)
    mean, of_processor = (math.exp(sum(map(math.log, values)) / len(values)) for values in (ratios, processor))
    print(f"geometric mean {mean:.1f} times, of processor time {of_processor:.1f}; accuracies {'equal' if same else 'NOT EQUAL'}")
    conclude(claim, mean, "times", BAR, mean >= BAR and same)


def write(work: Path, data: Path, task: str, count: int) -> None:
    """The same rows for both, and lm-eval's file for them."""
    path = data / f"{'hellaswag_1000' if task == 'hellaswag' else task}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        (work / f"{task}.jsonl").write_text("".join(islice(file, count)), encoding="utf-8")
    files = json.dumps({"test": str(work / f"{task}.jsonl")})
    for name, shape in (("plain", TASKS), ("letter", LETTERS)):
        if task in shape:
            (work / f"{name}_{task}.yaml").write_text(
                f"task: {name}_{task}\ndataset_path: json\ndataset_kwargs: {{cache_dir: {work}/cache, data_files: {files}}}\n"
                f"test_split: test\n{shape[task]}"
            )


if __name__ == "__main__":
    main()
