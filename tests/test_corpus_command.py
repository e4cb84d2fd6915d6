"""`groundup corpus --from SOURCE --out DIR`, on pages that the tests make."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from groundup.core.errors import UserError
from groundup.pipeline import recipe as recipes
from groundup.pipeline.steps import CORPUS_STEPS, STANDARD, dry, run_to_corpus

WORDS = """the of and that have with which from their would there about because people should through before between
another government company children different question something sometimes thought mountain weather""".split()  # noqa: SIM905


def prose(seed, count=120):
    return " ".join(np.random.default_rng(seed).choice(WORDS, count)) + f" number{seed}."


@pytest.fixture
def pages(tmp_path):
    folder = tmp_path / "pages"
    folder.mkdir()
    for seed in range(12):
        (folder / f"{seed:02d}.txt").write_text(prose(seed))
    (folder / "near.txt").write_text(prose(0) + " And more.")
    return folder


def built(sources, out, **more):
    content = {"name": "c", "pages": {"sources": [recipes.source(text) for text in sources]}, "threads": 1, **more}
    return run_to_corpus(recipes.resolve(content, ["corpus.held_out=0.2"], "test"), out)


def documents(out):
    return pq.read_table(out / "corpus" / "documents.parquet").to_pylist()


def test_the_verb(run_groundup, pages, tmp_path):
    arguments = ["corpus", "--from", f"notes={pages}", "--out", tmp_path / "out", "--workers", "1"]
    arguments += ["--set", "mixture.weights.notes=1.0"]
    outcome = run_groundup(*arguments)
    assert outcome.returncode == 0, outcome.stderr
    said = json.loads(outcome.stdout.splitlines()[-1])
    assert "13 pages -> 13 documents" in outcome.stderr
    assert "12 of 13 documents kept; dropped: 1 near duplicate" in outcome.stderr
    assert said["pages"] == 13 and said["dropped"]["near duplicate"] == 1 and said["left"]["documents"] == 12
    assert said["mixture"]["domains"]["notes"]["share"] == 1.0
    assert {row["domain"] for row in documents(tmp_path / "out")} == {"notes"}
    again = run_groundup(*arguments, "--dry-run")
    plan = json.loads(again.stdout.splitlines()[-1])["plan"]
    assert plan == {"pages": "done", "annotations": "done", "corpus": "done"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --from SOURCE and --out DIR"),
        (["--from", "x", "--out", "o", "--address", "10.0.0.1:6379"], "add --engine ray"),
        (["--from", "x", "--out", "o", "--set", "corpus.min_wrds=3"], "did you mean corpus.min_words"),
        (["--from", "x", "--out", "o", "--against", "nowhere", "--dry-run"], "no signatures.parquet in it"),
        (["--from", "x", "--out", "o", "--benchmark", "exam.jsonl"], "exam.jsonl: no such file"),
    ],
)
def test_what_a_person_can_mend_is_said_in_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    from groundup import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "page.txt").write_text(prose(0))
    monkeypatch.setattr("sys.argv", ["groundup", "corpus", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_against_an_earlier_corpus_and_its_change_is_seen(pages, tmp_path):
    built([str(pages)], tmp_path / "january")
    (pages / "new.txt").write_text(prose(50))
    against = {"annotations": {"against": [str(tmp_path / "january")]}}
    found = built([str(pages)], tmp_path / "february", **against)
    assert found["pages"] == 14 and found["left"]["documents"] == 1
    assert [row["url"] for row in documents(tmp_path / "february")] == ["file:///pages/new.txt"]
    fewer = Path(shutil.copytree(pages, tmp_path / "fewer"))
    (fewer / "00.txt").unlink()
    (fewer / "near.txt").unlink()
    built([f"web={fewer}"], tmp_path / "other")
    (tmp_path / "january").rename(tmp_path / "gone")
    (tmp_path / "other").rename(tmp_path / "january")
    content = {"name": "c", "pages": {"sources": [recipes.source(str(pages))]}, "threads": 1, **against}
    recipe = recipes.resolve(content, ["corpus.held_out=0.2"], "test")
    assert dry(recipe, tmp_path / "february", CORPUS_STEPS)["plan"]["annotations"] == "make"


def test_a_list_of_words_that_was_changed_is_seen(pages, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("nothingofthekind\n")
    settings = {"annotations": {"toxic_words": str(words)}}
    built([str(pages)], tmp_path / "out", **settings)
    content = {"name": "c", "pages": {"sources": [recipes.source(str(pages))]}, "threads": 1, **settings}
    recipe = recipes.resolve(content, ["corpus.held_out=0.2"], "test")
    assert set(dry(recipe, tmp_path / "out", CORPUS_STEPS)["plan"].values()) == {"done"}
    words.write_text("the\n")
    assert dry(recipe, tmp_path / "out", CORPUS_STEPS)["plan"]["annotations"] == "make"


@pytest.mark.parametrize("stage, setting", [("tokenizer", "tokenizer.folder"), ("base", "base.start_from")])
def test_what_a_stage_takes_from_another_folder_is_its_input(tmp_path, stage, setting):
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    content = {"name": "c", "pages": {"sources": [recipes.source("x")]}}
    files = {one.name: one.files for one in STANDARD}[stage]
    assert files(recipes.resolve(content, [], "test")) == []
    expected = ["tokenizer.json", "config.json"]
    if stage == "base":
        expected = ["config.json", "tokenizer.json", "model.safetensors"]
    given = recipes.resolve(content, [f"tokenizer.folder={tmp_path}", f"{setting}={tmp_path}"], "test")
    assert files(given) == [tmp_path / name for name in expected]


def test_documents_that_hold_a_benchmark_go(pages, tmp_path):
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": " ".join(prose(3).split()[10:40])}) + "\n")
    found = built([str(pages)], tmp_path / "out", corpus={"benchmarks": [str(exam)]})
    assert found["dropped"]["contains benchmark"] == 1
    assert found["benchmarks"] == [{"file": str(exam), "examples": 1, "found": 1, "too_short": 0}]
    assert "file:///pages/03.txt" not in {row["url"] for row in documents(tmp_path / "out")}


def test_a_source_may_name_its_domain():
    assert recipes.source("notes=/a/b") == {"domain": "notes", "source": "/a/b"}
    assert recipes.source("https://a.org/?q=1") == {"domain": "web", "source": "https://a.org/?q=1"}
    with pytest.raises(UserError, match="no source has this domain"):
        built(["x"], "nowhere", mixture={"weights": {"books": 1.0}})
