"""PDF files: text of sound ones, a count of others, and a reader that no file brings down."""

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from groundup.core.errors import UserError
from groundup.corpus.acquire import local_files
from groundup.corpus.acquire import pdf as reading
from groundup.corpus.acquire.pdf import PdfReader
from groundup.corpus.acquire.sources import collect
from groundup.corpus.archive.warc import Losses, read_pages
from groundup.corpus.config import SourceConfig
from groundup.data.readers import Refused
from seeds import pdf

needs_pdfium = pytest.mark.skipif(reading.find_spec("pypdfium2") is None, reason="the extra pdf is not installed")


@needs_pdfium
def test_a_folder_of_pdf_files(tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(pdf(["Hello world\nsecond line", "Page two"]))
    (folder / "b.pdf").write_bytes(b"%PDF-1.7 and nothing else")
    (folder / "c.pdf").write_bytes(pdf([""]))
    # The place of its table is past its end.
    (folder / os.fsdecode(b"d\xff.pdf")).write_bytes(pdf(["third"]).replace(b"startxref\n", b"startxref\n9"))
    counts = collect(SourceConfig(source=str(folder), domain="d"), tmp_path / "pages", "s", 1.0, "test")
    pages = {page.url: page.body.decode() for page in read_pages(tmp_path / "pages" / "s.warc.gz", Losses())}
    assert pages == {
        "file:///all/a.pdf": "Hello world\nsecond line\n\nPage two",
        "file:///all/d%FF.pdf": "third",
    }
    assert counts["refused"] == {"damaged": 1, "no text": 1}


@needs_pdfium
def test_a_reader_that_was_ended_starts_again(tmp_path, monkeypatch):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf(["words"]))
    refused = Refused()
    with PdfReader() as reader:
        assert reader.text(path, refused) == "words"
        first = reader.process
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert reader.text(path, refused) == "words" and reader.process.pid != first.pid
        os.kill(reader.process.pid, signal.SIGSTOP)  # as one that never ends
        monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.05)
        assert reader.text(path, refused) == "" and refused == {"damaged": 1}
        monkeypatch.undo()
        assert reader.text(path, refused) == "words"
        last = reader.process
    assert last.poll() is not None


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf(["words"]))
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'groundup\[pdf\]'"):
        list(local_files.Files(path, "text", local_files.Reading(())).pages())
    monkeypatch.setattr(reading, "find_spec", lambda name: name)
    monkeypatch.setattr(reading, "MAX_PDF_BYTES", 10)
    assert PdfReader().text(path, refused := Refused()) == "" and refused == {"size": 1}
