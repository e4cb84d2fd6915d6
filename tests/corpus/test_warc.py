import gzip
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator

from groundup.corpus.archive.warc import Losses, Page, WarcWriter, complete_prefix, read_pages

DATA = Path(os.environ.get("GROUNDUP_DATA", Path(__file__).parents[2] / "../shared/data")) / "web" / "warc-cases"


def write_three(path: Path) -> list[int]:
    """Three pages; returns the offset at which each record ends."""
    ends = []
    with WarcWriter(path) as warc:
        for n in range(3):
            warc.response(
                f"http://a.org/{n}", 200, [("Content-Type", "text/html; charset=UTF-8")], b"page %d" % n * 200
            )
            ends.append(path.stat().st_size)
    return ends


def urls(path: Path, losses: Losses) -> list[str]:
    return [page.url for page in read_pages(path, losses)]


def test_round_trip_and_no_line_break_gets_into_a_header(tmp_path):
    path = tmp_path / "a.warc.gz"
    with WarcWriter(path) as warc:
        warc.response("http://a.org/\r\nX: y", 200, [("Content-Type", "text/html; charset=latin-1")], b"\xe4")
        warc.response("http://a.org/gone", 404, [], b"no")
        warc.metadata("http://a.org/b", [("outcome", "type")])
    with WarcWriter(path, append=True) as warc:
        warc.resource("file:///c", "text/plain", b"c\n")
    assert list(read_pages(path, Losses())) == [
        Page("http://a.org/ X: y", "text/html", b"\xe4", "latin-1"),
        Page("file:///c", "text/plain", b"c\n"),
    ]


def test_warcio_reads_what_is_written(tmp_path):
    path = tmp_path / "a.warc.gz"
    write_three(path)
    with path.open("rb") as file:
        records = [
            (r.rec_type, r.http_headers.get_statuscode(), r.content_stream().read()) for r in ArchiveIterator(file)
        ]
    assert records == [("response", "200", b"page %d" % n * 200) for n in range(3)]
    with path.open("rb") as file:
        ids = [record.rec_headers["WARC-Record-ID"] for record in ArchiveIterator(file)]
    assert len(set(ids)) == 3


def test_damage_between_and_inside_members_loses_only_itself(tmp_path):
    path = tmp_path / "a.warc.gz"
    first, second, _ = write_three(path)
    whole = path.read_bytes()

    path.write_bytes(whole[:first] + b"garbage \x1f\x8b\x08 garbage" * 9000 + whole[first:])
    losses = Losses()
    assert urls(path, losses) == [f"http://a.org/{n}" for n in range(3)]
    assert (losses.lost, losses.lost_bytes) == (1, 19 * 9000)

    middle = (first + second) // 2
    path.write_bytes(whole[:middle] + bytes(20) + whole[middle + 20 :])
    losses = Losses()
    assert urls(path, losses)[0 :: len(urls(path, Losses())) - 1] == ["http://a.org/0", "http://a.org/2"]
    assert (losses.lost, losses.lost_bytes) == (1, second - first)


def test_cut_off_file_counts_the_truncated_page(tmp_path):
    path = tmp_path / "a.warc.gz"
    with WarcWriter(path) as warc:
        warc.resource("file:///a", "text/plain", os.urandom(50_000))
    path.write_bytes(path.read_bytes()[:30_000])
    losses = Losses()
    (page,) = read_pages(path, losses)
    assert 0 < len(page.body) < 50_000
    assert losses.truncated == 1


def test_one_gzip_member_or_blocks_of_any_size_give_all_pages(tmp_path):
    path = tmp_path / "a.warc.gz"
    write_three(path)
    plain = gzip.decompress(path.read_bytes())
    for size in (len(plain), 100):
        path.write_bytes(b"".join(gzip.compress(plain[i : i + size]) for i in range(0, len(plain), size)))
        losses = Losses()
        assert len(urls(path, losses)) == 3
        assert losses == Losses(records=3)


def test_records_and_bodies_beyond_the_bound_are_lost(tmp_path):
    path = tmp_path / "a.warc.gz"
    with WarcWriter(path) as warc:
        warc.resource("file:///large", "text/plain", bytes(3000))
        warc.response("http://bomb/", 200, [("Content-Encoding", "gzip")], gzip.compress(bytes(1_000_000)))
        warc.resource("file:///small", "text/plain", b"s")
    losses = Losses()
    assert [page.url for page in read_pages(path, losses, max_record_bytes=2000)] == ["file:///small"]
    assert losses.lost == 2


def test_encodings_are_undone_and_a_false_claim_of_one_is_not_believed(tmp_path):
    path = tmp_path / "a.warc.gz"
    with WarcWriter(path) as warc:
        warc.response("http://a/", 200, [("Content-Encoding", "gzip")], gzip.compress(b"text"))
        warc.response("http://b/", 200, [("Content-Encoding", "gzip")], b"<p>decoded already")
    assert [page.body for page in read_pages(path, Losses())] == [b"text", b"<p>decoded already"]


@pytest.mark.parametrize("stated", ["WARC-Truncated: length", "WARC-Segment-Number: 1"])
@pytest.mark.parametrize("kind", ["response", "resource"])
def test_a_page_that_its_record_says_is_cut_short_is_counted(tmp_path, stated, kind):
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" * (kind == "response") + b"<html>begun"
    head = f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a.org/\r\nContent-Type: text/html\r\n{stated}\r\n"
    (tmp_path / "a.warc").write_bytes(f"{head}Content-Length: {len(block)}\r\n\r\n".encode() + block + b"\r\n\r\n")
    losses = Losses()
    assert urls(tmp_path / "a.warc", losses) == ["http://a.org/"]
    assert (losses.records, losses.truncated, losses.lost) == (1, 1, 0)


@given(cut=st.integers(0, 10_000))
def test_complete_prefix_is_the_end_of_the_last_whole_record(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("warc") / "a.warc.gz"
    ends = [0, *write_three(path)]
    cut = cut % (ends[-1] + 1)
    os.truncate(path, cut)
    assert complete_prefix(path) == max(end for end in ends if end <= cut)


@given(st.binary(max_size=400))
def test_any_bytes_can_be_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("warc") / "a.warc.gz"
    for content in (data, gzip.compress(data), gzip.compress(b"WARC/1.0\r\n" + data) + data):
        path.write_bytes(content)
        list(read_pages(path, Losses()))


@pytest.mark.skipif(not DATA.exists(), reason=f"no real WARC files in {DATA}")
@pytest.mark.parametrize("path", sorted(DATA.glob("*.warc.gz")), ids=lambda path: path.name)
def test_no_real_file_gives_fewer_pages_than_warcio_finds(path):
    found = 0
    try:
        for record in ArchiveIterator(io.BytesIO(path.read_bytes())):
            status = record.http_headers.get_statuscode() if record.http_headers else ""
            found += record.rec_type == "resource" or (record.rec_type == "response" and status == "200")
    except Exception:  # warcio gives up at damage
        pass
    assert len(list(read_pages(path, Losses()))) >= found
