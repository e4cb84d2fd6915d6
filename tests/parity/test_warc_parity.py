"""Our reader against warcio and FastWARC on archives that warcio writes."""

import gzip
import io

import pytest
from fastwarc.warc import ArchiveIterator as FastWarc
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from groundup.corpus.archive.records import Losses, read_records
from groundup.corpus.archive.warc import WarcWriter, page_of, read_pages

PAYLOADS = st.lists(st.tuples(st.binary(max_size=400), st.sampled_from([200, 200, 404]), st.booleans()), max_size=6)


@given(PAYLOADS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_warcio_writes(tmp_path_factory, payloads, compressed):
    path = tmp_path_factory.mktemp("warc") / "a.warc"
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=compressed)
        writer.write_record(writer.create_warcinfo_record("a", {"software": "test"}))
        for number, (payload, status, chunked) in enumerate(payloads):
            lines = [("Content-Type", "text/html")]
            if chunked:
                lines.append(("Transfer-Encoding", "chunked"))
                payload = b"%x\r\n%b\r\n0\r\n\r\n" % (len(payload), payload) if payload else b"0\r\n\r\n"
            head = StatusAndHeaders(f"{status} X", lines, protocol="HTTP/1.1")
            record = writer.create_warc_record(f"http://a.org/{number}", "response", io.BytesIO(payload), http_headers=head)
            writer.write_record(record)
    losses = Losses()
    ours = list(read_records(path, losses))
    assert losses == Losses(records=len(payloads) + 1)
    with path.open("rb") as file:
        blocks = [(r.rec_type, r.raw_stream.read()) for r in ArchiveIterator(file, no_record_parse=True)]
    assert [(record.kind, record.block) for record in ours] == blocks
    fast = [(r.headers["WARC-Type"], r.reader.read()) for r in FastWarc(str(path), parse_http=False)]
    assert [(record.kind, record.block) for record in ours] == fast
    with path.open("rb") as file:
        bodies = [
            (r.rec_headers["WARC-Target-URI"], r.content_stream().read())
            for r in ArchiveIterator(file)
            if r.rec_type == "response" and r.http_headers.get_statuscode() == "200"
        ]
    assert [(page.url, page.body) for page in read_pages(path, Losses())] == bodies


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "identity"])
def test_decoding_as_fastwarc(tmp_path, encoding):
    import zlib

    import brotli

    body = b"<p>text " * 100
    sent = {"gzip": gzip.compress, "br": brotli.compress, "deflate": zlib.compress, "identity": bytes}[encoding](body)
    path = tmp_path / "a.warc.gz"
    with WarcWriter(path) as warc:
        warc.response("http://a.org/", 200, [("Content-Encoding", encoding)], sent)
    (theirs,) = (r.reader.read() for r in FastWarc(str(path), parse_http=True, auto_decode="all"))
    (ours,) = (page_of(r, "a", Losses()) for r in read_records(path, Losses()))
    assert theirs == ours.body == body


def test_digests_that_others_check(tmp_path, capsys):
    from warcio.checker import Checker

    path = tmp_path / "a.warc.gz"
    with WarcWriter(path) as warc:
        warc.response("http://a.org/", 200, [("Content-Type", "text/html")], "grün".encode())
        warc.response("http://a.org/empty", 200, [], b"")
        warc.resource("file:///a", "text/plain", b"text\r\n\r\n")
        warc.metadata("http://a.org/b", [("outcome", "type")])
    kinds = [record.headers["WARC-Type"] for record in FastWarc(str(path), verify_digests=True)]
    assert kinds == ["response", "response", "resource", "metadata"]
    assert all(record.verify_block_digest() for record in FastWarc(str(path), parse_http=False))
    # Of what came by no HTTP FastWARC says nothing but False.
    payloads = [record.verify_payload_digest() for record in FastWarc(str(path)) if record.headers["WARC-Type"] == "response"]
    assert payloads == [True, True]

    class Command:
        inputs, verbose = [str(path)], False

    assert Checker(Command()).process_all() == 0, capsys.readouterr().out

    plain = gzip.decompress(path.read_bytes())
    (tmp_path / "b.warc").write_bytes(plain.replace("grün".encode(), b"grau "))
    assert len(list(FastWarc(str(tmp_path / "b.warc"), verify_digests=True))) == 3


@pytest.mark.parametrize("ends", ["every line", "the blank line", "the last two"])
def test_heads_that_end_in_two_carriage_returns(tmp_path, ends):
    head = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.org/%d\r\nContent-Length: 46\r\n\r\n"
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\nok"
    if ends == "every line":
        head = head.replace(b"\r\n", b"\r\r\n")
    else:
        head = head.removesuffix(b"\r\n" * (1 + (ends != "the blank line"))) + b"\r\r\n" * (1 + (ends != "the blank line"))
    records = [head % number + block + b"\r\n\r\n" for number in range(3)]
    for content in (b"".join(records), b"".join(map(gzip.compress, records))):
        path = tmp_path / "a.warc"
        path.write_bytes(content)
        with path.open("rb") as file:
            read = ArchiveIterator(file, no_record_parse=True)
            theirs = [(record.rec_headers["WARC-Target-URI"], record.raw_stream.read()) for record in read]
        losses = Losses()
        ours = [(record.url, record.block) for record in read_records(path, losses)]
        assert ours == theirs == [(f"http://a.org/{number}", block) for number in range(3)]
        assert losses == Losses(records=3)
        assert all(page.body == b"ok" for page in read_pages(path, Losses()))


def test_a_value_may_hold_characters_that_end_lines_elsewhere(tmp_path):
    url = "http://a.org/\u2028x\x85y"
    path = tmp_path / "a.warc"
    head = f"WARC/1.0\r\nWARC-Type: resource\r\nWARC-Target-URI: {url}\r\nContent-Length: 1\r\n\r\n"
    path.write_bytes(head.encode() + b"x\r\n\r\n")
    assert [record.url for record in read_records(path, Losses())] == [url]
