"""Contamination: the order test's p for a file that was trained on ten times; uniform where it was not; planted 13-grams.

A decoder of 2 x 128 is trained for a few hundred steps on lines of made-up words, among them the file's 100 lines, ten times in
their order. The same model is asked for 20 files that it never saw (Kolmogorov-Smirnov against the uniform distribution), and
for the file in another order. Of MMLU's questions every seventh is planted in one of 1,000 real documents of encyclopaedia, web
and novels: all must be found, and none in the documents without them.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from scipy import stats

from common import arguments, conclude
from contaminated import train
from groundup.corpus.dedup.decontamination import index_examples
from groundup.data.readers import Refused
from groundup.evaluation.contamination import documents_with, exchangeable, order_test
from groundup.evaluation.example_files import rows_of
from groundup.evaluation.open_model import open_model
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer

BAR, SEEDS, CLEAN = 1e-3, 20, 1000
CHANCE = random.Random(0)
WORDS = ["".join(CHANCE.choice("bdfgklmnprstvz") + CHANCE.choice("aeiou") for _ in range(3)) for _ in range(300)]


def main() -> None:
    data = arguments(__doc__).data
    start = time.monotonic()
    planted = lines(1)
    with tempfile.TemporaryDirectory() as name:
        tokenizer = Tokenizer.from_merges(bpe.train(bpe.count_pretokens(lines(2, 400)), 1200))
        train(Path(name) / "model", tokenizer, planted, [lines(seed, 20) for seed in range(10, 30)])
        model = open_model(str(Path(name) / "model"))
    trained = time.monotonic() - start
    test = order_test(model, of(planted))
    print(f"trained on ten times: p {test['p']:.2g}, t {test['t']:.1f}, {test['shards']} shards ({trained:.0f} s of training)")
    other = order_test(model, of(random.Random(1).sample(planted, len(planted))))["p"]
    print(f"the same lines in another order: p {other:.2g}")
    ps = [order_test(model, of(lines(seed)), permutations=10, seed=seed)["p"] for seed in range(100, 100 + SEEDS)]
    uniform = stats.kstest(ps, "uniform").pvalue
    print(f"{SEEDS} files that were not: p from {min(ps):.2g} to {max(ps):.2g}, KS p {uniform:.2f}")
    holds = test["p"] < BAR and uniform > 0.05
    claim = "order test: p of a file that was trained on ten times, uniform on 20 others; 13-grams find all that was planted"
    questions = data / "benchmarks" / "mmlu_test.csv.gz"
    if not questions.is_file():
        return conclude(claim, test["p"], "p", BAR, None, reason=f"{questions} is missing; give --data DIR")
    holds &= overlap(questions, data / "text")
    conclude(claim, test["p"], "p", BAR, holds, peer="KS p of 20 clean files", peer_figure=uniform)


def lines(seed: int, count: int = 100) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choice(WORDS) for _ in range(6)) for _ in range(count)]


def of(texts: list[str]) -> object:
    return exchangeable([{"text": text} for text in texts], "lines")


def overlap(questions: Path, texts: Path) -> bool:
    rows = [row for _, row in rows_of(questions, Refused())][::5]
    forms = [["\n".join(str(row[key]) for key in ("question", *"ABCD"))] for row in rows]
    indexed = index_examples(["mmlu"], ((0, number, form) for number, form in enumerate(forms)))
    clean: list[str] = []
    for name in ("wikipedia_mix", "c4_demo", "novels100", "msdocs"):
        clean += pq.read_table(texts / f"{name}.parquet", columns=["text"]).column("text").to_pylist()[: CLEAN - len(clean)]
    clean = [text[:20_000] for text in clean]
    wanted = [example for example in range(len(indexed.examples)) if example % 7 == 0]
    documents = list(clean)
    for number, example in enumerate(wanted):
        text = documents[number % len(documents)]
        middle = len(text) // 2
        documents[number % len(documents)] = f"{text[:middle]}\n{forms[indexed.examples[example][1]][0]}\n{text[middle:]}"
    matches = documents_with(indexed, documents).documents_of
    alarms = documents_with(indexed, clean).documents_of
    missed, more = len(set(wanted) - set(matches)), len(set(matches) - set(wanted))
    print(
        f"13-grams: {len(indexed.examples)} MMLU questions ({indexed.too_short[0]} too short), {len(wanted)} planted in "
        f"{len(documents)} documents: {missed} missed, {more} more that share a passage or answers with those; "
        f"{len(alarms)} in the documents without them"
    )
    for example in list(alarms)[:5]:
        print("  ", forms[indexed.examples[example][1]][0][:200].replace("\n", " "), file=sys.stderr)
    return not missed and not alarms


if __name__ == "__main__":
    main()
