"""What a sitemap lists and nothing else; records of a repository, page by page, with every way in which its server fails."""

import gzip
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from groundup.core.errors import UserError
from groundup.corpus.acquire import fetch, sources
from groundup.corpus.acquire.crawl import crawl
from groundup.corpus.acquire.local import local_path
from groundup.corpus.acquire.oai import Repository
from groundup.corpus.acquire.sources import collect
from groundup.corpus.archive.warc import Losses, read_pages
from groundup.corpus.config import SourceConfig
from groundup.data.readers import Refused


@contextmanager
def served(answer):
    """A server on loopback whose answers are those of `answer(path)`: status and body. Yields its address, what was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, body = answer(self.path)
            self.send_response(status)
            kind = {"r": "text/plain", "p": "text/html"}.get(self.path[1], "text/xml")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_only_what_the_sitemaps_list_is_fetched(tmp_path):
    sites = {"/robots.txt": b"User-agent: *\nDisallow: /p3\nSitemap: /other.xml"}

    def answer(path):
        return (200, sites[path]) if path in sites else (404, b"")

    with served(answer) as (address, asked):
        urls = "".join(f"<url><loc>{address}/p{number}</loc></url>" for number in range(5))
        sites["/map.xml.gz"] = gzip.compress(f"<urlset>{urls}<url><loc>https://elsewhere.org/</loc></url></urlset>".encode())
        sites["/index.xml"] = f"<sitemapindex><sitemap><loc>{address}/map.xml.gz</loc></sitemap></sitemapindex>".encode()
        sites |= {f"/p{number}": b"<p>page <a href='/linked'>x</a>" for number in range(4)}
        options = {"max_bytes": 10**6, "exclude": [], "requests_per_second": None, "allow_private": True, "only_listed": True}
        warc = tmp_path / "a.warc.gz"
        first = crawl(f"{address}/index.xml", warc, max_pages=1, **options)
        assert first.pages == 1
        asked.clear()
        counts = crawl(f"{address}/index.xml", warc, max_pages=9, **options)  # resumes
        assert [page.url[len(address) :] for page in read_pages(warc, Losses())] == ["/p0", "/p1", "/p2"]
        assert asked == ["/robots.txt", "/p1", "/p2", "/p4"]
        assert counts.refused == {"another host": 1, "robots.txt": 1, "status 404": 1}
    with pytest.raises(UserError, match="not a public address"):
        collect(SourceConfig(source=f"sitemap:{address}/index.xml", domain="d"), tmp_path / "pages", "s", 9.0, "test")


def record(number, title="T", status="", link=""):
    named = f"<dc:identifier>{link}</dc:identifier>" if link else ""
    described = f"<dc:title>{title}</dc:title>{named}<dc:description> about </dc:description>"
    body = "" if status else f"<metadata><oai_dc:dc>{described}</oai_dc:dc></metadata>"
    return f'<record><header status="{status}"><identifier>oai:a:{number}</identifier></header>{body}</record>'


def listing(records, token=None):
    end = f"<resumptionToken>{token}</resumptionToken>" if token is not None else ""
    return f'<OAI-PMH xmlns:dc="d" xmlns:oai_dc="o"><ListRecords>{"".join(records)}{end}</ListRecords></OAI-PMH>'.encode()


def harvest(answers, query=""):
    """Answers by resumption token; "" is of the first request."""

    def answer(path):
        return answers[parse_qs(urlsplit(path).query).get("resumptionToken", [""])[0]]

    refused = Refused()
    with served(answer) as (address, asked):
        pages = list(Repository(f"oai:{address}/oai{query}", refused, None, allow_private=True).pages())
        return [(page.url.replace(address, ""), page.body.decode()) for page in pages], dict(refused), asked


def test_records_page_by_page():
    answers = {"": (200, listing([record(1), record(2, status="deleted"), record(3, link="https://a.org/3")], "x&amp;1")),
               "x&1": (200, listing([record(4, title="")], ""))}  # fmt: skip
    pages, refused, asked = harvest(answers, "?set=math&from=2024-01-01")
    assert pages == [
        ("/oai?verb=GetRecord&metadataPrefix=oai_dc&identifier=oai%3Aa%3A1", "T\n\nabout"),
        ("https://a.org/3", "T\n\nabout"),
        ("/oai?verb=GetRecord&metadataPrefix=oai_dc&identifier=oai%3Aa%3A4", "about"),
    ]
    assert refused == {"deleted": 1}
    assert asked == [
        "/oai?verb=ListRecords&metadataPrefix=oai_dc&set=math&from=2024-01-01",
        "/oai?verb=ListRecords&resumptionToken=x%261",
    ]


def test_a_repository_that_fails_midway_or_never_ends(monkeypatch):
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", 0.001)
    one = listing([record(1)], "a")
    expands = b'<!DOCTYPE x [<!ENTITY a "aa">]>' + one
    seconds = {
        "repeated token": (200, listing([record(2)], "a")), "unanswered": (500, b""), "entities": (200, expands),
        "damaged": (200, one[:-30]), "unanswered too": (200, b"<e><error code='badResumptionToken'>no</error></e>"),
    }  # fmt: skip
    for reason, second in seconds.items():
        pages, refused, _ = harvest({"": (200, one), "a": second})
        assert pages[0][1] == "T\n\nabout" and refused.get(reason.removesuffix(" too")), reason


@pytest.mark.parametrize(("second", "said"), [("a", "a resumption token that it had given before"), ("", "")])
def test_a_loop_of_tokens_through_the_verb(tmp_path, monkeypatch, caplog, second, said):
    """The server gives the same token with each answer: what came is kept, and one line says that there is no more."""
    texts = [" ".join(f"{word} number {number}" for word in ("granite", "basalt", "marble")) for number in range(30)]
    answers = {"": listing([record(number, texts[number]) for number in range(20)], "a"),
               "a": listing([record(number, texts[number]) for number in range(20, 30)], second)}  # fmt: skip
    monkeypatch.setattr(sources, "Repository", partial(Repository, allow_private=True))

    def answer(path):
        return 200, answers[parse_qs(urlsplit(path).query).get("resumptionToken", [""])[0]]

    with served(answer) as (address, asked):
        source = SourceConfig(source=f"oai:{address}/oai", domain="d")
        with caplog.at_level("INFO", "groundup"):
            counts = sources.collect(source, tmp_path, "s", 1000.0, "test")
    assert len(asked) == 2 and counts["pages"] == 30
    assert counts["refused"] == ({"repeated token": 1} if said else {})
    early = [one.getMessage() for one in caplog.records if "ends early" in one.getMessage()]
    assert len(early) == bool(said) and all(said in line and "what came before is kept" in line for line in early)


def test_a_repository_that_gives_nothing_is_one_line(monkeypatch):
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", 0.001)
    error = b"<e><error code='badArgument'>bad\nset</error></e>"
    for answer, said in [((404, b""), "status 404"), ((200, error), "badArgument bad set")]:
        with pytest.raises(UserError, match=f"gave no records .{said}.: check"):
            harvest({"": answer})
    assert harvest({"": (200, b"<e><error code='noRecordsMatch'/></e>")})[0] == []
    monkeypatch.setattr(fetch.Client, "fetch", lambda *_, **__: fetch.FetchResult("redirect", location="https://b.org/oai?verb=x"))
    with pytest.raises(UserError, match=r"gave no records \(redirects to https://b.org/oai\?verb=x\): check the address"):
        list(Repository("oai:https://a.org/oai", Refused(), None).pages())
    for source in ("oai:ftp://a.org/", "oai:", "oai:https://a.org/?verb=Identify"):
        with pytest.raises(UserError, match="give oai:https"):
            list(Repository(source, Refused(), None).pages())
        assert local_path(SourceConfig(source=source, domain="d")) is None
