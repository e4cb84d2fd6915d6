"""The commands: pairs of two models, files of one's own, export into what the reward model reads, errors in a line."""

import json

import pytest

pytest.importorskip("sqlalchemy", reason="needs the `label` extra")

from groundup.core.files import read_jsonl
from groundup.labelling.assignment import Judgement, lease_pairs, record
from groundup.labelling.store import open_store
from groundup.model import model_folder as folders
from groundup.posttraining.user_data import preferences


@pytest.fixture(scope="module")
def models(tmp_path_factory, toy_decoder, toy_tokenizer):
    """A chat model and a base model."""
    found = []
    for number, name in enumerate(("chat", "base")):
        found.append(tmp_path_factory.mktemp("models") / name)
        model = toy_decoder(seed=number, vocab_size=toy_tokenizer.size, max_position_embeddings=64)
        folders.save(found[-1], model, toy_tokenizer, chat=name == "chat")
    return found


def label_all(path, name, choice="left"):
    store = open_store(str(path))
    with store.transaction() as connection:
        for number, one in enumerate(lease_pairs(store, connection, name, 40, 0.0)):
            record(connection, name, Judgement(f"{name}-key-{number}", one.pair_id, choice, seconds=3.0), 0.0, 30)


def last(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_two_models_are_compared_and_what_was_said_is_read_as_preferences(models, tmp_path, groundup_here):
    prompts, project, out = tmp_path / "prompts.jsonl", tmp_path / "labels.db", tmp_path / "out"
    rows = [{"prompt": f"the path {n}"} for n in range(40)] + [{"prompt": "the path 0"}, {"prompt": "long " * 200}, {"no": 1}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["label", "make", *models, "--prompts", prompts, "--out", project, "--max-tokens", 1, "--temperature", 1]
    made = last(groundup_here(*command, "--overlap", 2, "--cost-per-hour", 12))
    assert made["pairs"] + sum(made["dropped"].values()) == 42 and made["pairs"] >= 2 and len(made["dropped"]) >= 2
    again = last(groundup_here(*command))
    assert (again["pairs"], again["already_there"]) == (0, made["pairs"])
    assert "nobody has judged" in groundup_here("label", "export", project, "--out", out).stderr
    label_all(project, "ada")
    label_all(project, "bob", "tie")
    found = last(groundup_here("label", "report", project))
    assert found["labels"] == found["wanted"] == 2 * made["pairs"] and found["cost_per_label"] == pytest.approx(0.01)
    written = last(groundup_here("label", "export", project, "--out", out))
    assert written["judgements"] == 2 * made["pairs"]
    log = read_jsonl(out / "preferences.judgements.jsonl")
    assert {event["model_a"] for event in log} == {str(models[0])}
    assert written["preferences"] >= 2
    logged = []
    sides = preferences([str(out / "preferences.jsonl")], "reward", logged.append)
    assert len(sides["train"]) + len(sides["held_out"]) == written["preferences"] and "dropped" not in logged[0]


def test_what_people_said_opens_in_datasets_and_trains_a_reward_model(models, tmp_path, groundup_here):
    datasets = pytest.importorskip("datasets", reason="needs the `test` extra")
    project, file, out = tmp_path / "labels.db", tmp_path / "pairs.jsonl", tmp_path / "out"
    rows = [{"prompt": f"what does path {n} return", "a": f"the path {n}", "b": f"it is file {n}"} for n in range(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    last(groundup_here("label", "import", file, "--out", project, "--overlap", 2))
    for name, choice in (("ada", "left"), ("bob", "tie")):
        label_all(project, name, choice)
    assert last(groundup_here("label", "export", project, "--out", out))["preferences"] == 24
    opened = datasets.load_dataset("json", data_files=str(out / "preferences.jsonl"), cache_dir=str(tmp_path / "cache"))["train"]
    assert {"prompt", "chosen", "rejected", "margin"} <= set(opened.column_names) and set(opened["margin"]) == {0.5}
    assert opened[0]["chosen"][-1]["content"] != opened[0]["rejected"][-1]["content"]
    trained = last(groundup_here("reward", models[0], "--data", out / "preferences.jsonl", "--out", tmp_path / "reward"))
    assert (tmp_path / "reward" / "reward" / "model.safetensors").is_file() and trained


def test_own_pairs_with_tokens(tmp_path, groundup_here):
    project, file, guide = tmp_path / "labels.db", tmp_path / "pairs.csv", tmp_path / "guide.txt"
    file.write_text("prompt,a,b\nq,x,y\nq,x,x\n,x,y\n")
    guide.write_text("Be kind.")
    made = last(groundup_here("label", "import", file, "--out", project, "--guidelines", guide))
    assert made["pairs"] == 1 and sum(made["dropped"].values()) == 2
    tokens = last(groundup_here("label", "invite", project, "ada", "bob"))["tokens"]
    assert set(tokens) == {"ada", "bob"} and len(set(tokens.values())) == 2
    store = open_store(str(project))
    with store.transaction() as connection:
        assert store.settings(connection)["guidelines"] == "Be kind."
        assert store.annotator_of_token(connection, tokens["bob"]) == "bob"


def test_what_is_wrong_is_one_line(tmp_path, groundup_here):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "q"}\n')
    rows = [{"pair_id": 1, "prompt": "q", "a": "x", "b": b} for b in "yz"]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    project = tmp_path / "labels.db"
    for words in (
        ("report", tmp_path / "none.db"), ("import", tmp_path / "bad.jsonl", "--out", project), ("serve", tmp_path / "none.db"),
        ("import", tmp_path / "two.jsonl", "--out", project), ("import", tmp_path / "none", "--out", project),
        ("import", tmp_path / "two.jsonl", "--out", project, "--order", "best"), ("invite", project, "\n"),
        ("import", tmp_path / "two.jsonl", "--out", tmp_path),
        ("make", tmp_path, tmp_path, "--prompts", tmp_path / "bad.jsonl", "--out", project),
    ):  # fmt: skip
        done = groundup_here("label", *words)
        lines = done.stderr.strip().splitlines()
        assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("groundup: ") and len(lines[0]) <= 310, lines
    with (store := open_store(str(project))).transaction() as connection:
        assert store.pairs(connection) == {}  # what failed has left nothing
