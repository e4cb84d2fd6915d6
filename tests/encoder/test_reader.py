import json
from dataclasses import replace

import pytest
import torch

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.encoder import question_answering
from groundup.encoder.bert import EncoderConfig, SpanReader, initialise
from groundup.encoder.question_answering import (
    ReaderSettings,
    answer,
    build,
    collate,
    labelled_windows,
    log_probabilities,
    span_loss,
    windows_of,
)
from groundup.encoder.squad import Question, score
from groundup.tokenizer.wordpiece import WordPiece, count_words, train

PEOPLE = {"Anna": "Paris", "Peter": "Rome", "Mary": "Oslo", "John": "Cairo", "Ruth": "Lima", "Paul": "Delhi"}
CONTEXT = " ".join(f"{name} lives in {town}, near the sea." for name, town in PEOPLE.items())
QUESTIONS = [
    Question(name, f"Where does {name} live?", CONTEXT, [(CONTEXT.index(town), town)]) for name, town in PEOPLE.items()
]
PRACTICE = "The city of Paris lies on the river Seine. Its people like good bread. Rome was founded by Romulus in 753 BC."
SMALL = ReaderSettings(length=96, batch=6, steps=300)


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece(train(count_words([CONTEXT, PRACTICE] + [q.question for q in QUESTIONS] * 3), 300))


@pytest.fixture(scope="module")
def device():
    return replace(choose(1), torch_device=torch.device("cpu"))


def test_rows_point_at_the_answer(tokenizer):
    for question in QUESTIONS:
        [row] = labelled_windows(tokenizer, question, 96)
        start, stop = row.window.offsets[row.first][0], row.window.offsets[row.last][1]
        assert CONTEXT[start:stop] == question.answers[0][1] and row.window.segments[row.first] == 1


def test_a_window_without_the_answer_points_at_cls(tokenizer):
    rows = labelled_windows(tokenizer, QUESTIONS[-1], 40)
    assert len(rows) > 2 and (rows[0].first, rows[0].last) == (0, 0)
    first, last = rows[-1].first, rows[-1].last
    assert CONTEXT[rows[-1].window.offsets[first][0] : rows[-1].window.offsets[last][1]] == "Delhi"
    # Every answer is whole in at least one window, and one that an edge cuts counts as absent.
    long = replace(QUESTIONS[0], answers=[(0, CONTEXT)])
    assert all(row.first == 0 for row in labelled_windows(tokenizer, long, 40))


def test_only_cls_and_the_context_can_be_pointed_at(tokenizer):
    model = random_model(tokenizer)
    windows = [windows_of(tokenizer, question, 96)[0] for question in QUESTIONS[:2]]
    windows.append(windows_of(tokenizer, replace(QUESTIONS[0], context="Anna lives."), 96)[0])
    batch = collate(windows, model.config, torch.device("cpu"))
    probabilities = log_probabilities(model, batch).exp()
    assert torch.allclose(probabilities.sum(1), torch.ones(3, 2), atol=1e-5)
    for row, window in enumerate(windows):
        inside = [n for n, (s, place) in enumerate(zip(window.segments, window.offsets, strict=True)) if n == 0 or (s and place)]
        assert probabilities[row].nonzero()[:, 0].unique().tolist() == inside


def random_model(tokenizer, length=96, segments=2):
    model = SpanReader(EncoderConfig(tokenizer.size, 64, 1, 2, 128, length, segments))
    initialise(model, 0)
    return model


def test_words_that_the_question_shares_are_marked_for_an_encoder_with_three_segments(tokenizer):
    [window] = windows_of(tokenizer, QUESTIONS[0], 96)
    marked = collate([window], random_model(tokenizer, segments=3).config, torch.device("cpu"))["segments"][0].tolist()
    plain = collate([window], random_model(tokenizer).config, torch.device("cpu"))["segments"][0].tolist()
    assert plain == window.segments and [min(segment, 1) for segment in marked] == plain
    found = {tokenizer.pieces[number] for number, segment in zip(window.ids, marked, strict=True) if segment == 2}
    asked = {tokenizer.pieces[number] for number in tokenizer.encode(QUESTIONS[0].question)}
    assert "anna" in found and found == asked & {tokenizer.pieces[number] for number in tokenizer.encode(CONTEXT)}


def test_the_loss_is_the_mean_over_rows_however_they_are_split(tokenizer):
    model = random_model(tokenizer)
    rows = [labelled_windows(tokenizer, question, 96)[0] for question in QUESTIONS]

    def loss(part, weight):
        batch = collate([row.window for row in part], model.config, torch.device("cpu"))
        batch |= {"spans": torch.tensor([[r.first, r.last] for r in part]), "weight": torch.full((len(part),), weight)}
        return span_loss(model, batch)[0].item()

    assert loss(rows, 1 / 6) == pytest.approx(loss(rows[:2], 1 / 6) + loss(rows[2:], 1 / 6), rel=1e-5)


@pytest.fixture(scope="module")
def built(tokenizer, device, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    settings = replace(SMALL, practice_steps=3)
    return folder, build(tokenizer, QUESTIONS, [PRACTICE] * 3, settings, device, folder)


def test_it_learns_its_questions(built, tokenizer, device):
    folder, model = built
    found = answer(model, tokenizer, QUESTIONS, device)
    assert score({name: a.text for name, a in found.items()}, QUESTIONS)["exact_match"] == 1
    assert all(CONTEXT[a.start :].startswith(a.text) and a.score <= 0 for a in found.values())
    assert not list(folder.glob("*/state-*")) and (folder / "reader" / "metrics.jsonl").is_file()


def test_the_folder_answers_alike(built, tokenizer, device, tmp_path, run_groundup):
    folder, model = built
    loaded = SpanReader.load(folder)
    assert answer(loaded, WordPiece.load(folder), QUESTIONS, device) == answer(model, tokenizer, QUESTIONS, device)
    (tmp_path / "people.txt").write_text(CONTEXT)
    done = run_groundup("ask", "Where does Ruth live?", "--context", tmp_path / "people.txt", "--model", folder)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["answer"] == "Lima" and said["start"] == CONTEXT.index("Lima") and 0 < said["probability"] <= 1


def test_a_killed_training_ends_with_the_same_bits(tokenizer, device, tmp_path, monkeypatch, killed):
    settings = replace(SMALL, steps=8, practice_steps=4)
    build(tokenizer, QUESTIONS, [PRACTICE], settings, device, tmp_path / "whole")
    monkeypatch.setattr("groundup.training.loop.CHECKPOINT_SECONDS", 0.0)
    death = killed(question_answering, "span_loss", 5, 20)
    for _ in range(2):
        with pytest.raises(death):
            build(tokenizer, QUESTIONS, [PRACTICE], settings, device, tmp_path / "killed")
    build(tokenizer, QUESTIONS, [PRACTICE], settings, device, tmp_path / "killed")
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "killed/model.safetensors").read_bytes()


def test_practice_with_one_window_per_step(tokenizer, device, tmp_path):
    settings = replace(SMALL, batch=1, steps=2, practice_steps=1)
    build(tokenizer, QUESTIONS, [PRACTICE], settings, device, tmp_path)
    assert len((tmp_path / "reader" / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_best_span_of_all_windows_is_the_answer(built, tokenizer, device):
    _, model = built
    narrow = SpanReader(replace(model.config, max_position_embeddings=48))
    weights = model.state_dict()
    weights["bert.embeddings.position_embeddings.weight"] = weights["bert.embeddings.position_embeddings.weight"][:48]
    narrow.load_state_dict(weights)
    assert len(windows_of(tokenizer, QUESTIONS[0], 48)) > 1
    [found] = answer(narrow, tokenizer, QUESTIONS[:1], device).values()
    candidates = []
    for window in windows_of(tokenizer, QUESTIONS[0], 48):
        logp = log_probabilities(narrow, collate([window], narrow.config, torch.device("cpu")))[0]
        for first in range(1, len(window.ids)):
            for last in range(first, min(len(window.ids), first + question_answering.MAX_ANSWER_TOKENS)):
                total = (logp[first, 0] + logp[last, 1]).item()
                if total > float("-inf"):
                    candidates.append((total, CONTEXT[window.offsets[first][0] : window.offsets[last][1]]))
    assert (pytest.approx(found.score, abs=1e-5), found.text) == max(candidates)


def test_a_context_without_words_has_no_answer(built, tokenizer, device):
    _, model = built
    [found] = answer(model, tokenizer, [Question("1", "Who?", " \n", [])], device).values()
    assert found.text == "" and found.score == float("-inf")


def test_what_is_missing_is_named(tokenizer, device, tmp_path):
    with pytest.raises(UserError, match="no questions to learn from"):
        build(tokenizer, [], [], SMALL, device, tmp_path)
    with pytest.raises(UserError, match="no paragraph of this step gives a question"):
        build(tokenizer, [], ["It is."], replace(SMALL, practice_steps=1), device, tmp_path)
    with pytest.raises(UserError, match="no such file"):
        question_answering.ask(tmp_path, tmp_path / "none.txt", "Who?")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        question_answering.ask(tmp_path, tmp_path / "bad.txt", "Who?")


def test_a_folder_in_place_of_a_file_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    from groundup import cli

    monkeypatch.setattr("sys.argv", ["groundup", "ask", "Who?", "--context", str(tmp_path), "--model", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"groundup: {tmp_path}: is a folder, not a file\n"
