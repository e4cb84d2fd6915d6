"""The command: models by tasks, records that a killed call goes on with, the table, and what ends in one line."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from contextlib import contextmanager

import pytest
import torch

from groundup.core import executor
from groundup.core.device import choose
from groundup.evaluation import evaluate as evaluation
from groundup.evaluation.results_table import table
from groundup.evaluation.scoring import CONVENTIONS
from groundup.model import model_folder


@pytest.fixture(scope="module")
def models(toy_decoder, toy_tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("evaluate")
    for seed, name in enumerate(("one", "two")):
        model = toy_decoder(seed=seed, vocab_size=toy_tokenizer.size, max_position_embeddings=256)
        model_folder.save(place / name, model, toy_tokenizer, chat=False)
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    words = ["file", "path", "of", "it", "function", "return"]
    rows = [
        f"{'xy'[n % 2]},What is {words[n % 6]} {n}?,{words[n % 5]},the path,{n},it returns,{'ABCD'[n % 4]}" for n in range(30)
    ]
    (place / "mmlu_test.csv").write_text("subject,question,A,B,C,D,answer\n" + "\n".join(rows))
    lines = [{"sentence_good": f"it returns {word}", "sentence_bad": f"returns it {word}", "UID": word} for word in words * 5]
    (place / "blimp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    lines = [{"context": f"the {word} of the", "continuation": "file"} for word in words]
    (place / "lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return place


def test_models_by_tasks(groundup_here, models, data, tmp_path):
    done = groundup_here(
        "evaluate", models / "one", "--task", "lambada", "--task", "blimp", "--data", data, "--few-shot", 2, "--out", tmp_path
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "takes no few-shot" in done.stderr
    done = groundup_here("evaluate", models / "one", "--task", "mmlu", "--data", data)
    assert done.returncode == 2 and "mmlu_dev.csv: no such file" in done.stderr
    done = groundup_here(
        "evaluate", models / "one", models / "two", "--task", "blimp", "--task", "lambada", "--data", data, "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [(one["label"], one["task"]) for one in found["results"]] == [
        ("one", "blimp"), ("one", "lambada"), ("two", "blimp"), ("two", "lambada"),
    ]  # fmt: skip
    assert found["results"][0]["accuracy"]["answer"]["clusters"] == 6
    assert {one["task"] for one in found["comparisons"]} == {"blimp", "lambada"}
    assert json.loads((tmp_path / "results.json").read_text()) == found
    records = [json.loads(line) for line in (tmp_path / "two" / "blimp.jsonl").read_text().splitlines()]
    assert len(records) == 30 and records[7]["example"] == 7 and len(records[7]["answers"]) == 2


@pytest.fixture
def rows(models, data, tmp_path, monkeypatch):
    """The bytes of all records of two models on two tasks, by so many workers."""
    monkeypatch.setattr(evaluation, "PART", 16)

    def by(name, **options):
        found = evaluation.evaluate(
            [str(models / "one"), str(models / "two")], ["blimp", "lambada"], data, out=tmp_path / name, **options
        )
        assert len(found["results"]) == 4
        return {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).glob("*/*.jsonl")}

    return by


def test_any_number_of_workers_makes_the_same_bytes(rows, monkeypatch):
    made = []
    scored = evaluation.records_of
    monkeypatch.setattr(evaluation, "records_of", lambda *given: made.append(len(given[2])) or scored(*given))
    one = rows("one", workers=1)
    assert len(one) == 4 and sum(made) == 2 * (30 + 6)
    made.clear()
    assert rows("two", workers=2) == one
    assert sum(made) < 2 * (30 + 6)  # the others were made in the other process


class Elsewhere(Executor):
    """As Ray's tasks are: nothing is shared but what is sent (tests/test_ray.py has clusters)."""

    def submit(self, function, *arguments):
        outcome = Future()
        outcome.set_result(pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(arguments))))))
        return outcome


def test_ray_makes_the_same_bytes(rows, monkeypatch):
    one = rows("one", workers=1)
    asked = []

    @contextmanager
    def cluster(workers, ray):
        asked.append((workers, ray))
        yield executor.Pool(2, Elsewhere, works_here=False)

    monkeypatch.setattr(evaluation, "pool", cluster)
    assert rows("ray", ray="10.0.0.1:6379") == one and asked == [(0, "10.0.0.1:6379")]


def test_threads_are_as_before(rows):
    choose()
    torch.set_num_threads(before := 3)
    rows("one", workers=1)
    assert torch.get_num_threads() == before


def test_examples_are_made_as_they_are_scored(models, data, monkeypatch):
    """So the first score does not wait for the last prompt."""
    seen = []
    scored = evaluation.records_of
    task = evaluation.open_task("blimp", data)
    examples = evaluation.begin(task)
    monkeypatch.setattr(evaluation, "begin", lambda *_: examples)
    monkeypatch.setattr(evaluation, "records_of", lambda *given: seen.append(len(examples.rows)) or scored(*given))
    evaluation.evaluate([str(models / "one")], ["blimp"], data)
    assert seen == [evaluation.FIRST_PART, 30]


def test_every_convention_stands_in_the_table(groundup_here, models, data):
    done = groundup_here("evaluate", models / "one", "--task", "mmlu", "--data", data / "mmlu_test.csv", "--few-shot", 0)
    assert done.returncode == 0, done.stderr
    [result] = json.loads(done.stdout.splitlines()[-1])["results"]
    assert [*result["accuracy"]] == [*CONVENTIONS] and result["convention"] == "letter"
    shares = [one["accuracy"] for one in result["accuracy"].values()]
    assert result["spread"] == pytest.approx(max(shares) - min(shares))
    assert result["baselines"]["chance"] == 0.25 and 0 <= result["calibration"]["ece"] <= 1
    for name in (*CONVENTIONS, "spread", "chance", "constant", "longest", "macro", "ECE"):
        assert name in done.stderr


def test_list(groundup_here):
    done = groundup_here("evaluate", "--list")
    found = json.loads(done.stdout)["tasks"]
    assert [line.split()[0] for line in done.stderr.splitlines() if line.strip()][2:] == [*found]
    assert found["mmlu"] == {"title": "MMLU", "kind": "choices", "files": ["mmlu_test.csv"]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give MODEL and --task"),
        (["{one}"], "give MODEL and --task"),
        (["{one}", "--task", "nothing"], "neither a file nor a shipped task"),
        (["{one}", "--task", "blimp"], "give the folder of the data"),
        (["{one}", "--task", "blimp", "--data", "{models}"], "no such file"),
        (["{one}", "{one}", "--task", "blimp", "--data", "{data}"], "given twice"),
        (["{models}/none", "--task", "blimp", "--data", "{data}"], "no such folder"),
        (["{one}", "--task", "blimp", "--task", "lambada", "--data", "{data}/blimp.jsonl"], "one file holds the examples of one"),
        (["{one}", "--task", "lambada", "--data", "{data}/blimp.jsonl"], "no example for lambada"),
        (["{one}", "--task", "{one}/model.safetensors", "--data", "{data}"], "task file"),
        (["{one}", "--task", "blimp", "--data", "{data}", "--limit", "0"], "limit"),
        (["{one}", "--task", "blimp", "--data", "{data}", "--address", "10.0.0.1:6379"], "add --engine ray"),
    ],
)
def test_what_ends_in_one_line(groundup_here, models, data, words, said):
    words = [word.format(one=models / "one", models=models, data=data) for word in words]
    done = groundup_here("evaluate", *words)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()[-1]) <= 300


# --- resuming -----------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.setattr(evaluation, "PART", 8)


def call(models, data, out):
    return evaluation.evaluate([str(models / "one")], ["blimp"], data, out=out)


@pytest.mark.parametrize("damage", [0.0, 0.3, 0.5, 0.99, "half a line", "no line end", "another's line"])
def test_a_killed_call_goes_on_with_the_same_records(models, data, tmp_path, parts, damage, monkeypatch):
    whole = call(models, data, tmp_path)
    path = tmp_path / "one" / "blimp.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    if isinstance(damage, float):
        path.write_bytes(content[: int(damage * len(content))])
    elif damage == "half a line":
        path.write_bytes(b"".join(lines[:16]) + b'{"example": 16, "gro')
    elif damage == "no line end":
        path.write_bytes(b"".join(lines[:8]).rstrip(b"\n"))
    else:
        path.write_bytes(b"".join(lines[:8] + lines[:8]))
    made = []
    scored = evaluation.records_of
    monkeypatch.setattr(evaluation, "records_of", lambda *given: made.append(len(given[2])) or scored(*given))
    assert call(models, data, tmp_path) == whole and path.read_bytes() == content
    assert (sum(made) < 30) == (damage in (0.3, 0.5, 0.99, "half a line", "another's line"))
    made.clear()
    assert call(models, data, tmp_path) == whole and not made


def test_records_of_another_model_or_task_are_not_gone_on_with(models, data, tmp_path, parts, monkeypatch):
    call(models, data, tmp_path)
    note = tmp_path / "one" / "blimp.key.json"
    before, content = note.read_text(), (tmp_path / "one" / "blimp.jsonl").read_bytes()
    note.write_text(before.replace('"kind": "pairs"', '"kind": "poems"'))
    (tmp_path / "one" / "blimp.jsonl").write_text(content.decode().replace('"answer": 0', '"answer": 1'))
    said = []
    monkeypatch.setattr(evaluation.logger, "warning", lambda text, *_: said.append(text))
    call(models, data, tmp_path)
    assert len(said) == 1 and "started again" in said[0]
    assert (tmp_path / "one" / "blimp.jsonl").read_bytes() == content and note.read_text() == before


def test_a_kill(models, tmp_path, environment, groundup_here):
    """By a signal, in a process of its own, while the records come."""
    rows = [{"sentence_good": f"it returns {n}", "sentence_bad": f"returns {n} it", "UID": "x"} for n in range(600)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", models / "one", "--task", "blimp", "--data", tmp_path / "many.jsonl"]
    command = [sys.executable, "-m", "groundup", *map(str, words)]
    path = tmp_path / "killed" / "one" / "blimp.jsonl"
    process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (path.is_file() and path.stat().st_size):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    size = path.stat().st_size
    for name in ("killed", "whole"):
        assert groundup_here(*words, "--out", tmp_path / name).returncode == 0
    content = path.read_bytes()
    assert 0 < size < len(content) and content == (tmp_path / "whole" / "one" / "blimp.jsonl").read_bytes()


def test_names_of_folders(tmp_path):
    assert [*evaluation._labels(["a/run/base", "b/run/base"]).values()] == ["a-run-base", "b-run-base"]
    assert [*evaluation._labels(["run/base", "run/sft"]).values()] == ["base", "sft"]


def test_nothing_that_fits_is_one_line(models, data, tmp_path):
    row = {"sentence_good": "it " * 999, "sentence_bad": "it " * 998, "UID": "x"}
    (tmp_path / "blimp.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(evaluation.UserError, match="nothing could be scored: an answer longer than"):
        call(models, tmp_path, None)


def task_of(folder, name, rows, *lines):
    """A task of choices in a folder: its file."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ['kind = "choices"', f'files = ["{name}.jsonl"]', 'prompt = "{{ q }}"', 'choices = "o"', 'answer = "a"', *lines]
    (folder / f"{name}.toml").write_text("\n".join(settings))
    return str(folder / f"{name}.toml")


@pytest.fixture(scope="module")
def short(models, toy_decoder, toy_tokenizer):
    """A model with a context of 24 tokens."""
    model = toy_decoder(seed=2, vocab_size=toy_tokenizer.size, max_position_embeddings=24)
    model_folder.save(models / "short", model, toy_tokenizer, chat=False)
    return str(models / "short")


def test_a_model_that_some_examples_are_too_long_for_has_a_row(models, short, tmp_path):
    rows = [{"q": "what is it", "o": ["path", "file"], "a": 0, "s": "short"}] * 3
    rows += [{"q": "what is it", "o": ["path", "file " * 60], "a": 1, "s": "long"}] * 3
    task = task_of(tmp_path, "both", rows, 'group = "{{ s }}"', "[by]", 'size = "{{ s }}"', 'long = "{{ s if s == \'long\' }}"')
    for order in ([str(models / "one"), short], [short, str(models / "one")]):
        found = evaluation.evaluate(order, [task])
        assert [one["n"] for one in found["results"]] == ([6, 3] if order[1] == short else [3, 6])
        shown = table(found)
        assert "both: 3 to 6 examples" in shown and "macro" in shown and "by size" in shown and "by long" in shown


def test_two_tasks_of_one_name(models, data, tmp_path):
    """Such as a shipped one and a changed copy: the figures of one would stand as the other's, in one file of records."""
    text = 'kind = "pairs"\nfiles = ["blimp.jsonl"]\nalternatives = "[sentence_bad, sentence_good]"'
    (tmp_path / "blimp.toml").write_text(text)
    with pytest.raises(evaluation.UserError, match=r"blimp\.toml: two tasks called blimp; give one file another name"):
        evaluation.evaluate([str(models / "one")], ["blimp", str(tmp_path / "blimp.toml")], data, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_task_that_nothing_of_fits_into_one_model_leaves_the_others(models, short, data, tmp_path):
    long = task_of(tmp_path, "long", [{"q": "what is it", "o": ["path " * 60, "file " * 60], "a": n % 2} for n in range(4)])
    (tmp_path / "lambada.jsonl").write_bytes((data / "lambada.jsonl").read_bytes())
    found = evaluation.evaluate([short, str(models / "one")], [long, "lambada"], tmp_path, out=tmp_path / "out")
    assert [(one["label"], one["task"]) for one in found["results"]] == [
        ("short", "lambada"), ("one", "long"), ("one", "lambada"),
    ]  # fmt: skip
    [missing] = found["unscored"]
    assert (missing["model"], missing["task"]) == (short, "long") and "nothing could be scored" in missing["reason"]
    assert [one["task"] for one in found["comparisons"]] == ["lambada"]
    assert "short: long: nothing could be scored" in table(found)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found


def test_one_command_at_a_time_in_a_folder(models, data, tmp_path, monkeypatch):
    """Two would write their records into the same files."""
    scored = evaluation.records_of

    def meanwhile(*given):
        with pytest.raises(evaluation.UserError, match="another groundup run is working there"):
            call(models, data, tmp_path)
        return scored(*given)

    monkeypatch.setattr(evaluation, "records_of", meanwhile)
    call(models, data, tmp_path)
    assert len((tmp_path / "one" / "blimp.jsonl").read_text().splitlines()) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "results.json"]
