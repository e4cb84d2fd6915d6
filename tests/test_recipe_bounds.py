"""A recipe without bounds ends in one line."""

import json
from pathlib import Path

import pytest

from groundup.core.errors import UserError
from groundup.pipeline.recipe import load, resolve

SOURCES = {"name": "x", "pages": {"sources": [{"source": "topics:", "domain": "web"}]}}


@pytest.mark.parametrize(
    "override",
    [
        "seed=-1",
        f"seed={2**63}",
        f"memory_mb={10**30}",
        "base.depth=100000",
        f"annotations.near_duplicate_permutations={10**6}",
        "base.depth=" + "9" * 5000,
        "base.depth=" + "[" * 20_000,
    ],
)
def test_settings_out_of_all_bounds_are_one_line(override):
    with pytest.raises(UserError):
        resolve(json.loads(json.dumps(SOURCES)), [override], "here")


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path):
    text = '[[pages.sources]]\nsource = "topics:"\ndomain = "web"\n'
    (tmp_path / "a.toml").write_text(text, encoding="utf-8-sig")
    (tmp_path / "b.toml").write_text(text, encoding="utf-8")
    one, other = (load(tmp_path / name).model_dump(exclude={"name"}) for name in ("a.toml", "b.toml"))
    assert one == other


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 20_000 + "]" * 20_000])
def test_a_recipe_without_bounds_is_one_line(tmp_path: Path, value):
    (tmp_path / "a.toml").write_text(f"seed = {value}\n")
    with pytest.raises(UserError, match=r"a\.toml: not valid TOML"):
        load(tmp_path / "a.toml")
