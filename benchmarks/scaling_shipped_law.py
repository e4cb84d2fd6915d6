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
from groundup.scaling.run_table import Runs, of, read

BAR, LARGER_BAR = 0.015, 0.03
TRANSFER = 0.1  # of a loss on another text, beyond the law's own interval: the laptop recipe's came out 2 to 6 % lower
Told = list[dict[str, float]]


def told(known: Runs, others: Runs) -> Told:
    """Other runs, predicted from those that are known; of seeds of one size and length their mean."""
    fitted, found = laws.fit(known, curved=True), []
    for n, d, flop in sorted(set(zip(others.parameters, others.tokens, others.flop, strict=True)), key=lambda cell: cell[2]):
        loss = float(others.loss[(others.parameters == n) & (others.tokens == d)].mean())
        one = fitted.predict(n, d)
        found.append({
            "parameters": n, "tokens": d, "loss": loss, "predicted": one["value"], "low": one["low"], "high": one["high"],
            "error": one["value"] / loss - 1, "times_the_largest": flop / known.flop.max(),
        })  # fmt: skip
    return found


def held_out(runs: Runs, count: int = 2) -> Told:
    """Those of most compute, all seeds of each size and length, predicted from the others."""
    most = np.isin(runs.flop, np.unique(runs.flop)[-count:])
    return told(runs.where(~most), runs.where(most))


def pilots_ratios(law: laws.Law, pilots: Runs) -> dict[str, float]:
    """Of each length of pilots the geometric mean of measured over predicted: they are shorter than any run of the ladder."""
    ratios = pilots.loss / law.loss(pilots.parameters, pilots.tokens)
    return {str(length): float(np.exp(np.log(ratios[pilots.tokens == length]).mean())) for length in time_budget.PILOTS}


def write(runs: Runs, errors: Told, larger: Told, pilots: Runs, text: str, how: str) -> None:
    fitted = laws.fit(runs, curved=True)
    rows = zip(runs.parameters.tolist(), runs.tokens.tolist(), runs.loss.tolist(), strict=True)
    content = {
        "made": datetime.now(UTC).date().isoformat(), "text": text, "how": how, "runs": len(runs), "held_out": errors,
        "larger": larger, "transfer": TRANSFER, "pilots": pilots_ratios(fitted.law, pilots),
        "law": {name: getattr(fitted.law, name) for name in laws.FIELDS},
        "table": [dict(zip(("parameters", "tokens", "loss"), row, strict=True)) for row in rows],
        "residuals": [float(f"{one:.4g}") for one in fitted.residuals],
        "draws": {name: [float(f"{one:.6g}") for one in getattr(fitted.draws, name)] for name in laws.FIELDS},
    }  # fmt: skip
    write_text(time_budget.FILE, json.dumps(content) + "\n")


def joined(paths: list[Path]) -> Runs:
    tables = [read(path) for path in paths]
    return of(*(np.concatenate([getattr(one, name) for one in tables]) for name in ("parameters", "tokens", "loss", "flop")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="+")
    parser.add_argument("--larger", type=Path, nargs="*", default=[])
    parser.add_argument("--pilots", type=Path, nargs="*", default=[])
    parser.add_argument("--text", default="")
    parser.add_argument("--how", default="")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if given.write and not given.pilots:
        parser.error("--write needs --pilots: of both lengths that plans begin with")
    if given.runs:
        runs = joined(given.runs)
        errors, larger = held_out(runs), told(runs, joined(given.larger)) if given.larger else []
        if given.write:
            write(joined([*given.runs, *given.larger]), errors, larger, joined(given.pilots), given.text, given.how)
    else:
        errors, larger = (time_budget.shipped().about[name] for name in ("held_out", "larger"))
    for one in [*errors, *larger]:
        covered = "inside" if one["low"] <= one["loss"] <= one["high"] else "outside"
        print(
            f"{one['parameters'] / 1e6:.2f}M parameters, {one['tokens'] / 1e6:.2f}M tokens, {one['times_the_largest']:.2f} times "
            f"the FLOP of the largest known: {one['loss']:.3f}, predicted {one['predicted']:.3f} ({one['low']:.3f} to "
            f"{one['high']:.3f}, {covered}), {one['error']:+.2%}"
        )
    worst, far = (max((abs(one["error"]) for one in some), default=0.0) for some in (errors, larger))
    print(f"largest error beyond the ladder {far:.2%}, where {LARGER_BAR:.0%} are allowed")
    holds = worst <= BAR and far <= LARGER_BAR
    conclude("largest error of the shipped law on the two largest of its ladder", worst, "share", BAR, holds)


if __name__ == "__main__":
    main()
