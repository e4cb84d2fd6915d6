"""A model of one's own files: a folder of texts, conversations and preferences, from pages to chat; and what goes on without."""

import json
import random
import shutil

import pytest

WORDS = {
    "who": ["fox", "baker", "river", "teacher", "engine", "gardener", "child", "sailor", "doctor", "farmer"],
    "does": ["finds", "carries", "watches", "mends", "paints", "follows", "counts", "keeps"],
    "what": ["bread", "lanterns", "maps", "stones", "letters", "apples", "ropes", "books"],
    "where": ["near the harbour", "behind the mill", "under the bridge", "in the old town", "on the hill"],
    "when": ["every morning", "after the rain", "before the winter", "at the end of the day"],
}
RECIPE = """
name = "own"
seed = 3
threads = 1

[[pages.sources]]
source = "{folder}/texts"
domain = "notes"

[corpus]
min_words = 20
min_quality = 0.0
held_out = 0.2

[tokenizer]
vocabulary = 400

[base]
depth = 1
context_length = 256
tokens = 30_000
batch_tokens = 1536

[evaluation]
held_out_kb = 20
sentence_pairs = 10

[sft]
max_answer_tokens = 24

[preferences]
prompts = 8
held_out_prompts = 4

[ppo]
iterations = 1
rollouts = 8
minibatches = 2
"""


def sentence(draw):
    who, does, what, where, when = (draw.choice(words) for words in WORDS.values())
    return f"The {who} {does} {draw.randint(2, 90)} {what} {where} {when}"


def said(role, content):
    return {"role": role, "content": content}


def history(draw):
    return [
        said("system", "Answer in few words."),
        said("user", f"Who was it? {sentence(draw)}."),
        said("assistant", "It was one of them."),
        said("user", "And where?"),
    ]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A folder with texts, conversations of a system message and three turns, preferences, and a recipe."""
    folder, draw = tmp_path_factory.mktemp("mine"), random.Random(5)
    (folder / "texts").mkdir()
    for number in range(60):
        lines = [f"{sentence(draw)} while {sentence(draw).lower()}." for _ in range(12)]
        kind = ("md", "txt", "html")[number % 3]
        body = f"# Note {number}\n\n" + "\n\n".join(lines)
        if kind == "html":
            body = f"<html><title>Note {number}</title><body>" + "".join(f"<p>{line}</p>" for line in lines) + "</body></html>"
        (folder / "texts" / f"{number}.{kind}").write_text(body)
    with (folder / "talks.jsonl").open("w") as talks, (folder / "better.jsonl").open("w") as better:
        for _ in range(40):
            before = history(draw)
            last = [said("assistant", "On the hill."), said("user", "When?"), said("assistant", "After the rain.")]
            talks.write(json.dumps({"messages": [*before, *last]}) + "\n")
            sides = {"chosen": [said("assistant", "On the hill.")], "rejected": [said("assistant", "I do not know it at all.")]}
            better.write(json.dumps({"prompt": before, **sides}) + "\n")
        talks.write('{"messages": [{"role": "user", "content": "Who?"}]}\n')
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    return folder


def options(folder):
    conversations, preferences = f'"{folder}/talks.jsonl"', f'["{folder}/better.jsonl"]'
    return [
        "--set", f"sft.data={conversations}", "--set", f"reward.data={preferences}", "--set", f"dpo.data={preferences}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(mine, run_groundup):
    outcome = run_groundup("run", mine / "recipe.toml", "--run", mine / "run", *options(mine))
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return outcome


def results(folder, stage):
    return json.loads((folder / stage / "stage.json").read_text())["results"]


def test_own_conversations_and_preferences_from_pages_to_chat(mine, run, run_groundup):
    folder, figures = mine / "run", json.loads(run.stdout)["figures"]
    dropped = f"1 dropped (the last message is not the assistant's: 1; first {mine}"
    assert f"sft data: 40 conversations (TRL messages 40); {dropped}" in run.stderr
    assert run.stderr.index("sft data: 40") < run.stderr.index("[1/12] pages")
    assert "skipped" not in figures and not (folder / "preferences").exists() and figures["multiple_choice"] == {}
    sft = results(folder, "sft")
    loss = sft["held_out"]["answer_loss"]
    assert loss["sft"] < loss["base"] and loss["conversations"] == sft["questions"]["held_out"] >= 1
    assert sft["questions"]["train"] + sft["questions"]["held_out"] == 40 and not sft["left_out"]
    rows = [json.loads(line) for line in (folder / "sft" / "train.jsonl").read_text().splitlines()]
    assert all([message["role"] for message in row["messages"]] == ["system", *["user", "assistant"] * 3][:7] for row in rows)
    assert results(folder, "reward")["pairs"]["train"] + results(folder, "reward")["pairs"]["held_out"] == 40
    assert results(folder, "dpo")["against_sft"]["n"] == results(folder, "ppo")["against_sft"]["n"] == loss["conversations"]
    report = (folder / "report" / "report.html").read_text()
    assert "conversations that were given" in report and "system: Answer in few words." in report
    outcome = run_groundup("chat", folder, "--stage", "dpo", "--max-tokens", 8, input="Where?\n\n")
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout.splitlines()[-1])["turns"] == 1


def test_their_content_is_part_of_the_stage(mine, run, run_groundup):
    def plan():
        outcome = run_groundup("run", mine / "recipe.toml", "--run", mine / "run", "--dry-run", *options(mine))
        return json.loads(outcome.stdout)["plan"]

    assert set(plan().values()) == {"done"}
    before = (mine / "better.jsonl").read_text()
    (mine / "better.jsonl").write_text(before.replace("hill", "roof", 1))
    try:
        changed = [name for name, state in plan().items() if state != "done"]
        assert changed == ["reward", "dpo", "ppo", "report"]
    finally:
        (mine / "better.jsonl").write_text(before)


def test_without_any_questions_the_run_goes_on(mine, run, run_groundup):
    folder = mine / "plain"
    shutil.copytree(mine / "run", folder)
    outcome = run_groundup("run", mine / "recipe.toml", "--run", folder)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    skipped = json.loads(outcome.stdout)["figures"]["skipped"]
    assert list(skipped) == ["sft", "preferences", "reward", "dpo", "ppo"] and "as data" in skipped["sft"]
    assert "sft is skipped: no questions for train" in outcome.stderr
    report = (folder / "report" / "report.html").read_text()
    assert "Skipped, as there was nothing to work on: sft (no questions" in report and 'id="dpo"' not in report


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("sft.data={mine}/none.jsonl", "none.jsonl: no such file, which step sft needs"),
        ("dpo.data={mine}/talks.jsonl", "talks.jsonl: none of its 41 rows can be used as preferences; first line 1: no columns"),
        ("ppo.data={mine}/texts", "texts: no file of rows in it"),
    ],
)
def test_files_that_cannot_be_used_end_the_run_before_its_first_stage(mine, run_groundup, tmp_path, option, why):
    outcome = run_groundup("run", mine / "recipe.toml", "--run", tmp_path / "run", "--set", option.format(mine=mine))
    assert outcome.returncode == 2 and "] pages" not in outcome.stderr
    assert why in outcome.stderr.splitlines()[-1] and len(outcome.stderr.splitlines()[-1]) <= 300


def test_a_model_that_is_given_needs_no_corpus(mine, run, run_groundup, tmp_path):
    """From a base model by own conversations, and from a chat model by own preferences, which then has no held-out questions."""
    (tmp_path / "copy").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(mine / "run" / "sft" / name, tmp_path / "copy")
    for given, standard in (("base", ["sft"]), ("sft", ["dpo"])):
        (tmp_path / "recipe.toml").write_text(f'seed = 1\nstandard = {standard}\n[given]\n{given} = "{tmp_path}/copy"\n')
        more = [*options(mine), "--set", "sft.max_answer_tokens=24"]
        outcome = run_groundup("run", tmp_path / "recipe.toml", "--run", tmp_path / given, *more)
        assert outcome.returncode == 0, outcome.stderr[-3000:]
        assert f"[1/2] {standard[0]}" in outcome.stderr and (tmp_path / given / "report" / "report.html").exists()
    assert results(tmp_path / "sft", "dpo")["against_sft"] is None and "made by no step sft" in outcome.stderr
