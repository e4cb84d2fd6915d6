"""The shipped law predicts the two largest runs of its own ladder, held out, within 1.5 % of their loss.

`--ladder DIR` (what `groundup scale run` wrote) fits it again; with `--text NAME --tokenizer TEXT --how TEXT --write` that
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
from groundup.scaling.runs import Runs, read

BAR = 0.015
TRANSFER = 0.03  # of a loss on another text, beyond the law's own interval


def held_out(runs: Runs, count: int = 2) -> list[dict[str, float]]:
    order = np.argsort(runs.flop, kind="stable")
    fitted = laws.fit(runs.where(order[:-count]))
    found = []
    for number in order[-count:]:
        told = fitted.predict(runs.parameters[number], runs.tokens[number])
        found.append({
            "parameters": runs.parameters[number], "tokens": runs.tokens[number], "loss": runs.loss[number],
            "predicted": told["value"], "low": told["low"], "high": told["high"], "error": told["value"] / runs.loss[number] - 1,
        })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ladder", type=Path)
    parser.add_argument("--text", default="")
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--how", default="")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if given.ladder:
        runs = read(given.ladder / "runs.csv")
        errors, fitted = held_out(runs), laws.fit(runs)
        if given.write:
            content = {
                "made": datetime.now(UTC).date().isoformat(), "text": given.text, "tokenizer": given.tokenizer, "how": given.how,
                "runs": len(runs), "held_out": errors, "transfer": TRANSFER,
                "law": {name: getattr(fitted.law, name) for name in laws.NAMES[:5]},
                "draws": {name: [float(f"{one:.6g}") for one in getattr(fitted.draws, name)] for name in laws.NAMES[:5]},
                "residuals": [float(f"{one:.4g}") for one in fitted.residuals],
                "table": [dict(zip(("parameters", "tokens", "loss"), row, strict=True))
                          for row in zip(runs.parameters.tolist(), runs.tokens.tolist(), runs.loss.tolist(), strict=True)],
            }  # fmt: skip
            write_text(dial.FILE, json.dumps(content) + "\n")
    else:
        errors = dial.shipped().about["held_out"]
    for one in errors:
        print(
            f"{one['parameters'] / 1e6:.2f}M parameters, {one['tokens'] / 1e6:.2f}M tokens: {one['loss']:.3f}, predicted "
            f"{one['predicted']:.3f} ({one['low']:.3f} to {one['high']:.3f}), {one['error']:+.2%}"
        )
    worst = max(abs(one["error"]) for one in errors)
    conclude("largest error of the shipped law on its ladder's two largest runs", worst, "share", BAR, worst <= BAR)


if __name__ == "__main__":
    main()
