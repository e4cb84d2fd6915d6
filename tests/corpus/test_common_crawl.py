import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by path
from common_crawl_server import CRAWL, make, serve

from groundup.core.errors import UserError
from groundup.corpus.acquire import common_crawl, fetch, ranges
from groundup.corpus.acquire.common_crawl import CommonCrawl, surt
from groundup.corpus.acquire.ranges import RangeFile, Ranges
from groundup.corpus.acquire.sources import collect
from groundup.corpus.archive.warc import Losses, read_pages
from groundup.corpus.config import SourceConfig

HOSTS = ["a.org", "example.org", "www.example.org", "sub.example.org", "example-not.org", "example.organic", "zoo.net"]


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", 0.001)
    monkeypatch.setattr(ranges, "REQUEST_SECONDS", 5.0)
    monkeypatch.setattr(ranges, "BLOCK", 700)
    monkeypatch.setattr(common_crawl, "WINDOW", 300)  # so that a small index has many
    monkeypatch.setattr(common_crawl, "LINE", 200)


@pytest.fixture
def crawl(tmp_path):
    languages = make(tmp_path / "server", HOSTS)
    with serve(tmp_path / "server") as (base, behaviour):
        yield base, behaviour, languages


def urls(base, log, refused=None, **filters):
    source = CommonCrawl(f"cc:{CRAWL}", log, Counter() if refused is None else refused, base=base, **filters)
    return [page.url for page in source.pages()]


def test_whole_files_in_their_order(crawl, tmp_path):
    base, behaviour, languages = crawl
    found = urls(base, tmp_path / "log")
    assert sorted(found) == sorted(languages)
    assert found == urls(base, tmp_path / "log")
    assert found == urls(base, tmp_path / "other", connections=1)
    assert max(Counter(behaviour.asked[: len(behaviour.asked) // 2]).values()) == 1
    assert behaviour.most_at_once <= 10


@pytest.mark.parametrize("host", ["example.org", "WWW.example.org", "a.org", "zoo.net", "nowhere.org", "aaa.aero", "zz.zz"])
def test_host_is_found_by_bisection(crawl, tmp_path, host):
    base, behaviour, languages = crawl
    bare = host.lower().removeprefix("www.")
    wanted = [url for url in languages if url.split("/")[2] == bare or url.split("/")[2].endswith("." + bare)]
    assert sorted(urls(base, tmp_path / "log", host=host)) == sorted(wanted)
    blocks = [path for path in behaviour.asked if "cdx-" in path]
    assert len(blocks) <= len(wanted) / 4 + 2
    assert max(Counter(behaviour.asked).values()) == 1


def test_language_and_mime_are_sampled_from_the_whole_index(crawl, tmp_path, monkeypatch):
    base, _, languages = crawl
    monkeypatch.setattr(common_crawl, "SAMPLE", 1)
    english = [url for url, language in languages.items() if language.startswith("eng")]
    found = urls(base, tmp_path / "log", language="eng")
    assert sorted(found) == sorted(english)
    in_the_index = sorted(english, key=lambda url: surt(url.split("/")[2]) + ")/" + url.split("/")[3])
    places = [in_the_index.index(url) for url in found[:8]]
    assert max(places) - min(places) >= len(english) / 2
    assert found == urls(base, tmp_path / "other", language="eng", connections=1)
    assert urls(base, tmp_path / "log", mime="application/pdf") == []
    assert sorted(urls(base, tmp_path / "log", mime="text/html")) == sorted(languages)


@pytest.mark.parametrize("trouble", ["503", "429", "500", "cut", "long", "drip", "shifted", "whole"])
def test_a_server_in_trouble_loses_nothing(crawl, tmp_path, monkeypatch, trouble):
    base, behaviour, languages = crawl
    if trouble == "drip":
        monkeypatch.setattr(ranges, "REQUEST_SECONDS", 0.1)
    behaviour.trouble = lambda number, before: trouble if before < 2 else ""
    assert sorted(urls(base, tmp_path / "log", host="example.org")) == sorted(
        url for url in languages if url.split("/")[2].endswith("example.org")
    )


def test_a_storm_ends_in_one_line_and_is_gone_on_from(crawl, tmp_path):
    base, behaviour, languages = crawl
    behaviour.trouble = lambda number, before: "503" if number > 20 else ""
    with pytest.raises(UserError, match=r"status 503.*run the same command later") as error:
        urls(base, tmp_path / "log")
    assert "\n" not in str(error.value)
    had = Counter(behaviour.answered)
    behaviour.trouble = lambda number, before: ""
    assert sorted(urls(base, tmp_path / "log")) == sorted(languages)
    assert had
    assert max(behaviour.answered.values()) == 1


def test_forbidden_is_final(crawl, tmp_path):
    base, behaviour, _ = crawl
    behaviour.trouble = lambda number, before: "403" if number >= 8 else ""
    with pytest.raises(UserError, match=r"403 Forbidden.*wait some hours"):
        urls(base, tmp_path / "log")
    assert len(behaviour.asked) <= 8 + 10  # those that were on their way


def test_wrong_names_are_one_line_errors(crawl, tmp_path):
    base, _, _ = crawl
    with pytest.raises(UserError, match="not the name of a crawl"):
        list(CommonCrawl("cc:2026", tmp_path / "log", Counter(), base=base).pages())
    with pytest.raises(UserError, match="status 404: check the name"):
        list(CommonCrawl("cc:CC-MAIN-1999-01", tmp_path / "log", Counter(), base=base).pages())


def test_an_index_that_lies_is_counted(crawl, tmp_path):
    base, behaviour, languages = crawl
    index = behaviour.root / f"cc-index/collections/{CRAWL}/indexes/cluster.idx"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(["aaa nonsense\n", *lines]))
    warc = behaviour.root / f"crawl-data/{CRAWL}/segments/1/warc/part-0.warc.gz"
    warc.write_bytes(bytes(300) + warc.read_bytes()[300:])
    refused = Counter()
    found = urls(base, tmp_path / "log", refused, language="eng")
    assert refused["damaged index"] == 2  # once in each part of the sample
    english = [url for url, language in languages.items() if language.startswith("eng")]
    assert 1 <= refused["damaged"] <= 3
    assert len(found) >= len(english) - refused["damaged"]


def test_damage_is_counted_where_a_limit_ends_the_reading(crawl, tmp_path):
    base, behaviour, _ = crawl
    warc = behaviour.root / f"crawl-data/{CRAWL}/segments/1/warc/part-0.warc.gz"
    warc.write_bytes(warc.read_bytes()[:20] + bytes(20) + warc.read_bytes()[40:])
    refused = Counter()
    pages = CommonCrawl(f"cc:{CRAWL}", tmp_path / "log", refused, base=base).pages()
    next(pages)
    pages.close()
    assert refused["damaged"] == 1


def test_torn_and_altered_entries_of_the_log_are_fetched_again(crawl, tmp_path):
    base, behaviour, languages = crawl
    log = tmp_path / "log"
    whole = urls(base, log)
    behaviour.asked.clear()
    os.truncate(log, log.stat().st_size - 10)
    assert urls(base, log) == whole
    assert len(behaviour.asked) == 1
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    assert urls(base, log) == whole


def test_range_file_reads_as_the_file(crawl, tmp_path):
    base, behaviour, _ = crawl
    path = f"crawl-data/{CRAWL}/segments/1/warc/part-1.warc.gz"
    content = (behaviour.root / path).read_bytes()
    with Ranges(base, tmp_path / "log") as opened:
        file = RangeFile(opened, path)
        assert file.seek(0, os.SEEK_END) == len(content)
        for start, size in [(0, 10), (695, 10), (2000, 1400), (len(content) - 5, 100), (len(content) + 5, 3), (3, 0)]:
            file.seek(start)
            got = b""
            while len(got) < size and (part := file.read(size - len(got))):
                got += part
            assert got == content[start : start + size]


def test_collect_stops_at_its_limits_and_leaves_one_file(crawl, tmp_path, monkeypatch):
    base, _, _ = crawl
    monkeypatch.setattr(common_crawl, "BASE", base)
    source = SourceConfig(source=f"cc:{CRAWL}", domain="web", max_pages=5, language="eng")
    counts = collect(source, tmp_path / "pages", "s", 1.0, "test")
    assert counts["pages"] == 5
    assert [file.name for file in (tmp_path / "pages").iterdir()] == ["s.warc.gz"]
    assert len(list(read_pages(tmp_path / "pages" / "s.warc.gz", Losses()))) == 5


def test_killed_at_any_moment_nothing_that_was_had_is_fetched_again(tmp_path):
    make(tmp_path / "server", HOSTS, pages_per_host=30)
    script = (
        "import sys; from pathlib import Path; from groundup.corpus.acquire import common_crawl, ranges\n"
        "from groundup.corpus.acquire.sources import collect; from groundup.corpus.config import SourceConfig\n"
        "ranges.BLOCK = 300; common_crawl.BASE = sys.argv[1]\n"
        f"print(collect(SourceConfig(source='cc:{CRAWL}', domain='web'), Path(sys.argv[2]), 's', 1.0, 'test'))"
    )
    with serve(tmp_path / "server") as (base, behaviour):
        behaviour.trouble = lambda number, before: "slow"

        def run(folder):
            return subprocess.Popen(
                [sys.executable, "-c", script, base, str(tmp_path / folder)], stdout=subprocess.PIPE, text=True
            )

        undisturbed, _ = run("whole").communicate()
        once = Counter(behaviour.answered)
        assert max(once.values()) == 1
        behaviour.answered.clear()
        behaviour.asked.clear()
        had: Counter = Counter()
        kills = 0
        while True:
            process = run("killed")
            start = len(behaviour.asked)
            while process.poll() is None and (kills == 2 or len(behaviour.asked) < start + 15):
                time.sleep(0.002)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            log = tmp_path / "killed" / "s.warc.gz.fetched"
            logged = log.read_bytes() if log.exists() else b""
            for key in once:
                path, _, wanted = key.partition(" ")
                first, _, last = wanted.partition("-")
                asked = int(last) - int(first) + 1 if last else -1
                if f"{path.lstrip('/')} {first} {asked} ".encode() in logged[: logged.rfind(b" ") + 1]:
                    had[key] = had[key] or behaviour.answered[key]
        out, _ = process.communicate()
    assert kills == 2
    assert out == undisturbed
    again = {key: count for key, count in behaviour.answered.items() if count > 1}
    assert len(again) <= 10 * kills  # those that were on their way, or being written, at a kill
    assert len(had) >= 10
    assert sum(behaviour.answered[key] > had[key] for key in had) <= kills  # an entry half written
    first, second = (list(read_pages(tmp_path / name / "s.warc.gz", Losses())) for name in ("whole", "killed"))
    assert first == second


@pytest.mark.parametrize("host, expected", [("Www.Example.org", "org,example"), ("bücher.de", "de,xn--bcher-kva")])
def test_surt(host, expected):
    assert surt(host) == expected
