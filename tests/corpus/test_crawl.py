import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.corpus import addresses
from groundup.corpus.acquire import crawl as crawling
from groundup.corpus.acquire import fetch
from groundup.corpus.acquire.crawl import crawl, links
from groundup.corpus.archive.warc import Losses, Page, read_pages
from groundup.corpus.urls import canonical

PAGES = {
    "/": '<a href="/a#x">a</a> <a href=b?y=2&amp;x=1>b</a> <a href="//elsewhere.org/">e</a> <a href="/secret/s">s</a>'
    '<a href="/loop1">l</a> <a href="/busy">u</a> <a href="/short">s</a> <a href="/image">i</a> <a href="/drip">d</a>'
    '<a href="/moved">m</a> <a href="/skip/me">k</a> <a href="mailto:x@y">m</a> <a href="/forbidden">f</a>',
    "/a": '<a href="/">home</a> <a href="/c">c</a>',
    "/b?y=2&x=1": "b",
    "/busy": "busy no more",
    "/c": "c",
    "/target": "target",
}
REDIRECTS = {"/loop1": "/loop2", "/loop2": "/loop1", "/moved": "/target", "/away": "https://elsewhere.org/"}


@contextmanager
def site(
    robots: str = "User-agent: *\nDisallow: /secret/\n", robots_type: str = "text/plain"
) -> Iterator[tuple[str, list[str]]]:
    """A misbehaving site on loopback: its address, and the list of paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/robots.txt":
                self.answer(200, robots, kind=robots_type)
            elif self.path in REDIRECTS:
                self.answer(302, "", Location=REDIRECTS[self.path])
            elif self.path == "/busy" and asked.count("/busy") == 1:
                self.answer(503, "later", **{"Retry-After": "0"})
            elif self.path == "/short":
                self.answer(200, "cut", length=1000)
            elif self.path == "/image":
                self.answer(200, "GIF", kind="image/gif")
            elif self.path == "/forbidden":
                self.answer(403, "")
            elif self.path == "/drip":
                self.send_response(200)
                stop.wait(2)
            else:
                self.answer(200 if self.path in PAGES else 404, PAGES.get(self.path, ""))

        def answer(
            self, status: int, body: str, kind: str = "text/html", length: int | None = None, **more: str
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(length or len(body)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    stop = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", 0.01)
    monkeypatch.setattr(fetch, "REQUEST_SECONDS", 1.0)


def run(address, warc, **changes):
    options = {"max_bytes": 10**6, "max_pages": 100, "exclude": ["/skip/", "/drip"], "requests_per_second": None}
    options |= {"allow_private": True, "record_as": "http://site.localhost"}
    return crawl(address, warc, **(options | changes))


@pytest.mark.parametrize("location", ["/tar\xa0get", "/tar\x85get", "/tar  get?\x0b"])
def test_a_redirect_is_read_back_as_it_was_followed(tmp_path, monkeypatch, location):
    monkeypatch.setitem(REDIRECTS, "/moved", location)
    with site() as (address, asked):
        undisturbed = run(address, tmp_path / "a.warc.gz")
        asked.clear()
        assert run(address, tmp_path / "a.warc.gz") == undisturbed
    assert asked == ["/robots.txt"]


@pytest.mark.parametrize("kind", ["binary/octet-stream", "application/octet-stream", "text/robots", "text/css", ""])
def test_robots_txt_is_obeyed_whatever_type_it_has(tmp_path, kind):
    with site(robots_type=kind) as (address, asked):
        count = run(address, tmp_path / "a.warc.gz")
    assert count.refused["robots.txt"] == 1 and "/secret/s" not in asked


def test_a_redirect_in_utf8_leads_where_browsers_go(tmp_path, monkeypatch):
    monkeypatch.setitem(REDIRECTS, "/moved", "/Stra\xdfe-\u65e5".encode().decode("latin-1"))
    monkeypatch.setitem(PAGES, "/Stra%C3%9Fe-%E6%97%A5", "there")
    with site() as (address, _):
        run(address, tmp_path / "a.warc.gz")
    assert "/Stra%C3%9Fe-%E6%97%A5" in recorded(tmp_path / "a.warc.gz")


def recorded(warc):
    return [page.url.removeprefix("http://site.localhost") for page in read_pages(warc, Losses())]


def test_pages_breadth_first_and_everything_else_counted(tmp_path):
    with site() as (address, asked):
        count = run(address, tmp_path / "a.warc.gz", exclude=["/skip/"])
    assert recorded(tmp_path / "a.warc.gz") == ["/", "/a", "/b?y=2&x=1", "/busy", "/target", "/c"]
    assert count.pages == 6
    assert count.bytes == sum(len(body) for body in PAGES.values())
    assert count.refused == {
        "excluded": 1, "incomplete": 1, "redirect": 3, "robots.txt": 1, "status 403": 1, "timeout": 1, "type": 1,
    }  # fmt: skip
    times = Counter(asked)
    assert (times["/forbidden"], times["/busy"], times["/short"]) == (1, 2, fetch.ATTEMPTS)
    assert not {"/secret/s", "/skip/me"} & set(asked)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.5, 0.8, 0.99, 1.0])
def test_a_crawl_cut_off_anywhere_goes_on_as_if_undisturbed(tmp_path, share):
    warc = tmp_path / "a.warc.gz"
    with site() as (address, asked):
        undisturbed = run(address, warc)
        pages = recorded(warc)
        os.truncate(warc, int(warc.stat().st_size * share))
        kept = recorded_whole(warc)
        asked.clear()
        assert run(address, warc) == undisturbed
    assert recorded(warc) == pages
    assert not set(kept) & set(asked)
    if share == 1.0:
        assert asked == ["/robots.txt"]


def recorded_whole(warc):
    os.truncate(warc, crawling.complete_prefix(warc))
    return recorded(warc)


def test_limits_stop_the_crawl_and_a_larger_limit_continues_it(tmp_path):
    with site() as (address, asked):
        assert run(address, tmp_path / "a.warc.gz", max_pages=2).pages == 2
        assert asked == ["/robots.txt", "/", "/a"]
        assert run(address, tmp_path / "a.warc.gz", max_pages=3).pages == 3
        assert asked[3:] == ["/robots.txt", "/b?y=2&x=1"]
        assert run(address, tmp_path / "b.warc.gz", max_bytes=1).pages == 1


def test_pace(tmp_path, replace_time):
    slept = []
    replace_time(fetch, sleep=slept.append)
    with site("User-agent: *\nCrawl-delay: 7\n") as (address, _):
        run(address, tmp_path / "a.warc.gz", requests_per_second=2.0, max_pages=2)
    assert 0.3 < slept[1] <= 0.5  # after robots.txt, which says what follows
    assert 6.5 < slept[2] <= 7


@pytest.mark.parametrize("asked", ["999999", "99999999999", "9" * 400, "3600.5"])
def test_a_delay_of_days_is_cut_and_said(tmp_path, replace_time, capsys, asked):
    slept = []
    replace_time(fetch, sleep=slept.append)
    with site(f"User-agent: *\nCrawl-delay: {asked}\n") as (address, _):
        run(address, tmp_path / "a.warc.gz", requests_per_second=2.0, max_pages=2)
    assert max(slept) <= crawling.MAX_CRAWL_DELAY
    assert slept[2] > crawling.MAX_CRAWL_DELAY - 1
    said = capsys.readouterr().err
    assert "robots.txt asks for" in said and "60 are kept" in said and len(said) < 300


def test_private_and_unreachable_hosts_are_one_line_errors(tmp_path):
    with site() as (address, asked), pytest.raises(UserError, match=r"127\.0\.0\.1 is not a public address"):
        run(address, tmp_path / "a.warc.gz", allow_private=False)
    assert asked == []
    with pytest.raises(UserError, match=f"{address}: cannot be reached .*check the network or the address"):
        run(address, tmp_path / "a.warc.gz")  # nobody listens there any more
    with pytest.raises(UserError, match="not an http"):
        run("ftp://a.org/", tmp_path / "a.warc.gz")


def test_start_that_redirects_to_another_host_names_it(tmp_path):
    with site() as (address, _), pytest.raises(UserError, match=r"redirects to https://elsewhere\.org/"):
        run(address + "away", tmp_path / "a.warc.gz")


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fe80::1%eth0"]
)
def test_addresses_that_are_not_public(address):
    assert not addresses.is_public(address)


@pytest.mark.parametrize(
    "link, expected",
    [
        ("../x/./y/../z#f", "http://a.org/x/z"),
        ("HTTP://A.org:80", "http://a.org/"),
        ("https://b.org:8443//p?q=2&a=1", "https://b.org:8443//p?q=2&a=1"),
        ("/ä b%c3%a4", "http://a.org/%C3%A4%20b%C3%A4"),
        ("http://bücher.de/", "http://xn--bcher-kva.de/"),
        ("javascript:void(0)", None),
        ("http://[bad/", None),
    ],
)
def test_canonical(link, expected):
    assert canonical(link, "http://a.org/d/e") == expected


@given(st.text(max_size=60), st.binary(max_size=200))
def test_canonical_is_stable_and_no_page_breaks_link_extraction(link, body):
    once = canonical(link, "http://a.org/")
    assert once is None or (canonical(once) == once and urlsplit(once).fragment == "")
    links(Page("http://a.org/", "text/html", b"<a href='" + body))


def test_links_follow_the_base_and_come_once():
    body = b"<base href='/docs/'><a class=x href=a>1</a><A HREF = \"a#top\">2</A><a name=n><area href='b'><link href=c>"
    assert links(Page("http://a.org/", "text/html", body)) == ["http://a.org/docs/a", "http://a.org/docs/b"]


@pytest.mark.parametrize(
    "body",
    [
        "<meta http-equiv=refresh content='0; url=en/'>", '<META content="0;URL=\'/en/\'" HTTP-EQUIV="Refresh">',
        "<meta http-equiv=refresh content=5,url=/en/>", "<frameset><frame name=x src='/en/#top'></frameset>",
        "<base href='/en/'><base href='/de/'><a href=.>x</a>",
    ],
)  # fmt: skip
def test_pages_that_lead_on_without_a_link(body):
    """The first page of many a documentation: the crawl ended there."""
    assert links(Page("http://a.org/", "text/html", body.encode())) == ["http://a.org/en/"]


@pytest.mark.parametrize(
    "body", ["<meta name=refresh content='5'>", "<meta http-equiv=refresh content=30>", "<meta content='url=/a'>"]
)
def test_a_page_that_only_loads_itself_again_leads_nowhere(body):
    assert links(Page("http://a.org/", "text/html", body.encode())) == []
