"""`--minutes 5` and `15` on textbooks: done in that time, at the loss that was planned, and the depths beside do no better in it.

Total time within 10 % of what was asked (the machine must be free for that), the loss inside the plan's interval, and neither
the depth below the chosen one nor the one above it, trained on the tokens that its plan gives that depth in the same time, better
by more than 0.01 bits per byte. `--runs DIR` keeps the runs, which are made where they are not there: an hour of two cores.
"""

import json
import sys
from pathlib import Path

from common import arguments, conclude, groundup

CLAIM = "--minutes 5 and 15 on textbooks: bits per byte by which the better of the depths beside falls short of the chosen one"
MINUTES, TIME_BAR, BAR = (5, 15), 0.1, -0.01
RECIPE = """name = "textbooks"
seed = 1
[[pages.sources]]
source = "{source}"
domain = "textbooks"
[corpus]
min_words = 50
held_out = 0.05
[tokenizer]
vocabulary = 4096
[base]
context_length = 256
"""


def main() -> None:
    options = arguments(__doc__, runs="runs/minutes")
    source, folder = options.data / "text" / "openstax.parquet", options.runs
    if not source.is_file():
        return conclude(CLAIM, None, "bits/byte", BAR, None, reason=f"{source} is missing")
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "textbooks.toml"
    recipe.write_text(RECIPE.format(source=source), encoding="utf-8")
    lowest, holds = float("inf"), True
    for minutes in MINUTES:
        chosen = folder / str(minutes)
        made(recipe, chosen, "--minutes", str(minutes))
        plan = json.loads((chosen / "plan" / "plan.json").read_text(encoding="utf-8"))
        planned = stage(chosen, "base")["results"]["planned"]
        taken = sum(stage(chosen, path.parent.name)["seconds"] for path in chosen.glob("*/stage.json")) / 60
        depth, tokens = plan["chosen"]["depth"], plan["chosen"]["tokens"]
        expected, loss = planned["expected"], planned["loss"]
        inside = expected["low"] <= loss <= expected["high"]
        holds &= inside and abs(taken / minutes - 1) <= TIME_BAR
        print(f"{minutes} minutes: {taken:.2f}; depth {depth}, {tokens:,} tokens: {bits(chosen):.3f} bits per byte")
        print(f"  {loss:.3f} nats, planned {expected['value']:.3f} ({expected['low']:.3f} to {expected['high']:.3f})")
        for candidate in plan["candidates"]:
            if abs(candidate["depth"] - depth) == 1:
                neighbour = folder / f"{minutes}-depth{candidate['depth']}"
                settings = f"base.depth={candidate['depth']}", f"base.tokens={candidate['tokens']}"
                made(recipe, neighbour, "--set", settings[0], "--set", settings[1])
                short = bits(neighbour) - bits(chosen)
                lowest = min(lowest, short)
                read = stage(neighbour, "base")["results"]["tokens"]
                print(f"  depth {candidate['depth']}, {read:,} tokens: {bits(neighbour):.3f} bits per byte ({short:+.3f})")
    conclude(CLAIM, lowest, "bits/byte", BAR, holds and lowest >= BAR)


def made(recipe: Path, run: Path, *settings: str) -> None:
    if (run / "report" / "stage.json").is_file():
        return
    done = groundup("run", str(recipe), "--run", str(run), *settings)
    if done.returncode:
        sys.exit(f"the run failed: {done.stderr.splitlines()[-1]}")


def stage(run: Path, name: str) -> dict:
    return json.loads((run / name / "stage.json").read_text(encoding="utf-8"))


def bits(run: Path) -> float:
    return stage(run, "evaluation")["results"]["bits_per_byte"]["overall"]["model"]


if __name__ == "__main__":
    main()
