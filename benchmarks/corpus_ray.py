"""The corpus of the same pages from processes here and from Ray tasks is the same bytes; and what Ray costs."""

import json
import tempfile
import time
from pathlib import Path

from common import arguments, conclude, groundup
from groundup.core.files import digest


def build(source: Path, out: Path, *options: str) -> float:
    """Seconds that `groundup corpus` took."""
    start = time.perf_counter()
    done = groundup("corpus", "--from", str(source), "--out", str(out), "--workers", "2", *options)
    if done.returncode:
        raise SystemExit(done.stderr)
    print(json.loads(done.stdout.splitlines()[-1])["left"]["documents"], "documents", *options)
    return time.perf_counter() - start


def files(out: Path) -> dict[str, str]:
    return {path.name: digest(path) for part in ("annotations", "corpus") for path in (out / part).glob("*.parquet")}


def main() -> None:
    source = arguments(__doc__).data / "web" / "pages-dev-00.warc.gz"
    claim = "corpus from Ray tasks, files that differ from those of processes"
    try:
        import ray
    except ImportError:
        return conclude(claim, None, "files", 0, None, reason="no ray: pip install 'groundup[ray]'")
    if not source.is_file():
        return conclude(claim, None, "files", 0, None, reason=f"no {source}")
    print("ray", ray.__version__)
    with tempfile.TemporaryDirectory() as name:
        by_processes, by_ray = Path(name) / "here", Path(name) / "there"
        seconds = [build(source, by_processes), build(source, by_ray, "--engine", "ray")]
        ours, theirs = files(by_processes), files(by_ray)
    print(f"processes {seconds[0]:.1f} s; Ray, started for it, {seconds[1]:.1f} s; {len(ours)} Parquet files")
    differ = sum(ours.get(name) != theirs.get(name) for name in {*ours, *theirs})
    conclude(claim, differ, "files", 0, differ == 0)


if __name__ == "__main__":
    main()
