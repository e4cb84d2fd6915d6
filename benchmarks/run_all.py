"""Run every benchmark and write docs/benchmarks.md; a bar that does not hold stays in the table as it is."""

import json
import subprocess
import sys
from pathlib import Path

from common import ROOT, machine

HERE = Path(__file__).resolve().parent
VERDICT = {True: "yes", False: "**no**", None: "not measured"}


def main() -> None:
    rows = []
    for script in sorted(HERE.glob("*_*.py")):
        if script.name == Path(__file__).name:
            continue
        print(f"== {script.name}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, str(script), *sys.argv[1:]], stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, file=sys.stderr)
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 and lines:
            rows.append((script.name, json.loads(lines[-1])))
        else:
            rows.append((script.name, {"claim": script.stem, "figure": None, "unit": "", "bar": None, "holds": None,
                                       "peer": None, "peer_figure": None, "reason": f"exit code {done.returncode}"}))  # fmt: skip
    table = ["| claim | figure | bar | holds | beside it | script |", "| --- | --: | --: | --- | --- | --- |"]
    for name, row in rows:
        beside = f"{row['peer']}: {row['peer_figure']:.4g}" if row["peer_figure"] is not None else row.get("reason", "")
        figure = "" if row["figure"] is None else f"{row['figure']:.4g} {row['unit']}"
        bar = "" if row["bar"] is None else f"{row['bar']:.4g}"
        table.append(f"| {row['claim']} | {figure} | {bar} | {VERDICT[row['holds']]} | {beside} | `{name}` |")
    text = f"# Benchmarks\n\n`make bench` wrote this page on: {machine()}.\n\n" + "\n".join(table) + "\n"
    (ROOT / "docs" / "benchmarks.md").write_text(text, encoding="utf-8")
    failed = [row["claim"] for _, row in rows if row["holds"] is False]
    print(json.dumps({"benchmarks": len(rows), "not_holding": failed, "page": "docs/benchmarks.md"}))


if __name__ == "__main__":
    main()
