import gzip
import io
import random
import zlib

import brotli
import pytest
from fastwarc.stream_io import ZstdWriter
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.archive.http_message import parse, unchunk, undo_encodings


def zstd(content: bytes) -> bytes:
    out = io.BytesIO()
    writer = ZstdWriter(out)
    writer.write(content)
    writer.close()
    return out.getvalue()


def raw_deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


PACK = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "br": brotli.compress,
    "zstd": zstd,
}


@pytest.mark.parametrize("encoding", PACK)
@given(content=st.binary(max_size=300).map(lambda part: part * 7))
def test_encodings_are_undone(encoding, content):
    assert undo_encodings(PACK[encoding](content), encoding, 10_000) == (content, True)
    assert len(undo_encodings(PACK[encoding](bytes(5000)), encoding, 100)[0]) == 101


@pytest.mark.parametrize("transfer", ["gzip, chunked", "gzip\r\nTransfer-Encoding: chunked", "GZIP,chunked"])
@pytest.mark.parametrize("encoding", ["br", "identity", ""])
def test_bodies_packed_for_the_transfer_too(transfer, encoding):
    content = b"some text \xe4 " * 30
    packed = gzip.compress(PACK.get(encoding, bytes)(content))
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed)
    head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {transfer}\r\nContent-Encoding: {encoding}\r\n\r\n"
    message = parse(head.encode() + chunked, 1 << 20)
    assert message and message.complete and message.body == content


@pytest.mark.parametrize("packings", [["br", "gzip"], ["gzip"]])
def test_an_encoding_stated_on_two_lines(packings):
    """In the order in which they were applied; servers also state one twice."""
    body = content = b"some text \xe4 " * 30
    for name in packings:
        body = PACK[name](body)
    lines = "".join(f"Content-Encoding: {name}\r\n" for name in [packings[0], packings[-1]])
    message = parse(f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode() + body, 1 << 20)
    assert message and message.complete and message.body == content


@pytest.mark.parametrize("encoding", PACK)
def test_cut_off_bodies_are_kept_as_far_as_they_go(encoding):
    content = random.Random(0).randbytes(300_000)
    body, whole = undo_encodings(PACK[encoding](content)[:-20], encoding, 10**6)
    assert content.startswith(body)
    assert len(body) > 100_000
    assert not whole


def test_work_on_a_gzip_body_grows_with_its_size(monkeypatch):
    """What zlib is given, counted: what it does not take it copies, once for each part of a body and each of its members."""
    inflater = zlib.decompressobj

    class Counted:
        def __init__(self, wbits: int) -> None:
            self.inner = inflater(wbits)

        def decompress(self, data: bytes, most: int) -> bytes:
            given.append(len(data))
            return self.inner.decompress(data, most)

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    for make in (lambda n: gzip.compress(random.Random(0).randbytes(20 * n))[:-20], lambda n: gzip.compress(b"") * n):
        work = []
        for n in (5_000, 20_000):
            given: list[int] = []
            undo_encodings(make(n), "gzip", 10**7)
            work.append(sum(given))
        assert work[1] < 5 * work[0]


def test_several_encodings_false_claims_and_unknown_ones():
    assert undo_encodings(brotli.compress(gzip.compress(b"x")), "gzip, br", 100) == (b"x", True)
    assert undo_encodings(gzip.compress(b"a") + gzip.compress(b"b") + b"\n", "gzip", 100) == (b"ab", True)
    assert undo_encodings(b"<p>decoded already", "gzip", 100) == (b"<p>decoded already", True)
    with pytest.raises(ValueError, match="unknown"):
        undo_encodings(b"\x1f\x9d\x90x\0", "compress", 100)
    for unknown in ("aws-chunked", "iso-8859-1", "text/html", "aws-chunked,gzip"):
        assert undo_encodings(gzip.compress(b"<p>x") if "gzip" in unknown else b"<p>x", unknown, 100) == (b"<p>x", True)
    with pytest.raises(ValueError, match="not gzip"):
        undo_encodings(b"\x1f\x8b\x08\x00\x00\xff", "gzip", 100)


@pytest.mark.parametrize(
    "body, expected",
    [
        (b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", (b"abcde", True)),
        (b"3\r\nabc\r\n", (b"abc", False)),
        (b"9\r\nabc", (b"abc", False)),
        (b"<p>no chunks", (b"<p>no chunks", True)),
        (b"3\r\nabc\r\nzz\r\nrest", (b"abc\r\nzz\r\nrest", False)),
        (b"", (b"", True)),
    ],
)
def test_chunks(body, expected):
    assert unchunk(body) == expected


OWN = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>x"


@pytest.mark.parametrize(
    "before",
    [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" * 2,
     b"HTTP/1.0 200 Connection established\r\nVia: proxy\r\n\r\n", b"HTTP/1.1 100 Continue\n\n"],
)  # fmt: skip
def test_heads_before_the_response_are_passed_over(before):
    message = parse(before + OWN, 100)
    assert (message.status, message.body, message.headers) == (200, b"<p>x", {"content-type": "text/html"})


def test_a_page_that_shows_a_response_is_no_head():
    shown = OWN.replace(b"<p>x", OWN)
    assert parse(shown, 100).body == OWN
    assert parse(b"HTTP/1.1 100 Continue\r\n\r\n", 100).status == 100
    assert parse(b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000, 10**7).status == 100  # no copy of the block for each


@given(st.binary(max_size=300), st.sampled_from(["", "gzip", "br", "zstd", "deflate"]))
def test_any_message_can_be_parsed(tail, encoding):
    for head in (b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: %b\r\n\r\n" % encoding.encode()):
        try:
            message = parse(head + tail, 1000)
        except ValueError:
            continue
        assert message is None or len(message.body) <= max(1001, len(tail))
