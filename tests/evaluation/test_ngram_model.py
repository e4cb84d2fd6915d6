"""The n-gram model of a run's tokens as a model under evaluation: a row of its own in the tables of the run's models."""

import json

import numpy as np
import pytest

from groundup.core.errors import UserError
from groundup.data import token_files
from groundup.evaluation.ngram_model import ngram_models_of
from groundup.evaluation.open_model import identify, open_model
from groundup.model import model_folder
from groundup.model.ngram import KneserNey

TEXTS = ["it returns the path of the file", "the function returns it", "what does the function return"] * 5


@pytest.fixture(scope="module")
def run(tmp_path_factory, toy_tokenizer, toy_decoder):
    place = tmp_path_factory.mktemp("ngram") / "run"
    toy_tokenizer.save(place / "tokenizer")
    (place / "tokens").mkdir()
    sequences = [np.array([toy_tokenizer.end_of_text, *toy_tokenizer.encode(text)]) for text in TEXTS]
    token_files.write(place / "tokens" / "train", iter(sequences), token_files.dtype_for(toy_tokenizer.size))
    model = toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=256)
    model_folder.save(place / "base", model, toy_tokenizer, chat=False)
    return place


def test_scores_are_those_of_the_whole_text(run, toy_tokenizer):
    model = open_model(f"ngram:{run}")
    stream = np.concatenate([[toy_tokenizer.end_of_text, *toy_tokenizer.encode(text)] for text in TEXTS])
    counted = KneserNey.fit(stream, 5, toy_tokenizer.size, toy_tokenizer.end_of_text)
    context, word = "what does it mean that the function returns it and returns the path of the", " file"
    ids, more = toy_tokenizer.encode(context), toy_tokenizer.encode(word)
    whole = counted.log_probabilities(np.array([toy_tokenizer.end_of_text, *ids, *more]))
    pairs = [("", " it"), (context, word), ("of the", " file"), (context, " function")]
    found = model.continuations(pairs, 4)
    assert found[1].nats == pytest.approx(whole[-len(more) :].sum())
    assert found[1].greedy and found[1].likeliest_text == " file" and not found[3].greedy
    [text] = model.texts([context + word], "half", 1)
    assert text == pytest.approx(whole[1:].sum())
    assert [one.nats for one in found] == [model.continuations([pair], 1)[0].nats for pair in pairs]  # each for itself


def test_it_writes_what_it_counted(run):
    model = open_model(f"ngram:{run}")
    assert model.written(["it returns the"], ["of"], 20, 8) == [(" path of", False)]
    assert model.written(["it returns the"], [], 2, 8)[0][0].startswith(" path")


def test_it_stands_in_the_table_of_its_runs_models(run, groundup_here, tmp_path):
    rows = [{"sentence_good": f"it returns {word}", "sentence_bad": f"returns it {word}", "UID": word} for word in "abc" * 4]
    (tmp_path / "blimp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = groundup_here("evaluate", run / "base", "--task", "blimp", "--data", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [one["label"] for one in found["results"]] == ["base", "5-gram-of-run"]
    assert found["results"][1]["accuracy"]["answer"]["accuracy"] == 1.0  # "returns it" is never at the beginning
    assert "5-gram-of-run" in done.stderr and [one["models"] for one in found["comparisons"]] == [
        [str(run / "base"), f"ngram:{run}"]
    ]
    assert (tmp_path / "out" / "5-gram-of-run" / "blimp.jsonl").is_file()


def test_once_for_each_run(run, tmp_path):
    name = f"ngram:{run}"
    assert ngram_models_of([str(run), str(run / "base"), str(tmp_path)]) == [name]
    assert ngram_models_of([str(run / "base"), name]) == []


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="which the n-gram model counts"):
        identify(f"ngram:{tmp_path}")
