"""What others wrote (addresses, delays, sizes) never ends the work on the rest."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus import addresses, annotate, crawl, labelled, urls
from groundup.corpus.sources import _wanted, collect
from groundup.corpus.warc import Page
from groundup.errors import UserError
from groundup.recipe import Source, load, resolve

BAD_URLS = ["http://[bad/", "http://a:b/", "http://a:99999/", "http://\ud800/", "//["]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_malformed_address_is_no_address(url):
    assert urls.parse(url) is None or urls.canonical(url) is None
    assert urls.canonical("/a", url) is None or urls.parse(url) is not None
    assert annotate.kind_of("text/plain", url) == "text"
    assert isinstance(annotate.host_of(url), str)
    assert isinstance(labelled._site(url), str)


@given(st.text(st.characters(exclude_categories=()), max_size=60) | st.text("ht:/[]@%?#.\ud800／a1", max_size=30))
def test_no_address_raises(text):
    for url in (text, f"http://{text}", f"http://{text}/x"):
        annotate.host_of(url)
        annotate.kind_of("text/plain", url)
        one = urls.canonical(url)
        assert one is None or urls.parse(one) is not None
        assert one is None or urls.canonical(one) == one  # once is enough: no host changes shape a second time


@pytest.mark.parametrize("host", ["a／b", "a＼b", "a？b", "a＃b", "a＠b", "a％b"])
def test_a_host_that_becomes_something_else_is_refused(host):
    assert urls.canonical(f"http://{host}/") is None


def test_pages_with_malformed_addresses_are_counted_and_the_others_kept():
    pages = [Page(url, "text/plain", b"x") for url in (*BAD_URLS[:2], "https://a.org/")]
    refused = Counter()
    assert [page.url for page in _wanted(iter(pages), lambda path: True, refused)] == ["https://a.org/"]
    assert refused == {"address": 2}


def test_a_row_with_a_malformed_address_does_not_end_the_others(tmp_path: Path):
    rows = [{"text": f"text {n}", "url": url} for n, url in enumerate(["http://[bad/", "http://good.org/a"])]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    counts = collect(Source(source=str(path), domain="web"), tmp_path / "out", "00-web", 1.0, "pages")
    assert counts["pages"] == 1 and counts["refused"] == {"address": 1}


@pytest.mark.parametrize(
    "address",
    [
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.31.0.1",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001:2::1",
        "2001:db8::1",
        "2002:a00:1::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
            ],
)
def test_special_addresses_are_not_public(address):
    assert not addresses.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "172.32.0.1",
        "192.0.0.9",
        "100.128.0.1",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2001:4:112::1",
    ],
)
def test_others_are(address):
    assert addresses.is_public(address)


def test_a_crawl_delay_of_days_is_bounded():
    assert crawl.MAX_CRAWL_DELAY <= 60


SOURCES = {"name": "x", "pages": {"sources": [{"source": "topics:", "domain": "web"}]}}


@pytest.mark.parametrize(
    "override",
    [
        "seed=-1",
        f"seed={2**63}",
        f"memory_mb={10**30}",
        "base.depth=100000",
        f"annotations.near_duplicate_permutations={10**6}",
        "base.depth=" + "9" * 5000,
        "base.depth=" + "[" * 20_000,
    ],
)
def test_settings_out_of_all_bounds_are_one_line(override):
    with pytest.raises(UserError):
        resolve(json.loads(json.dumps(SOURCES)), [override], "here")


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path):
    text = '[[pages.sources]]\nsource = "topics:"\ndomain = "web"\n'
    (tmp_path / "a.toml").write_text(text, encoding="utf-8-sig")
    (tmp_path / "b.toml").write_text(text, encoding="utf-8")
    one, other = (load(tmp_path / name).model_dump(exclude={"name"}) for name in ("a.toml", "b.toml"))
    assert one == other


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 20_000 + "]" * 20_000])
def test_a_recipe_without_bounds_is_one_line(tmp_path: Path, value):
    (tmp_path / "a.toml").write_text(f"seed = {value}\n")
    with pytest.raises(UserError, match=r"a\.toml: not valid TOML"):
        load(tmp_path / "a.toml")
