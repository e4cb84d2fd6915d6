"""WACZ: the WARCs inside are read where they lie; nothing is written under a name of the zip file's."""

import gzip
import os
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.corpus.acquire.sources import collect
from groundup.corpus.archive import wacz
from groundup.corpus.archive.wacz import read_wacz
from groundup.corpus.archive.warc import Losses, WarcWriter, read_pages
from groundup.corpus.config import SourceConfig
from groundup.data.readers import Refused


def warc(tmp_path, numbers) -> bytes:
    path = tmp_path / "made.warc.gz"
    with WarcWriter(path) as out:
        for number in numbers:
            body = f"<p>page {number}</p>".encode()
            out.response(f"http://a.org/{number}", 200, [("Content-Type", "text/html")], body)
    content = path.read_bytes()
    path.unlink()
    return content


def make(path, warcs: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("datapackage.json", '{"profile": "data-package", "wacz_version": "1.1.1"}', zipfile.ZIP_DEFLATED)
        out.writestr("pages/pages.jsonl", '{"format": "json-pages-1.0"}\n', zipfile.ZIP_DEFLATED)
        out.writestr("indexes/index.cdx.gz", gzip.compress(b""))
        for name, content in warcs.items():
            out.writestr(name, content, how)


def read(path) -> tuple[list[str], Losses, Refused]:
    losses, refused = Losses(), Refused()
    return [page.url.rpartition("/")[2] for page in read_wacz(path, losses, refused)], losses, refused


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", ["a.wacz", "a.zip", "no ending"])
def test_a_source_of_two_warcs(tmp_path, how, name):
    path = tmp_path / name
    make(path, {"archive/b.warc.gz": warc(tmp_path, [0, 1]), "archive/a.warc": gzip.decompress(warc(tmp_path, [2]))}, how)
    counts = collect(SourceConfig(source=str(path), domain="d"), tmp_path / "pages", "s", 1.0, "test")
    assert counts == {"pages": 3, "bytes": 39, "refused": {}}
    pages = read_pages(tmp_path / "pages" / "s.warc.gz", Losses())
    assert [page.url for page in pages] == [f"http://a.org/{number}" for number in range(3)]


def test_names_that_lead_elsewhere_are_no_warcs_and_nothing_is_written(tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    inside.mkdir()
    content = warc(tmp_path, [0])
    names = ["archive/a.warc.gz", "archive/../../b.warc.gz", "../archive/c.warc.gz", "/archive/d.warc.gz", "x/e.warc.gz"]
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        make(inside / "a.wacz", dict.fromkeys(names, content), how)
        monkeypatch.chdir(inside)
        assert read(inside / "a.wacz")[0] == ["0"]
    assert [found for _, _, found in os.walk(tmp_path)] == [[], ["a.wacz"]]


@pytest.mark.parametrize("name", ["crawl/archive/a.warc.gz", "archive/2024/a.warc.gz", "./archive/a.warc", r"c\archive\a.warc"])
def test_one_that_was_zipped_once_more_in_a_folder(tmp_path, name):
    make(tmp_path / "a.wacz", {name: warc(tmp_path, [0]), "__MACOSX/archive/._a.warc.gz": b"no WARC", "archive/.a.warc": b""})
    found, _, refused = read(tmp_path / "a.wacz")
    assert found == ["0"] and not refused


def test_a_folder_may_hold_one(tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    make(folder / "a.wacz", {"archive/a.warc.gz": warc(tmp_path, [0])})
    (folder / "b.txt").write_text("words")
    assert collect(SourceConfig(source=str(folder), domain="d"), tmp_path / "pages", "s", 1.0, "test")["pages"] == 2


def test_damage_is_counted_or_one_line(tmp_path, monkeypatch):
    path = tmp_path / "a.wacz"
    content = warc(tmp_path, [0, 1])
    make(path, {"archive/a.warc.gz": content, "archive/b.warc.gz": warc(tmp_path, [2])})
    whole = path.read_bytes()
    at = whole.index(content)
    path.write_bytes(whole[: at + 10] + bytes(20) + whole[at + 30 :])  # inside the first record
    found, losses, refused = read(path)
    assert (found, losses.lost, refused) == (["1", "2"], 1, Refused())

    path.write_bytes(whole[:-40])
    with pytest.raises(UserError, match="not a sound zip file"):
        read(path)
    make(path, {"other/a.warc.gz": content})
    with pytest.raises(UserError, match="a zip file without WARCs under archive/"):
        read(path)
    monkeypatch.setattr(wacz, "MAX_FILES", 3)
    path.write_bytes(whole)
    with pytest.raises(UserError, match="lists 5 files"):
        read(path)


def test_bombs_and_what_cannot_be_opened_are_passed_over(tmp_path):
    path = tmp_path / "a.wacz"
    good = warc(tmp_path, [0])
    make(path, {"archive/bomb.warc": bytes(1 << 20), "archive/good.warc.gz": good}, zipfile.ZIP_DEFLATED)
    assert read(path)[::2] == (["0"], Refused(damaged=1))
    make(path, {"archive/bz.warc": good}, zipfile.ZIP_BZIP2)
    assert read(path)[::2] == ([], Refused(damaged=1))
    # One member listed many times is not read more often than the file is long.
    make(path, {"archive/a.warc.gz": good})
    with zipfile.ZipFile(path, "a") as out:
        info = out.getinfo("archive/a.warc.gz")
        for number in range(200):
            other = zipfile.ZipInfo(f"archive/{number}.warc.gz")
            other.header_offset, other.compress_size, other.file_size = info.header_offset, info.compress_size, info.file_size
            other.CRC = info.CRC
            out.filelist.append(other)
        out._didModify = True
    found, _, refused = read(path)
    assert 1 <= len(found) < 200
    assert len(found) + refused["damaged"] == 201


@pytest.mark.parametrize(("offset", "value"), [(8, 9), (8, 12), (8, 14), (6, 1), (6, 1 | 1 << 6)])
def test_deflate64_and_other_compressions_and_encryption_are_refused(tmp_path, offset, value):
    """Of the fields of a member, in its own header and in the list: flags (bit 0: encrypted) and compression."""
    path = tmp_path / "a.wacz"
    make(path, {"archive/a.warc.gz": warc(tmp_path, [0]), "archive/b.warc.gz": warc(tmp_path, [1])})
    content = bytearray(path.read_bytes())
    for start, more in ((content.index(b"archive/a.warc.gz") - 30, 0), (content.rindex(b"archive/a.warc.gz") - 46, 2)):
        content[start + more + offset : start + more + offset + 2] = value.to_bytes(2, "little")
    path.write_bytes(content)
    reason = "encrypted" if offset == 6 else "damaged"
    found, _, refused = read(path)
    assert (found, refused) == (["1"], Refused({reason: 1}))
    again = ": get the file again" if reason == "damaged" else ""
    assert refused.first == f"{path}: archive/a.warc.gz: {reason}{again}"


def encrypted(path, names) -> None:
    """The members of these names of `path` as encrypted ones: by their flags."""
    content = bytearray(path.read_bytes())
    for name in names:
        content[content.index(name) - 30 + 6] |= 1
        content[content.rindex(name) - 46 + 8] |= 1
    path.write_bytes(content)


def test_encrypted_parts_through_the_verb(tmp_path, run_groundup):
    path = tmp_path / "a.wacz"
    make(path, {"archive/a.warc.gz": warc(tmp_path, range(2)), "archive/b.warc.gz": warc(tmp_path, range(2, 14))})
    encrypted(path, [b"archive/a.warc.gz"])
    outcome = run_groundup("corpus", "--from", f"web={path}", "--out", tmp_path / "out", "--set", "corpus.min_words=1",
                           "--set", 'annotations.languages=["all"]')  # fmt: skip
    assert f"1 passed over (encrypted: 1; first {path}: archive/a.warc.gz: encrypted)" in outcome.stderr
    assert "-> 00-web.warc.gz: 12 pages" in outcome.stderr

    encrypted(path, [b"archive/b.warc.gz"])
    outcome = run_groundup("corpus", "--from", f"web={path}", "--out", tmp_path / "none")
    assert outcome.returncode == 2
    assert "no WARC of it can be read (encrypted: 2; first" in outcome.stderr.splitlines()[-1]


def test_a_member_before_the_start_of_the_file_is_passed_over(tmp_path):
    path = tmp_path / "a.wacz"
    make(path, {"archive/a.warc.gz": warc(tmp_path, [0])})
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\5\6") + 16  # where the list begins: members are counted back from it
    content[at : at + 4] = (int.from_bytes(content[at : at + 4], "little") + (1 << 20)).to_bytes(4, "little")
    path.write_bytes(content)
    assert read(path)[::2] == ([], Refused(damaged=1))


def test_numbers_in_a_record_of_their_own(tmp_path, monkeypatch):
    path = tmp_path / "a.wacz"
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    make(path, {"archive/a.warc.gz": warc(tmp_path, [0])})
    assert b"PK\6\7" in path.read_bytes()
    assert read(path)[0] == ["0"]
    monkeypatch.setattr(wacz, "MAX_FILES", 3)
    with pytest.raises(UserError, match="lists 4 files"):
        read(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wacz")
    make(folder / "a.wacz", {"archive/a.warc.gz": warc(folder, range(3))})
    make(folder / "b.wacz", {"archive/a.warc": gzip.decompress(warc(folder, range(3)))}, zipfile.ZIP_DEFLATED)
    return [(folder / name).read_bytes() for name in ("a.wacz", "b.wacz")]


@given(st.integers(0, 1), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), max_size=4), st.integers(0, 1 << 20))
def test_any_damage_ends_in_pages_or_one_line(tmp_path_factory, sound, which, flips, cut):
    content = bytearray(sound[which])
    for at, bits in flips:
        content[at % len(content)] ^= bits
    path = tmp_path_factory.mktemp("wacz") / "a.wacz"
    path.write_bytes(content[: len(content) - (cut % len(content) if cut & 1 else 0)])
    try:
        assert len(read(path)[0]) <= 3
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 300


@pytest.mark.parametrize("name", ["a.docx", "a.zip", "no ending"])
def test_a_zip_file_of_another_kind_is_called_so(tmp_path, name):
    """Who gave a document of Word was told to give a .wacz."""
    make(tmp_path / name, {})
    with pytest.raises(UserError, match=r"a zip archive \(.zip, .docx, .xlsx, .epub\): unpack it, or save it as text"):
        collect(SourceConfig(source=str(tmp_path / name), domain="d"), tmp_path / "pages", "s", 1.0, "test")


def test_a_list_of_files_that_is_cut_off_is_called_so(tmp_path):
    make(tmp_path / "a.wacz", {})
    (tmp_path / "a.wacz").write_bytes((tmp_path / "a.wacz").read_bytes()[:-5])
    with pytest.raises(UserError, match=r"not a sound zip file \(its list of files is missing: cut off\?\)"):
        read(tmp_path / "a.wacz")
