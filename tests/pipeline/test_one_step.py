"""Post-training by itself: any model's folder and one's own files, by one command each."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from groundup.model import model_folder
from groundup.posttraining.reward import from_policy

WORDS = ("path", "file", "function", "what", "returns", "def", "the", "it")


def talks(count):
    for number in range(count):
        asked = {"role": "user", "content": f"what is {WORDS[number % 8]} {number}"}
        yield {"messages": [asked, {"role": "assistant", "content": f"the {WORDS[number % 7]}"}]}


def preferences(count, start=0):
    for number in range(start, start + count):
        yield {"prompt": f"what is {number}", "chosen": f"the path {number}", "rejected": "it " * (1 + number % 3)}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def place(toy_decoder, toy_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("place")
    model = toy_decoder(seed=1, scale=0.1, vocab_size=toy_tokenizer.size, max_position_embeddings=96)
    model_folder.save(path / "model", model, toy_tokenizer, chat=True)
    model_folder.save(path / "scorer", from_policy(model, seed=2), toy_tokenizer, chat=True)
    write(path / "talks.jsonl", [*talks(24), {"messages": "none"}])
    write(path / "pairs.jsonl", preferences(24))
    write(path / "unseen.jsonl", preferences(5, start=100))
    return path


def call(groundup_here, place, out, command, data, *more):
    return groundup_here(command, place / "model", "--data", place / data, "--out", out, "--set", "learning_rate=1e-3", *more)


def test_fine_tuning_and_again(groundup_here, place, tmp_path):
    outcome = call(groundup_here, place, tmp_path / "run", "sft", "talks.jsonl", "--set", "batch_examples=8")
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads(outcome.stdout.splitlines()[-1])
    assert found["model"] == str(tmp_path / "run" / "sft") and found["questions"]["train"] + found["questions"]["held_out"] == 24
    form = found["held_out"]["form"]
    assert form.keys() == {"words", "ended", "reference_words"} and form["reference_words"] == 2 and 0 <= form["ended"] <= 1
    assert "24 conversations (TRL messages 24); 1 dropped" in outcome.stderr and "line 25" in outcome.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == ["sft"]
    count = found["questions"]["train"]
    assert count % 8, "the rows left over are what is looked at here"
    said = f"sft: 2 steps of 8 rows; epochs: 1, of {count} rows, of which {count % 8} fill no batch"
    assert said in outcome.stderr
    assert re.search(r"^sft +\d+s +sft overlap base", outcome.stderr, re.MULTILINE)  # a table for people
    model_folder.load_decoder(tmp_path / "run" / "sft")
    own = {path.name for path in (tmp_path / "run" / "sft" / "training").iterdir()}
    assert own == {"answers.jsonl", "metrics.jsonl", "samples.jsonl"}  # apart from what transformers reads, and no state is left
    assert not own & {path.name for path in (tmp_path / "run" / "sft").iterdir()}
    again = call(groundup_here, place, tmp_path / "run", "sft", "talks.jsonl", "--set", "batch_examples=8")
    assert json.loads(again.stdout.splitlines()[-1]) == found and "steps of" not in again.stderr


@pytest.mark.parametrize("command", ["reward", "dpo"])
def test_preferences_with_rows_of_their_own_to_measure_on(groundup_here, place, tmp_path, command):
    outcome = call(groundup_here, place, tmp_path / "run", command, "pairs.jsonl", "--held-out", place / "unseen.jsonl")
    assert outcome.returncode == 0, outcome.stderr
    assert f"{command} data: 24 preferences" in outcome.stderr and f"{command} held out: 5 preferences" in outcome.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / command / "training" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 1  # all 24 in one batch: none was held out
    if command == "reward":
        assert json.loads(outcome.stdout.splitlines()[-1])["accuracy"]["n"] == 5
        model_folder.load_reward_model(tmp_path / "run" / "reward")
    else:
        assert rows[-1]["held_out_pairs"] == 5
        found = json.loads(outcome.stdout.splitlines()[-1])["held_out"]
        assert found["accuracy"]["n"] == found["answers"] == 5 and -1 <= found["length_correlation"] <= 1
        assert found["words"].keys() == found["ended"].keys() == {"before", "after"}
        assert "answers to 5 held-out prompts: " in outcome.stderr


@pytest.mark.parametrize(
    "command, reward", [("ppo", "{place}/scorer"), ("ppo", "mine_of_this_test:wordy"), ("grpo", "count=path")]
)
def test_reinforcement(groundup_here, place, tmp_path, monkeypatch, command, reward):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_of_this_test.py").write_text(
        "def wordy(prompts, completions):\n    return [len(text.split()) for text in completions]\n"
    )
    few = ["rollouts=8"] if command == "ppo" else ["prompts=2", "generations=4"]
    few = [word for one in ("iterations=1", "sft.max_answer_tokens=8", *few) for word in ("--set", one)]
    more = (*few, "--reward", reward.format(place=place))
    outcome = call(groundup_here, place, tmp_path / "run", command, "pairs.jsonl", *more, "--held-out", place / "unseen.jsonl")
    assert outcome.returncode == 0, outcome.stderr
    assert f"{command} data: 24 prompts" in outcome.stderr and f"{command} held out: 5 prompts" in outcome.stderr
    assert json.loads(outcome.stdout.splitlines()[-1])["held_out"]["prompts"] == 5
    model_folder.load_decoder(tmp_path / "run" / command)


def test_strict_and_torchrun_of_reinforcement(groundup_here, place, tmp_path, monkeypatch):
    more = ("--reward", "count=never-said", "--set", "sft.max_answer_tokens=4", "--set", "rollouts=4", "--strict")
    outcome = call(groundup_here, place, tmp_path / "run", "ppo", "pairs.jsonl", *more)
    assert outcome.returncode == 2 and "answers with one reward, 0 (4 of 4)" in outcome.stderr.splitlines()[-1]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", "ppo answers and learns in one process; start it without torchrun"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        outcome = call(groundup_here, place, tmp_path / "more", "ppo", "pairs.jsonl", *more)
        assert outcome.returncode == 2 and said in outcome.stderr and not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (("--set", "betta=1"), "unknown key dpo.betta; did you mean dpo.beta?"),
        (("--set", "beta=-1"), "dpo.beta = -1"),
        (("--held-out", "none.jsonl"), "none.jsonl: no such file in {here}, which step dpo needs"),
        (("--data", "none.jsonl"), "none.jsonl: no such file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(groundup_here, place, tmp_path, more, said):
    outcome = call(groundup_here, place, tmp_path / "run", "dpo", "pairs.jsonl", *more)
    assert outcome.returncode == 2 and said.format(here=Path.cwd()) in outcome.stderr and len(outcome.stderr.splitlines()) == 1


@pytest.mark.parametrize("model, said", [("none", "no such folder"), ("scorer", "a reward model or classifier")])
def test_a_folder_that_is_no_model(groundup_here, place, tmp_path, model, said):
    outcome = groundup_here("sft", place / model, "--data", place / "talks.jsonl", "--out", tmp_path / "run")
    assert outcome.returncode == 2 and said in outcome.stderr and not (tmp_path / "run").exists()


def test_a_run_is_not_one_model(groundup_here, place, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "sft").symlink_to(place / "model")
    outcome = groundup_here("dpo", tmp_path / "old", "--data", place / "pairs.jsonl", "--out", tmp_path / "run")
    assert outcome.returncode == 2 and re.search(r"a run, which has several models; name one .*old/sft", outcome.stderr)


def test_help_does_not_wait_for_torch(environment):
    call = "app(['dpo', '--help'], standalone_mode=False)"
    script = f"import sys; from groundup.cli import app; {call}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False" and "--held-out" in done.stdout, done.stderr
