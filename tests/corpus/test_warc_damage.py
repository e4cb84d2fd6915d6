"""Archives with every kind of damage: what is read, and that the account of what is not is exact."""

import gzip
import io
import os
import random
import zlib
from datetime import timedelta
from pathlib import Path

import pytest
from fastwarc.stream_io import Lz4Writer, ZstdWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.corpus.archive import compression
from groundup.corpus.archive.records import DamagedRange, Losses, read_records
from groundup.corpus.archive.warc import WarcWriter, page_of, read_pages

DATA = Path(os.environ.get("GROUNDUP_DATA", Path(__file__).parents[2] / "../shared/data")) / "web" / "warc-cases"


def record(number: int, length: str | None = None, body: bytes | None = None, newline: bytes = b"\r\n") -> bytes:
    body = b"page %d " % number * 50 if body is None else body
    lines = [b"WARC/1.0", b"WARC-Type: resource", b"WARC-Target-URI: http://a.org/%d" % number]
    lines += [b"Content-Type: text/plain"]
    if length != "":
        lines.append(b"Content-Length: " + (length or str(len(body))).encode())
    return newline.join([*lines, b"", body, b"", b""])


def read(path: Path, content: bytes, **bounds: int) -> tuple[list[str], Losses]:
    path.write_bytes(content)
    losses = Losses()
    return [page.url.rpartition("/")[2] for page in read_pages(path, losses, **bounds)], losses


def packed(kind: str, content: bytes) -> bytes:
    if kind == "gz":
        return gzip.compress(content, mtime=0)
    out = io.BytesIO()
    writer = {"zst": ZstdWriter, "lz4": Lz4Writer}[kind](out)
    writer.write(content)
    writer.close()
    return out.getvalue()


@pytest.mark.parametrize("kind", ["gz", "zst", "lz4"])
def test_a_broken_member_loses_only_itself_and_its_place_is_told(tmp_path, kind):
    noise = random.Random(0).randbytes(3000)
    members = [packed(kind, record(n, body=noise)) for n in range(4)]
    path = tmp_path / "a.warc"
    assert read(path, b"".join(members)) == (["0", "1", "2", "3"], Losses(records=4))
    first, second = len(members[0]), len(members[0] + members[1])
    # Its magic number is gone.
    broken = bytes(4) + members[1][4:]
    found, losses = read(path, members[0] + broken + members[2] + members[3])
    assert found == ["0", "2", "3"]
    assert losses.places == [DamagedRange("a.warc", "lost", first, second, second - first)]
    # The first of all is broken, so that nothing tells at once how the file is compressed.
    found, losses = read(path, bytes(4) + members[0][4:] + members[1])
    assert (found, losses.lost_bytes) == (["1"], first)
    # The file ends inside one.
    found, losses = read(path, (members[0] + members[1])[:-100])
    assert (found[0], losses.lost, losses.lost_bytes) == ("0", 1, second - 100 - first)
    # All in one member, or in blocks that respect nothing.
    whole = b"".join(record(n) for n in range(4))
    assert read(path, packed(kind, whole)) == (["0", "1", "2", "3"], Losses(records=4))
    blocks = b"".join(packed(kind, whole[at : at + 333]) for at in range(0, len(whole), 333))
    assert read(path, blocks) == (["0", "1", "2", "3"], Losses(records=4))


def test_zstd_with_a_dictionary(tmp_path):
    dictionary = b"page " * 100
    frames = []
    for number in range(2):
        out = io.BytesIO()
        writer = ZstdWriter(out, dictionary=dictionary)  # which writes the dictionary before its first frame
        writer.write(record(number))
        writer.close()
        frames.append(out.getvalue())
    assert frames[0].startswith(b"\x5d\x2a\x4d\x18")
    content = frames[0] + frames[1][8 + len(dictionary) :]
    assert read(tmp_path / "a.warc.zst", content) == (["0", "1"], Losses(records=2))


def test_lengths_that_lie_cost_what_they_lie_about(tmp_path):
    path = tmp_path / "a.warc"
    size = len(b"page 1 " * 50)

    def with_length(length: str) -> tuple[list[str], Losses]:
        return read(path, record(0) + record(1, length) + record(2))

    start, after = len(record(0)), len(record(0) + record(1, str(size)))
    assert with_length(str(size)) == (["0", "1", "2"], Losses(records=3))
    assert with_length("") == (["0", "1", "2"], Losses(records=3))  # up to the next record
    assert with_length("many") == (["0", "1", "2"], Losses(records=3))
    found, losses = with_length(str(size + 100))  # into the next record, not past it
    assert found == ["0", "1", "2"]
    assert losses.places == [DamagedRange("a.warc", "truncated", start, after, 100)]
    found, losses = with_length(str(size - 100))
    assert (found, losses.records, losses.lost, losses.lost_bytes) == (["0", "1", "2"], 3, 1, 104)
    assert losses.places[0].end == len(record(0) + record(1, str(size - 100)))
    found, losses = with_length(str(10**13))
    assert (found[0], found[-1], losses.lost + losses.truncated) == ("0", "2", 1)


def test_a_record_larger_than_the_bound_is_passed_over_even_if_it_holds_records(tmp_path):
    inner = record(7) * 100
    found, losses = read(tmp_path / "a.warc", record(0) + record(1, body=inner) + record(2), max_record_bytes=2000)
    assert found == ["0", "2"]
    assert losses.places == [
        DamagedRange("a.warc", "lost", len(record(0)), len(record(0) + record(1, body=inner)) - 4, len(record(1, body=inner)) - 4)
    ]


def test_records_inside_a_page_are_its_text(tmp_path):
    assert read(tmp_path / "a.warc", record(0, body=record(7)) + record(2)) == (["0", "2"], Losses(records=2))


def test_line_feeds_alone_lower_case_names_and_folded_lines(tmp_path):
    content = record(0, newline=b"\n") + record(1).replace(b"Content-Length", b"content-length") + record(2)
    content += record(3).replace(b"WARC-Target-URI: ", b"WARC-Target-URI:\r\n ")
    assert read(tmp_path / "a.warc", content) == (["0", "1", "2", "3"], Losses(records=4))


def test_garbage_between_plain_records_is_counted(tmp_path):
    found, losses = read(tmp_path / "a.warc", record(0) + b"x" * 70_000 + record(1))
    start = len(record(0))
    assert (found, losses.places) == (["0", "1"], [DamagedRange("a.warc", "lost", start, start + 70_000, 70_000)])


def test_bombs_and_endless_records_are_bounded_in_time_and_memory(tmp_path, within_a_minute):
    bomb = zlib.compressobj(9, wbits=31)
    head = b"WARC/1.0\r\nWARC-Type: resource\r\nWARC-Target-URI: http://a.org/b\r\n"
    endless = bomb.compress(head) + b"".join(bomb.compress(bytes(1 << 20)) for _ in range(40)) + bomb.flush()
    bomb = zlib.compressobj(9, wbits=31)
    long = bomb.compress(head + b"Content-Length: 99999999999\r\n\r\n")
    long += b"".join(bomb.compress(bytes(1 << 20)) for _ in range(40)) + bomb.flush()
    content = endless + packed("gz", record(1)) + long + packed("gz", record(2))
    found, losses = read(tmp_path / "a.warc.gz", content, max_record_bytes=1 << 20)
    assert found == ["1", "2"]
    assert losses.lost_bytes >= len(endless)


FRAME_IN_FRAME = b"\x28\xb5\x2f\xfd\0\0\x30\0\0"  # a zstd frame's first block holds what looks like another's start
NOISE = [b"\x1f\x8b\x08", b"\x1f\x8b\x08\x00", b"WARC/1.0\r\nContent-Length: 9999999\r\n\r\n", b"\r\n", FRAME_IN_FRAME]


@pytest.mark.parametrize("noise", NOISE)
def test_what_looks_like_records_everywhere_costs_one_pass(tmp_path, noise, growth):
    assert growth(lambda size: read(tmp_path / "a.warc", noise * (size // len(noise))), 20_000) < 8


def test_arc_and_wet_are_read_as_warc(tmp_path):
    body = b"HTTP/1.0 200 OK\r\nContent-Type: text/html; charset=latin-1\r\n\r\n<p>"
    arc = b"filedesc://x.arc 0.0.0.0 20010101000000 text/plain 8\n1 0 Org\n\n"
    arc += b"http://a.org/a b 1.2.3.4 20010101000000 text/html %d\n" % len(body) + body + b"\n"
    arc += b"http://a.org/c 1.2.3.4 20010101000000 text/plain 200 x - 5 x.arc 3\nabc\n"
    for content in (arc, gzip.compress(arc)):
        path = tmp_path / "x.arc"
        path.write_bytes(content)
        losses = Losses()
        pages = [(page.url, page.content_type, page.charset, page.body) for page in read_pages(path, losses)]
        assert pages == [("http://a.org/a b", "text/html", "latin-1", b"<p>"), ("http://a.org/c", "text/plain", None, b"abc")]
        assert losses == Losses(records=3)
    wet = tmp_path / "x.warc.wet"
    wet.write_bytes(record(5).replace(b"resource", b"conversion"))
    (page,) = read_pages(wet, Losses())
    assert (page.content_type, page.charset) == ("text/plain", "utf-8")


@pytest.mark.parametrize("fields", [b" ", b"text/plain", b"text/plain "])
def test_an_arc_record_without_type_or_length_is_read_to_its_end(tmp_path, fields):
    path = tmp_path / "x.arc"
    path.write_bytes(b"http://a.org/a 1.2.3.4 20010101000000 " + fields + b"\nsome words\n")
    (page,) = read_pages(path, Losses())
    assert (page.url, page.content_type, page.body) == ("http://a.org/a", "text/plain", b"some words")


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_cut_anywhere_the_account_adds_up(tmp_path_factory, data):
    """Of a plain file: every byte belongs to a record, is blank, or is counted as lost."""
    records = [record(n) for n in range(3)]
    whole = b"".join(records)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    path = tmp_path_factory.mktemp("cut") / "a.warc"
    path.write_bytes(whole[:start] + whole[end:])
    losses = Losses()
    found = list(read_records(path, losses))
    covered = [one.offsets for one in found] + [(place.start, place.end) for place in losses.places if place.what == "lost"]
    covered.sort()
    content, at = path.read_bytes(), 0
    for first, last in covered:
        assert first >= at and not content[at:first].strip()
        at = last
    assert not content[at:].strip()
    # Records that were not touched are all there.
    starts = [len(b"".join(records[:n])) for n in range(4)]
    untouched = [n for n in range(3) if end <= starts[n] or start >= starts[n + 1]]
    urls = [one.url for one in found]
    assert all(f"http://a.org/{n}" in urls for n in untouched)


@pytest.mark.skipif(not DATA.exists(), reason=f"no real WARC files in {DATA}")
@given(st.data())
@settings(max_examples=150, deadline=timedelta(minutes=1))
def test_real_files_with_damage_neither_stop_nor_hang_the_reader(tmp_path_factory, data):
    cases = sorted(path for path in DATA.glob("*.*arc*") if path.stat().st_size < 20_000)
    source = data.draw(st.sampled_from(cases))
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content)))
        size = data.draw(st.sampled_from([0, 1, 4, 100]))
        content[at : at + size] = data.draw(st.binary(max_size=8) | st.sampled_from([b"\x1f\x8b\x08", b"WARC/1.0\r\n"]))
    path = tmp_path_factory.mktemp("fuzz") / source.name
    path.write_bytes(content)
    losses = Losses()
    for one in read_records(path, losses):
        page_of(one, path.name, losses)
        assert 0 <= one.offsets[0] <= one.offsets[1] <= len(content)
    assert all(0 <= place.start <= place.end <= len(content) for place in losses.places)


def test_what_the_writer_wrote_has_no_losses(tmp_path):
    with WarcWriter(tmp_path / "a.warc.gz") as warc:
        for number in range(5):
            warc.response(f"http://a.org/{number}", 200, [("Content-Type", "text/html")], record(number) * number)
    losses = Losses()
    assert len(list(read_pages(tmp_path / "a.warc.gz", losses))) == 5
    assert losses == Losses(records=5)


@given(st.binary(max_size=300), st.integers(0, 9))
def test_each_gzip_member_may_begin_and_what_cannot_inflate_is_not_opened(content, level):
    assert compression._may_begin(compression.GZIP_MAGIC, gzip.compress(content, level), 0)


@pytest.mark.parametrize("content", [b"", b"\r\n", b"WARC/1.0\r\n"])
def test_each_of_many_small_members_is_opened_once(tmp_path, monkeypatch, content):
    opened, read = [], []
    member = gzip.compress(content, mtime=0)

    class Counted(compression.GzipMember):
        def __init__(self, file, start):
            opened.append(start)
            super().__init__(file, start)

        def read(self, size=compression.CHUNK):
            read.append(size)
            return super().read(size)

    monkeypatch.setattr(compression, "GzipMember", Counted)
    (tmp_path / "flood.gz").write_bytes(member * 1000)
    list(read_records(tmp_path / "flood.gz", Losses()))
    # Where records begin is looked for once, so a few are opened twice; the first alone is read without a look at it before.
    assert len(opened) <= 1003 and sum(size == compression.CHUNK for size in read) <= 2


def test_a_flood_of_magic_numbers_opens_no_member(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(compression, "_first_bytes", lambda opener, start: (None, opened.append(start)))
    (tmp_path / "flood.gz").write_bytes(b"\x1f\x8b\x08\x00" * 5000)
    assert list(read_records(tmp_path / "flood.gz", Losses())) == [] and len(opened) <= 3  # the last ones
