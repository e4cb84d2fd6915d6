"""The shipped law predicts the two largest of its own runs, held out, within 1.5 % of their loss.

`--runs FILE ...` (tables of runs, as `groundup scale run` writes them) fits it again; with `--write --text NAME --how TEXT` that
becomes the shipped one.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from common import conclude
from groundup.core.files import write_text
from groundup.scaling import dial, laws
from groundup.scaling.runs import Runs, of, read

BAR = 0.015
DELTA = 0.1  # least squares: of a few runs at each size none may be passed over as an outlier
TRANSFER = 0.05  # of a loss on another text, beyond the law's own interval: assumed, not measured


def held_out(runs: Runs, count: int = 2) -> list[dict[str, float]]:
    """The runs of most compute, predicted from the others."""
    order = np.argsort(runs.flop, kind="stable")
    fitted = laws.fit(runs.where(order[:-count]), delta=DELTA)
    found = []
    for number in order[-count:]:
        told = fitted.predict(runs.parameters[number], runs.tokens[number])
        found.append({
            "parameters": runs.parameters[number], "tokens": runs.tokens[number], "loss": runs.loss[number],
            "predicted": told["value"], "low": told["low"], "high": told["high"], "error": told["value"] / runs.loss[number] - 1,
        })  # fmt: skip
    return found


def write(runs: Runs, errors: list[dict[str, float]], text: str, how: str) -> None:
    fitted = laws.fit(runs, delta=DELTA)
    rows = zip(runs.parameters.tolist(), runs.tokens.tolist(), runs.loss.tolist(), strict=True)
    content = {
        "made": datetime.now(UTC).date().isoformat(), "text": text, "how": how, "runs": len(runs), "held_out": errors,
        "transfer": TRANSFER, "law": {name: getattr(fitted.law, name) for name in laws.NAMES[:5]},
        "table": [dict(zip(("parameters", "tokens", "loss"), row, strict=True)) for row in rows],
        "residuals": [float(f"{one:.4g}") for one in fitted.residuals],
        "draws": {name: [float(f"{one:.6g}") for one in getattr(fitted.draws, name)] for name in laws.NAMES[:5]},
    }  # fmt: skip
    write_text(dial.FILE, json.dumps(content) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="+")
    parser.add_argument("--text", default="")
    parser.add_argument("--how", default="")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if given.runs:
        tables = [read(path) for path in given.runs]
        columns = (np.concatenate([getattr(one, name) for one in tables]) for name in ("parameters", "tokens", "loss", "flop"))
        runs = of(*columns)
        errors = held_out(runs)
        if given.write:
            write(runs, errors, given.text, given.how)
    else:
        errors = dial.shipped().about["held_out"]
    for one in errors:
        print(
            f"{one['parameters'] / 1e6:.2f}M parameters, {one['tokens'] / 1e6:.2f}M tokens: {one['loss']:.3f}, predicted "
            f"{one['predicted']:.3f} ({one['low']:.3f} to {one['high']:.3f}), {one['error']:+.2%}"
        )
    worst = max(abs(one["error"]) for one in errors)
    conclude("largest error of the shipped law on the two largest of its runs", worst, "share", BAR, worst <= BAR)


if __name__ == "__main__":
    main()
