"""Run every benchmark, or those named, and write docs/benchmarks.md; a bar that does not hold stays as it is.

The page has a table for each machine, and says what each benchmark shows. `run_all.py pipeline_minutes corpus_ray` runs
these two and leaves the other rows of this machine's table as they were.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

from common import ROOT, machine

HERE = Path(__file__).resolve().parent
PAGE = ROOT / "docs" / "benchmarks.md"
VERDICT = {True: "yes", False: "**no**", None: "not measured"}
TITLE = "# Benchmarks\n\nWritten by `make bench`, on each of these machines.\n"
WHAT = "What each shows"
HEADER = ["| claim | figure | bar | holds | beside it | script |", "| --- | --: | --: | --- | --- | --- |"]


def main() -> None:
    scripts = sorted(path for path in HERE.glob("*_*.py") if path.name != Path(__file__).name)
    named = [word for word in sys.argv[1:] if (HERE / f"{word}.py") in scripts]
    options = [word for word in sys.argv[1:] if word not in named]
    tables = dict(re.findall(r"^## (.*)\n\n((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    tables.pop(WHAT, None)
    kept = re.findall(r"^(\|.*`(\w+)\.py` \|)$", tables.get(machine(), "") if named else "", re.MULTILINE)
    lines = {name: line for line, name in kept if (HERE / f"{name}.py") in scripts}
    failed = []
    for script in scripts:
        if named and script.stem not in named:
            continue
        row = run(script, options)
        lines[script.stem] = line(script, row)
        failed += [row["claim"]] if row["holds"] is False else []
    tables[machine()] = "".join(f"{row}\n" for row in [*HEADER, *(lines[name] for name in sorted(lines))])
    write(tables)
    print(json.dumps({"benchmarks": len(named or scripts), "not_holding": failed, "page": "docs/benchmarks.md"}))


def write(tables: dict[str, str]) -> None:
    page = [TITLE, *(f"## {name}\n\n{tables[name]}" for name in sorted(tables)), f"## {WHAT}\n\n{described()}"]
    PAGE.write_text("\n".join(page), encoding="utf-8")


def described() -> str:
    """A row for each benchmark: what it says of itself, and the pages of docs/ that have more of its figures."""
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(PAGE.parent.glob("*.md")) if page != PAGE}
    rows = ["| script | what it shows | figures |", "| --- | --- | --- |"]
    for script in sorted(HERE.glob("*_*.py")):
        if script.name == Path(__file__).name:
            continue
        first = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
        first = " ".join(first.split()).replace("|", "\\|")
        links = ", ".join(f"[{page.stem}]({page.name})" for page, text in pages.items() if script.name in text)
        rows.append(f"| `{script.name}` | {first} | {links} |")
    return "\n".join(rows) + "\n"


def run(script: Path, options: list[str]) -> dict:
    """The JSON line of one benchmark; when it fails, one that says so."""
    print(f"== {script.name}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, str(script), *options], stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, file=sys.stderr)
    output = done.stdout.strip().splitlines()
    if done.returncode == 0 and output:
        return json.loads(output[-1])
    empty = dict.fromkeys(("figure", "bar", "holds", "peer", "peer_figure"))
    return {"claim": script.stem, "unit": "", **empty, "reason": f"exit code {done.returncode}"}


def line(script: Path, row: dict) -> str:
    peer = row.get("reason") or row["peer"] or ""
    if row["peer_figure"] is not None:
        peer = f"{row['peer']}: {row['peer_figure']:.4g}"
    figure = "" if row["figure"] is None else f"{row['figure']:.4g} {row['unit']}"
    bar = "" if row["bar"] is None else f"{row['bar']:.4g}"
    return f"| {row['claim']} | {figure} | {bar} | {VERDICT[row['holds']]} | {peer} | `{script.name}` |"


if __name__ == "__main__":
    main()
