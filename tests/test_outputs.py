"""What is there already stays: no command writes over what it did not make."""

import json

import numpy as np
import pytest

import groundup
from groundup.core.errors import UserError
from groundup.core.locks import alone
from groundup.core.outputs import require_made_with, require_new, require_page
from groundup.data.convert import convert
from groundup.evaluation.leaderboard import require_file
from groundup.report import figures

ROW = json.dumps({"prompt": "What is it?", "completion": "A file."}) + "\n"
MIXTURES = "weight_a,weight_b,loss_x\n" + "".join(f"{n / 12:.3f},{1 - n / 12:.3f},{3 - 0.1 * n:.3f}\n" for n in range(12))
WRITERS = {  # commands that write a file, which is `mine` here
    "convert": ["data", "convert", "row.jsonl", "--to", "mine"],
    "quality": ["corpus", "train-quality", "--positive", "row.jsonl", "--negative", "row.jsonl", "--out", "mine"],
    "toxicity": ["corpus", "train-toxicity", "--toxic", "row.jsonl", "--harmless", "row.jsonl", "--out", "mine"],
    "domains": ["corpus", "train-domains", "a=row.jsonl", "b=row.jsonl", "--out", "mine"],
    "encode": ["tokenizer", "encode", "tokenizer", "row.jsonl", "--out", "stem"],
    "tokenizer": ["tokenizer", "train", "row.jsonl", "--out", "folder"],
    "characters": ["tokenizer", "train", "row.jsonl", "--out", "folder", "--kind", "characters"],
    "tokenizer's page": ["tokenizer", "report", "tokenizer", "--on", "row.jsonl", "--out", "mine"],
    "mixture": ["scale", "mixture", "mixtures.csv", "--out", "mine"],
    "plan": ["scale", "plan", "--flop", "1e15", "--out", "mine"],
    "law's page": ["scale", "report", "mixtures.csv", "--out", "mine"],
    "architectures": ["scale", "compare", "a=ladder", "b=ladder", "--out", "mine"],
    "gguf": ["export", "model", "--out", "mine"],
    "tiktoken": ["export", "model", "--to", "tiktoken", "--out", "mine"],
    "contamination": ["contamination", "model", "--task", "row.jsonl", "--out", "mine"],
    "leaderboard's page": ["leaderboard", "board.jsonl", "--out", "mine"],
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_there_stays(groundup_here, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "row.jsonl").write_text(ROW)
    (tmp_path / "mixtures.csv").write_text(MIXTURES)
    (tmp_path / "folder").mkdir()
    mine = [tmp_path / place for place in ("mine", "stem.bin", "folder/tokenizer.json")]
    for path in mine:
        path.write_text("mine")
    outcome = groundup_here(*WRITERS[name])
    assert outcome.returncode == 2 and "is there already" in outcome.stderr, outcome.stderr
    assert "another name" in outcome.stderr and {path.read_text() for path in mine} == {"mine"}


@pytest.mark.parametrize("name, out", [("encode", "stem"), ("tokenizer", "folder"), ("characters", "folder")])
def test_two_commands_do_not_write_one_place_at_once(groundup_here, tmp_path, monkeypatch, name, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "row.jsonl").write_text(ROW)
    with alone(tmp_path / out):
        outcome = groundup_here(*WRITERS[name])
    assert outcome.returncode == 2 and f"{out}: another groundup run is working there" in outcome.stderr, outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["row.jsonl"]  # nor does the lock stay


def test_a_page_takes_the_place_of_a_page_of_ours(tmp_path):
    page = tmp_path / "page.html"
    require_page(page)
    figure = figures.as_file('<svg viewBox="0 0 1 1">\n</svg>')
    for text in ('<!doctype html>\n<meta name="generator" content="groundup">', figure):
        page.write_text(text)
        require_page(page)
    page.write_text("<html>mine</html>")
    with pytest.raises(UserError, match="no page of groundup"):
        require_page(page)


def test_links_that_lead_nowhere_are_there_too(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="is there already"):
        require_new(tmp_path / "link")


def test_in_a_folder_of_ours_files_are_written_again(tmp_path):
    require_made_with(tmp_path / "log", tmp_path / "made")
    (tmp_path / "made").write_text("x")
    with pytest.raises(UserError, match="is there already"):
        require_made_with(tmp_path / "log", tmp_path / "made")
    (tmp_path / "log").write_text("x")
    require_made_with(tmp_path / "log", tmp_path / "made")


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.TSV", "out.jsonl.gz", "out.zst"])
def test_json_lines_have_no_misleading_name(tmp_path, name):
    (tmp_path / "row.jsonl").write_text(ROW)
    with pytest.raises(UserError, match=r"call it \.jsonl"):
        convert([tmp_path / "row.jsonl"], tmp_path / name)


@pytest.mark.parametrize("content", ["my notes\n", ROW * 3, "\x1f\x8b"])
def test_rows_are_added_to_a_leaderboard_alone(tmp_path, content):
    (tmp_path / "board.jsonl").write_text(content)
    with pytest.raises(UserError, match="no row of a leaderboard"):
        require_file(tmp_path / "board.jsonl")


def test_a_folder_is_no_file_to_write(tmp_path, groundup_here):
    outcome = groundup_here("scale", "plan", "--flop", "1e15", "--out", tmp_path)
    assert outcome.returncode == 2 and f"{tmp_path}: is a folder; give a file to write" in outcome.stderr


def test_a_saved_model_is_not_written_over(tmp_path, toy_decoder, toy_tokenizer):
    model = groundup.Model(toy_decoder(vocab_size=toy_tokenizer.size), toy_tokenizer, tmp_path)
    model.save(tmp_path / "saved")
    before = (tmp_path / "saved" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="is there already"):
        model.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").read_bytes() == before and np.frombuffer(before, np.uint8).size
