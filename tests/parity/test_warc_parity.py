"""Our reader against warcio and FastWARC on archives that warcio writes."""

import io

import pytest
from fastwarc.warc import ArchiveIterator as FastWarc
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from groundup.corpus.records import Losses, read_records
from groundup.corpus.warc import WarcWriter, page_of, read_pages

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
    import gzip
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
