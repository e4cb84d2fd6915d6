from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from groundup.core.errors import UserError
from groundup.pipeline.recipe import RENAMED, Recipe, config_of, load

PAGES = '[[pages.sources]]\nsource = "topics:"\ndomain = "reference"\n'
RECIPES = sorted((Path(__file__).parents[2] / "src" / "groundup" / "recipes").glob("*.toml"))


@pytest.fixture(scope="module")
def minimal(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "minimal.toml"
    path.write_text(PAGES)
    return path


def refused(path, *overrides):
    with pytest.raises(UserError) as caught:
        load(path, list(overrides))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PAGES + "[base]\ndept = 3\n", "unknown key base.dept; did you mean base.depth?"),
        (PAGES + "[tokeniser]\nvocabulary = 400\n", "unknown key tokeniser; did you mean tokenizer?"),
        ("vocabulary = 400\n" + PAGES, "unknown key vocabulary; did you mean tokenizer.vocabulary?"),
        (PAGES + "[sft]\nbeta = 0.2\n", "unknown key sft.beta; did you mean dpo.beta?"),
        (PAGES + "[base.mixture]\nmax_repeats = 2\n", "unknown key base.mixture; did you mean mixture?"),
        (PAGES + "[base]\ncontext = 64\n", "unknown key base.context: it is called base.context_length now"),
        (PAGES + "max_mbs = 3\n", "did you mean pages.sources.max_mb?"),
        (PAGES + "[dpo]\nzzzzzz = 3\n", "unknown key dpo.zzzzzz; known here: data, held_out, strict, "),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known_one(tmp_path, text, expected):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    message = refused(path)
    assert message.startswith(f"{path}: unknown key") and expected in message.replace("sources.0.", "sources.")


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_every_old_key_is_refused_with_its_new_name(minimal, tmp_path, old, new):
    (section, name), (now, key) = old.split("."), new.partition(",")[0].split(".")
    assert key in config_of(now).model_fields and name not in config_of(section).model_fields
    path = tmp_path / "recipe.toml"
    path.write_text(f"{PAGES}[{section}]\n{name} = 1\n")
    assert refused(path) == f"{path}: unknown key {old}: it is called {new} now"
    assert refused(minimal, f"{old}=1") == f"{minimal}: unknown key {old}: it is called {new} now"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ('base.depth="4"', "base.depth = '4'"),
        ("base.depth=4.0", "base.depth = 4.0"),
        ("base.depth=true", "base.depth = True"),
        ("base.depth=0", "base.depth = 0"),
        ("base.context_length=15", "base.context_length = 15"),
        ("tokenizer.vocabulary=259", "tokenizer.vocabulary = 259"),
        ("corpus.held_out=1.5", "corpus.held_out = 1.5"),
        ("dpo.beta=0", "dpo.beta = 0"),
        ("dpo.beta=nan", "dpo.beta = nan"),
        ("dpo.beta=inf", "dpo.beta = inf"),
        ("mixture.weights.code=-1", "mixture.weights.code = -1"),
        ("annotations.quality_positives=reference", "annotations.quality_positives = 'reference'"),
        ("base=3", "base = 3"),
        ("pages.sources=[]", "pages.sources = []"),
        ("pages.sources=[{source = 'topics:'}]", "pages.sources.0.domain is missing"),
    ],
)
def test_wrong_type_or_range_names_key_and_value(minimal, override, expected):
    assert refused(minimal, override).startswith(f"{minimal}: {expected}")


def test_sources_cannot_be_left_out(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[base]\ndepth = 2\n")
    assert refused(path) == f"{path}: pages is missing"
    path.write_text("[pages]\nrequests_per_second = 1\n")
    assert refused(path) == f"{path}: pages.sources is missing"


def test_file_that_is_missing_or_is_not_toml(tmp_path):
    path = tmp_path / "recipe.toml"
    assert "no such recipe" in refused(path)
    assert "not a plain file" in refused(tmp_path)
    path.write_text("[base\ndepth = 2\n")
    assert "not valid TOML" in refused(path) and "line 1" in refused(path)
    path.write_bytes(b'name = "\xff"\n')
    assert "not valid TOML" in refused(path)


def test_overrides(minimal):
    recipe = load(
        minimal,
        [
            "base.depth=6",
            "dpo.beta = 0.2",
            "name=my word",
            "seed=3",
            "annotations.quality_positives=['a', 'b']",
            "annotations.toxic_words=de=at",
            "mixture.weights.reference=1",
            "base.depth=7",
            "pages.sources.0.text_column=content",
        ],
    )
    assert recipe.base.depth == 7 and recipe.dpo.beta == 0.2 and recipe.pages.sources[0].text_column == "content"
    assert recipe.name == "my word" and recipe.seed == 3
    assert recipe.annotations.quality_positives == ["a", "b"] and recipe.annotations.toxic_words == "de=at"
    assert recipe.mixture.weights == {"reference": 1.0}
    assert recipe.base.context_length == load(minimal).base.context_length


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("base.depth", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("pages.sources.max_mb=3", "pages.sources is not a section; give a number from 0 to 0 after it"),
        ("pages.sources.1.max_mb=3", "pages.sources.1 is not a section"),
        ("pages.sources.-1.max_mb=3", "pages.sources.-1 is not a section"),
        ("pages.sources.0.max_mb.x=3", "pages.sources.0.max_mb = {'x': 3}"),
        ("pages.sources.0.max_nb=3", "max_nb"),
        ("base.dept=3", "did you mean base.depth?"),
    ],
)
def test_override_that_cannot_be_applied(minimal, override, expected):
    assert expected in refused(minimal, override)


@given(
    key=st.text(st.characters(categories=["L", "N", "P"]), max_size=20) | st.sampled_from(["base.depth", "pages.x"]),
    value=st.text(max_size=20) | st.floats().map(repr) | st.integers().map(str),
)
def test_whatever_is_set_gives_a_recipe_or_a_user_error(minimal, key, value):
    try:
        assert isinstance(load(minimal, [f"{key}={value}"]), Recipe)
    except UserError as error:
        assert str(error)


@given(depth=st.integers(1, 99), share=st.floats(0, 1), words=st.lists(st.text("ab'\"\\ é", max_size=5), max_size=3))
def test_override_equals_the_same_value_in_the_file(minimal, depth, share, words):
    quoted = "[" + ", ".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words) + "]"
    path = minimal.with_name("same.toml")
    path.write_text(
        f'name = "minimal"\n{PAGES}exclude = {quoted}\n[base]\ndepth = {depth}\ndecay_fraction = {share!r}\n', "utf-8"
    )
    source = f"{{source = 'topics:', domain = 'reference', exclude = {quoted}}}"
    assert load(path) == load(
        minimal, [f"base.depth={depth}", f"base.decay_fraction={share!r}", f"pages.sources=[{source}]"]
    )


def test_name_is_the_files_and_values_cannot_change(minimal):
    recipe = load(minimal)
    assert recipe.name == "minimal"
    with pytest.raises(ValidationError):
        recipe.base.depth = 9


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_we_ship_loads_and_weighs_only_domains_it_has(path):
    recipe = load(path)
    domains = {source.domain for source in recipe.pages.sources}
    assert recipe.mixture.weights.keys() <= domains
    assert domains & set(recipe.annotations.quality_positives)
    assert sum(recipe.mixture.weights.values()) == pytest.approx(1)


def test_both_recipes_are_there():
    assert {"laptop", "tiny"} <= {path.stem for path in RECIPES}


def test_a_weight_of_a_domain_that_no_source_has_is_refused_at_once(minimal):
    with pytest.raises(UserError, match=r"mixture.weights.referense: no source has this domain; did you mean reference\?"):
        load(minimal, ["mixture.weights.referense=1"])


@pytest.mark.parametrize(
    "override, bound",
    [
        ("memory_mb=" + "9" * 30, "less than or equal to"),
        ("annotations.near_duplicate_permutations=1000000", "less than or equal to"),
        ("pages.requests_per_second=1e-300", "greater than or equal to 0.01"),
        ("pages.requests_per_second=1e300", "less than or equal to 1000"),
    ],
)
def test_settings_that_no_machine_can_follow_are_refused(minimal, override, bound):
    assert bound in refused(minimal, override)


def test_a_source_of_more_bytes_than_there_are_is_refused(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(PAGES + "max_mb = 1e303\n")
    assert "less than or equal to" in refused(path)


def test_weights_by_language(minimal):
    domain = load(minimal).pages.sources[0].domain
    changes = ["corpus.domain_by_language=true", "annotations.languages=['en', 'de']", f"mixture.weights.{domain}-de=1"]
    assert load(minimal, changes).mixture.weights == {f"{domain}-de": 1.0}
    with pytest.raises(UserError, match="no source has this domain"):
        load(minimal, [*changes[:2], f"mixture.weights.{domain}-fr=1"])


def test_one_language_by_its_own_key(minimal):
    assert load(minimal, ["annotations.language=de"]).annotations.wanted_languages == ("de",)
    assert load(minimal, ["annotations.languages=all"]).annotations.wanted_languages == ()
    with pytest.raises(UserError, match="has language and languages: keep one of them"):
        load(minimal, ["annotations.language=de", "annotations.languages=['de']"])
