"""What --dry-run says of a run that is still to be made."""

import json
import subprocess
import sys
import tomllib

import pytest

from groundup.core.errors import UserError
from groundup.model import architectures, model_folder
from groundup.model.base import parameter_counts
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.steps import dry, steps_of
from groundup.training import forecast
from groundup.training.config import PretrainingConfig

PAGES = {"sources": [{"source": "topics:", "domain": "reference"}]}


def looked(recipe, run):
    return dry(recipe, run, steps_of(recipe))


def recipe(**sections):
    return Recipe.model_validate({"name": "toy", "threads": 1, "pages": PAGES, **sections})


@pytest.mark.parametrize("name", ["dense", "experts", "lstm", "convolution", "patches"])
def test_sizes_are_those_of_the_model_that_is_built(name):
    vocabulary = 260 if name == "patches" else 300
    settings = PretrainingConfig(architecture=name, depth=2, context_length=64, experts=4)
    found, _, outline = forecast.pretraining(settings, vocabulary, float("inf"))
    model, _ = architectures.build(name, 2, vocabulary, 64, 0, 4, 2)
    counts = parameter_counts(model)
    assert (found["parameters"], found["parameters_without_embedding"]) == (counts["total"], counts["without_embedding"])
    assert found["flop"] == architectures.flops(model, 64, found["tokens"])
    assert {parameter.device.type for parameter in outline.model.parameters()} == {"meta"}


def test_before_there_are_data_what_follows_from_them_is_a_bound(tmp_path, capsys):
    found = looked(recipe(base={"depth": 2, "context_length": 64}), tmp_path / "run")
    base, err = found["derived"]["base"], capsys.readouterr().err
    assert base["at_most"] == ["vocabulary", "parameters", "parameters_without_embedding", "tokens", "flop"]
    assert base["about"] == ["steps"] and base["steps"] * base["batch_tokens"] == base["tokens"]
    at_full_rate = base["flop"] / found["gflop_per_second"] / 6e10
    assert base["minutes_at_full_rate"] == pytest.approx(at_full_rate, rel=0.02, abs=0.01)
    assert found["derived"]["sft"]["at_most"] == ["steps", "flop"] and "≤ at most" in err and "GFLOP/s" in err
    assert "base: width 128 = 64 x depth" in err and not (tmp_path / "run").exists()
    resolved = tomllib.loads(err.partition("\nminutes: ")[0])
    assert resolved["base"]["depth"] == 2 and resolved["ppo"]["clip"] == 0.2 and resolved["pages"]["requests_per_second"] == 2.0


def test_a_longer_context_and_more_steps_are_counted(tmp_path):
    short = {"depth": 1, "context_length": 64, "tokens": 64_000}
    more = [
        {"kind": "long_context", "name": "longer", "settings": {"context_length": 128, "tokens": 12_800}},
        {"kind": "base", "name": "deep", "settings": {"depth": 2}},
        {"kind": "sft", "name": "sft-deep", "inputs": {"base": "deep"}},
    ]
    found = looked(recipe(base=short, steps=more), tmp_path / "run")["derived"]
    assert (found["longer"]["context"], found["longer"]["tokens"]) == (128, 12_800)
    assert found["deep"]["layers"] == 2 and found["deep"]["parameters"] > found["base"]["parameters"]
    assert found["sft-deep"]["flop"] > found["sft"]["flop"]


def test_a_folder_to_continue_and_rows_of_ones_own(toy_decoder, toy_tokenizer, tmp_path, capsys):
    model = toy_decoder(vocab_size=toy_tokenizer.size)
    model_folder.save(tmp_path / "theirs", model, toy_tokenizer, chat=False)
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    place = str(tmp_path / "theirs")
    continued = {"start_from": place, "context_length": 64, "tokens": 6400}
    own = recipe(base=continued, tokenizer={"folder": place}, sft={"data": [str(mine)]})
    found = looked(own, tmp_path / "run")["derived"]
    assert found["base"]["parameters"] == parameter_counts(model)["total"] and found["base"]["vocabulary"] == toy_tokenizer.size
    assert found["base"]["at_most"] == ["tokens", "flop"]
    assert "steps" not in found["sft"] and "sft: steps: they follow from the rows" in capsys.readouterr().err
    given = looked(recipe(given={"base": place}, standard=["sft"], sft={"data": [str(mine)]}), tmp_path / "run")["derived"]
    assert list(given) == ["sft"]


def test_after_a_step_that_was_skipped_there_is_nothing_to_size(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    own = recipe(given={"sft": str(tmp_path / "empty"), "tokenizer": str(tmp_path / "empty")}, standard=["preferences"])
    found = looked(own, tmp_path / "run")
    assert "no model" in found["derived"]["preferences"]["unknown"] and "preferences: nothing" in capsys.readouterr().err


def test_sizes_that_cannot_be_are_one_line(tmp_path):
    with pytest.raises(UserError, match="experts_per_token"):
        looked(recipe(base={"architecture": "experts", "experts": 8, "experts_per_token": 7}), tmp_path / "run")


def test_it_said_before_what_the_run_then_did(tiny_run, run_groundup, tiny_recipe, tmp_path):
    outcome = run_groundup("run", tiny_recipe, "--run", tmp_path / "run", "--dry-run")
    before = json.loads(outcome.stdout.splitlines()[-1])["derived"]
    done = {name: json.loads((tiny_run.folder / name / "stage.json").read_text())["results"] for name in before}
    for name in ("tokens", "steps", "flop"):
        assert before["base"][name] == done["base"][name]
    assert before["base"]["parameters"] == done["base"]["parameters"]["total"]
    for name in ("sft", "dpo"):
        assert before[name]["steps"] >= done[name]["steps"]
    assert before["ppo"]["steps"] >= len((tiny_run.folder / "ppo" / "training" / "metrics.jsonl").read_text().splitlines())


def test_a_finished_run_is_looked_at_without_torch(tiny_run, environment, tiny_recipe):
    command = [sys.executable, "-X", "importtime", "-m", "groundup", "run", str(tiny_recipe), "--run", str(tiny_run.folder)]
    outcome = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, env=environment, timeout=60)
    assert outcome.returncode == 0
    assert not {line.rpartition("|")[2].strip() for line in outcome.stderr.splitlines() if "|" in line} & {"torch", "pyarrow"}
    found = json.loads(outcome.stdout.splitlines()[-1])
    base = found["derived"]["base"]
    assert base["steps"] > 140 and base["parameters"] == 184_640 and "gflop_per_second" not in found
