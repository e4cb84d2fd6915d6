"""Log-likelihoods of every answer on real rows of a dozen tasks: the largest difference from lm-eval's hf model, in nats.

One folder, that of `evaluation_lm_eval.py`, and the same files: PIQA, ARC easy and challenge, HellaSwag, WinoGrande, COPA,
LAMBADA, three kinds of BLiMP, two subjects of MMLU without and with five examples. Three sides: `groundup evaluate`, lm-eval
with its hf model, and lm-eval that drives our object. Accuracies must be equal on all three. lm-eval's sums are in float64 by its
own setting, as ours are: in float32, its default, a sum of 500 nats over sixty tokens is itself no nearer than 1e-4.
"""

import argparse
import gzip
import json
import tempfile
from itertools import islice
from pathlib import Path

from common import ROOT, conclude
from evaluation_lm_eval import write as write_mmlu
from evaluation_six_tasks import METRICS, TASKS, multiple
from groundup.evaluation import evaluate as evaluation
from groundup.evaluation.open_model import open_model
from groundup.evaluation.scoring import records_of
from groundup.evaluation.tasks import load, open_task

BAR = 1e-4
KINDS = ("adjunct_island", "anaphor_gender_agreement", "wh_questions_subject_gap")
CHOICES = 'doc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
PLAIN = {
    **TASKS,
    "arc_challenge": TASKS["arc_easy"],
    "copa": multiple(*METRICS) + 'target_delimiter: "  "\ndoc_to_text: "{{query}}"\n' + CHOICES,
}
SUBJECTS = ("anatomy", "virology")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    parser.add_argument("--examples", type=int, default=20, help="of each task")
    options = parser.parse_args()
    claim, data = __doc__.splitlines()[0], options.data / "benchmarks"
    if not (data / "piqa.jsonl.gz").exists():
        return conclude(claim, None, "nats", BAR, None, reason="the benchmarks' files are missing; give --data DIR")
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        from groundup.evaluation.lm_eval_model import GroundupLM
    except ImportError:
        return conclude(claim, None, "nats", BAR, None, reason="lm-eval is missing: pip install 'groundup[bench]'")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_mmlu(work, data, options.examples, Path(lm_eval.__file__).with_name("tasks") / "mmlu")
        plain = write(work, data, options.examples)
        manager = TaskManager(include_path=str(work), include_defaults=False)
        folder = str(work / "model")
        sides = [HFLM(folder, device="cpu", dtype="float32", batch_size=8, softmax_dtype="float64"), GroundupLM(folder, 16)]
        model, worst, same = open_model(folder), 0.0, True
        task_groups = [(plain, 0), *(([f"ours_default_{subject}" for subject in SUBJECTS], shots) for shots in (0, 5))]
        for tasks, shots in task_groups:
            samples = [
                lm_eval.simple_evaluate(side, tasks=tasks, num_fewshot=shots, task_manager=manager, bootstrap_iters=0)["samples"]
                for side in sides
            ]
            for task in tasks:
                nats, accuracy = ours(model, work, task, shots)
                others = [sorted(side[task], key=lambda sample: sample["doc_id"]) for side in samples]
                apart = [max(distance(*pair) for pair in zip(nats, theirs, strict=True)) for theirs in others]
                right = [sum(sample["acc"] for sample in theirs) / len(theirs) for theirs in others]
                equal = all(abs(share - accuracy) < 1e-9 for share in right)
                worst, same = max(worst, *apart), same and equal
                print(
                    f"{task}, {shots} examples: {sum(map(len, nats))} likelihoods, {apart[0]:.1e} from hf's, {apart[1]:.1e} from "
                    f"our object's; accuracy {accuracy:.3f} {'equal' if equal else right}",
                    flush=True,
                )
    conclude(claim, worst, "nats", BAR, worst <= BAR and same)


def distance(nats: list[float], sample: dict) -> float:
    """The largest between our likelihoods of an example's answers and theirs, behind which those without the question follow."""
    return max(abs(ours - theirs[0][0]) for ours, theirs in zip(nats, sample["resps"][: len(nats)], strict=True))


def ours(model: object, work: Path, task: str, shots: int) -> tuple[list[list[float]], float]:
    """Likelihoods of each example's answers, and the accuracy."""
    subject = task.removeprefix("ours_default_")
    name = "mmlu" if subject != task else "blimp" if task.startswith("blimp") else task.removeprefix("plain_")
    opened = open_task(name, work if name == "mmlu" else work / f"{task}.jsonl", shots if name == "mmlu" else None)
    examples = load(opened)
    if name == "mmlu":
        examples.rows[:] = [row for row in examples.rows if row.group == subject]
    records = records_of(model, opened, examples.rows)
    summary = evaluation.summary(opened, examples, records)
    if name == "lambada":
        return [[record["nats"]] for record in records], summary["accuracy"]["answer"]["accuracy"]
    kind = "letter" if name == "mmlu" else "answer"
    return [record[f"{kind}s"] for record in records], summary["accuracy"][kind]["accuracy"]


def write(work: Path, data: Path, count: int) -> list[str]:
    """The same rows for all sides, and lm-eval's file for them: names of its tasks."""
    names = []
    for task in (*(task for task in PLAIN if task != "blimp"), *(f"blimp_{kind}" for kind in KINDS)):
        kind = task.removeprefix("blimp_")
        source = "blimp" if kind in KINDS else task
        with gzip.open(data / f"{'hellaswag_1000' if task == 'hellaswag' else source}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = (line for line in file if source != "blimp" or json.loads(line)["UID"] == kind)
            rows = "".join(islice(lines, count))
        name = task if source == "blimp" else f"plain_{task}"
        (work / f"{name}.jsonl").write_text(rows, encoding="utf-8")
        files = json.dumps({"test": str(work / f"{name}.jsonl")})
        (work / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{cache_dir: {work}/cache, data_files: {files}}}\n"
            f"test_split: test\n{PLAIN[source]}"
        )
        names.append(name)
    return names


if __name__ == "__main__":
    main()
