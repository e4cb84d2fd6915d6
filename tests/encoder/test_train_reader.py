import json

import pytest

from groundup.core.errors import UserError
from groundup.encoder import question_answering
from groundup.encoder.question_answering import ReaderSettings, span_loss
from groundup.encoder.train_reader import train_reader
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer

NAMES = ("Anna", "Peter", "Mary", "John", "Ruth", "Paul", "Nina", "Omar", "Lena", "Igor", "Rosa", "Hugo")
TOWNS = ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Delhi", "Quito", "Seoul", "Sofia", "Tunis", "Bern", "Riga")
PRACTICE = ("The city of Paris lies on the river Seine. Its people like good bread. Rome was founded by Romulus in 753 BC. "
            "The sea near Oslo is cold in the winter of every year. Few people of the town of Cairo have seen any snow. "
            "The old harbour of Lima was built by Peter in the year 1535.")  # fmt: skip
QUICK = ReaderSettings(depth=1, length=64, batch=4, steps=6)


def squad_file(path, rows=()):
    contexts = [f"{name} lives in {town}, near the old harbour." for name, town in zip(NAMES, TOWNS, strict=True)]
    paragraphs = [
        {"context": context, "qas": [{"id": name, "question": f"Where does {name} live?",
                                      "answers": [{"answer_start": context.index(town), "text": town}]}]}
        for context, name, town in zip(contexts, NAMES, TOWNS, strict=True)
    ]  # fmt: skip
    paragraphs[0]["qas"] += rows
    path.write_text(json.dumps({"data": [{"title": "People", "paragraphs": paragraphs}]}))
    return path


def test_from_questions_to_an_answer(run_groundup, tmp_path):
    out = tmp_path / "reader"
    bad = [{"id": "2", "question": "Who?", "answers": []}, "no row"]
    questions = squad_file(tmp_path / "train.json", bad)
    small = ("--vocabulary", 300, "--depth", 1, "--length", 64, "--batch", 8, "--steps", 50)
    done = run_groundup("train-reader", questions, "--out", out, *small)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["questions"] == 11 and said["held_out"]["questions"] == 1 and 0 <= said["held_out"]["f1"] <= 1
    assert said["passed_over"] == {"an entry of qas that is no object": 1, "no answer": 1}
    assert "passed over: an entry of qas that is no object: 1, no answer: 1; first" in done.stderr
    (tmp_path / "people.txt").write_text("Ruth lives in Lima, near the old harbour.")
    done = run_groundup("ask", "Where does Ruth live?", "--context", tmp_path / "people.txt", "--model", out)
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["answer"] == "Lima", done.stderr


def trained(folder, questions, texts=(), tokenizer=None, settings=QUICK, seed=0):
    return train_reader([questions], folder, list(texts), tokenizer, 300, settings, seed)


def test_a_killed_training_goes_on_and_a_finished_one_is_not_done_again(tmp_path, monkeypatch):
    questions = squad_file(tmp_path / "train.json")
    (tmp_path / "text.txt").write_text(PRACTICE)
    settings = ReaderSettings(depth=1, length=64, batch=4, practice_steps=4, steps=6)
    expected = trained(tmp_path / "whole", questions, [tmp_path / "text.txt"], settings=settings)
    assert expected["practice_paragraphs"] == 1
    monkeypatch.setattr("groundup.training.loop.CHECKPOINT_SECONDS", 0.0)
    calls = []

    def dying(model, batch):
        calls.append(1)
        if len(calls) in (5, 14):
            raise KeyboardInterrupt
        return span_loss(model, batch)

    monkeypatch.setattr(question_answering, "span_loss", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed", questions, [tmp_path / "text.txt"], settings=settings)
    found = trained(tmp_path / "killed", questions, [tmp_path / "text.txt"], settings=settings)
    assert found == {**expected, "reader": str(tmp_path / "killed")}
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "killed/model.safetensors").read_bytes()
    before = len(calls)
    assert trained(tmp_path / "killed", questions, [tmp_path / "text.txt"], settings=settings) == found and len(calls) == before


def test_other_settings_begin_anew_and_say_so(tmp_path, capsys):
    questions, out = squad_file(tmp_path / "train.json"), tmp_path / "out"
    trained(out, questions)
    first = (out / "model.safetensors").read_bytes()
    trained(out, questions, seed=1)
    assert (out / "model.safetensors").read_bytes() != first and "started again" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="something else already"):
        trained(tmp_path, squad_file(tmp_path / "train.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "train.json"]


def test_a_tokenizer_that_is_no_wordpiece_is_refused_with_what_to_do(tmp_path):
    Tokenizer.from_merges(bpe.train(bpe.count_pretokens(["a text of words"]), 270)).save(tmp_path / "bpe")
    with pytest.raises(UserError, match="`groundup tokenizer train` makes one of the kind wordpiece"):
        trained(tmp_path / "out", squad_file(tmp_path / "train.json"), tokenizer=tmp_path / "bpe")
    assert not (tmp_path / "out").exists()


def test_questions_of_two_files_may_have_the_same_ids(tmp_path):
    files = [squad_file(tmp_path / name) for name in ("a.json", "b.json")]
    assert train_reader(files, tmp_path / "out", [], None, 300, QUICK, 0)["questions"] == 22


def test_texts_without_a_paragraph_are_refused(tmp_path):
    (tmp_path / "text.txt").write_text("short\n")
    with pytest.raises(UserError, match="no paragraph to practise on"):
        trained(tmp_path / "out", squad_file(tmp_path / "train.json"), [tmp_path / "text.txt"])


@pytest.mark.parametrize("given", [[], ["--model", "."], ["--model", "nowhere"]], ids=["none", "another folder", "no folder"])
def test_ask_without_a_reader_says_how_one_is_made(tmp_path, monkeypatch, capsys, given):
    from groundup import cli

    (tmp_path / "text.txt").write_text("A text.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["groundup", "ask", "Who?", "--context", "text.txt", *given])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and "`groundup train-reader`" in capsys.readouterr().err
