"""Where the package's folder is read-only, and the user's too, kernels say so and PyTorch does the work."""

import os
from pathlib import Path

import pytest

from groundup import kernels


@pytest.fixture
def without_cache(monkeypatch):
    monkeypatch.setattr(kernels, "has_bfloat16_vectors", lambda: True)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    kernels.library_or_reason.cache_clear()
    yield monkeypatch
    kernels.library_or_reason.cache_clear()


def test_a_user_without_a_home_is_told_what_to_set(without_cache):
    def nobody(path):
        raise RuntimeError("Could not determine home directory.")

    without_cache.setattr(Path, "expanduser", nobody)
    assert "XDG_CACHE_HOME" in kernels.library_or_reason()


def test_a_cache_that_cannot_be_made_is_named(without_cache, tmp_path):
    (tmp_path / "file").write_text("in the way")
    without_cache.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert str(tmp_path / "file") in kernels.library_or_reason()


def test_nothing_is_written_beside_the_sources(without_cache, tmp_path):
    """The compiler that is called finds its target outside of the package."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\nexit 1\n')
    compiler.chmod(0o755)
    without_cache.setenv("CXX", os.fspath(compiler))
    without_cache.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "did not compile" in kernels.library_or_reason()
    said = (tmp_path / "said").read_text().split()
    assert Path(said[said.index("-o") + 1]).is_relative_to(tmp_path / "cache")
