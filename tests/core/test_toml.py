import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from groundup.core import toml
from groundup.pipeline import recipe

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.one_of(TEXT, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans())
VALUES = st.recursive(
    PLAIN | st.lists(PLAIN, max_size=3),
    lambda inner: st.dictionaries(TEXT, inner, max_size=3) | st.lists(st.dictionaries(TEXT, inner, max_size=3), max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_it_reads_back_the_same(value):
    assert tomllib.loads(toml.dumps(value)) == value


def test_none_is_left_out():
    assert toml.dumps({"a": None, "b": {"c": None, "d": 1}}) == "[b]\nd = 1\n"


def test_every_recipe_reads_back_the_same(tmp_path):
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.toml")):
        loaded = recipe.load(path)
        again = tmp_path / path.name
        again.write_text(toml.dumps(loaded.model_dump()), encoding="utf-8")
        assert recipe.load(again) == loaded
