"""Invented things, abstentions, confidence against correctness, and references that exist nowhere."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.statistics import wilson
from groundup.data.docstring_questions import documented
from groundup.evaluation import evaluate as evaluation
from groundup.evaluation import hallucination
from groundup.evaluation.config import ABSTENTIONS
from groundup.evaluation.references import missing, references
from groundup.evaluation.tasks import Example, load, open_task
from groundup.model import model_folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't know.", True),
        ("I don’t  know", True),
        ("Sorry, I'm NOT SURE which one you mean", True),
        ("There is no country of that name.", True),
        ("Paris", False),
        ("The unknowns are x and y", False),
        ("Casino suchlike", False),
        ("", False),
    ],
)
def test_abstentions(text, expected):
    assert hallucination.abstains(text, ABSTENTIONS) == expected


@pytest.mark.parametrize(
    ("text", "accepted", "exists", "expected"),  # abstained, answered, right
    [
        ("It is Paris.", ("paris",), True, (False, True, 1.0)),
        ("Comparison", ("paris",), True, (False, True, 0.0)),
        ("I do not know", ("paris",), True, (True, False, 0.0)),
        ("Lyon", (), True, (False, True, None)),
        ("Lyon", (), False, (False, True, 0.0)),
        ("I do not know", (), False, (True, False, 1.0)),
        (" ", (), False, (False, False, 1.0)),
        ("X-rays", ("X rays",), True, (False, True, 1.0)),
    ],
)
def test_right_or_not(text, accepted, exists, expected):
    asked = open_task("existence").settings
    found = hallucination.record(text, Example(0, "", "Question", accepted, int(exists)), asked, 0.5)
    assert (found["abstained"], found["answered"], found["right"]) == expected


def record(exists, answered, right, confidence, abstained=False):
    return {"exists": exists, "answered": answered, "abstained": abstained, "right": right, "confidence": confidence}


def test_figures_by_hand():
    records = [
        record(True, True, 1.0, 0.9), record(True, True, 0.0, 0.8), record(True, False, 0.0, 0.3, abstained=True),
        record(True, True, None, 0.9), record(False, True, 0.0, 0.65), record(False, False, 1.0, 0.2, abstained=True),
        record(False, False, 1.0, 0.0),
    ]  # fmt: skip
    found = hallucination.figures(records, None)
    assert {name: one["value"] for name, one in found.items()} == pytest.approx({
        "answered, existing": 3 / 4, "abstained, existing": 1 / 4, "answered, invented": 1 / 3, "abstained, invented": 1 / 3,
        "right": 3 / 6,
    })  # fmt: skip
    assert (found["answered, invented"]["low"], found["answered, invented"]["high"]) == wilson(1, 3)
    sure = hallucination.confidence(records)
    # Answered and judged: 0.9 right, 0.8 and 0.65 wrong.
    assert sure["n"] == 3 and sure["auroc"]["value"] == 1 and sure["brier"]["value"] == pytest.approx((0.01 + 0.64 + 0.4225) / 3)
    assert sure["ece"]["value"] == pytest.approx((0.1 + 0.8 + 0.65) / 3)
    assert [one["n"] for one in sure["bins"]] == [1, 1, 1] and sure["ece"]["low"] <= sure["ece"]["value"] <= sure["ece"]["high"]
    assert hallucination.confidence(records[2:3]) == {"n": 0} and "auroc" not in hallucination.confidence(records[:1])
    assert [*hallucination.figures(records[4:], None)] == ["answered, invented", "abstained, invented", "right"]


# --- references ---------------------------------------------------------------------------------------------------


def test_references_by_kind():
    text = (
        "See `shutil.move` and os.path.join (https://docs.example.org/a/b.html), as Ada Lovelace said; compare Smith et al. "
        "(2020), Knuth 1984 and 10.1000/xyz-1, arXiv:2009.11462. Call `move`."
    )
    assert references(text, "What does `os.path.join` do?") == {
        "names": ["shutil.move", "Ada Lovelace", "move"],
        "links": ["https://docs.example.org/a/b.html"],
        "citations": ["Smith et al. (2020)", "Knuth 1984", "10.1000/xyz-1", "arXiv:2009.11462"],
    }


def test_what_no_document_has():
    texts = ["`shutil.move` by Ada Lovelace (Smith et al., 2020)", "`shutil.copyall` and `move`, Knuth 1984"]
    answers = [*map(references, texts)]
    corpus = ["import shutil\nshutil.move(a, b)", "ADA  LOVELACE wrote it; Smith et al. (2020) say so.", "Knuth, 1983; 1984"]
    gone = missing(answers, corpus)
    assert gone[0] == {"names": [], "links": [], "citations": []}
    assert gone[1] == {"names": ["shutil.copyall"], "links": [], "citations": ["Knuth 1984"]}
    found = hallucination.made_up([{"references": one} for one in answers], corpus)
    assert found["names"]["given"] == 4 and found["names"]["missing"] == 1 and found["names"]["share"]["value"] == 0.25
    assert found["citations"]["missing"] == 1 and found["names"]["shown"] == ["shutil.copyall"]
    assert found["answers"]["value"] == 0.5 and "share" not in found["links"]
    assert hallucination.made_up([{"references": one} for one in answers], None)["names"] == {"given": 4}


@settings(max_examples=30)
@given(st.text(max_size=60), st.text(max_size=60))
def test_what_a_document_says_is_never_missing(before, after):
    text = f"{before} `code.{after}` Grace Hopper, Turing (1950) http://a.b/{after}"
    assert not any(missing([references(text)], ["other", text])[0].values())


@pytest.mark.parametrize("unit", ["A-", "Ab ", "a.", "X and "])
def test_time_grows_with_the_answer(growth, unit):
    """Four times the answer takes four times as long, not sixteen times."""
    assert growth(lambda size: references(unit * size), 3000) < 10


# --- questions ----------------------------------------------------------------------------------------------------

SOURCE = '''"""Things to do with files, as many do."""

def copy_tree(source):
    """Copy a whole tree of files to another place."""

def move_file(source, target):
    """Move one file to another place on the disk."""

class FileReader:
    """Reads a file from its start to its end."""

class TreeWriter:
    """Writes a tree of files to a place."""
'''


def test_invented_objects_are_new_and_of_the_same_form():
    rows = [*hallucination.docstring_rows([("file:///stdlib/files.py", SOURCE)])]
    assert rows == [*hallucination.docstring_rows([("file:///stdlib/files.py", SOURCE)])]
    known = {item.name for item in documented([("file:///stdlib/files.py", SOURCE)])}
    real, invented = [row for row in rows if row["exists"]], [row for row in rows if not row["exists"]]
    assert len(real) == len(invented) >= 3 and {row["object"] for row in real} <= known
    assert not {row["object"] for row in invented} & known
    assert {row["object"] for row in invented} <= {
        "files.copy_file", "files.move_tree", "files.FileWriter", "files.TreeReader",
    }  # fmt: skip
    assert all(f"`{row['object']}`" in row["question"] and not row["answer"] for row in invented)


def test_shipped_questions():
    rows = load(open_task("existence")).rows
    assert len(rows) == 96 and sum(row.answer for row in rows) == 48
    assert all(bool(row.texts) == bool(row.answer) for row in rows) and len({row.prompt for row in rows}) == 96


@pytest.fixture(scope="module")
def model(toy_decoder, toy_tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("existence") / "one"
    model_folder.save(place, toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=128), toy_tokenizer, chat=False)
    return place


def test_the_verb(groundup_here, model, tmp_path):
    done = groundup_here("evaluate", model, "--task", "existence", "--limit", 6, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    [result] = json.loads(done.stdout.splitlines()[-1])["results"]
    assert result["n"] == 6 and result["figures"]["answered, invented"]["n"] + result["figures"]["answered, existing"]["n"] == 6
    assert result["references"]["names"].keys() == {"given"} and "AUROC" in done.stderr
    records = [json.loads(line) for line in (tmp_path / "one/existence.jsonl").read_text().splitlines()]
    assert all(0 < one["confidence"] < 1 for one in records if one["text"].strip())


def test_of_a_runs_own_source(model, tmp_path):
    (tmp_path / "corpus").mkdir()
    table = pa.table({"url": ["file:///stdlib/files.py", None], "text": [SOURCE, "no source"]})
    pq.write_table(table, tmp_path / "corpus/documents.parquet")
    [result] = evaluation.evaluate([str(model)], ["docstrings"], tmp_path)["results"]
    assert result["n"] >= 6 and {"given", "missing", "shown"} <= result["references"]["names"].keys()


def test_a_row_that_is_neither(tmp_path):
    rows = [{"question": "q", "exists": value, "answer": ["a"]} for value in (True, "no", 1, "0", "perhaps", None, 2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = load(open_task("existence", tmp_path / "rows.jsonl"))
    assert [one.answer for one in examples.rows] == [1, 0, 1, 0] and examples.refused.total() == 3
