"""What stands in a run's folder and is not ours, and runs whose inputs cannot be right: said before anything is done."""

from pathlib import Path

import pytest

from groundup.core.errors import UserError
from groundup.pipeline import recipe as recipes
from groundup.pipeline.default_folder import default_folder

PAGES = '[[pages.sources]]\nsource = "own"\ndomain = "web"\n'


@pytest.fixture
def command(tmp_path, monkeypatch, groundup_here):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.txt").write_text("hello world " * 50)

    def call(*arguments, text=PAGES, run="run"):
        (tmp_path / "recipe.toml").write_text(text)
        return groundup_here("run", "recipe.toml", "--run", run, *arguments)

    return call


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("place", ["run/pages/mine", "run/corpus/mine", "run/pages.partial/mine", "run/dpo"])
def test_what_no_step_made_stays(command, tmp_path, place, dry):
    mine = tmp_path / place
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    outcome = command(*dry)
    assert outcome.returncode == 2 and "no step of a run made it" in outcome.stderr, outcome.stderr
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("run", ["own", "own/run", "own/below/run"])
def test_a_run_is_not_made_inside_of_what_it_reads(command, tmp_path, run):
    outcome = command(run=run)
    assert outcome.returncode == 2 and "is inside of" in outcome.stderr and "give another run folder" in outcome.stderr
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[given]\ncorpus = "recipe.toml"\n', "needs a folder of a step"),
        (PAGES.replace('"own"', '""'), "at least 1 character"),
    ],
)
def test_an_input_that_cannot_be_is_refused_at_once(command, text, said):
    outcome = command("--dry-run", text=text)
    assert outcome.returncode == 2 and said in outcome.stderr, outcome.stderr


@pytest.mark.parametrize("content", ["é".encode("latin-1"), PAGES.encode("utf-16"), b"\x1f\x8b\x08"])
def test_a_recipe_of_another_encoding_is_said(tmp_path, content):
    (tmp_path / "recipe.toml").write_bytes(content)
    with pytest.raises(UserError, match=r"not UTF-8 .*; save it as UTF-8"):
        recipes.load(tmp_path / "recipe.toml")


def test_one_set_changes_one_value(command):
    outcome = command("--dry-run", "--set", "base.depth=1\nseed=9")
    assert outcome.returncode == 2 and r"base.depth = '1\nseed=9': input should be a valid integer" in outcome.stderr


def test_the_default_folder_of_another_recipe_is_not_replaced(tmp_path, monkeypatch, groundup_here):
    """Two recipes of `groundup init` are both called recipe.toml, so the second run replaced the first in silence."""
    monkeypatch.chdir(tmp_path)
    first, second = tmp_path / "one" / "recipe.toml", tmp_path / "two" / "recipe.toml"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text(PAGES)
    with pytest.raises(RuntimeError), default_folder(Path("one/recipe.toml")) as folder:
        (folder / "pages").mkdir(parents=True)
        raise RuntimeError  # also of a run that did not end well
    for recipe in (first, Path("one/recipe.toml")):
        with default_folder(recipe) as folder:
            assert folder == Path("runs/recipe")
    for dry in ((), ("--dry-run",)):
        outcome = groundup_here("run", "two/recipe.toml", *dry)
        assert outcome.returncode == 2 and "is the run of the recipe" in outcome.stderr and "--run runs/two" in outcome.stderr
    with default_folder(first.rename(tmp_path / "recipe.toml")) as folder:  # moved
        pass
    assert (folder / ".recipe").read_text() == f"{tmp_path / 'recipe.toml'}\n"
    with pytest.raises(UserError, match="is the run of the recipe"), default_folder(second):
        pass
    with default_folder(Path("tiny"), writes=False) as folder:
        assert not folder.exists()
