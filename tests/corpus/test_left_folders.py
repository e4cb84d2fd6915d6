"""Folders of pydoc's server whose process was killed are taken away; those of living ones, and with anything in them, are not."""

import os
import tempfile
import time

import pytest

from groundup.corpus.acquire import pydoc_site
from groundup.corpus.acquire.fetch import Client, Unreachable
from groundup.corpus.urls import canonical

fcntl = pytest.importorskip("fcntl", reason="Windows has no such locks")


def test_folders_of_killed_processes_are_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, full, living, young, other = (tmp_path / f"groundup-pydoc-{name}" for name in ("a", "b", "c", "d", "e"))
    other = tmp_path / "other"
    for folder in (left, full, living, young, other):
        folder.mkdir()
    (full / "mine").write_text("")
    for folder in (left, full, living, other):
        os.utime(folder, (time.time() - 999,) * 2)
    with pydoc_site._locked(str(living)):
        pydoc_site._remove_stale_folders()
        assert {path.name[-1] for path in tmp_path.iterdir()} == set("bcdr")
    pydoc_site._remove_stale_folders()
    assert not living.exists()


@pytest.mark.parametrize("host", ["\x1b", "a\x7fb", "a\x00b.org", "a\x9bb.org"])
def test_a_host_with_control_characters_is_no_host(host):
    assert canonical(f"http://{host}/") is None
    with pytest.raises(Unreachable):
        Client(None, True).fetch(f"http://{host}/", patient=False)
