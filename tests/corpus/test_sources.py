import ast
import gzip

import pytest

from groundup.core.errors import UserError
from groundup.corpus.acquire.sources import collect
from groundup.corpus.archive.warc import Losses, read_pages
from groundup.corpus.config import SourceConfig


def gather(tmp_path, source, **more):
    counts = collect(SourceConfig(source=str(source), domain="d", **more), tmp_path / "pages", "s", 1000.0, "test")
    assert [file.name for file in (tmp_path / "pages").iterdir()] == ["s.warc.gz"]
    return counts, list(read_pages(tmp_path / "pages" / "s.warc.gz", Losses()))


def test_pydoc_serves_the_standard_library_and_nothing_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDUP_TEST_SECRET", "hunter2")
    # Modules before it in the index are left out, so that the page that prints the environment comes soon.
    exclude = [f"/{first}" for first in "_abcdefghijklmn"] + ["/topic", "/keyword", "/test", "/operator", "/optparse"]
    counts, pages = gather(tmp_path, "pydoc:", max_pages=8, exclude=exclude)
    by_url = {page.url: page for page in pages}
    assert counts["pages"] == 8
    assert counts["refused"]["excluded"] > 50
    assert b"environ" in by_url["http://pydoc.localhost/os.html"].body
    everything = b"".join(page.body for page in pages)
    assert b"hunter2" not in everything
    assert b"GROUNDUP_TEST_SECRET" not in everything
    assert b"pytest" not in by_url["http://pydoc.localhost/"].body  # installed packages are not the standard library


def test_pydoc_is_the_same_twice(tmp_path):
    _, first = gather(tmp_path / "1", "pydoc:", max_mb=0.8)
    _, second = gather(tmp_path / "2", "pydoc:", max_mb=0.8)
    assert first == second


def test_stdlib_is_python_spread_over_packages_and_deterministic(tmp_path):
    counts, pages = gather(tmp_path / "1", "stdlib:", max_mb=0.5, exclude=["/test/"])
    assert 500_000 <= counts["bytes"] < 2_000_000
    for page in pages:
        ast.parse(page.body.decode())
        assert page.content_type == "text/x-python"
        assert page.url.startswith("file:///stdlib/")
        assert not page.url.startswith("file:///stdlib/test/")
    assert len({page.url.split("/")[4] for page in pages}) > 5
    assert gather(tmp_path / "2", "stdlib:", max_mb=0.5, exclude=["/test/"]) == (counts, pages)


def test_topics_are_the_language_reference(tmp_path):
    counts, pages = gather(tmp_path, "topics:")
    assert counts["pages"] > 50
    assert any(b"yield" in page.body for page in pages if page.url == "file:///topics/yield")


def test_folder_takes_the_files_it_knows(tmp_path):
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a b.html").write_text("<p>hi")
    (folder / "b.md").write_text("# b")
    (folder / "bad.py").write_text("def (")
    (folder / "image.png").write_bytes(b"\x89PNG")
    counts, pages = gather(tmp_path, folder)
    assert [(page.url, page.content_type) for page in pages] == [
        ("file:///notes/b.md", "text/markdown"),
        ("file:///notes/deep/a%20b.html", "text/html"),
    ]
    assert counts == {"pages": 2, "bytes": 8, "refused": {"not Python": 1, "skipped .png": 1}}


def test_warc_source_says_what_was_damaged(tmp_path):
    _, pages = gather(tmp_path / "1", "topics:")
    warc = tmp_path / "1" / "pages" / "s.warc.gz"
    warc.write_bytes(warc.read_bytes()[:-5])
    counts, again = gather(tmp_path / "2", warc)
    assert [page.url for page in again] == [page.url for page in pages]
    assert counts["refused"] == {"damaged": 1}


def test_nothing_to_be_had_is_a_one_line_error(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.warc.gz").write_bytes(gzip.compress(b"not a WARC"))
    for source, message in [
        (tmp_path / "missing", "no such source"),
        (tmp_path / "empty", "gave no page"),
        (tmp_path / "no.warc.gz", "not a web archive|gave no page"),
        ("http://127.0.0.1:1/", "not a public address"),
        ("topics", "no such source"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            gather(tmp_path, source)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "pages" / "s.warc.gz").exists()
