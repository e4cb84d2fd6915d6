"""Toxicity classifier against the word list it shall beat, on a held-out fifth of Davidson et al. 2017 (tweets judged
by people as hate speech, offensive or neither); and HateCheck (Röttger et al. 2021) by functionality, as it is.

Toxic here is hate speech or offensive. HateCheck asks for hate alone and was made to break such classifiers: slurs
reclaimed, hate quoted to condemn it, hate without a bad word.
"""

import csv
import gzip
import io
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from common import arguments, conclude
from groundup.core.words import split
from groundup.corpus.classify import toxicity
from groundup.corpus.classify.linear import Classifier

BAR_POINTS = 15.0


def main() -> None:
    data = arguments(__doc__).data / "safety"
    claim = "toxicity classifier over the word list, macro-F1 on a held-out fifth of davidson_labeled"
    if not (data / "davidson_labeled.csv.gz").exists():
        conclude(claim, None, "points", BAR_POINTS, None, reason=f"{data} is missing")
        return
    with tempfile.TemporaryDirectory() as folder:
        toxic, harmless = Path(folder) / "toxic.jsonl", Path(folder) / "harmless.jsonl"
        rows = _rows(data / "davidson_labeled.csv.gz")
        for path, wanted in ((toxic, ("0", "1")), (harmless, ("2",))):
            lines = [json.dumps({"text": row["tweet"]}) for row in rows if row["class"] in wanted]
            path.write_text("\n".join(lines))
        result = toxicity.train([toxic], [harmless], Path(folder) / "toxicity.npz")
        classifier = Classifier.load(Path(folder) / "toxicity.npz")
    print(f"{result['held_out']:,} of {len(rows):,} tweets held out")
    print(f"macro-F1: classifier {result['held_out_macro_f1']:.3f}, word list {result['word_list_macro_f1']:.3f}")
    _hatecheck(_rows(data / "hatecheck_cases.csv.gz"), classifier)
    points = 100 * (result["held_out_macro_f1"] - result["word_list_macro_f1"])
    conclude(claim, points, "points", BAR_POINTS, points >= BAR_POINTS)


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _hatecheck(cases: list[dict[str, str]], classifier: Classifier) -> None:
    right: dict[tuple[str, str], list[tuple[bool, bool]]] = defaultdict(list)
    for case in cases:
        words = split(case["test_case"])
        hateful = case["label_gold"] == "hateful"
        verdicts = (toxicity.score(classifier, words)[0] >= 0.5, toxicity.shipped_list().count(words) > 0)
        right[case["functionality"], case["label_gold"]].append(tuple(verdict == hateful for verdict in verdicts))
    print(f"{'HateCheck: share right':<28} {'gold':<12} {'cases':>5}  classifier  word list")
    for (name, gold), verdicts in right.items():
        shares = np.mean(verdicts, axis=0)
        print(f"{name:<28} {gold:<12} {len(verdicts):>5}  {shares[0]:>10.2f}  {shares[1]:>9.2f}")
    overall = np.mean([verdict for verdicts in right.values() for verdict in verdicts], axis=0)
    print(f"{'all':<28} {'':<12} {len(cases):>5}  {overall[0]:>10.2f}  {overall[1]:>9.2f}")


if __name__ == "__main__":
    main()
