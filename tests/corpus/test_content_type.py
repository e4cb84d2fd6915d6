"""One function says what a body is: content types as servers state them, feeds, and binary bodies called text."""

import gzip
import io
import random
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.acquire import fetch
from groundup.corpus.acquire.sources import collect
from groundup.corpus.archive.content_type import MARKS, gives_text, kind_of_body, may_give_text, parse_content_type
from groundup.corpus.archive.warc import Losses, Page, WarcWriter, read_pages
from groundup.corpus.config import SourceConfig
from groundup.corpus.extract.page_text import extract

PAGE = "<html><head><title>Bees</title></head><body><main><h1>Bees</h1><p>Of bees, much is known.</p></main></body></html>"
XHTML = '<?xml version="1.0"?>\n<!-- x > y --><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0//EN" "x.dtd">\n' + PAGE.replace(
    "<html>", '<html xmlns="http://www.w3.org/1999/xhtml">'
)
RSS = '<?xml version="1.0"?>\n<rss version="2.0"><channel><title>Bees</title><item><title>One</title></item></channel></rss>'
ATOM = '<feed xmlns="http://www.w3.org/2005/Atom"><title>Bees</title></feed>'
RDF = '<rdf:RDF xmlns:rdf="x"><channel/></rdf:RDF>'
NOISE = random.Random(0).randbytes(3000)


@pytest.mark.parametrize(
    "values, expected",
    [
        (['Text/HTML; Charset="UTF-8"'], ("text/html", "utf-8")),
        (["text/html; charset='utf-8' ; x=y"], ("text/html", "utf-8")),
        (["text/html", "text/html; charset=utf-8"], ("text/html", "utf-8")),
        (["text/html, text/html;charset=utf-8"], ("text/html", "utf-8")),
        ([", text/html,"], ("text/html", None)),
        (["text/html;charset=utf-8,text/html"], ("text/html", "utf-8")),
        (["html", "text", "text/plain"], ("text/plain", None)),
        (["unknown/unknown", "*/*"], ("", None)),
        (["; charset=utf-8"], ("", "utf-8")),
        (["text/html\t;\tcharset\t=\tkoi8-r\t"], ("text/html", "koi8-r")),
        ([], ("", None)),
        ([""], ("", None)),
        (["text/html" + "x" * 1000], ("", None)),
        (["text/htm"], ("text/html", None)),
        (["text/x-server-parsed-html;charset=utf-8"], ("text/html", "utf-8")),
    ],
)
def test_the_first_valid_type_that_is_stated(values, expected):
    assert parse_content_type(values) == expected


@given(st.lists(st.text(max_size=30) | st.sampled_from(["text/html", ",", ";", "; charset=", "utf-8", '"', "/"]), max_size=8))
def test_any_header_values(values):
    kind, charset = parse_content_type(values)
    assert kind == "" or parse_content_type([kind]) == (kind, None)
    assert charset is None or 0 < len(charset) <= 100


JUNK = st.sampled_from(["", ",", " , ", "html,", "*/*, ", ";,"])


@given(JUNK, st.sampled_from(["text/html", "TEXT/HTML", "application/xhtml+xml"]), JUNK, st.sampled_from(["", ";charset=utf-8"]))
def test_a_type_among_junk_is_found(before, kind, after, charset):
    assert parse_content_type([before + kind + charset + "," + after]) == (kind.lower(), "utf-8" if charset else None)


@pytest.mark.parametrize(
    "kind, identified, body, expected",
    [
        ("text/html", "application/pdf", PAGE, "text/html"),
        ("", "text/html", "no tag", "text/html"),
        ("", "", PAGE, "text/html"),
        ("", "", "\ufeff \n<!DOCTYPE html>x", "text/html"),
        ("", "", "just words < 3", "text/plain"),
        ("", "", XHTML, "application/xhtml+xml"),
        ("application/xml", "", XHTML, "application/xhtml+xml"),
        ("text/xml", "", XHTML, "application/xhtml+xml"),
        ("text/xml", "", '<!DOCTYPE html [\n<!ENTITY bee "<b>bee</b>">\n] >\n<html>x</html>', "application/xhtml+xml"),
        ("application/xhtml+xml", "", XHTML, "application/xhtml+xml"),
        ("application/xml", "", RSS, "application/rss+xml"),
        ("text/xml", "", ATOM, "application/rss+xml"),
        ("text/html", "", RSS, "application/rss+xml"),
        ("", "", RSS, "application/rss+xml"),
        ("application/rdf+xml", "", RDF, "application/rss+xml"),
        ("application/xml", "", "<urlset></urlset>", "application/xml"),
        ("image/svg+xml", "", "<svg><p>x</p></svg>", "image/svg+xml"),
        ("text/plain", "", RSS, "text/plain"),
        ("application/octet-stream", "", PAGE, "application/octet-stream"),
    ],
)
def test_kinds(kind, identified, body, expected):
    found = kind_of_body(kind, identified, body.encode())
    assert found == expected
    assert kind_of_body(found, "", body.encode()) == found
    assert gives_text(found) == (found in ("text/html", "text/plain", "application/xhtml+xml"))
    assert not gives_text(found) or may_give_text(kind)


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.txt", "words " * 100)
    return out.getvalue()


BINARY = {
    "pdf": b"%PDF-1.7\n1 0 obj <</Type/Catalog>> endobj " + b"words " * 50, "png": b"\x89PNG\r\n\x1a\n" + NOISE,
    "jpeg": b"\xff\xd8\xff\xe0" + NOISE, "gif": b"GIF89a" + b"words " * 50,
    "gzip": gzip.compress(b"words " * 50, mtime=0), "zip": zipped(),
    "rtf": b"{\\rtf1 words }", "noise": NOISE, "late": b"words " * 100 + NOISE, "nulls": b"w\0o\0r\0d\0s\0" * 20,
    "bom": b"\xef\xbb\xbf\n%PDF-1.4", "webp": b"RIFF\1\2\3\4WEBPVP8 words",
}  # fmt: skip


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("label", ["text/html", "text/plain", "application/xhtml+xml", "text/x-python", ""])
def test_what_is_no_text_gives_none_whatever_its_label(name, label):
    kind = kind_of_body(label, "text/html", BINARY[name], "utf-8")
    assert not gives_text(kind)
    assert extract(Page("http://a.org/", label, BINARY[name], "utf-8")).text == ""


@given(st.sampled_from(sorted(MARKS)), st.binary(max_size=200), st.sampled_from(["text/html", "text/plain", ""]))
def test_any_body_with_a_mark(mark, body, label):
    assert not gives_text(kind_of_body(label, "", mark + body))


LETTERS = st.characters(exclude_categories=["Cc", "Cs"])


@given(st.text(alphabet=LETTERS, max_size=200), st.sampled_from(["utf-8", "utf-16", "cp1252"]))
def test_text_of_any_language_is_text(text, codec):
    body = ("words " + text).encode(codec, "replace")
    assert kind_of_body("text/html", "", body, codec) == "text/html"
    assert gives_text(kind_of_body("", "", body, codec))


def test_a_stray_control_byte_or_padding_is_no_reason():
    assert kind_of_body("text/html", "", b"<p>words \x00 and more words, \x07 as it goes") == "text/html"
    assert kind_of_body("text/html", "", PAGE.encode() + bytes(5000)) == "text/html"
    assert kind_of_body("text/html", "", b"\x1b$B$3$s\x1b(B" * 20, "iso-2022-jp") == "text/html"


def archive(path, heads: list[str], bodies: list[bytes], extra: str = "") -> None:
    records = b""
    for number, (head, body) in enumerate(zip(heads, bodies, strict=True)):
        block = f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + body
        records += (
            f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.org/{number}\r\n{extra}"
            f"Content-Type: application/http\r\nContent-Length: {len(block)}\r\n\r\n"
        ).encode() + block + b"\r\n\r\n"  # fmt: skip
    path.write_bytes(records)


def test_archives(tmp_path):
    heads = [
        "", "Content-Type: \r\nContent-Type: text/html\r\n", "Content-Type: text/html,\r\n", "content-type: application/xml\r\n",
        "Content-Type: application/xml\r\n", "Content-Type: text/html\r\n", "Content-Type: text/css/\r\n",
    ]  # fmt: skip
    bodies = [PAGE.encode()] * 3 + [XHTML.encode(), RSS.encode(), BINARY["pdf"], b"plain words"]
    archive(tmp_path / "a.warc", heads, bodies)
    counts = collect(SourceConfig(source=str(tmp_path / "a.warc"), domain="d"), tmp_path / "pages", "s", 1.0, "test")
    assert counts["refused"] == {"type": 2}
    pages = list(read_pages(tmp_path / "pages" / "s.warc.gz", Losses()))
    kinds = ["text/html"] * 3 + ["application/xhtml+xml", "text/plain"]
    assert [(page.url[-1], page.content_type) for page in pages] == list(zip("01236", kinds, strict=True))
    assert extract(pages[3]).title == "Bees"

    archive(tmp_path / "b.warc", [""], [b"words"], "WARC-Identified-Payload-Type: text/html\r\n")
    assert [page.content_type for page in read_pages(tmp_path / "b.warc", Losses())] == ["text/html"]


SCRIPTS = [f"text/{name}" for name in ("javascript", "javascript1.5", "x-javascript", "ecmascript", "jscript", "css")]


def test_what_a_page_is_made_of_is_no_page(tmp_path):
    heads = ["Content-Type: text/html\r\n", *(f"Content-Type: {kind};charset=utf-8\r\n" for kind in SCRIPTS)]
    script = b"function bees(of) { return all + that } /* words of a note */ " * 9
    archive(tmp_path / "a.warc", heads, [PAGE.encode(), *[script] * len(SCRIPTS)])
    counts = collect(SourceConfig(source=str(tmp_path / "a.warc"), domain="d"), tmp_path / "pages", "s", 1.0, "test")
    assert (counts["pages"], counts["refused"]) == (1, {"type": len(SCRIPTS)})


NOTES = [
    "dns:a.org", "whois://whois.iana.org/a", "metadata://gnu.org/software/wget/warc/wget.log", "urn:X-wpull:log",
    "urn:text:https://a.org/", "urn:textFinal:https://a.org/",
]  # fmt: skip
DOCUMENTS = ["https://a.org/", "urn:isbn:0451450523", "file:///a/b.txt", "doc:7"]


def test_what_programs_note_beside_pages_is_no_page(tmp_path):
    with WarcWriter(tmp_path / "a.warc.gz") as warc:
        for url in (*NOTES, *DOCUMENTS):
            warc.resource(url, "text/plain", b"Of bees, much is known.")
    counts = collect(SourceConfig(source=str(tmp_path / "a.warc.gz"), domain="d"), tmp_path / "pages", "s", 1.0, "test")
    assert counts["refused"] == {"note of a program": len(NOTES)}
    assert [page.url for page in read_pages(tmp_path / "pages" / "s.warc.gz", Losses())] == DOCUMENTS


def test_files_whose_name_says_text(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_bytes(BINARY["zip"])
    (folder / "b.html").write_bytes(BINARY["pdf"])
    (folder / "c.txt").write_bytes(b"words")
    counts = collect(SourceConfig(source=str(folder), domain="d"), tmp_path / "pages", "s", 1.0, "test")
    # The reader of files tells the zip by its first bytes, before there is a page of it.
    assert (counts["pages"], counts["refused"]) == (1, {"refused files": 1, "type": 1})


class Response:
    """Of http.client, as far as `fetch` reads it."""

    status, length = 200, 0

    def __init__(self, body: bytes, *types: str) -> None:
        from email.message import Message

        self.body, self.headers = body, Message()
        for value in types:
            self.headers["Content-Type"] = value

    def read(self, size: int) -> bytes:
        body, self.body = self.body, None  # read but once
        return body[:size]


@pytest.mark.parametrize(
    "types, body, outcome",
    [
        (["text/html,text/html"], PAGE, "page"),
        ([], PAGE, "page"),
        (["nonsense", "text/html"], PAGE, "page"),
        (["application/xml"], XHTML, "page"),
        (["application/xml"], RSS, "type"),
        (["text/html"], RSS, "type"),
        (["image/png"], None, "type"),
        (["application/octet-stream"], None, "type"),
        (["text/css"], None, "type"),
        (["text/html"], BINARY["gzip"], "type"),
    ],
)
def test_the_crawler_asks_the_same(tmp_path, types, body, outcome):
    body = body.encode() if isinstance(body, str) else body
    answer = fetch._read_response("http://a.org/", Response(body, *types), fetch.PAGE_TYPES, 10_000)
    assert answer.outcome == outcome
    if answer.page:  # what is recorded is read back as the same
        with WarcWriter(tmp_path / "a.warc.gz") as warc:
            warc.response("http://a.org/", 200, answer.headers, answer.page.body)
        assert list(read_pages(tmp_path / "a.warc.gz", Losses())) == [answer.page]
