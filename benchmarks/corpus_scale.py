"""`groundup corpus` on 1,000,000 documents of 70 words: at most 1 GB a process, and time that grows as the documents do.

The documents are made by a seeded generator: words of the interpreter's documentation and made ones, as often as Zipf says,
in JSON lines of two domains and on many hosts. Of a hundred, five are the same words as an earlier one at another address,
five the same but for a word, and ten end with one of forty customary lines; groups of copies have two to about ten members.
The command runs as it does for a user, at its default settings. Every process of its tree is looked at ten times a
second: the most it had resident (`VmHWM`: the kernel's own mark, shared libraries counted in full) and the most of its
proportional share (`Pss`). Time is that of the processors, so that other programs do not count; a quarter of the documents
is run first.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow.parquet as pq

from common import ROOT, conclude, machine

DOCUMENTS, WORDS, VOCABULARY = 1_000_000, 70, 50_000
BAR_GB, BAR_RATIO = 1.0, 4 * 1.2
BLOCK = 10_000  # documents that are made together
SOURCES = 10  # of each block, the documents that copies are made of; a block is copied from itself and the first one
EXACT, NEAR, CUSTOMARY, REFERENCE = 0.05, 0.05, 0.10, 0.1


def vocabulary() -> tuple[np.ndarray, np.ndarray]:
    """Words in order of how often they are, and the sum of their shares up to each: Zipf's law, Mandelbrot's constant."""
    counts = Counter(word for text in topics.values() for word in re.findall(r"\b[a-z]{1,14}\b", text.lower()))
    words = [word for word, _ in counts.most_common()]
    generator = np.random.default_rng(1)
    known = set(words)
    while len(words) < VOCABULARY:
        first, second = generator.integers(0, 3000, 2)
        made = words[first] + words[second]
        if made not in known:
            known.add(made)
            words.append(made)
    shares = 1 / (np.arange(VOCABULARY) + 2.7)
    return np.array(words, dtype=object), np.cumsum(shares / shares.sum())


def documents(count: int) -> Iterator[tuple[int, str]]:
    """The group of each document, and its text; what is no copy is a group by itself."""
    words, shares = vocabulary()
    customary = [" ".join(words[np.random.default_rng(9 + line).integers(0, 800, 9)]) for line in range(40)]
    oldest: list[tuple[int, list[str]]] = []
    for block in range(-(-count // BLOCK)):
        generator = np.random.default_rng([2, block])
        drawn = words[np.searchsorted(shares, generator.random((BLOCK, WORDS)))]
        kinds, picks = generator.random(BLOCK), generator.integers(0, 2**31, (BLOCK, 4))
        recent: list[tuple[int, list[str]]] = []
        for index in range(min(BLOCK, count - block * BLOCK)):
            number, kind, pick = block * BLOCK + index, kinds[index], picks[index]
            if kind < EXACT + NEAR and index >= BLOCK // 2:
                pool = oldest if pick[3] % 50 == 0 else recent
                group, text = pool[pick[0] % len(pool)]
                if kind >= EXACT:
                    text = list(text)
                    text[pick[1] % WORDS] = words[pick[2] % VOCABULARY]
            else:
                group, text = number, list(drawn[index])
                if kind > 1 - CUSTOMARY:
                    text[-9:] = customary[pick[0] % 40].split()
                if kind < 0.5:
                    recent.append((group, text))
                    if block == 0 and index % SOURCES == 0:
                        oldest.append((group, text))
            yield group, laid_out(text)


def laid_out(text: list[str]) -> str:
    """Sentences of ten words, two a line; the customary line stands by itself."""
    sentences = [" ".join(text[start : start + 10]).capitalize() + "." for start in range(0, WORDS - 10, 10)]
    lines = [" ".join(sentences[start : start + 2]) for start in range(0, len(sentences), 2)]
    return "\n".join([*lines, text[-10].capitalize() + " " + " ".join(text[-9:]) + "."])


def write(count: int, folder: Path) -> None:
    """`web.jsonl` and `reference.jsonl`; the address says to which group a document belongs."""
    start = time.perf_counter()
    with (folder / "web.jsonl").open("w") as web, (folder / "reference.jsonl").open("w") as reference:
        for number, (group, text) in enumerate(documents(count)):
            row = {"url": f"https://host{group % 5003}.example/{group}/{number}", "text": text}
            (reference if number % round(1 / REFERENCE) == 0 else web).write(json.dumps(row) + "\n")
    print(f"{count:,} documents made in {time.perf_counter() - start:.0f} s", file=sys.stderr)


@dataclass
class Process:
    """The most memory that a process had, in MB."""

    name: str
    resident: float = 0.0
    share: float = 0.0


class Watch(threading.Thread):
    """Looks at a process and all that it started until it ends."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.ended, self.seen = root, threading.Event(), dict[int, Process]()

    def run(self) -> None:
        while not self.ended.wait(0.1):
            children = defaultdict(list)
            for path in Path("/proc").glob("[0-9]*/stat"):
                try:
                    children[int(path.read_text().rpartition(")")[2].split()[1])].append(int(path.parent.name))
                except (OSError, IndexError, ValueError):
                    continue
            waiting = [self.root]
            while waiting:
                number = waiting.pop()
                waiting += children[number]
                self.measure(number)

    def measure(self, number: int) -> None:
        try:
            process = self.seen.setdefault(number, Process("first" if number == self.root else "helper"))
            folder = Path("/proc") / str(number)
            process.resident = max(process.resident, kilobytes(folder / "status", "VmHWM") / 1024)
            process.share = max(process.share, kilobytes(folder / "smaps_rollup", "Pss") / 1024)
        except (OSError, TypeError):  # it has ended
            return


def kilobytes(path: Path, name: str) -> int:
    return int(re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)[1])


def build(count: int, workers: int, work: Path | None) -> tuple[float, float, float, dict]:
    """Processor seconds, wall seconds, peak GB of the worst process, and what was found of the planted copies."""
    with tempfile.TemporaryDirectory(prefix="corpus-scale-", dir=work) as name:
        folder, out = Path(name), Path(name) / "out"
        write(count, folder)
        command = [sys.executable, "-m", "groundup", "corpus", "--out", str(out), "--workers", str(workers)]
        limits = f"max_pages = {count}, max_mb = {count / 100}"  # as they come, 100,000 pages and 100 MB a source
        named = [f'{{source = "{folder / name}.jsonl", domain = "{name}", {limits}}}' for name in ("web", "reference")]
        command += ["--from", str(folder), "--set", f"pages.sources=[{', '.join(named)}]"]
        start = time.perf_counter()
        with (folder / "said").open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
            watch = Watch(process.pid)
            watch.start()
            _, status, usage = os.wait4(process.pid, 0)
            watch.ended.set()
            watch.join()
        wall = time.perf_counter() - start
        if status:
            sys.exit("\n".join((folder / "said").read_text().splitlines()[-5:]))
        cpu = usage.ru_utime + usage.ru_stime
        print(f"{count:,} documents, {workers} workers: {cpu:.0f} s of the processors, {wall:.0f} s", flush=True)
        for number in watch.seen.values():
            print(f"  {number.name:<8}peak {number.resident:6.0f} MB resident, {number.share:6.0f} MB share", flush=True)
        results = planted(out / "corpus")
        print(f"  {json.dumps(results)}", flush=True)
        stages = json.loads((folder / "said").read_text().splitlines()[-1]).get("seconds")
        print(f"  seconds by stage {json.dumps(stages)}", flush=True)
        return cpu, wall, max(memory.resident for memory in watch.seen.values()) / 1024, results


def planted(corpus: Path) -> dict[str, float]:
    """Of the planted copies, the share that is not there any more; and how many were dropped that are no copies."""
    count, dropped_as_copy = Counter[int](), Counter[int]()
    kept = Counter[int]()
    for name in ("documents", "dropped"):
        with pq.ParquetFile(corpus / f"{name}.parquet") as file:
            columns = ["url", *(["reason"] if name == "dropped" else [])]
            for batch in file.iter_batches(1 << 16, columns=columns):
                groups = [int(url.split("/")[3]) for url in batch["url"].to_pylist()]
                count.update(groups)
                if name == "documents":
                    kept.update(groups)
                else:
                    reasons = batch["reason"].to_pylist()
                    dropped_as_copy.update(
                        group for group, reason in zip(groups, reasons, strict=True) if "duplicate" in reason
                    )
    copies = sum(size - 1 for size in count.values())
    return {
        "documents": sum(count.values()),
        "kept": sum(kept.values()),
        "planted copies": copies,
        "found": sum(min(dropped_as_copy[group], size - 1) for group, size in count.items()) / max(1, copies),
        "dropped as copies that are none": sum(dropped_as_copy[group] >= size for group, size in count.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where to put the documents and the corpus while it is made")
    options, _ = parser.parse_known_args()  # run_all hands every script the same arguments
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    print(machine())
    quarter, *_ = build(options.documents // 4, options.workers, options.work)
    cpu, wall, peak, results = build(options.documents, options.workers, options.work)
    ratio = cpu / quarter
    print(f"4 times the documents take {ratio:.2f} times the time of the processors (bar {BAR_RATIO:g})")
    holds = peak <= BAR_GB and ratio <= BAR_RATIO and results["found"] >= 0.99 and not results["dropped as copies that are none"]
    conclude(
        f"{options.documents:,} documents of {WORDS} words, peak memory of the worst process of `groundup corpus`, whose time "
        f"is {ratio:.2f} times that of a quarter of them (at most {BAR_RATIO:g}; {cpu:.0f} s of the processors, {wall:.0f} s)",
        peak, "GB", BAR_GB, holds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
