"""A step that evaluates a model on benchmarks, and its section of the report."""

import json

import pytest

from groundup.core.errors import UserError
from groundup.model import model_folder
from groundup.pipeline import steps
from groundup.pipeline.recipe import resolve
from groundup.pipeline.run import Run


def rows(name, count=24):
    if name == "piqa":
        return [
            {"goal": f"find the path {n} of it", "sol1": f"return <b>{n % 7}", "sol2": f"it {n % 5} file", "label": n % 2}
            for n in range(count)
        ]
    return [{"sentence_good": f"it returns {n}", "sentence_bad": f"returns it {n}", "UID": "ab"[n % 2]} for n in range(count)]


@pytest.fixture
def model(toy_decoder, toy_tokenizer, tmp_path):
    network = toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=256)
    model_folder.save(tmp_path / "base", network, toy_tokenizer, chat=False)
    for name in ("piqa", "blimp"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(name)))
    return tmp_path / "base"


def recipe(model, **settings):
    step = {"kind": "benchmarks", "name": "exam", "inputs": {"model": "base"}, "settings": settings}
    return resolve({"name": "x", "given": {"base": str(model)}, "standard": [], "steps": [step]}, [], "here")


def test_a_step_and_its_section(model):
    data = model.parent
    asked = recipe(
        model, tasks=["piqa", "blimp"], data=str(data), contamination=True, leaderboard=str(data / "leaderboard.jsonl")
    )
    found = steps.run(asked, data / "run")
    assert found["figures"]["exam"].keys() == {"piqa", "blimp"}
    assert (data / "run" / "exam" / "results.json").is_file()
    page = (data / "run" / "report" / "report.html").read_text()
    for said in ("answer (headline)", "answer PMI", "longest", "Is it right as often as it is sure?",
                 "Was it trained on this test?", "A rank is a range"):  # fmt: skip
        assert said in page
    assert len((data / "leaderboard.jsonl").read_text().splitlines()) == 2
    steps.run(asked, data / "run")
    assert len((data / "leaderboard.jsonl").read_text().splitlines()) == 2  # nothing is made twice
    with (data / "piqa.jsonl").open("a") as file:
        file.write(json.dumps(rows("piqa")[0]) + "\n")
    assert {one.step.name: one.state for one in Run(data / "run", asked, steps.steps_of(asked)).plan()}["exam"] == "make"


@pytest.mark.parametrize("settings,said", [
    ({}, "benchmarks.tasks is empty"),
    ({"tasks": ["piqua"]}, "neither a file nor a shipped task"),
    ({"tasks": ["mmlu"]}, "mmlu_test.csv: no such file"),
])  # fmt: skip
def test_what_ends_before_anything_runs(model, settings, said):
    asked = recipe(model, **settings, data=str(model.parent))
    with pytest.raises(UserError, match=said):
        steps.run(asked, model.parent / "run")
    assert not (model.parent / "run" / "exam.partial").exists()


def test_it_is_no_standard_step(model):
    assert "benchmarks" not in [step.name for step in steps.STANDARD]
    with pytest.raises(UserError, match="no standard step has this name"):
        steps.steps_of(resolve({"name": "x", "given": {"base": str(model)}, "standard": ["benchmarks"]}, [], "here"))


def test_records_are_where_the_leaderboard_says(model):
    """A step's folder gets its name when it is done; what is written before is of the finished one."""
    board = model.parent / "boards" / "leaderboard.jsonl"
    steps.run(recipe(model, tasks=["blimp"], data=str(model.parent), leaderboard=str(board)), model.parent / "run")
    [line] = board.read_text().splitlines()
    assert (board.parent / json.loads(line)["records"]).is_file()


def test_a_task_without_conventions_has_a_section(model):
    asked = recipe(model, tasks=["existence"], data="", limit=3)
    steps.run(asked, model.parent / "run")
    page = (model.parent / "run" / "report" / "report.html").read_text()
    assert "answered, invented" in page and "An assertion about something invented is a hallucination" in page
