"""GRPO and PPO as steps of a recipe: a chat model that is given, one's own prompts, a reward that is a program."""

import json

import pytest

from groundup.core.errors import UserError
from groundup.core.files import read_json, read_jsonl
from groundup.model import model_folder
from groundup.pipeline import steps
from groundup.pipeline.recipe import resolve
from groundup.pipeline.run import Run

QUESTIONS = ["what is the path", "what does it return", "the file", "return"]
SMALL = {"iterations": 2, "minibatches": 1, "learning_rate": 1e-3}


def recipe(**content):
    return resolve({"name": "x", "threads": 1, **content}, [], "here")


def names(content):
    return [step.name for step in steps.steps_of(content)]


def test_grpo_runs_where_a_recipe_says_so_and_a_program_takes_the_place_of_the_reward_model():
    given, data = {"sft": "/data/chat"}, {"data": ["a.jsonl"]}
    assert "grpo" not in names(recipe(given={"corpus": "/data/corpus"}))
    assert names(recipe(given=given, standard=["grpo"], grpo={"reward": "length", **data})) == ["grpo", "report"]
    with pytest.raises(UserError, match="step grpo needs reward"):
        names(recipe(given=given, standard=["grpo"], grpo=data))
    added = [{"kind": "grpo", "name": "counted", "settings": {"reward": "count=the", **data}}]
    found = recipe(given=given, standard=["ppo"], ppo={"reward": "length", **data}, steps=added)
    assert names(found) == ["ppo", "counted", "report"]
    assert {need for step in steps.steps_of(found)[:2] for need in step.needs} == {"tokenizer", "sft"}


def test_a_reward_that_is_not_there_is_said_before_anything_runs(tmp_path):
    found = recipe(given={"sft": str(tmp_path)}, standard=["grpo"], grpo={"reward": "no-such", "data": [str(tmp_path)]})
    with pytest.raises(UserError, match="reward 'no-such': no folder of this name"):
        Run(tmp_path / "run", found, steps.steps_of(found)).plan()


def test_a_run_of_both_and_its_report(toy_decoder, toy_tokenizer, tmp_path, monkeypatch):
    chat = tmp_path / "chat"
    chat.mkdir()
    model_folder.save(chat, toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size), toy_tokenizer, chat=True)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": one}]}) + "\n" for one in QUESTIONS))
    (tmp_path / "spoken_words.py").write_text("def score(prompts, completions): return [len(one.split()) for one in completions]")
    monkeypatch.chdir(tmp_path)
    both = {"data": [str(prompts)], **SMALL}
    content = {
        "given": {"sft": str(chat)}, "standard": ["ppo", "grpo"], "sft": {"max_answer_tokens": 6},
        "ppo": {"reward": "length", "rollouts": 4, "samples_every": 1, **both},
        "grpo": {"reward": "spoken_words:score", "prompts": 2, "generations": 3, **both},
    }  # fmt: skip
    run = tmp_path / "run"
    results = steps.run(recipe(**content), run)
    assert results["figures"] == {}  # nothing is held out of a model that is given
    for name in ("ppo", "grpo"):
        found = read_json(run / name / "stage.json")["results"]
        assert found["iterations"] == 2 and found["against_sft"] is None and isinstance(found["concerns"], list)
        assert {"length", "ended", "reward_length_correlation"} <= found["last"].keys()
        assert len(read_jsonl(run / name / "training" / "rollouts.jsonl")) == 2 and model_folder.load_decoder(run / name)
    assert len(read_jsonl(run / "ppo" / "training" / "rollout_samples.jsonl")) == 2 * 3  # a prompt of four is held out
    assert "prompts whose answers all earned the same" in (run / "report" / "report.html").read_text()
    assert {one.state for one in Run(run, recipe(**content), steps.steps_of(recipe(**content))).plan()} == {"done"}
    (tmp_path / "spoken_words.py").write_text("def score(prompts, completions): return [0.0 for text in completions]")
    plan = Run(run, recipe(**content), steps.steps_of(recipe(**content))).plan()
    assert {one.step.name: one.state for one in plan} == {"ppo": "done", "grpo": "make", "report": "check"}
