"""Steps that no standard run has, added by a recipe: a longer context, and a sweep of vocabularies."""

import json
import random

import pytest

from groundup.core.errors import UserError
from groundup.model.model_folder import load_decoder
from groundup.pipeline import preflight, steps
from groundup.pipeline.recipe import resolve

PAGES = {"sources": [{"source": "topics:", "domain": "a"}]}
RECIPE = """
name = "further"
seed = 3
threads = 1
standard = ["pages", "annotations", "corpus", "tokenizer", "tokens", "base"]

[[pages.sources]]
source = "{folder}/texts.jsonl"
domain = "notes"

[corpus]
min_words = 20
min_quality = 0.0
held_out = 0.2

[tokenizer]
vocabulary = 300

[base]
depth = 1
context_length = 32
tokens = 3000
batch_tokens = 512

[vocabulary_sweep]
depth = 1
context_length = 32

[[steps]]
kind = "vocabulary_sweep"
name = "sizes"
settings = {{ sizes = [280, 270], tokens = 45_000 }}

[[steps]]
kind = "long_context"
name = "long_context"
settings = {{ context_length = 64, tokens = 2000, batch_tokens = 512 }}

[[steps]]
kind = "evaluation"
name = "evaluation-long"
inputs = {{ base = "long_context" }}
settings = {{ held_out_kb = 2, sentence_pairs = 2 }}
"""
WORDS = ["bees", "bring", "nectar", "home", "from", "the", "meadow", "and", "in", "autumn", "they", "rest", "a", "while"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_groundup):
    folder, draw = tmp_path_factory.mktemp("further"), random.Random(5)
    with (folder / "texts.jsonl").open("w") as file:
        for number in range(40):
            lines = [" ".join(draw.choices(WORDS, k=12)).capitalize() for _ in range(10)]
            file.write(json.dumps({"text": f"Note {number}. " + ". ".join(lines) + "."}) + "\n")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    done = run_groundup("run", folder / "recipe.toml", "--run", folder / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout)["figures"], done.stderr


def test_they_run_and_stand_in_the_report(run, run_groundup):
    folder, figures, said = run
    assert figures["long_context"]["context_length"] == 64 and figures["sizes"]["vocabulary"] in (270, 280)
    assert "bits_per_byte" in figures["evaluation-long"]
    for name, length in (("base", 32), ("long_context", 64)):
        assert load_decoder(folder / "run" / name).config.max_position_embeddings == length
    assert "context 32 -> 64" in said and "a vocabulary of 2" in said
    assert {path.name for path in (folder / "run" / "sizes").iterdir()} >= {"270", "280", "sweep.json", "sweep.html"}
    assert str(folder) not in (folder / "run" / "sizes" / "sweep.json").read_text()  # the same bytes in any folder
    report = (folder / "run" / "report" / "report.html").read_text()
    assert "A longer context: long_context" in report and "Choosing the vocabulary: sizes" in report
    again = run_groundup("run", folder / "recipe.toml", "--run", folder / "run", "--dry-run", "--set", "long_context.tokens=9")
    states = json.loads(again.stdout)["plan"]
    assert set(states.values()) == {"done"}  # the step has its own


def recipe(base=None, **content):
    return resolve({"name": "x", "pages": PAGES, "base": base or {}, **content}, [], "here")


def test_settings_of_a_kind_without_a_step_are_refused():
    sections = {"long_context": {"tokens": 9}, "vocabulary_sweep": {"depth": 3}, "grpo": {"reward": "length"}}
    for section in ({name: values} for name, values in {**sections, "benchmarks": {"tasks": ["piqa"]}}.items()):
        [name] = section
        with pytest.raises(UserError, match=f"here: {name}: no step is of this kind; add one to"):
            recipe(**section)
        recipe(**section, steps=[{"kind": name, "name": name}])
    recipe(grpo={"reward": "length"}, standard=["grpo"])
    with pytest.raises(UserError, match="long_context: no standard step has this name; known: pages"):
        steps.steps_of(recipe(standard=["long_context"]))


@pytest.mark.parametrize(
    ("base", "settings", "why"),
    [
        ({"architecture": "lstm"}, {}, "not lstm"),
        ({"context_length": 512}, {"context_length": 512}, "is no longer than base.context_length = 512"),
        ({}, {"context_length": -1}, r"steps 1 \(long\): long_context\.context_length = -1: input should be greater"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_step(tmp_path, base, settings, why):
    with pytest.raises(UserError, match=why) as caught:
        found = recipe(base, steps=[{"kind": "long_context", "name": "long", "settings": settings}])
        step = steps.steps_of(found)[-2]
        preflight.long_context_is_for_decoders(step.recipe or found, step.inputs(tmp_path))
    assert len(str(caught.value)) <= 300


def test_conversations_that_fit_a_longer_base_are_not_refused_by_the_shorter(tmp_path):
    more = [{"kind": "base", "name": "deep", "settings": {"context_length": 1024}}]
    more += [{"kind": "sft", "name": "sft-deep", "inputs": {"base": "deep"}}]
    found = recipe({"context_length": 64}, steps=more)
    by_name = {step.name: step for step in steps.steps_of(found)}
    assert preflight._context_length(found, by_name["sft"].inputs(tmp_path)) == 64
    assert preflight._context_length(found, by_name["sft-deep"].inputs(tmp_path)) == preflight.LONGEST_CONTEXT
