"""500 random single-bit flips and cuts over the files of a finished run and of half-made ones: nothing wrong is quiet.

Each is refused in one line, passed over, or made again to the same result; none gives another result in silence, none a
traceback. Of the finished run every reader is asked: `run`, `chat`, `corpus tune`, `tensorboard`. Half-made is each stage
that keeps what a kill left: two sources of pages, the shards of annotations, half of each training. The tiny recipe.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import conclude, finished_run
from groundup.core.errors import UserError
from groundup.core.seals import read_manifest
from groundup.pipeline import recipe as recipes
from groundup.pipeline.run import Run
from groundup.pipeline.shipped_recipes import shipped
from groundup.pipeline.steps import STANDARD

HALF_MADE = {"pages": 10, "annotations": 20, "base": 6, "sft": 24, "reward": 20, "dpo": 20, "ppo": 20}  # flips of each
STEPS = "\n[reward]\nbatch_pairs = 4\n\n[dpo]\nbatch_pairs = 4\n"  # or each were a single step
READ_ON = ("sft", "dpo")  # stages whose model the chat is asked of
QUESTION = "What does `os.path.join` do?\n"


class Cut(BaseException):
    """Stands for a kill."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--finished-flips", type=int, default=380)
    parser.add_argument("--share", type=float, default=1.0, help="of the flips of half-made runs")
    parser.add_argument("--seed", type=int, default=0)
    options, _ = parser.parse_known_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start, chance = time.monotonic(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        run, path = Path(name) / "tiny", Path(name) / "tiny.toml"
        path.write_text(shipped()["tiny"].read_text(encoding="utf-8") + STEPS, encoding="utf-8")
        recipe = recipes.load(path)
        finished_run(run, path)
        outcomes = finished(run, recipe, chance, options.finished_flips)
        for stage, flips in HALF_MADE.items():
            outcomes += half_made(run, Path(name), recipe, stage, chance, round(flips * options.share))
    table = Counter((where, outcome) for where, _, outcome, _ in outcomes)
    for (where, outcome), count in sorted(table.items()):
        print(f"{where:12} {outcome:28} {count}")
    wrong = [entry for entry in outcomes if entry[2] in ("another result", "traceback", "long message")]
    for where, harm, outcome, message in wrong:
        print(f"WRONG {where}: {harm}: {outcome}: {message}")
    print(f"{len(outcomes)} flips and cuts, {(time.monotonic() - start) / 60:.1f} min")
    conclude(f"of {len(outcomes)} flips and cuts of a run, those that went wrong", len(wrong), "", 0, not wrong)


def finished(run: Path, recipe: recipes.Recipe, chance: random.Random, flips: int) -> list[tuple]:
    readers = {"run": lambda: walked(run, recipe), "tune": lambda: tuned(run), "tensorboard": lambda: boards(run)}
    readers |= {f"chat {stage}": (lambda stage=stage: answered(run, stage)) for stage in READ_ON}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        expected = {name: read() for name, read in readers.items()}
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name not in (".lock", "log.txt"))
    outcomes = []
    for _ in range(flips):
        path = chance.choice(files)
        with harmed(path, chance) as harm:
            read_outcomes = [outcome_of(read, expected[name], chance) for name, read in readers.items()]
        worst = max(read_outcomes, key=lambda outcome: {"as before": 0, "refused": 1}.get(outcome[0], 2))
        outcomes.append(("finished", f"{path.relative_to(run)} {harm}", *worst))
    return outcomes


def half_made(
    whole_run: Path, folder: Path, recipe: recipes.Recipe, stage: str, chance: random.Random, flips: int
) -> list[tuple]:
    """`stage` cut off in the middle, with those before it finished; harmed, and made to its end."""
    number = next(number for number, step in enumerate(STANDARD) if step.name == stage)
    run, stages = folder / f"half-{stage}", STANDARD[: number + 1]
    shutil.copytree(whole_run, run)
    for other in STANDARD[number:]:
        shutil.rmtree(run / other.name)
    with cut_off(stage), contextlib.suppress(Cut), contextlib.redirect_stderr(io.StringIO()):
        Run(run, recipe, stages).execute()
        sys.exit(f"{stage} was not cut off")
    partial = run / f"{stage}.partial"
    kept = folder / "kept"
    expected = results(whole_run, stages)
    outcomes = []
    for _ in range(flips):
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(partial, kept)
        path = chance.choice(sorted(path for path in partial.rglob("*") if path.is_file()))
        with harmed(path, chance) as harm:
            name = f"{path.relative_to(run)} {harm}"
            outcome, message = outcome_of(lambda: results_of(run, recipe, stages), expected, chance)
        outcomes.append((stage, name, "passed over or made again" if outcome == "as before" else outcome, message))
        shutil.rmtree(run / stage, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(kept, partial)
    shutil.rmtree(run)
    print(f"{stage}: {flips} flips and cuts", file=sys.stderr, flush=True)
    return outcomes


@contextlib.contextmanager
def cut_off(stage: str) -> Iterator[None]:
    """Within it, `stage` ends in `Cut` when it is half done."""
    from groundup.corpus.acquire import sources
    from groundup.corpus.annotate import corpus_pass
    from groundup.training import checkpoint, loop

    calls = Counter()

    def after(allowed: int, function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[function] += 1
            if calls[function] > allowed:
                raise Cut
            return function(*arguments, **options)

        return call

    trainings = (checkpoint, "save", 20 if stage == "base" else 1)
    owner, name, allowed = {"pages": (sources, "collect", 2), "annotations": (corpus_pass, "join", 0)}.get(stage, trainings)
    before, seconds = getattr(owner, name), loop.CHECKPOINT_SECONDS
    setattr(owner, name, after(allowed, before))
    loop.CHECKPOINT_SECONDS = -1.0  # a state each step
    try:
        yield
    finally:
        setattr(owner, name, before)
        loop.CHECKPOINT_SECONDS = seconds


@contextlib.contextmanager
def harmed(path: Path, chance: random.Random) -> Iterator[str]:
    """One bit of a file flipped, or its end cut off; put back afterwards if the file is still there."""
    content = path.read_bytes()
    if not content or chance.random() < 0.25:
        length = chance.randrange(len(content)) if content else 0
        path.write_bytes(content[:length])
        harm = f"cut to {length} of {len(content)} bytes"
    else:
        offset, bit = chance.randrange(len(content)), chance.randrange(8)
        flipped = bytearray(content)
        flipped[offset] ^= 1 << bit
        path.write_bytes(flipped)
        harm = f"bit {bit} of byte {offset}"
    yield harm
    if path.parent.exists():
        path.write_bytes(content)


def outcome_of(act: Callable[[], Any], expected: Any, chance: random.Random) -> tuple[str, str]:
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            result = act()
    except UserError as error:
        return ("refused" if len(str(error)) <= 300 else "long message"), str(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    return ("as before" if result == expected else "another result"), output.getvalue()[-200:]


def walked(run: Path, recipe: recipes.Recipe) -> dict:
    return {name: manifest["results"] for name, manifest in Run(run, recipe, STANDARD).execute().items()}


def results_of(run: Path, recipe: recipes.Recipe, stages: tuple) -> dict:
    Run(run, recipe, stages).execute()
    return results(run, stages)


def results(run: Path, stages: tuple) -> dict:
    """What each stage hands to the next, and says of itself."""
    manifests = {stage.name: read_manifest(run / stage.name) for stage in stages}
    return {name: (manifest["digest"], manifest["results"]) for name, manifest in manifests.items()}


def tuned(run: Path) -> dict:
    from groundup.corpus.select import thresholds

    return thresholds.tune(run, ["words"], 1)


def boards(run: Path) -> dict | None:
    from groundup.report.tensorboard import export

    with tempfile.TemporaryDirectory() as out:
        return export(run, Path(out))["steps"]


def answered(run: Path, stage: str) -> str:
    from groundup.cli.talk import talk

    output, stdin = io.StringIO(), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(QUESTION.encode()), encoding="utf-8")
    try:
        with contextlib.redirect_stdout(output):
            talk(run, stage, 0.0, 8, 0)
    finally:
        sys.stdin = stdin
    return output.getvalue()


if __name__ == "__main__":
    main()
