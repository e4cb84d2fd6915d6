"""A vocabulary chosen by measurement: six sizes on textbooks and documentation at equal compute, in ten minutes.

`groundup tokenizer sweep` counts and merges once and trains the same small model with each size for the same number of
operations. Printed: the curve's figures, the recommendation with its reason, and how far from equal the compute was.
The command is given twice: the second time it must find everything done and say the same.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from common import arguments, conclude, groundup

CLAIM, BAR = "vocabulary sweep over six sizes at equal compute, minutes", 10.0
SIZES = "512,1024,2048,4096,8192,16384"
UNEQUAL = 0.01  # of the compute: steps are whole


def main() -> None:
    text = arguments(__doc__).data / "text"
    paths = [text / "openstax.parquet", text / "msdocs.parquet"]
    if missing := [path for path in paths if not path.is_file()]:
        return conclude(CLAIM, None, "min", BAR, None, reason=f"{missing[0]} is missing")
    with tempfile.TemporaryDirectory() as folder:
        result, minutes = swept(paths, Path(folder))
        repeated, seconds = swept(paths, Path(folder))
    print(f"{'tokens':>7} {'bits per byte':>14} {'behind the best':>17} {'bytes a token':>14} {'embedding':>10} {'steps':>6}")
    for row in result["sizes"]:
        behind = f"{row['behind']:.4f} ± {row['standard_error']:.4f}"
        print(
            f"{row['vocabulary']:7,} {row['bits_per_byte']['all']:14.4f} {behind:>17} {row['bytes_per_token']['all']:14.2f} "
            f"{row['vocabulary_share']:10.0%} {row['steps']:6,}"
        )
    for kind in ("bytes_per_token", "bits_per_byte"):
        for domain in result["sizes"][0][kind]["domain"]:
            figures = "  ".join(f"{row[kind]['domain'][domain]:.3f}" for row in result["sizes"])
            print(f"{kind.replace('_', ' ')}, {domain}: {figures}")
    unequal = max(abs(row["flop"] / result["flop"] - 1) for row in result["sizes"])
    print(f"recommended: {result['recommended']:,}, because {result['reason']}")
    print(f"compute {result['flop']:.3g} FLOP each, equal within {unequal:.2%}; the same command again took {seconds * 60:.0f} s")
    holds = minutes <= BAR and unequal <= UNEQUAL and repeated == result
    conclude(CLAIM, minutes, "min", BAR, holds)


def swept(paths: list[Path], folder: Path) -> tuple[dict, float]:
    """The result of the command, and its minutes."""
    start = time.perf_counter()
    done = groundup("tokenizer", "sweep", *map(str, paths), "--sizes", SIZES, "--out", str(folder / "sweep"))
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]), (time.perf_counter() - start) / 60


if __name__ == "__main__":
    main()
