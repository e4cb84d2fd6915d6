"""What every benchmark prints: the machine, its table, and one JSON line at the end."""

import argparse
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from groundup.core.executor import cores
from groundup.core.machine import processor_name

ROOT = Path(__file__).resolve().parent.parent


def arguments(description: str, **paths: str) -> argparse.Namespace:
    """`--data DIR` and one option for each of `paths` (name=default)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    for name, default in paths.items():
        parser.add_argument(f"--{name}", type=Path, default=ROOT / default)
    return parser.parse_args()


def machine() -> str:
    """The processor, by name and by its widest vectors (makers give one name to several kinds), or those that kernels may use."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        flags = set()
    kinds = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 with bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}
    vectors = next((kind for flag, kind in kinds.items() if flag in flags), "")
    if highest := os.environ.get("GROUNDUP_KERNELS"):
        vectors = f"{vectors}, kernels up to {highest}"
    name = f"{processor_name()} ({vectors})" if vectors else processor_name()
    return f"{name}, {cores()} cores, Python {sys.version.split()[0]}, torch {metadata.version('torch')}"


def groundup(*words: str, **options: object) -> subprocess.CompletedProcess:
    """Run the command line of this checkout; output is captured as text."""
    command = [sys.executable, "-m", "groundup", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, **options)


def finished_run(folder: Path, recipe: Path = Path("laptop")) -> dict:
    """The result of `groundup run recipe --run folder`, which does nothing when it is already there."""
    done = groundup("run", str(recipe), "--run", str(folder))
    if done.returncode:
        sys.exit(f"the run failed: {done.stderr.splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def conclude(
    claim: str,
    figure: float | None,
    unit: str,
    bar: float,
    holds: bool | None,
    *,
    peer: str | None = None,
    peer_figure: float | None = None,
    reason: str | None = None,
) -> None:
    """Print the JSON line. `holds` is None, with a `reason`, where a peer or data is missing."""
    ratio = figure / peer_figure if figure is not None and peer_figure else None
    line = {
        "claim": claim,
        "figure": None if figure is None else float(figure),
        "unit": unit,
        "peer": peer,
        "peer_figure": peer_figure,
        "ratio": ratio,
        "bar": bar,
        "holds": None if holds is None else bool(holds),  # numpy's own are no JSON
        "machine": machine(),
    }
    print(json.dumps(line | ({"reason": reason} if reason else {})))
