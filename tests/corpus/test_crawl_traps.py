"""Sites that misbehave: storms, bombs, traps, private addresses, and a crawler that is killed."""

import gzip
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from groundup.core.errors import UserError
from groundup.corpus.acquire import crawl as crawling
from groundup.corpus.acquire import fetch
from groundup.corpus.acquire.crawl import crawl
from groundup.corpus.archive.warc import Losses, read_pages

HTML = {"Content-Type": "text/html"}


@contextmanager
def site(answer):
    """`answer(path)` gives (status, headers, body), or just a body; yields the address and the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            given = answer(self.path)
            status, headers, body = given if isinstance(given, tuple) else (200, HTML, given)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", 0.001)


def run(address, warc, **changes):
    options = {"max_bytes": 10**6, "max_pages": 100, "exclude": [], "requests_per_second": None, "allow_private": True}
    return crawl(address, warc, **(options | changes))


def paths(warc):
    return ["/" + page.url.split("/", 3)[3] for page in read_pages(warc, Losses())]


def sitemaps(path):
    def listing(kind, entries):
        found = "".join(f"<{kind}><loc>\n {entry} </loc></{kind}>" for entry in entries)
        return (200, {"Content-Type": "application/xml"}, f"<?xml?><{'sitemapindex' if kind == 'sitemap' else 'urlset'}>{found}")

    if path == "/robots.txt":
        return (200, {"Content-Type": "text/plain"}, "Sitemap: /index.xml\nUser-agent: *\nDisallow: /secret\nAllow: /secret/open")
    if path == "/index.xml":
        return listing("sitemap", ["/one.xml.gz", "/two.txt", "/missing.xml", "/bomb.xml.gz", "http://elsewhere.org/s.xml"])
    if path == "/one.xml.gz":
        packed = gzip.compress(listing("url", ["/x?a=1&amp;b=2", "/secret/a", "/secret/open", "/index.xml"])[2].encode())
        return (200, {"Content-Type": "application/gzip"}, packed)
    if path == "/two.txt":
        return (200, {"Content-Type": "text/plain"}, f"http://{HOST[0]}/y\nhttp://{HOST[0]}/z\n")
    if path == "/bomb.xml.gz":
        return (200, {"Content-Type": "application/gzip"}, gzip.compress(bytes(60 << 20)))
    if path == "/missing.xml":
        return (404, HTML, "")
    return f"<a href=/index.xml>{path}</a>"


HOST = [""]


def test_sitemaps_are_followed_and_not_read_twice(tmp_path):
    with site(sitemaps) as (address, asked):
        HOST[0] = address.split("/")[2]
        count = run(address, tmp_path / "a.warc.gz")
        assert paths(tmp_path / "a.warc.gz") == ["/", "/x?a=1&b=2", "/secret/open", "/y", "/z"]
        assert count.refused == {"another host": 1, "robots.txt": 1, "status 404": 1}
        assert max(Counter(asked).values()) == 1
        asked.clear()
        assert run(address, tmp_path / "a.warc.gz") == count
        assert asked == ["/robots.txt"]


@pytest.mark.parametrize("kind", ["urlset", "sitemapindex"])
def test_a_sitemap_of_another_host_alone_says_so(tmp_path, kind):
    """As of a site that moved to www: "nothing in it is a page" did not say why."""
    listing = f"<{kind}>" + "".join(f"<loc>https://www.elsewhere.org/{page}</loc>" for page in "abb")
    with site(lambda path: (200, {"Content-Type": "application/xml"}, listing)) as (address, _):
        count = run(f"{address}s.xml", tmp_path / "a.warc.gz", only_listed=True)
        assert (count.pages, count.refused) == (0, {"another host": 2})
        assert run(f"{address}s.xml", tmp_path / "a.warc.gz", only_listed=True) == count


def test_robots_txt_on_another_host_is_obeyed(tmp_path):
    """RFC 9309, 2.3.1.2: redirects are followed across hosts; the rules are those of the first."""
    text = {"Content-Type": "text/plain"}
    with site(lambda path: (200, text, "User-agent: *\nDisallow: /secret")) as (other, asked_there):
        moved = (301, {"Location": f"{other}rules.txt"}, "")
        with site(lambda path: moved if path == "/robots.txt" else "<a href=/secret/a>a</a><a href=/b>b</a>") as (address, asked):
            count = run(address, tmp_path / "a.warc.gz")
    assert asked_there == ["/rules.txt"] and asked == ["/robots.txt", "/", "/b"] and count.refused == {"robots.txt": 1}
    # And where that host cannot be reached, nothing is allowed.
    with site(lambda path: moved if path == "/robots.txt" else "page") as (address, asked):
        count = run(address, tmp_path / "b.warc.gz")
    assert count.refused == {"robots.txt": 1} and asked == ["/robots.txt"]


@pytest.mark.parametrize(("depth", "pages"), [(1, 1), (3, 1), (4, 0)])
def test_indexes_of_indexes_are_followed_and_what_lies_deeper_is_counted(tmp_path, depth, pages):
    def answer(path):
        if not path.startswith("/s"):
            return (404, HTML, "") if path == "/robots.txt" else "page"
        level = int(path[2])
        listed = f"<sitemap><loc>/s{level + 1}.xml</loc></sitemap><sitemap><loc>/s0.xml</loc></sitemap>"  # a loop
        index = f"<sitemapindex>{listed}</sitemapindex>"
        return (200, {"Content-Type": "application/xml"}, index if level < depth else "<urlset><url><loc>/a</loc></url></urlset>")

    with site(answer) as (address, asked):
        count = run(f"{address}s0.xml", tmp_path / "a.warc.gz", only_listed=True)
        assert (count.pages, count.refused) == (pages, {} if pages else {"nested sitemap": 2})
        assert len(asked) == len(set(asked)) == 2 + min(depth, 3) + pages


def test_a_storm_is_waited_out_or_ends_the_crawl_with_nothing_lost(tmp_path):
    storm = threading.Event()
    pages = [f"/p{n}" for n in range(12)]

    def answer(path):
        if path == "/robots.txt":
            return (404, HTML, "")
        if path == "/" or not storm.is_set():
            return " ".join(f"<a href={page}>x</a>" for page in pages)
        return (503, HTML, "")

    with site(answer) as (address, asked):
        storm.set()
        with pytest.raises(UserError, match="too busy: run the same command later"):
            run(address, tmp_path / "a.warc.gz")
        assert len(asked) <= 2 + crawling.MAX_BUSY * fetch.ATTEMPTS
        storm.clear()
        asked.clear()
        count = run(address, tmp_path / "a.warc.gz")
        assert sorted(asked) == sorted(["/robots.txt", *pages])
    assert count.pages == 13
    assert count.refused == {}


def test_one_busy_page_is_asked_for_once_more_at_the_end(tmp_path):
    def answer(path):
        if path == "/busy":
            return (503, {"Retry-After": "0"}, "")
        return (404, HTML, "") if path == "/robots.txt" else "<a href=/busy>x</a><a href=/a>x</a><a href=/b>x</a>"

    with site(answer) as (address, asked):
        count = run(address, tmp_path / "a.warc.gz")
    assert (count.pages, count.refused) == (3, {"status 503": 1})
    assert asked.count("/busy") == 2 * fetch.ATTEMPTS


def test_bombs_are_refused(tmp_path):
    bomb = gzip.compress(bytes(200 << 20), compresslevel=1)

    def answer(path):
        if path == "/":
            return "<a href=/gzip>x</a><a href=/endless>x</a>"
        if path == "/gzip":
            return (200, HTML | {"Content-Encoding": "gzip"}, bomb)
        return (200, HTML, bytes(fetch.MAX_PAGE_BYTES + 1)) if path == "/endless" else (404, HTML, "")

    with site(answer) as (address, _):
        count = run(address, tmp_path / "a.warc.gz")
    assert (count.pages, count.refused) == (1, {"size": 2})


def test_traps_of_links_end(tmp_path):
    def answer(path):
        if path == "/robots.txt":
            return (200, {"Content-Type": "text/plain"}, "User-agent: groundup\nDisallow: /trap")
        return f"<a href='{path.rstrip('/')}/a/b/x'>1</a><a href=/trap{path}>2</a><a href=/next?{len(path)}{path}>3</a>"

    with site(answer) as (address, asked):
        count = run(address, tmp_path / "a.warc.gz", max_pages=30)
    assert count.pages == 30
    assert not [path for path in asked if path.startswith("/trap")]
    assert not [path for path in asked if "/a/b/x/a/b/x/a/b/x/" in path]
    assert max(len(path) for path in asked) < 2000
    assert count.refused["robots.txt"] > 0


def test_redirects_and_names_that_lead_to_private_addresses(tmp_path, monkeypatch):
    def answer(path):
        if path == "/":
            return "<a href=/moved>x</a>"
        return (302, {"Location": "http://169.254.169.254/secrets"}, "") if path == "/moved" else (404, HTML, "")

    connected = []
    genuine = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connected.append(address[0]) or genuine(self, address))
    with site(answer) as (address, _):
        count = run(address, tmp_path / "a.warc.gz")
    assert (count.pages, count.refused) == (1, {"redirect": 1})
    assert set(connected) == {"127.0.0.1"}

    connected.clear()
    for private in ("10.0.0.1", "::ffff:192.168.1.1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1"):
        family = socket.AF_INET6 if ":" in private else socket.AF_INET
        found = [(family, socket.SOCK_STREAM, 6, "", (private, 80))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=found, **__: found)
        with pytest.raises(UserError, match="is not a public address"):
            run("http://innocent.example.org/", tmp_path / "b.warc.gz", allow_private=False)
    assert connected == []


def test_a_name_that_turns_private_later_is_not_followed(tmp_path, monkeypatch):
    """What a name means can change between two requests: the address that is checked is the one connected to."""
    with site(lambda path: (404, HTML, "") if path == "/robots.txt" else "<a href=/b>x</a>") as (address, asked):
        port = int(address.split(":")[2].strip("/"))
        answers = iter([True, True, False, False, False, False, False])
        monkeypatch.setattr(fetch, "is_public", lambda _: next(answers))
        with pytest.raises(UserError, match=r"cannot be reached any more .*not a public address"):
            run(f"http://localhost:{port}/", tmp_path / "a.warc.gz", allow_private=False)
    assert asked == ["/robots.txt", "/"]


def test_killed_crawls_ask_for_nothing_twice(tmp_path):
    def answer(path):
        time.sleep(0.005)
        number = int(path[1:] or 0) if path != "/robots.txt" else 0
        if path == "/robots.txt":
            return (404, HTML, "")
        return "".join(f"<a href=/{2 * number + n}>x</a>" for n in (1, 2) if number < 40)

    script = (
        "import sys; from pathlib import Path; from groundup.corpus.acquire.crawl import crawl\n"
        "print(crawl(sys.argv[1], Path(sys.argv[2]), max_bytes=10**7, max_pages=1000, exclude=[],"
        " requests_per_second=None, allow_private=True))"
    )
    with site(answer) as (address, asked):

        def start(name):
            return subprocess.Popen([sys.executable, "-c", script, address, str(tmp_path / name)], stdout=subprocess.PIPE)

        undisturbed, _ = start("whole.warc.gz").communicate()
        total = len(asked)
        asked.clear()
        for wanted in (total // 3, 2 * total // 3):
            process = start("killed.warc.gz")
            while len(asked) < wanted and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        out, _ = start("killed.warc.gz").communicate()
    assert out == undisturbed
    times = Counter(path for path in asked if path != "/robots.txt")
    assert sum(times.values()) - len(times) <= 2  # the one that was on its way at each kill
    assert paths(tmp_path / "killed.warc.gz") == paths(tmp_path / "whole.warc.gz")
