"""The law that `--minutes` goes by: its ladder's largest runs, held out, within 1.5 %, one of four times the FLOP within 3 %.

`--runs FILE ...` (tables of runs, as `groundup scale run` writes them) fits it again, `--larger FILE` has runs beyond that
ladder, `--pilots FILE` those that a plan begins with; with `--write --text NAME --how TEXT` that becomes the shipped one.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from common import conclude
from groundup.core.files import write_text
from groundup.scaling import laws, time_budget
from groundup.scaling.run_table import Runs, read, runs_of

BAR, LARGER_BAR = 0.015, 0.03
TRANSFER = 0.1  # of a loss on another text, beyond the law's own interval: the laptop recipe's came out 2 to 6 % lower
Predictions = list[dict[str, float]]


def predicted(known: Runs, others: Runs) -> Predictions:
    """Other runs, predicted from those that are known; of seeds of one size and length their mean."""
    fitted, rows = laws.fit(known, curved=True), []
    for n, d, flop in sorted(set(zip(others.parameters, others.tokens, others.flop, strict=True)), key=lambda cell: cell[2]):
        loss = float(others.loss[(others.parameters == n) & (others.tokens == d)].mean())
        prediction = fitted.predict(n, d)
        rows.append({
            "parameters": n, "tokens": d, "loss": loss,
            "predicted": prediction["value"], "low": prediction["low"], "high": prediction["high"],
            "error": prediction["value"] / loss - 1, "times_the_largest": flop / known.flop.max(),
        })  # fmt: skip
    return rows


def held_out(runs: Runs, count: int = 2) -> Predictions:
    """Those of most compute, all seeds of each size and length, predicted from the others."""
    largest = np.isin(runs.flop, np.unique(runs.flop)[-count:])
    return predicted(runs.where(~largest), runs.where(largest))


def pilots_ratios(law: laws.Law, pilots: Runs) -> dict[str, float]:
    """Of each length of pilots the geometric mean of measured over predicted: they are shorter than any run of the ladder."""
    ratios = pilots.loss / law.loss(pilots.parameters, pilots.tokens)
    return {str(length): float(np.exp(np.log(ratios[pilots.tokens == length]).mean())) for length in time_budget.PILOTS}


def write(runs: Runs, errors: Predictions, larger: Predictions, pilots: Runs, text: str, how: str) -> None:
    fitted = laws.fit(runs, curved=True)
    rows = zip(runs.parameters.tolist(), runs.tokens.tolist(), runs.loss.tolist(), strict=True)
    content = {
        "made": datetime.now(UTC).date().isoformat(), "text": text, "how": how, "runs": len(runs), "held_out": errors,
        "larger": larger, "transfer": TRANSFER, "pilots": pilots_ratios(fitted.law, pilots),
        "law": {name: getattr(fitted.law, name) for name in laws.FIELDS},
        "table": [dict(zip(("parameters", "tokens", "loss"), row, strict=True)) for row in rows],
        "residuals": [float(f"{value:.4g}") for value in fitted.residuals],
        "draws": {name: [float(f"{value:.6g}") for value in getattr(fitted.draws, name)] for name in laws.FIELDS},
    }  # fmt: skip
    write_text(time_budget.FILE, json.dumps(content) + "\n")


def joined(paths: list[Path]) -> Runs:
    tables = [read(path) for path in paths]
    names = ("parameters", "tokens", "loss", "flop")
    return runs_of(*(np.concatenate([getattr(table, name) for table in tables]) for name in names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="+")
    parser.add_argument("--larger", type=Path, nargs="*", default=[])
    parser.add_argument("--pilots", type=Path, nargs="*", default=[])
    parser.add_argument("--text", default="")
    parser.add_argument("--how", default="")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write and not options.pilots:
        parser.error("--write needs --pilots: of both lengths that plans begin with")
    if options.runs:
        runs = joined(options.runs)
        errors, larger = held_out(runs), predicted(runs, joined(options.larger)) if options.larger else []
        if options.write:
            write(joined([*options.runs, *options.larger]), errors, larger, joined(options.pilots), options.text, options.how)
    else:
        errors, larger = (time_budget.shipped().about[name] for name in ("held_out", "larger"))
    for row in [*errors, *larger]:
        covered = "inside" if row["low"] <= row["loss"] <= row["high"] else "outside"
        print(
            f"{row['parameters'] / 1e6:.2f}M parameters, {row['tokens'] / 1e6:.2f}M tokens, {row['times_the_largest']:.2f} times "
            f"the FLOP of the largest known: {row['loss']:.3f}, predicted {row['predicted']:.3f} ({row['low']:.3f} to "
            f"{row['high']:.3f}, {covered}), {row['error']:+.2%}"
        )
    worst, far = (max((abs(row["error"]) for row in rows), default=0.0) for rows in (errors, larger))
    print(f"largest error beyond the ladder {far:.2%}, where {LARGER_BAR:.0%} are allowed")
    holds = worst <= BAR and far <= LARGER_BAR
    conclude("largest error of the shipped law on the two largest of its ladder", worst, "share", BAR, holds)


if __name__ == "__main__":
    main()
