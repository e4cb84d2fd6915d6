"""WARC to Parquet with every annotation, beside the same steps in datatrove, each in a process of its own.

Ours reads, extracts, measures all rules, language, personal data and toxic words, finds duplicates and template lines
and keeps every page. datatrove's part is its reader, trafilatura, and the filters Gopher (both), C4 and FineWeb, so a
page that one drops costs the next nothing. Figures are documents per second of processor time, children included:
other work on the machine does not move it. Two workers are timed by the clock, so the machine must be free for that; and
once more on the pages three times over, where starting two processes weighs less: that is printed, and no part of the verdict.

`--datatrove PYTHON` is an interpreter with datatrove, trafilatura, warcio, nltk and spacy, if this one has none.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from common import ROOT, arguments, conclude

BAR, WORKERS_BAR, MEMORY_BAR_GB = 8.0, 1.8, 1.0
REPETITIONS = 3  # of ours, by turns; medians
MORE = 3
TIMED = """
import json, resource, sys, time
started = time.monotonic()
if __name__ == "__main__":
    {body}
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({{"documents": documents, "clock": time.monotonic() - started,
                       "processor": sum(used.ru_utime + used.ru_stime for used in usage),
                       "kilobytes": max(used.ru_maxrss for used in usage)}}))
"""
OURS = """
    from pathlib import Path
    from groundup.corpus.annotate.measure import annotate
    from groundup.corpus.config import AnnotationsConfig
    folder, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    pages = [(path, "web") for path in sorted(folder.glob("pages-dev-*.warc.gz"))]
    documents = annotate(pages, out, AnnotationsConfig(), workers)["pages"]
"""
DATATROVE = """
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (C4QualityFilter, FineWebQualityFilter, GopherQualityFilter,
                                            GopherRepetitionFilter)
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import ParquetWriter
    steps = [WarcReader(sys.argv[1], glob_pattern="pages-dev-*.warc.gz"), Trafilatura(favour_precision=True, timeout=10),
             GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(filter_no_terminal_punct=False),
             FineWebQualityFilter(), ParquetWriter(sys.argv[2])]
    stats = LocalPipelineExecutor(pipeline=steps, tasks=1, workers=1, logging_dir=sys.argv[2] + "/logs").run()
    documents = stats.stats[0].stats["documents"].total
"""


def main() -> None:
    options = arguments(__doc__, datatrove=sys.executable)
    web = options.data / "web"
    claim = "WARC to Parquet with all annotations, documents per second of processor time over datatrove's"
    if not list(web.glob("pages-dev-*.warc.gz")):
        conclude(claim, None, "ratio", BAR, None, reason=f"{web} is missing")
        return
    pairs = [[_run(sys.executable, OURS, web, workers) for workers in (1, 2)] for _ in range(REPETITIONS)]
    documents = pairs[0][0]["documents"]
    speed = documents / median(first["processor"] for first, _ in pairs)
    clocks = [median(run["clock"] for run in runs) for runs in zip(*pairs, strict=True)]
    print(f"groundup    {documents:,} pages, {speed:.1f} a second of processor time, {clocks[0]:.1f} s by the clock")
    scaling = clocks[0] / clocks[1]
    print(f"two workers {clocks[1]:.1f} s by the clock: {scaling:.2f} times one's (bar {WORKERS_BAR})")
    with tempfile.TemporaryDirectory() as folder:
        for path in web.glob("pages-dev-*.warc.gz"):
            for number in range(MORE):
                (Path(folder) / path.name.replace("dev", f"dev-{number}", 1)).symlink_to(path.resolve())
        more = [[_run(sys.executable, OURS, Path(folder), workers) for workers in (1, 2)] for _ in range(REPETITIONS)]
    longer = median(first["clock"] for first, _ in more) / median(second["clock"] for _, second in more)
    print(f"            {longer:.2f} on the pages {MORE} times over")
    gigabytes = max(run["kilobytes"] for runs in [*pairs, *more] for run in runs) / 2**20
    print(f"memory      {gigabytes:.2f} GB at most in one process (bar {MEMORY_BAR_GB})")
    peer = _run(str(options.datatrove), DATATROVE, web, 1)
    if peer is None:
        conclude(claim, None, "ratio", BAR, None, reason="datatrove or what it needs is not installed")
        return
    theirs = peer["documents"] / peer["processor"]
    print(f"datatrove   {peer['documents']:,} pages, {theirs:.1f} a second of processor time, {peer['clock']:.1f} s by the clock")
    holds = speed / theirs >= BAR and scaling >= WORKERS_BAR and gigabytes <= MEMORY_BAR_GB
    conclude(claim, speed / theirs, "ratio", BAR, holds)


def _run(python: str, body: str, web: Path, workers: int) -> dict | None:
    """What a fresh process did with all pages; None when it cannot import what it needs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed, it has its bytecode: a quarter less to start
    if body is OURS:
        environment["PYTHONPATH"] = str(ROOT / "src")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "timed.py"
        script.write_text(TIMED.format(body=body.strip()))
        command = [python, str(script), str(web), str(Path(folder) / "out"), str(workers)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        if body is OURS or ("ModuleNotFoundError" not in done.stderr and "ImportError" not in done.stderr):
            sys.exit(done.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
