"""PandaLM's three annotators (999 pairs, with ties) through `groundup label import` and `report`: Cohen's kappa of each two.

Published (Wang et al. 2023, as their file gives them): 0.852, 0.879 and 0.862. Beside them Krippendorff's alpha, against that of
the `krippendorff` package where it is installed.
"""

import gzip
import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np

from common import arguments, conclude, groundup

PUBLISHED = (0.852, 0.862, 0.879)  # in order of size
CHOICE = {0: "tie", 1: "a", 2: "b"}


def main() -> None:
    file = arguments(__doc__).data / "preferences" / "pandalm_3annotators.json.gz"
    claim = "PandaLM's three annotators: largest distance of Cohen's kappa from the published"
    if not file.is_file():
        return conclude(claim, None, "kappa", 5e-4, None, reason=f"{file} is missing; give --data DIR")
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        rows = json.load(stream)
    with tempfile.TemporaryDirectory() as name:
        log, project = Path(name) / "judgements.jsonl", Path(name) / "labels.db"
        log.write_text("".join(json.dumps(event) + "\n" for row in rows for event in events(row)), encoding="utf-8")
        results = []
        for command in (("import", str(log), "--out", str(project), "--overlap", "3"), ("report", str(project))):
            done = groundup("label", *command)
            if done.returncode:
                raise SystemExit(done.stderr)
            results.append(json.loads(done.stdout.splitlines()[-1]))
        print(done.stderr)
    brought, report = results
    print(f"{brought['pairs']} pairs, {brought['judgements']} judgements; dropped: {brought['dropped']}")
    alphas = None
    if importlib.util.find_spec("krippendorff"):
        import krippendorff

        theirs = np.array([[row[f"annotator{n}"] for row in rows] for n in (1, 2, 3)])
        alpha = krippendorff.alpha(reliability_data=theirs, level_of_measurement="nominal")
        alphas = f"Krippendorff's alpha {report['krippendorff_alpha']:.6f}, of the package on the file {alpha:.6f}"
        print(alphas)
    kappas = sorted(report["cohen_kappa"].values())
    distance = max(abs(ours - theirs) for ours, theirs in zip(kappas, PUBLISHED, strict=True))
    conclude(claim, distance, "kappa", 5e-4, distance <= 5e-4, peer=alphas)


def events(row: dict) -> list[dict]:
    prompt = "\n\n".join(filter(None, (row["instruction"], row["input"])))
    # Their file has answers that were taken for numbers and truth values.
    answers = {"a": str(row["response1"]), "b": str(row["response2"])}
    pair = {"pair_id": f"{row['idx']}-{row['cmp_key']}", "prompt": prompt, **answers}
    return [{**pair, "annotator": f"annotator {n}", "choice": CHOICE[row[f"annotator{n}"]], "shown_left": "a"} for n in (1, 2, 3)]


if __name__ == "__main__":
    main()
