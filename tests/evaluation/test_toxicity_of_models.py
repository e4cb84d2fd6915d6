"""Sampled continuations and what a classifier makes of them: by hand, and the same for any batch and order."""

import json
import shutil

import numpy as np
import pytest
import torch

from groundup.core.errors import UserError
from groundup.core.statistics import wilson
from groundup.corpus.classify.linear import BITS, Classifier
from groundup.data import token_files
from groundup.evaluation import evaluate as evaluation
from groundup.evaluation import toxic_continuations
from groundup.evaluation.evaluated_models import FolderModel
from groundup.evaluation.open_model import open_model
from groundup.evaluation.scoring import records_of
from groundup.evaluation.tasks import load, open_task
from groundup.model import model_folder


@pytest.fixture(scope="module")
def model(toy_decoder, toy_tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("toxicity") / "one"
    model_folder.save(place, toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=128), toy_tokenizer, chat=False)
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(1 << BITS, 1)).astype(np.float32)
    Classifier(["toxic"], weights, np.zeros(1, np.float32)).save(place / "toxicity.npz")
    return place


def test_figures_by_hand():
    """Of two prompts with three samples: maxima 0.9 and 0.4."""
    records = [
        {"toxicity": [0.1, 0.9, 0.2], "listed": [False, False, False], "other_language": 0},
        {"toxicity": [0.4, 0.3, 0.2], "listed": [True, False, True], "other_language": 3},
    ]
    found = toxic_continuations.figures(records, None)
    assert {name: one["value"] for name, one in found.items()} == pytest.approx(
        {"expected maximum": 0.65, "any toxic": 0.5, "mean": 0.35, "any listed word": 0.5, "other language": 0.5}
    )
    assert (found["any toxic"]["low"], found["any toxic"]["high"]) == wilson(1, 2)
    # 0.65 -+ 1.96 x sqrt(2 x 0.25^2 / 1 / 2)
    assert (found["expected maximum"]["low"], found["expected maximum"]["high"]) == pytest.approx((0.16, 1.0))


def test_a_listed_word_and_the_classifier():
    weights = np.zeros((1 << BITS, 1), np.float32)
    classifier = Classifier(["toxic"], weights, np.zeros(1, np.float32))
    found = toxic_continuations.toxicity_record(["what a fine day", "", "you bastard"], classifier)
    assert found["listed"] == [False, False, True] and found["toxicity"] == [0.5, 0.0, 0.5]


def test_any_order_and_batch(model, data):
    task = open_task("toxicity", data)
    examples = load(task, 2).rows
    opened = open_model(str(model))
    records = records_of(opened, task, examples, 64)
    assert records_of(opened, task, examples[::-1], 1)[::-1] == records
    assert len(records[0]["texts"]) == 25 and len(set(records[0]["texts"])) > 1
    assert records[0]["texts"] != records[1]["texts"] and not any("<|" in text for text in records[0]["texts"])


def test_a_row_of_the_vocabulary_without_a_token_may_be_sampled(toy_decoder, toy_tokenizer, data):
    wider = toy_decoder(seed=5, vocab_size=toy_tokenizer.size + 64, max_position_embeddings=128)
    with torch.no_grad():
        wider.lm_head.weight[toy_tokenizer.size :] *= 50
    task = open_task("toxicity", data)
    [record] = records_of(FolderModel("x", data, wider, toy_tokenizer, []), task, load(task, 1).rows)
    assert len(record["texts"]) == 25


def test_the_verb(groundup_here, model, data, tmp_path):
    words = ["evaluate", model, "--task", "toxicity", "--limit", 3]
    done = groundup_here(*words)
    assert done.returncode == 2 and "which holds toxicity.npz" in done.stderr
    done = groundup_here(*words, "--data", tmp_path)
    assert done.returncode == 2 and "toxicity.npz: no such file" in done.stderr
    (tmp_path / "toxicity.npz").write_text("none")
    done = groundup_here(*words, "--data", tmp_path)
    assert done.returncode == 2 and "not a classifier" in done.stderr
    done = groundup_here(*words, "--data", data)
    assert done.returncode == 0, done.stderr
    [result] = json.loads(done.stdout.splitlines()[-1])["results"]
    assert result["samples"] == 25 and result["language"] == "en" and result["n"] == 3
    assert result["figures"]["mean"]["value"] <= result["figures"]["expected maximum"]["value"] <= 1
    assert "expected maximum" in done.stderr and "any listed word" in done.stderr


def test_prompts_of_ones_own_in_both_shapes(model, data):
    rows = [{"prompt": {"text": "it returns", "toxicity": 0.1}}, {"prompt": "the path"}, {"prompt": " "}]
    (data / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = load(open_task("toxicity", data / "own.jsonl"))
    assert [one.prompt for one in examples.rows] == ["it returns", "the path"] and "empty" in str(examples.refused)
    with pytest.raises(UserError, match="takes no few-shot"):
        open_task("toxicity", data, few_shot=1)
    found = evaluation.evaluate([str(model)], ["toxicity"], data / "own.jsonl")
    assert found["results"][0]["skipped"] == {"an empty answer, choice or text": 1}


def test_models_that_cannot_sample(model, data, toy_tokenizer, tmp_path):
    """The n-gram model that a run's is compared with is left out of such a task; a model that is named is refused at once."""
    shutil.copytree(model, tmp_path / "run" / "base")
    toy_tokenizer.save(tmp_path / "run" / "tokenizer")
    (tmp_path / "run" / "tokens").mkdir()
    ids = np.array([toy_tokenizer.end_of_text, *toy_tokenizer.encode("it returns the path of the file")])
    token_files.write(tmp_path / "run" / "tokens" / "train", iter([ids]), token_files.dtype_for(toy_tokenizer.size))
    (data / "lambada.jsonl").write_text(json.dumps({"text": "it returns the path"}) + "\n")
    found = evaluation.evaluate([str(tmp_path / "run" / "base")], ["toxicity", "lambada"], data, limit=2)
    assert [(one["label"], one["task"]) for one in found["results"]] == [
        ("base", "toxicity"), ("base", "lambada"), ("5-gram-of-run", "lambada"),
    ]  # fmt: skip
    assert [one["task"] for one in found["comparisons"]] == ["lambada"]
    for name in (f"hf:{model}", "http://127.0.0.1:1/v1#x", f"ngram:{tmp_path / 'run'}"):
        with pytest.raises(UserError, match=r"toxicity samples continuations: give the folder of a model"):
            evaluation.evaluate([str(model), name], ["lambada", "toxicity"], data, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
