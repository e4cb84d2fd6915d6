"""Recipes by name, and the one that `groundup init` writes: for any path, a recipe that reads just that."""

import json
import os
import tempfile
import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.pipeline.shipped_recipes import find, init, shipped


def test_a_shipped_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"laptop", "tiny"} == set(shipped())
    assert find(Path("tiny")) == shipped()["tiny"]
    (tmp_path / "tiny").mkdir()  # a run folder of that name changes nothing
    assert find(Path("tiny")) == shipped()["tiny"]
    assert find(Path("nosuch")) == Path("nosuch") and find(tmp_path / "tiny") == tmp_path / "tiny"


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny").write_text("mine")
    assert find(Path("tiny")) == Path("tiny")


NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and not name.startswith("~") and len(name.encode()) <= 200
)


@example("a\"b\\c\n\x7f\t'#$name")
@example("cc:x")
@example("..a")
@given(NAMES)
def test_the_recipe_reads_what_was_given(name):
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder).resolve() / name
        pages.write_text("text")
        made = init(Path(folder) / "out", [str(pages)], ["de", "en"])
        content = tomllib.loads(Path(made["recipe"]).read_text(encoding="utf-8"))
        (source,) = content["pages"]["sources"]
        assert Path(source["source"]) == pages
        assert source["domain"] and set(source["domain"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
        assert content["annotations"]["languages"] == ["de", "en"] and content["name"] == "out"


def test_sources_that_are_no_paths_stay_as_they_are(tmp_path):
    given = ["https://example.org/", "hf:org/name", "stdlib:"]
    made = init(tmp_path, given, ["en"])
    content = tomllib.loads((tmp_path / "recipe.toml").read_text(encoding="utf-8"))
    assert [source["source"] for source in content["pages"]["sources"]] == given == made["pages"]


def test_without_pages_there_is_a_folder_for_them(tmp_path):
    init(tmp_path / "mine", [], ["en"])
    content = tomllib.loads((tmp_path / "mine" / "recipe.toml").read_text(encoding="utf-8"))
    assert Path(content["pages"]["sources"][0]["source"]) == (tmp_path / "mine" / "pages").resolve()
    assert (tmp_path / "mine" / "pages").is_dir()


@pytest.mark.parametrize(
    ("pages", "language", "expected"),
    [
        (["nosuch"], "en", "--pages nosuch: no such file or folder"),
        ([os.fsdecode(b"\xff.txt")], "en", "not a name in UTF-8"),
        (["stdlib:"], "German", "--language German"),
        (["stdlib:"], 'en"\n[x', "--language"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(tmp_path, monkeypatch, pages, language, expected):
    monkeypatch.chdir(tmp_path)
    Path(os.fsdecode(b"\xff.txt")).write_text("text")
    with pytest.raises(UserError, match=expected):
        init(tmp_path / "out", pages, ["en", language])
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "recipe.toml").write_text("mine")
    with pytest.raises(UserError, match="there already"):
        init(tmp_path, [], ["en"])
    assert (tmp_path / "recipe.toml").read_text() == "mine"


def test_the_command_line_says_what_it_wrote_and_what_is_next(run_groundup, tmp_path):
    done = run_groundup("init", tmp_path / "a b", "--pages", "topics:")
    made = json.loads(done.stdout)
    assert done.returncode == 0 and str(tmp_path / "a b" / "recipe.toml") in done.stderr and made["next"] in done.stderr
    plan = run_groundup("run", tmp_path / "a b" / "recipe.toml", "--run", tmp_path / "run", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    again = run_groundup("init", tmp_path / "a b")
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1
