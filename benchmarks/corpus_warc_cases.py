"""Small real and broken web archives: every record that is there is read, and what is not is accounted for.

The cases are test files of warcio, Resiliparse and Common Crawl. A record counts as read alike when its URL and its
block, as it stands in the archive, are the same. Then 1,000 of those files with damage done to them: none may stop the
reader, hang it, or make it lose a record of a member that was not touched.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from hashlib import blake2b
from pathlib import Path

from common import arguments, conclude, machine
from groundup.corpus.archive.records import Losses, read_records
from groundup.corpus.archive.warc import page_of

MUTANTS = 1000
SLOW_SECONDS = 2.0
INSERTED = [b"\x1f\x8b\x08", b"WARC/1.0\r\nContent-Length: 9999999999999\r\n\r\n", b"\r\n\r\n"]


def ours(path: Path) -> tuple[Counter, Losses]:
    losses = Losses()
    records: Counter = Counter()
    for record in read_records(path, losses):
        page_of(record, path.name, losses)
        if record.kind != "warcinfo":  # which warcio makes up for ARC files
            records[_key(record.url, record.block)] += 1
    return records, losses


def _key(url: str, block: bytes) -> tuple[str, str]:
    url = url.replace(" ", "%20")  # as warcio has it
    return url, blake2b(block, digest_size=8).hexdigest()


def by_warcio(path: Path) -> tuple[Counter, int, str]:
    """What warcio reads, how many records, and the error at which it stops."""
    from warcio.archiveiterator import ArchiveIterator

    records: Counter = Counter()
    count = 0
    try:
        with path.open("rb") as file:
            for record in ArchiveIterator(file, no_record_parse=True, arc2warc=True):
                url = (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<>")
                count += 1
                if record.rec_type != "warcinfo":
                    records[_key(url, record.raw_stream.read())] += 1
    except Exception as error:
        return records, count, type(error).__name__
    return records, count, ""


def by_fastwarc(path: Path) -> str:
    from fastwarc.warc import ArchiveIterator

    count = 0
    try:
        for record in ArchiveIterator(str(path), parse_http=False, quirks_mode=True):
            record.reader.read()
            count += 1
    except Exception as error:
        return f"{count} {type(error).__name__}"
    return str(count)


def table(cases: list[Path]) -> list[str]:
    """Print a line a file; returns the files in which warcio reads a record that we do not."""
    worse = []
    print(f"{'file':38} {'records':>7} {'whole':>5} {'cut':>4} {'lost':>4}  {'warcio':24} {'FastWARC':14} places")
    for path in cases:
        records, losses = ours(path)
        theirs, count, error = by_warcio(path)
        # Cut records, and the one at which warcio stops, are compared by URL.
        missing = sum((Counter(url for url, _ in theirs.elements()) - Counter(url for url, _ in records.elements())).values())
        differing = sum((theirs - records).values())
        if missing or differing > losses.truncated + bool(error):
            worse.append(path.name)
        ranges = " ".join(f"{loss.what} {loss.start}-{loss.end} ({loss.bytes} B)" for loss in losses.places[:3])
        print(
            f"{path.name:38} {losses.records:7} {losses.records - losses.truncated:5} {losses.truncated:4} {losses.lost:4}  "
            f"{f'{count} {error}':24} {by_fastwarc(path):14} {ranges}"
        )
    return worse


def mutants(cases: list[Path], folder: Path) -> tuple[int, float]:
    """Errors, and the longest time for one file, over files with bytes changed, cut out, doubled or cut off."""
    chosen, errors, longest = random.Random(0), 0, 0.0
    small = [path for path in cases if path.stat().st_size < 100_000]
    for _ in range(MUTANTS):
        source = chosen.choice(small)
        data = bytearray(source.read_bytes())
        for _ in range(chosen.randint(1, 8)):
            at = chosen.randrange(len(data) + 1)
            size = chosen.choice([1, 1, 1, 16, 1000])
            match chosen.randrange(5):
                case 0:
                    data[at : at + size] = chosen.randbytes(len(data[at : at + size]))
                case 1:
                    del data[at : at + size]
                case 2:
                    data[at:at] = data[at : at + size]
                case 3:
                    data[at:at] = chosen.choice(INSERTED)
                case 4:
                    del data[at + len(data) // 2 :]
        path = folder / source.name
        path.write_bytes(data)
        start = time.perf_counter()
        try:
            ours(path)
        except Exception as error:
            errors += 1
            print(f"{source.name}: {error!r}")
        longest = max(longest, time.perf_counter() - start)
    return errors, longest


def records_per_second(paths: list[Path]) -> tuple[float, float]:
    """Records a second of processor time, ours and FastWARC's, HTTP parsed and decoded; medians of 3, alternating."""
    from fastwarc.warc import ArchiveIterator

    def read_ours() -> int:
        losses = Losses()
        return sum(page_of(record, path.name, losses) is not None for path in paths for record in read_records(path, losses))

    def read_fastwarc() -> int:
        return sum(
            len(record.reader.read()) > 0
            for path in paths
            for record in ArchiveIterator(str(path), parse_http=True, auto_decode="all", quirks_mode=True)
            if record.http_headers
        )

    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(3):
        for read, times in zip((read_ours, read_fastwarc), seconds, strict=True):
            start = time.process_time()
            count = read()
            times.append((time.process_time() - start) / count)
    return 1 / sorted(seconds[0])[1], 1 / sorted(seconds[1])[1]


def main() -> None:
    options = arguments(__doc__ or "")
    folder = options.data / "web" / "warc-cases"
    claim = "archives in which warcio reads a record that ours does not, of the broken-archive cases"
    cases = sorted(path for path in folder.glob("*") if ".warc" in path.name or ".arc" in path.name)
    try:
        import warcio  # noqa: F401
    except ImportError:
        cases = []
    if not cases:
        conclude(claim, None, "files", 0, None, peer="warcio", reason=f"warcio or {folder} is missing")
        sys.exit()
    print(machine())
    worse = table(cases)
    with tempfile.TemporaryDirectory() as scratch:
        errors, longest = mutants(cases, Path(scratch))
    print(f"{MUTANTS} mutated files: {errors} errors, longest {longest:.2f} s")
    pages = sorted((options.data / "web").glob("pages-dev-0[01].warc.gz"))
    if pages:
        mine, fast = records_per_second(pages)
        print(f"reading pages-dev, decoded: {mine:,.0f} records/s, FastWARC {fast:,.0f} ({mine / fast:.2f}x)")
    holds = not worse and not errors and longest < SLOW_SECONDS
    print(f"warcio reads more in: {worse}")
    conclude(claim, len(worse) + errors, "files", 0, holds, peer="warcio")


if __name__ == "__main__":
    main()
