"""URLs, file names and lines of an index as strangers write them: parsed in one place, counted where malformed, never raised."""

import gzip
import json
import os
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by path
from common_crawl_server import CRAWL, make, serve

from groundup.core.errors import UserError
from groundup.corpus.acquire import common_crawl, fetch
from groundup.corpus.acquire.crawl import links
from groundup.corpus.acquire.fetch import retry_seconds
from groundup.corpus.acquire.robots import parse_sitemap
from groundup.corpus.acquire.sources import collect
from groundup.corpus.annotate import measure
from groundup.corpus.archive.records import natural
from groundup.corpus.archive.warc import Losses, Page, WarcWriter, read_pages
from groundup.corpus.classify import labelled
from groundup.corpus.classify.labelled import read
from groundup.corpus.config import AnnotationsConfig, SourceConfig
from groundup.corpus.dedup.duplicates import url_hash
from groundup.corpus.extract.train_extractor import site_of
from groundup.corpus.urls import canonical, host_of, path_and_query, split_url, unescaped

MALFORMED = [
    "http://[bad/", "http://a.org]/", "http://[::1", "http://a.org:port/", "http://a.org:99999/", "http://a\u2100b.org/",
    "http://a\uff0fb.org/", "http://a.org/\ud800", "http://a.org/" + "x" * 40_000, "//[", "https://[v1.x]:y/",
]  # fmt: skip
PIECES = st.sampled_from([
    "http", "https", "://", "//", "/", ":", "[", "]", "@", "%", "?", "#", "..", "a.org",
    "\ud800", "\uff0f", "1", " ",
])  # fmt: skip
URLS = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=12).map("".join), st.sampled_from(MALFORMED))


@pytest.mark.parametrize("url", MALFORMED)
def test_malformed_urls_are_none(url):
    assert split_url(url) is None
    assert canonical(url) is None
    assert (host_of(url), path_and_query(url), measure.host_of(url)) == ("", "/", "")


@given(URLS, URLS)
def test_no_url_raises(url, base):
    parts = split_url(url)
    if parts:
        assert parts == urlsplit(url)
        url.encode()
    for found in (canonical(url), canonical(url, base), canonical(url, "http://a.org/b/c")):
        assert found is None or (split_url(found) and canonical(found) == found)
    host_of(url), path_and_query(url), measure.host_of(url), measure.kind_of("text/plain", url), site_of(url), unescaped(url)
    links(Page("http://a.org/", "text/html", f"<a href='{url}'>x</a>".encode("utf-8", "replace")))


def test_a_row_of_a_page_with_any_url_can_be_measured():
    row = measure.measure(Page("http://a.org/\ud800", "text/plain", b"words"), "d", AnnotationsConfig())
    assert row["url"] == "http://a.org/?"
    url_hash(row["url"])


def test_an_entity_of_any_number_is_a_link_like_others():
    """Python refuses to read a number of more than 4,300 digits."""
    entity = "&#" + "9" * 5000 + ";"
    body = f"<a href='/{entity}'>x</a><a href='/b'>y</a>".encode()
    assert links(Page("http://a.org/", "text/html", body))[-1] == "http://a.org/b"
    assert parse_sitemap(f"<urlset><url><loc>http://a.org/{entity[:2000]}</loc></url>".encode())


def gather(tmp_path, source, **more):
    counts = collect(SourceConfig(source=str(source), domain="d", **more), tmp_path / "pages", "s", 1000.0, "test")
    return counts, list(read_pages(tmp_path / "pages" / "s.warc.gz", Losses()))


def test_rows_and_records_of_malformed_urls_are_counted_and_passed_over(tmp_path):
    rows = [{"text": "good", "url": "http://a.org/1"}] + [{"text": "bad", "url": url} for url in MALFORMED[:-2]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts, pages = gather(tmp_path / "1", tmp_path / "a.jsonl")
    assert [page.body for page in pages] == [b"good"]
    assert counts["refused"] == {"malformed URL": len(rows) - 1}

    with WarcWriter(tmp_path / "a.warc.gz") as warc:
        for url in ("http://[bad/", "http://a.org/1", "http://a.org:99999/"):
            warc.response(url, 200, [("Content-Type", "text/plain")], b"text")
    counts, pages = gather(tmp_path / "2", tmp_path / "a.warc.gz")
    assert [page.url for page in pages] == ["http://a.org/1"]
    assert counts["refused"] == {"malformed URL": 2}


def test_file_names_of_any_bytes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    with WarcWriter(folder / os.fsdecode(b"r\xff.warc.gz")) as warc:
        warc.resource("http://a.org/", "text/plain", b"archived")
    assert [page.url for page in gather(tmp_path, folder)[1]] == ["file:///notes/caf%E9.txt", "http://a.org/"]


def test_a_labelled_text_is_bounded_once_unpacked_and_neither_page_nor_bytes_of_an_old_charset(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(labelled, "MAX_TEXT_BYTES", 500_000)
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(b"words of a book\n" * 100_000))
    (tmp_path / "old.txt").write_bytes(("Gr\xf6\xdfe f\xfcr M\xfcller " * 50).encode("cp1252"))
    (tmp_path / "page.txt").write_text("<!DOCTYPE html><html><body>menu</body></html>")
    (tmp_path / "kept.txt").write_text("kept words")
    assert [one.text for one in read([tmp_path])] == ["kept words"]
    assert "not UTF-8: 1, refused files: 1, size: 1" in caplog.text


def test_groups_of_labelled_rows_may_be_malformed_urls(tmp_path):
    rows = [{"text": f"words {n}", "url": url} for n, url in enumerate(["http://[bad/", "http://a.org/x", "no url"])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read([tmp_path / "a.jsonl"])) == 3


@pytest.mark.parametrize(
    "said", ["9" * 5000, "\u00b2", "Mon, 01 Jan 2001 00:00:00 +" + "9" * 30, "Mon, 99 Jan 2001", "", "-1", "\x00"]
)
def test_any_retry_after(said):
    assert retry_seconds(said) is None or retry_seconds(said) >= 0


@given(st.text(max_size=30))
def test_numbers(text):
    number = natural(text)
    assert number is None or (0 <= number < 10**18 and text.isascii())
    assert retry_seconds(text) is None or retry_seconds(text) >= 0


CAPTURE = 'org,example)/p0 20260101000000 {"url": "http://example.org/p0", "mime-detected": "text/html", "status": "200", '
BAD_CAPTURES = [
    "", "org,example)/", "org,example)/ 1 {", "org,example)/ 1 " + "[" * 100_000, "org,example)/ 1 []",
    "org,example)/ 1 " + '{"a":' * 5000,
    CAPTURE + '"filename": "x/warc/a b.warc.gz", "offset": "1", "length": "10"}',
    CAPTURE + '"filename": "x/warc/../a.warc.gz", "offset": "1", "length": "10"}',
    CAPTURE + '"filename": "x/warc/missing.warc.gz", "offset": "1", "length": "10"}',
    CAPTURE + '"filename": "x/warc/a.warc.gz", "offset": 1e999, "length": "10"}',
    CAPTURE + '"filename": "x/warc/a.warc.gz", "offset": "' + "9" * 5000 + '", "length": "10"}',
    CAPTURE + '"filename": "x/warc/a.warc.gz", "offset": "-5", "length": "10"}',
    CAPTURE + '"filename": "x/warc/a.warc.gz", "offset": "5", "length": "99999999999"}',
    CAPTURE + '"filename": ["/warc/"], "offset": "5", "length": "9"}',
    CAPTURE + '"filename": "x/warc/a.warc.gz", "languages": 7, "offset": "5", "length": "9"}',
]  # fmt: skip
BAD_LINES = [
    "aaa nonsense", "org,example)/\t\t\t", "org,example)/ 2\tcdx-00000.gz\t\t9\t1",
    "org,example)/ 3\tcdx-00000.gz\t9\u00b2\t9\t1",
    "org,example)/ 4\tcdx-00000.gz\t" + "9" * 60 + "\t9\t1", "org,example)/ 5\tno such\t0\t9\t1",
    "org,example)/ 6\tcdx-9.gz\t0\t9\t1",
    "org,example)/ 7\t../../a\t0\t9\t1", "org,example)/ 8\tcdx-00000.gz\t0\t999999999999\t1",
]  # fmt: skip


def test_bad_lines_of_the_index_are_counted_and_the_others_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", 0.001)
    languages = make(tmp_path / "server", ["a.org", "example.org", "zoo.net"])
    indexes = tmp_path / "server" / f"cc-index/collections/{CRAWL}/indexes"
    content = (indexes / "cdx-00000.gz").read_bytes()
    bad = gzip.compress("\n".join(BAD_CAPTURES).encode())
    (indexes / "cdx-00000.gz").write_bytes(content + bad)
    lines = (indexes / "cluster.idx").read_text().splitlines()
    lines += [*BAD_LINES, f"org,example)/ 9\tcdx-00000.gz\t{len(content)}\t{len(bad)}\t99"]
    (indexes / "cluster.idx").write_text("\n".join(sorted(lines)) + "\n")
    refused: Counter = Counter()
    with serve(tmp_path / "server") as (base, _):
        found = common_crawl.CommonCrawl(f"cc:{CRAWL}", tmp_path / "log", refused, host="example.org", base=base).pages()
        urls = [page.url for page in found]
        assert sorted(urls) == sorted(url for url in languages if url.split("/")[2] == "example.org")
        assert refused["damaged index"] >= len(BAD_LINES) - 1 + len(BAD_CAPTURES) - 4
        assert refused["damaged"] == 2  # the captures whose files are missing
        with pytest.raises(UserError, match="not the name of a host"):
            list(common_crawl.CommonCrawl(f"cc:{CRAWL}", tmp_path / "log", Counter(), host="a..b", base=base).pages())

        listing = tmp_path / "server" / f"crawl-data/{CRAWL}/warc.paths.gz"
        paths = gzip.decompress(listing.read_bytes()).decode()
        listing.write_bytes(gzip.compress(("missing.warc.gz\n../a.warc.gz\n" + paths).encode()))
        refused.clear()
        found = common_crawl.CommonCrawl(f"cc:{CRAWL}", tmp_path / "other", refused, base=base).pages()
        assert sorted(page.url for page in found) == sorted(languages)
        assert refused["damaged index"] == 2


@given(st.binary(max_size=60) | st.sampled_from([line.encode() for line in BAD_LINES + BAD_CAPTURES[:6]]))
def test_no_line_of_an_index_raises(line):
    class Answers:
        def get(self, wanted):
            path, start, length = wanted
            assert start >= 0 and 0 < length <= common_crawl.MAX_BLOCK_BYTES
            return gzip.compress(line + b"\n" + line)

    refused: Counter = Counter()
    blocks = [line, b"a\tcdx-00000.gz\t0\t10\t1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common_crawl, "_sample", lambda *_: ((block, slice(None)) for block in blocks))
        list(common_crawl._captures(Answers(), CRAWL, refused, None, None, None))
