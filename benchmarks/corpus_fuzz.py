"""Broken pages, archives and other files: 1,000 of each made by hypothesis, and floods of one piece: 64 kB pages, megabyte
archives. The other files are WACZ, dumps and other XML, and PDF, read as sources; nothing may appear beside them.

None may raise or take over 2 s of processor time. Pages go in as bytes by the public function; of archives all records
are read, and the account of losses must stay within the file. Sources are timed by the clock, since PDF files are read by
another process; they may refuse a file, in one line.
"""

import gzip
import io
import os
import random
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import seeds
from common import arguments, conclude, machine
from groundup.core.errors import UserError
from groundup.corpus.acquire.local_files import Files, Reading
from groundup.corpus.acquire.pdf import PdfReader
from groundup.corpus.acquire.robots import parse_sitemap
from groundup.corpus.archive.records import Losses, read_records
from groundup.corpus.archive.warc import Page, page_of, read_pages
from groundup.corpus.archive.xml_records import elements
from groundup.corpus.extract.content import content_model
from groundup.corpus.extract.page_text import text_of, utf8
from groundup.data.readers import Refused

CLAIM = "broken pages, archives, dumps and PDF files that raise, take over 2 s, or leave a file behind"
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

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self.clock = clock
        self.count = self.failures = 0
        self.slowest = (0.0, "")

    def run(self, name: str, read: Callable[[bytes], None], data: bytes) -> None:
        start = self.clock()
        self.count += 1
        try:
            read(data)
        except Exception as error:
            self.failures += 1
            print(f"{name}: {type(error).__name__}: {error}")
        seconds = self.clock() - start
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
        assert all(0 <= loss.start <= loss.end <= len(data) for loss in losses.places), "a place outside the file"

    return read


def fuzz(trial: Trial, name: str, read: Callable[[bytes], None], seeds: list[bytes], pieces: list[bytes]) -> None:
    @settings(max_examples=INPUTS, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.sampled_from(seeds), st.integers(0, 2**32), st.lists(st.sampled_from(pieces), max_size=30))
    def try_one(seed: bytes, dice: int, tail: list[bytes]) -> None:
        trial.run(f"{name} {dice}", read, broken(seed + b"".join(tail), random.Random(dice), pieces))

    try_one()


XML_PIECES = [
    b"<page>", b"</page>", b"<row ", b"<record>", b"<text>", b"</text>", b"<a>", b"<!DOCTYPE a [", b"<!ENTITY a 'aa'>", b"&a;", 
    b"<![CDATA[", b"]]>", b"<!--", b"-->", b"<?xml ", b'="', b"{{", b"}}", b"[[", b"{|", b"<ref>", b"\n== ", b"\xff", b"\x00",
]  # fmt: skip
PDF_PIECES = [
    b"<<", b">>", b"[", b"(", b"stream\n", b"\nendstream", b"\nendobj\n", b"1 0 obj\n", b"2 0 R ", b"/Kids [2 0 R] ",
    b"/Length 9999999 ", b"/Count -1 ", b"/Filter /FlateDecode ", b"xref\n0 9\n", b"trailer\n", b"startxref\n0\n",
    b"-2147483648 ", b"\xff",
]  # fmt: skip
ZIP_PIECES = [b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"../", b"archive/", b"\xff\xff\xff\xff", b"\0"]


def source_seeds(folder: Path) -> dict[str, tuple[list[bytes], list[bytes]]]:
    """By ending: sound files, and pieces to break them with."""
    names = ("archive/a.warc.gz", "archive/b.warc.gz", "archive/../../c.warc.gz", "/archive/d.warc.gz")
    zips = [seeds.wacz(folder, names, how) for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    wiki = seeds.wiki_dump({f"T{number}": "''Bees'' are {{x}} [[insect|insects]].\n== A ==\n* one" for number in range(9)})
    xml = [text.encode() for text in (wiki, seeds.POSTS, seeds.oai_answer())]
    pdfs = [seeds.pdf(["Hello world\nagain", "Page two"]), seeds.pdf(["a " * 200] * 5)]
    return {".wacz": (zips, ZIP_PIECES), ".xml": (xml, XML_PIECES), ".pdf": (pdfs, PDF_PIECES)}


def source_reader(path: Path, pdf: PdfReader) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        path.write_bytes(data)
        if path.suffix == ".pdf":
            pdf.text(path, Refused())
            return
        if path.suffix == ".xml":  # what comes from a server and from a file alike
            list(elements(io.BytesIO(data), ("record", "resumptionToken", "error"), "answer", Refused()))
            parse_sitemap(data)
        try:
            for page in Files(path, "text", Reading(())).pages():
                assert page.url and isinstance(page.body, bytes)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) <= 300, f"more than a line: {error}"

    return read


def fuzz_sources(trial: Trial, inputs: int) -> None:
    """`inputs` broken files, as many of each kind; a file that appears is a failure."""
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer, "deep", "deeper", "inside")
        folder.mkdir(parents=True)
        before = Path.cwd()
        os.chdir(folder)
        try:
            with PdfReader() as pdf:
                for ending, (sound, pieces) in source_seeds(folder).items():
                    read = source_reader(folder / f"a{ending}", pdf)
                    read(sound[0])  # starts the process
                    for number in range(inputs // 3 + 1):
                        dice = random.Random(number)
                        seed = dice.choice(sound) + b"".join(dice.choices(pieces, k=dice.choice([0, 0, 5])))
                        trial.run(f"{ending} {number}", read, broken(seed, dice, pieces))
                    (folder / f"a{ending}").unlink()
        finally:
            os.chdir(before)
        left_behind = [path for path in Path(outer).rglob("*") if not path.is_dir()]
        trial.failures += len(left_behind)
        for path in left_behind:
            print(f"left behind: {path}")


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
    trials["sources"] = Trial(time.monotonic)
    fuzz_sources(trials["sources"], INPUTS)
    for name, trial in trials.items():
        print(f"{name:9} {trial.count} inputs, {trial.failures} failures, slowest {trial.slowest[0]:.2f} s: {trial.slowest[1]}")
    failures = sum(trial.failures for trial in trials.values())
    conclude(CLAIM, failures, "inputs", 0, failures == 0)


if __name__ == "__main__":
    main()
