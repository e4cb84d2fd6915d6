import gzip
import os

import pytest

from groundup.core.errors import UserError
from groundup.data.whole_file import read_whole


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_text_is_the_same_in_every_wrapping(tmp_path, encoding, pack):
    (tmp_path / "a").write_bytes(pack("für 漢字\n".encode(encoding)))
    assert read_whole(tmp_path / "a") == "für 漢字\n"


def test_what_is_no_text_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    cases = {"a": b"PAR1", "b": b"%PDF-1.2", "c": b"f\xfcr", "d": gzip.compress(os.urandom(99).hex().encode())[:-20]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    said = {"a": "where a text is wanted", "b": "a PDF", "c": "not UTF-8 .* byte 1", "d": "damaged gzip", "pipe": "a pipe"}
    for name, why in said.items():
        with pytest.raises(UserError, match=f"/{name}: .*{why}"):
            read_whole(tmp_path / name)


def test_a_file_that_the_system_does_not_give_is_refused(tmp_path, monkeypatch):
    class Broken:
        def __enter__(self):
            raise OSError(5, "Input/output error")

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("groundup.data.file_kinds.open_plain", lambda path: Broken())
    with pytest.raises(UserError, match=r"a: cannot be read \(Input/output error\)"):
        read_whole(tmp_path / "a")
