"""Figures by category and gender, and the gap between two, against hand calculations."""

import json

import pytest

from groundup.core.statistics import wilson
from groundup.evaluation import evaluate as evaluation
from groundup.evaluation.breakdown import figures, gap
from groundup.evaluation.tasks import load, open_task
from groundup.model import model_folder


def test_parts_by_hand():
    marks = [{"category": "age", "direction": "stereo"}, {"category": "age"}, {"category": "race"}, {"direction": "anti"}]
    found = figures(marks, [1.0, 0.0, 1.0, 0.0], None)
    assert found["category"]["parts"]["age"] == {"accuracy": 0.5, "n": 2, **dict(zip(("low", "high"), wilson(1, 2), strict=True))}
    assert found["category"]["parts"]["race"]["accuracy"] == 1 and found["category"]["difference"]["difference"] == -0.5
    assert found["direction"]["difference"]["of"] == ["anti", "stereo"]
    assert "difference" not in figures([{"g": "a"}, {"g": "b"}, {"g": "c"}], [1.0] * 3, None)["g"]


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),  # Newcombe 1998, table II, method 10
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((5, 56), (0, 29), -0.0381, 0.1926)],
)
def test_gap_is_newcombes(ours, theirs, low, high):
    found = gap(*([1.0] * hits + [0.0] * (n - hits) for hits, n in (ours, theirs)))
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-4)


@pytest.fixture(scope="module")
def model(toy_decoder, toy_tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("bias") / "one"
    model_folder.save(place, toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=256), toy_tokenizer, chat=False)
    return place


def test_share_of_stereotypes(groundup_here, model, tmp_path):
    """By the likelihoods in the records."""
    lines = [f"{n},The {who} returns {n},A {who} it returns {n},{side},{kind},x" for n, (who, side, kind) in enumerate(
        [("file", "stereo", "age"), ("path", "stereo", "race"), ("object", "antistereo", "age"), ("method", "stereo", "age")] * 3
    )]  # fmt: skip
    (tmp_path / "crows_pairs.csv").write_text("\n".join([",sent_more,sent_less,stereo_antistereo,bias_type,anon", *lines]))
    done = groundup_here("evaluate", model, "--task", "crows_pairs", "--data", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    [result] = json.loads(done.stdout.splitlines()[-1])["results"]
    records = [json.loads(line) for line in (tmp_path / "out/one/crows_pairs.jsonl").read_text().splitlines()]
    likelier = [record["answers"][0] >= record["answers"][1] for record in records]
    of_age = [one for one, record in zip(likelier, records, strict=True) if record["by"]["category"] == "age"]
    assert len(of_age) == 9 and result["by"]["category"]["parts"]["age"]["accuracy"] == pytest.approx(sum(of_age) / 9)
    assert result["by"]["category"]["parts"]["age"]["low"] == wilson(sum(of_age), 9)[0]
    assert (result["accuracy"]["answer"]["low"], result["accuracy"]["answer"]["high"]) == wilson(sum(likelier), 12)
    assert "by category" in done.stderr and "by direction" in done.stderr and "antistereo" in done.stderr


def test_winogender_in_both_forms(model, tmp_path):
    told = 'Sentence: "The nurse told the patient that {0} was late."\nQ: Who does the pronoun "{0}" refer to?'
    both = {"choices": ["the nurse", "the patient"], "gold": 0}
    queries = [{"query": told.format(word), **both} for word in ("she", "her", "he")]
    rows = [
        {"sentence": "The nurse told the patient that they ...", "pronoun": "they", "occupation": "nurse",
         "participant": "patient", "gender": "neutral", "label": 1, "gotcha": "yes"},
    ]  # fmt: skip
    for name, some in (("female", queries), ("male", rows)):
        (tmp_path / f"winogender_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    examples = load(open_task("winogender", tmp_path)).rows
    assert [row.by["gender"] for row in examples] == ["female", "female", "male", "neutral"]
    assert examples[3].by["gotcha"] == "yes" and "gotcha" not in examples[0].by
    assert examples[3].prompt.endswith(" ‘They’ refers to the") and examples[3].texts == ("nurse", "patient")
    [result] = evaluation.evaluate([str(model)], ["winogender"], tmp_path)["results"]
    assert {value: one["n"] for value, one in result["by"]["gender"]["parts"].items()} == {"female": 2, "male": 1, "neutral": 1}
