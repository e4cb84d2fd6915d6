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


@pytest.fixture
def compiler(without_cache, tmp_path):
    """A compiler that does what the script says."""

    def make(script):
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        without_cache.setenv("CXX", os.fspath(path))
        without_cache.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    return make


def test_nothing_is_written_beside_the_sources(compiler, tmp_path):
    """The compiler that is called finds its target outside of the package."""
    compiler(f'echo "$@" > {tmp_path}/said\nexit 1')
    assert "did not compile" in kernels.library_or_reason()
    said = (tmp_path / "said").read_text().split()
    assert Path(said[said.index("-o") + 1]).is_relative_to(tmp_path / "cache")


def test_sources_are_compiled_at_the_same_time_and_then_linked(compiler, monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "cores", lambda: 2)
    begun = f"ls {tmp_path}/begun.* | wc -l"
    compiler(
        f'echo "$@" >> {tmp_path}/said\ncase "$*" in *-shared*) echo "x: error: no such luck" >&2; exit 1;; esac\n'
        f"touch {tmp_path}/begun.$$\nfor i in $(seq 200); do [ $({begun}) -ge 2 ] && exit 0; sleep 0.05; done\nexit 1"
    )
    assert "x: error: no such luck" in kernels.library_or_reason()
    *sources, link = (tmp_path / "said").read_text().splitlines()
    assert len(sources) == len(link.split(".o ")) - 1 and all(" -c " in one for one in sources)


def test_what_ends_the_compiling_is_announced(compiler, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "PATIENCE", 0.1)
    compiler("exec sleep 60")
    reason = kernels.library_or_reason()
    assert "took more than 0.1 seconds" in reason
    assert caplog.messages[-1] == f"native kernels disabled: {reason}; using PyTorch"
