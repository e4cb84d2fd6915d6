import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastwarc.stream_io import ZstdWriter

from groundup.core.errors import UserError
from groundup.corpus.acquire.sources import collect
from groundup.corpus.archive.warc import Losses, WarcWriter, read_pages
from groundup.corpus.config import SourceConfig

ROWS = [{"text": "one ä\u2028", "id": 1}, {"text": "two", "url": "https://a.org/2"}, {"text": None}, {"body": "x"}, {"text": " "}]


def gather(tmp_path, source, **more):
    counts = collect(SourceConfig(source=str(source), domain="d", **more), tmp_path / "pages", "s", 1000.0, "test")
    pages = list(read_pages(tmp_path / "pages" / "s.warc.gz", Losses()))
    return counts, [(page.url, page.content_type, page.body.decode(page.charset)) for page in pages]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(content):
    out = io.BytesIO()
    writer = ZstdWriter(out)
    writer.write(content)
    writer.close()
    return out.getvalue()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a b.ndjson", "a.parquet"])
def test_rows_become_pages(tmp_path, name):
    folder = tmp_path / "rows"
    folder.mkdir()
    if name.endswith(".parquet"):
        columns = pa.schema({"id": pa.int64(), "text": pa.string(), "url": pa.string()})
        pq.write_table(pa.Table.from_pylist(ROWS, schema=columns), folder / name)
    else:
        pack = {"gz": gzip.compress, "st": zstd}.get(name[-2:], bytes)
        cut = lines(ROWS)
        (folder / name).write_bytes(pack(cut[:40]) + pack(cut[40:]))
    counts, pages = gather(tmp_path, folder / name)
    assert pages == [
        (f"file:///rows/{name.replace(' ', '%20')}/0", "text/plain", "one ä\u2028"),
        ("https://a.org/2", "text/plain", "two"),
    ]
    assert counts["refused"] == {"no text": 3}


def test_a_column_of_another_name_and_html(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"html": "<p>x", "text": "y"}]))
    assert gather(tmp_path, path, text_column="html")[1][0][1:] == ("text/html", "<p>x")
    with pytest.raises(UserError, match=r"no column 'content', it has html, text: name that"):
        gather(tmp_path, path, text_column="content")
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column 'text', it has a, b: name that of the texts 'text'"):
        gather(tmp_path, tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="not a Parquet file"):
        gather(tmp_path, tmp_path / "b.parquet")


def test_damaged_lines_and_files_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": \n[1]\n\n' + b'{"text": "\xff"}\n{"text": "b"}')
    counts, pages = gather(tmp_path, path)
    assert [text for _, _, text in pages] == ["a", "\ufffd", "b"]
    assert counts["refused"] == {"not a JSON object": 2}
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(lines([{"text": str(n)} for n in range(5000)]))[:-400])
    counts, pages = gather(tmp_path, packed)
    assert counts["refused"] == {"damaged": 1}
    assert 1000 < len(pages) < 5000


def test_a_folder_may_hold_all_kinds(tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    (folder / "b.jsonl").write_bytes(lines([{"text": "line"}]))
    with WarcWriter(folder / "c.warc.gz") as warc:
        warc.response("http://a.org/", 200, [("Content-Type", "text/html; charset=utf-8")], b"page")
    (folder / "d.json").write_text("{}")
    (folder / "e.png").write_bytes(b"\x89PNG")
    counts = collect(SourceConfig(source=str(folder), domain="d"), tmp_path / "pages", "s", 1.0, "test")
    pages = list(read_pages(tmp_path / "pages" / "s.warc.gz", Losses()))
    assert [page.url for page in pages] == ["file:///all/a.txt", "file:///all/b.jsonl/0", "http://a.org/"]
    assert counts["pages"] == 3
    collect(SourceConfig(source=str(folder / "a.txt"), domain="d"), tmp_path / "one", "s", 1.0, "test")
    (page,) = read_pages(tmp_path / "one" / "s.warc.gz", Losses())
    assert (page.url, page.body) == ("file:///all/a.txt", b"text")


def test_rows_of_files_of_one_name_have_urls_of_their_own(tmp_path):
    for month in ("month=1", "month=2"):  # as Hive and Spark lay out a table by a column
        (tmp_path / "table" / month / "lang=de").mkdir(parents=True)
        (tmp_path / "table" / month / "lang=de" / "part-0.jsonl").write_bytes(lines([{"text": month}]))
    urls = [url for url, _, _ in gather(tmp_path, tmp_path / "table")[1]]
    assert urls == [f"file:///table/month%3D{month}/lang%3Dde/part-0.jsonl/0" for month in (1, 2)]


def test_the_hub_is_read_from_a_local_folder(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the extra hf is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes(lines([{"text": "a"}, {"text": "b"}]))
    (tmp_path / "set" / "test.jsonl").write_bytes(lines([{"text": "c"}]))
    assert gather(tmp_path, f"hf:{tmp_path}/set")[1] == [
        ("file:///set/train/0", "text/plain", "a"),
        ("file:///set/train/1", "text/plain", "b"),
    ]
    assert gather(tmp_path, f"hf:{tmp_path}/set:test")[1] == [("file:///set/test/0", "text/plain", "c")]
    for source, message in [(f"hf:{tmp_path}/set:dev", "cannot be read"), (f"hf:{tmp_path}/none", "cannot be read")]:
        with pytest.raises(UserError, match=message) as error:
            gather(tmp_path, source)
        assert "\n" not in str(error.value)


def test_without_the_extra_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'groundup\[hf\]'"):
        gather(tmp_path, "hf:org/name")
