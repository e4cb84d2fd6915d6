import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.core.errors import UserError
from groundup.corpus.acquire.sources import collect
from groundup.corpus.archive.warc import Losses, WarcWriter, read_pages
from groundup.corpus.config import SourceConfig


def gather(tmp_path, source, **more):
    counts = collect(SourceConfig(source=str(source), domain="d", **more), tmp_path / "pages", "s", 1000.0, "test")
    return counts, list(read_pages(tmp_path / "pages" / "s.warc.gz", Losses()))


@pytest.mark.parametrize(
    ("limits", "said"), [({"max_pages": 2}, "max_pages = 2"), ({"max_mb": 5e-6}, "max_mb = 5e-06"), ({}, "")]
)
def test_a_source_that_has_more_than_its_limits_says_so(tmp_path, capsys, limits, said):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "two", "three")))
    counts, _ = gather(tmp_path, tmp_path / "a.jsonl", **limits)
    told = capsys.readouterr().err
    assert counts["pages"] == (2 if limits else 3)
    assert f"has more, but {said} is reached" in told if limits else "has more" not in told


def test_damage_is_counted_where_a_limit_ends_the_reading(tmp_path):
    path = tmp_path / "a.warc.gz"
    with WarcWriter(path) as warc:
        for number in range(4):
            warc.resource(f"http://a.org/{number}", "text/plain", b"some words")
    content = path.read_bytes()
    path.write_bytes(content[:20] + bytes(20) + content[40:])  # inside the first record
    counts, pages = gather(tmp_path, path, max_pages=2)
    assert [page.url[-1] for page in pages] == ["1", "2"]
    assert counts["refused"] == {"damaged": 1}


@pytest.mark.parametrize("packed", [False, True])
def test_a_long_text_is_many_documents_and_nothing_is_lost(tmp_path, packed):
    text = "".join(f"A paragraph, the {number}th, of some words.\n{'More of it follows. ' * 5}\n\n" for number in range(9000))
    path = tmp_path / "book" / ("a b.txt.gz" if packed else "a b.txt")
    path.parent.mkdir()
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    counts, pages = gather(tmp_path, path)
    assert b"".join(page.body for page in pages).decode() == text
    place = f"file:///book/{path.name.replace(' ', '%20')}"
    assert [page.url for page in pages] == [f"{place}/{number}" for number in range(len(pages))]
    assert all(page.body.startswith(b"A paragraph") and len(page.body.split()) <= 100_000 for page in pages)
    assert counts["refused"] == {} and len(pages) == counts["pages"] >= 6


def test_what_a_folder_holds_beside_texts_is_named_and_counted(tmp_path, capsys):
    folder = tmp_path / "all"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.rst", "b.tex", "c.org", "deep/d.adoc", "e.txt.gz", "f.csv", "g.tsv", "h.json"):
        rows = {"f": "text,id\nrow f,1\n", "g": "id\ttext\n1\trow g\n", "h": json.dumps([{"text": "row h"}])}
        content = rows.get(name[0], name)
        (folder / name).write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    for name in ("w.odt", "x.docx", "y.docx", "noending", "._a.parquet", ".DS_Store", "_SUCCESS", "._a.txt"):
        (folder / name).write_bytes(b"%PDF-1.4")
    (folder / "v.txt").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "t.parquet").write_bytes(b"text")
    pq.write_table(pa.table({"text": [["a"]]}), folder / "s.parquet")
    os.mkfifo(folder / "p.txt")
    counts, pages = gather(tmp_path, folder)
    names = {page.url.removeprefix("file:///all/"): page.body.decode() for page in pages}
    texts = ["a.rst", "b.tex", "c.org", "deep/d.adoc", "e.txt.gz"]
    assert names == {name: name for name in texts} | {"f.csv/0": "row f", "g.tsv/0": "row g", "h.json/0": "row h"}
    skipped = {"skipped .odt": 1, "skipped .docx": 2, "skipped without an ending": 1, "skipped .txt": 1}
    assert counts["refused"] == {"refused files": 3} | skipped
    said = capsys.readouterr().err
    for words in ("2 .docx: x.docx, y.docx", "1 .odt: w.odt", "v.txt: a PNG picture", "t.parquet: not a Parquet", "is list<"):
        assert words in said


@pytest.mark.parametrize("name", ["x", "x.log", "x.dat.gz", "x.data"])
def test_a_file_of_any_name_is_read_by_its_content(tmp_path, name):
    path = tmp_path / name
    pack = gzip.compress if name.endswith("gz") else bytes
    for content, body in [(b'{"text": "row"}\n', "row"), (b'[{"text": "row"}]', "row"), (b"plain\n", "plain\n")]:
        path.write_bytes(pack(content))
        assert [page.body.decode() for page in gather(tmp_path, path)[1]] == [body]
    with WarcWriter(path) as warc:
        warc.response("http://a.org/", 200, [("Content-Type", "text/plain")], b"page")
    assert [page.url for page in gather(tmp_path, path)[1]] == ["http://a.org/"]
    pq.write_table(pa.table({"text": pa.array(["row"]).dictionary_encode()}), path)
    assert [page.body.decode() for page in gather(tmp_path, path)[1]] == ["row"]
    path.write_bytes(b"{\\rtf1")
    with pytest.raises(UserError, match=f"{name}: RTF: save it as text"):
        gather(tmp_path, path)


PAGES = [
    "<!DOCTYPE html><p>page", "<HTML><p>page", '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE html>\n<p>page',
    "<!-- saved from url=(0014)about:internet -->\n<html>page", "<!-- a -->\n <!--\nb--><!doctype HTML PUBLIC 'x'>page",
]  # fmt: skip


@pytest.mark.parametrize("content", PAGES)
@pytest.mark.parametrize("name", ["x", "x.aspx", "view.php@id=3", "x.txt.gz", "x.md"])
def test_a_page_of_any_name_is_a_page(tmp_path, name, content):
    path = tmp_path / name
    for encoding in ("utf-8", "utf-16"):
        data = content.encode(encoding)
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        [page] = gather(tmp_path, path)[1]
        assert page.content_type == "text/html" and page.body.decode() == content
    path.write_bytes(gzip.compress(b"A page has <html> in it.") if name.endswith("gz") else b"A page has <html> in it.")
    assert gather(tmp_path, path)[1][0].content_type != "text/html"


SAVED = {
    "page.mht": b"From: <Saved by Blink>\r\nSubject: A\r\nContent-Type: multipart/related;\r\n\ttype=text/html\r\n",
    "saved": b"MIME-Version: 1.0\nX-A: b;\n c\nCONTENT-TYPE: Multipart/Related; boundary=x\n\n--x\n",
    "a.webarchive": b"bplist00" + bytes(99), "a.ipynb": b'{\n "cells": [],\n "nbformat": 4\n}\n',
    "a.har": b'{\n  "log": {"entries": []}\n}', "notes": b'{\r\n  "a\\"b" : 1}',
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
def test_what_programs_save_is_named_and_no_text(tmp_path, name):
    (tmp_path / name).write_bytes(SAVED[name])
    with pytest.raises(UserError, match=r"save the page as|no column 'text', it has|one JSON object \((cells|log)"):
        gather(tmp_path, tmp_path / name)
    (tmp_path / name).write_text("{\n  a brace\n}\nSubject: none\n")
    assert gather(tmp_path, tmp_path / name)[1]


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        ({"a.ipynb": "{}", "b.eml": "To: a"}, r"skipped .eml: 1, skipped .ipynb: 1\): save texts as .txt"),
        ({"a.csv": "id|text\n1|one, two\n"}, r"row 1: more cells than columns\): name every column in the first line"),
        ({"a.json": '["one", "two"]'}, r'value 1: not a JSON object\): give rows as objects, such as {"text": "..."}'),
        ({"a.txt": ""}, r"no text\): check the source$"),
    ],
)
def test_a_source_without_a_page_is_told_what_to_do(tmp_path, files, advice):
    (tmp_path / "own").mkdir()
    for name, content in files.items():
        (tmp_path / "own" / name).write_text(content)
    with pytest.raises(UserError, match=advice):
        gather(tmp_path, tmp_path / "own")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "own").symlink_to(tmp_path / "own")
    with pytest.raises(UserError, match="give each folder that a link leads to as a source of its own"):
        gather(tmp_path, tmp_path / "linked")
    with pytest.raises(UserError, match=r"\(excluded: 1\): check the source and its exclude$"):
        (tmp_path / "own" / "z.txt").write_text("text")
        gather(tmp_path, tmp_path / "own" / "z.txt", exclude=["/"])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.html", "a.warc.gz", "a", "a.py"])
def test_pipes_are_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: a pipe, socket or device"):
        gather(tmp_path, tmp_path / name)


def test_texts_with_a_mark_and_names_that_are_no_utf8(tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "a.txt").write_text("für", encoding="utf-16")
    (folder / "b.py").write_text("x = 1\n", encoding="utf-8-sig")
    (folder / "c.txt").write_text("für", encoding="utf-8-sig")
    (folder / os.fsdecode(b"d\xff.txt")).write_text("d")
    (folder / "e.txt").write_bytes("für".encode("latin-1"))
    _, pages = gather(tmp_path, folder)
    assert [(page.url[12:], page.body, page.charset) for page in pages] == [
        ("a.txt", "für".encode(), "utf-8"), ("b.py", b"x = 1\n", None), ("c.txt", "für".encode(), "utf-8"),
        ("d%FF.txt", b"d", "utf-8"), ("e.txt", b"f\xfcr", None),
    ]  # fmt: skip


def test_a_file_over_the_limit_that_cannot_be_cut_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("groundup.corpus.acquire.local_files.MAX_TEXT_BYTES", 20)
    (tmp_path / "all").mkdir()
    for name, size in (("a.html", 20), ("b.html", 21), ("c.html.gz", 50)):
        content = b"<p>" + b"x" * (size - 3)
        (tmp_path / "all" / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    counts, pages = gather(tmp_path, tmp_path / "all")
    assert [page.url for page in pages] == ["file:///all/a.html"] and counts["refused"] == {"size": 2}


def test_a_file_of_xhtml_is_called_so(tmp_path):
    """Its empty elements are read as XML has them."""
    (tmp_path / "a.xhtml").write_text("<html><head><title/></head><body>words</body></html>")
    assert gather(tmp_path, tmp_path / "a.xhtml")[1][0].content_type == "application/xhtml+xml"


def test_the_first_damage_is_named(tmp_path, capsys):
    (tmp_path / "a.json").write_text('[{"text": "one"}, {"text": ')
    gather(tmp_path, tmp_path / "a.json")
    assert "1 passed over (damaged: 1; first" in capsys.readouterr().err
