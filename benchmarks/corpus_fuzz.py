"""Broken pages and archives: 1,000 of each made by hypothesis, and floods of one piece: 64 kB pages, megabyte archives.

None may raise or take over 2 s of processor time. Pages go in as bytes by the public function; of archives all records
are read, and the account of losses must stay within the file.
"""

import gzip
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from common import arguments, conclude, machine
from groundup.corpus.archive.records import Losses, read_records
from groundup.corpus.archive.warc import Page, page_of, read_pages
from groundup.corpus.extract.content import content_model
from groundup.corpus.extract.page_text import text_of, utf8

CLAIM = "broken pages and archives that raise, or take over 2 s"
INPUTS, SIZE, SLOW_SECONDS = 1000, 1 << 20, 2.0
PAGE_SIZE = 1 << 16  # of a flood: past our bounds, and harmless to a parser without them
PAGE = (
    "<!doctype html><html><head><title>Bees</title></head><body><nav><ul><li><a href='/'>Home</a><li><a>News</a></ul></nav>"
    "<main><h1>Bees &amp; wasps</h1><p>Of bees, <b>much</b> is known; of wasps less.</p><table><tr><td>a<td>1</table>"
    "<math><mfrac><mi>a</mi><msqrt><mn>2</mn></msqrt></mfrac></math><pre>  x = 1\n</pre></main><footer>© Bees</footer>"
)
PIECES = [
    "<div>", "<p>", "<b>", "<a><table><b>", "<font><i>", "<table><tr><td>", "<svg><p>", "<math><mfrac>",
    "<select><tr>", "<ul><li>",
    "</div>", "</body>", "</p>", "<!--", "-->", "<script>", "<style>", "<template>", "<plaintext>", "<xmp>",
    "<frameset>", "<pre>",
    "<div a='", "<div <p>", '"', "<", ">", "&", "&amp;", "&#x110000;", "&notin", "<![CDATA[", "\x00", "\ud800",
    "\ufeff", "é", "\xa0",
]  # fmt: skip
WORST_PAGES = [
    "<div>", "<a><table><b>", "<b>", "<p><b>", "<font>x<p>", "<table><tr><td>", "<svg><g>", "<math><mfrac><mi>a</mi>",
    "<li>", "<br>",
    "<p>a</p>", "<i>a</i>", "<div class='a b c'>a</div>", "<xmp>", "<pre>a\n", "&", "&amp;", "<", "</", "<!--",
    "<!-- a -->",
    "a ", "$", "\xa0",
    "<ul><li>a</ul>", "<h1>a b</h1>", "<tr><td>a", "<img alt='\\frac' class=tex>", "<span class=katex>a</span>",
    "<script>a</script>",
]  # fmt: skip
ZSTD, LZ4 = b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"
WORST_ARCHIVES = [
    *(b"\x1f\x8b\x08" + flags for flags in (b"", b"\0", b"\4", b"\x08", b"\x0c")),
    bytes.fromhex("1f8b08000000000000ff05c181"),
    *(gzip.compress(content, mtime=0) for content in (b"", b"\r\n", b"WARC/1.0\r\n")),
    gzip.compress(b"WARC/1.0\r\n", mtime=0)[:-8],
    ZSTD, ZSTD + b"\0", ZSTD + b"\0\0", b"\x30\0\0" + ZSTD + b"\0\0", ZSTD + b"\0\0\x30\0\0", LZ4,
    LZ4 + b"\x60\x40\x82",
    b"\x50\x2a\x4d\x18\0\0\0\0", b"WARC/1.0\r\n", b"WARC/1.0\r\nContent-Length: 1\r\n\r\n",
    b"WARC/1.0\r\nContent-Length: 999999\r\n\r\n", b"\r\n",
]  # fmt: skip


def broken(data: bytes, dice: random.Random, pieces: list[bytes]) -> bytes:
    """`data` with a few places cut out, doubled, moved or overwritten."""
    for _ in range(dice.randint(1, 8)):
        start = dice.randint(0, len(data))
        end = min(len(data), start + dice.choice([1, 4, 300, 20_000]))
        before, part, after = data[:start], data[start:end], data[end:]
        flood = dice.choice(pieces) * dice.choice([1, 30, 3000])
        part = dice.choice([b"", part * 3, after[:50] + part, flood, dice.randbytes(4)])
        data = before + part + after
    return data


def worst_pages() -> Iterator[tuple[str, bytes]]:
    for piece in WORST_PAGES:
        yield repr(piece), (PAGE + piece * (PAGE_SIZE // len(piece))).encode()
    yield "one tag's attributes", ("<div" + "".join(f" a{n}='{n}'" for n in range(PAGE_SIZE // 12)) + ">text").encode()
    yield "one attribute", b"<div class='" + b"a " * (PAGE_SIZE // 2) + b"'>text"
    yield "navigation in navigation", b"<nav>" * 300 + b"<b>x</b> " * (PAGE_SIZE // 9)
    yield "nested tables", b"<table><tr><td>a" * 300 + b"<td>b" * (PAGE_SIZE // 5)


class Trial:
    """Runs inputs; counts those that raise or take too long, and keeps the slowest."""

    def __init__(self) -> None:
        self.count = self.failures = 0
        self.slowest = (0.0, "")

    def run(self, name: str, read: Callable[[bytes], None], data: bytes) -> None:
        start = time.process_time()
        self.count += 1
        try:
            read(data)
        except Exception as error:
            self.failures += 1
            print(f"{name}: {type(error).__name__}: {error}")
        seconds = time.process_time() - start
        self.slowest = max(self.slowest, (seconds, name))
        if seconds > SLOW_SECONDS:
            self.failures += 1
            print(f"{name}: {seconds:.1f} s")


def read_page(data: bytes) -> None:
    # What `extract` does for a page, but without its net for whatever is raised.
    text_of(utf8(Page("http://a.org/", "text/html", data)), content_model()).text.encode()


def reader(path: Path) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        path.write_bytes(data)
        losses = Losses()
        for record in read_records(path, losses):
            page_of(record, path.name, losses)
        assert all(0 <= place.start <= place.end <= len(data) for place in losses.places), "a place outside the file"

    return read


def fuzz(trial: Trial, name: str, read: Callable[[bytes], None], seeds: list[bytes], pieces: list[bytes]) -> None:
    @settings(max_examples=INPUTS, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.sampled_from(seeds), st.integers(0, 2**32), st.lists(st.sampled_from(pieces), max_size=30))
    def one(seed: bytes, dice: int, tail: list[bytes]) -> None:
        trial.run(f"{name} {dice}", read, broken(seed + b"".join(tail), random.Random(dice), pieces))

    one()


def main() -> None:
    data = arguments(__doc__ or "").data / "web"
    print(machine())
    pieces = [piece.encode("utf-8", "surrogatepass") for piece in PIECES]
    cases = [path.read_bytes() for path in sorted(data.glob("warc-cases/*arc*")) if path.stat().st_size < 100_000]
    seeds = [PAGE.encode(), *pieces]
    for path in sorted(data.glob("*.warc.gz"))[:1]:
        seeds += [page.body for page in read_pages(path, Losses())][::8]
    trials = {name: Trial() for name in ("pages", "archives")}
    fuzz(trials["pages"], "page", read_page, seeds, pieces)
    for name, page in worst_pages():
        trials["pages"].run(name, read_page, page)
    with tempfile.TemporaryDirectory() as folder:
        read = reader(Path(folder) / "a.warc.gz")
        fuzz(trials["archives"], "archive", read, cases or WORST_ARCHIVES, WORST_ARCHIVES)
        for piece in WORST_ARCHIVES:
            trials["archives"].run(repr(piece[:24]), read, piece * (SIZE // len(piece)))
    for name, trial in trials.items():
        print(f"{name:9} {trial.count} inputs, {trial.failures} failures, slowest {trial.slowest[0]:.2f} s: {trial.slowest[1]}")
    failures = sum(trial.failures for trial in trials.values())
    conclude(CLAIM, failures, "inputs", 0, failures == 0)


if __name__ == "__main__":
    main()
