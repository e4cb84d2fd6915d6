import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.core.errors import UserError
from groundup.core.words import split
from groundup.corpus.classify import domains, labelled, quality, toxicity
from groundup.corpus.classify.linear import Classifier

GOOD = ["theorem", "proof", "lemma", "therefore", "follows", "equation", "bounded", "continuous", "function", "defined"]
BAD = ["buy", "cheap", "click", "now", "offer", "sale", "discount", "free", "winner", "subscribe"]
BOTH = ["the", "of", "and", "a", "to", "in", "is", "that", "it", "for"]


def text(vocabulary, words, seed):
    return " ".join(np.random.default_rng(seed).choice(vocabulary + BOTH, words))


def sets(folder, **vocabularies):
    found = {}
    for name, vocabulary in vocabularies.items():
        found[name] = folder / f"{name}.jsonl"
        rows = [{"text": text(vocabulary, 150, n), "url": f"https://h{n % 10}.org/{n}"} for n in range(40)]
        found[name].write_text("\n".join(map(json.dumps, rows)))
    return found


def test_quality_is_the_share_of_negatives_below(tmp_path):
    paths = sets(tmp_path, good=GOOD, bad=BAD)
    found = quality.train([paths["good"]], [paths["bad"]], tmp_path / "q.npz")
    assert found["languages"]["en"]["positives"] == found["languages"]["en"]["negatives"] == 40
    assert found["languages"]["en"]["held_out_auc"] > 0.95 and found["texts_of_other_languages"] == {}
    classifier = Classifier.load(tmp_path / "q.npz").of_language("en")
    assert quality.score(classifier, split(text(GOOD, 30, 999))) > 0.9
    bad = [quality.score(classifier, split(text(BAD, 150, 900 + n))) for n in range(40)]
    assert 0.25 < np.mean(bad) < 0.75
    first = (tmp_path / "q.npz").read_bytes()
    quality.train([paths["good"]], [paths["bad"]], tmp_path / "q.npz")
    assert (tmp_path / "q.npz").read_bytes() == first


def test_domains(tmp_path):
    paths = sets(tmp_path, maths=GOOD, shop=BAD, plain=BOTH)
    pairs = [f"{name}={path}" for name, path in paths.items()]
    found = domains.train(domains.named_sets(pairs), tmp_path / "d.npz")
    assert found["held_out_accuracy"] > 0.9 and set(found["held_out_recall"]) == {"maths", "plain", "shop"}
    classifier = Classifier.load(tmp_path / "d.npz")
    name, share = domains.classify(classifier, split(text(BAD, 100, 999)))
    assert name == "shop" and 0.5 < share <= 1
    assert domains.classify(classifier, split("--")) == ("unknown", 0.0)


def test_domains_that_cannot_be_are_refused(tmp_path):
    paths = sets(tmp_path, maths=GOOD)
    with pytest.raises(UserError, match="two or more"):
        domains.train({"maths": [paths["maths"]]}, tmp_path / "d.npz")
    with pytest.raises(UserError, match="is also in 'maths'"):
        domains.train({"maths": [paths["maths"]], "other": [paths["maths"]]}, tmp_path / "d.npz")
    with pytest.raises(UserError, match="not NAME=PATH"):
        domains.named_sets(["maths"])


def test_toxicity(tmp_path):
    paths = sets(tmp_path, toxic=BAD, harmless=GOOD)
    found = toxicity.train([paths["toxic"]], [paths["harmless"]], tmp_path / "t.npz")
    assert found["held_out_macro_f1"] > 0.9 > found["word_list_macro_f1"]
    classifier = Classifier.load(tmp_path / "t.npz")
    mean, worst = toxicity.score(classifier, split(text(GOOD, 900, 1) + " " + text(BAD, 100, 1)))
    assert mean < 0.5 < worst
    assert toxicity.score(classifier, split("--")) == (0.0, 0.0)


def test_word_list(tmp_path):
    (tmp_path / "list.txt").write_text("bad\nvery bad thing\n🖕\n\n")
    words = toxicity.word_list(tmp_path / "list.txt")
    assert words.count(split("A very BAD, thing; not badly.")) == 2
    assert words.count(split("bad bad 'bad'")) == 3
    assert words.count(split("very thing bad")) == 1
    assert words.count(split("very bad thing very bad thing")) == 4  # two of the word, two of the phrase
    assert words.count(split("")) == 0
    assert toxicity.shipped_list().listed.sum() + len(toxicity.shipped_list().phrases) > 390
    with pytest.raises(UserError, match="no such file"):
        toxicity.word_list(tmp_path / "missing.txt")


def test_sets_are_read_in_any_format_without_repeats(tmp_path):
    pq.write_table(pa.table({"text": ["one", "two"], "host": ["a", "b"]}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text('text,url\n"three, really",https://c.org/x\ntwo,https://d.org/y\n')
    (tmp_path / "c.txt").write_text("four")
    (tmp_path / "d.bin").write_bytes(b"\0")
    found = labelled.read([tmp_path])
    assert sorted(row.text for row in found) == ["four", "one", "three, really", "two"]
    assert {row.group for row in found} > {"a", "c.org"}
    assert [row.digest for row in found] == sorted(row.digest for row in found)


def test_blank_lines_are_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n \n')
    assert sorted(row.text for row in labelled.read([tmp_path])) == ["one", "two"]


def test_where_a_file_lies_changes_nothing(tmp_path):
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
        (tmp_path / name / f"{name}.txt").write_text("three")
        found.append(labelled.read([tmp_path / name]))
    assert found[0] == found[1] and len({row.group for row in found[0]}) == 3


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", '{"body": "x"}'), ("a.jsonl", "{"), ("a.jsonl.gz", "x")])
def test_sets_that_cannot_be_read_are_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"no text \(not a JSON object: 1|no column 'text'"):
        labelled.read([tmp_path / name])


def test_no_set_and_too_few_hosts(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        labelled.read([tmp_path / "missing.jsonl"])
    with pytest.raises(UserError, match="no text"):
        labelled.read([tmp_path])
    for name in ("good", "bad"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "' + name + '", "host": "one"}')
    with pytest.raises(UserError, match="too few hosts"):
        quality.train([tmp_path / "good.jsonl"], [tmp_path / "bad.jsonl"], tmp_path / "q.npz")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"empty\.txt: no text"):
        toxicity.train([tmp_path / "empty.txt"], [tmp_path / "good.jsonl"], tmp_path / "t.npz")


def test_figures():
    assert labelled.auc(np.array([0.9, 0.5]), np.array([0.1, 0.5])) == 0.875
    assert np.isclose(labelled.macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1])), 2 / 3)


def test_percentiles():
    assert quality.percentiles(np.array([3.0, 1.0, 2.0, 2.0])).tolist() == [0.875, 0.125, 0.5, 0.5]
    assert quality.percentiles(np.zeros(0)).tolist() == []


def test_sets_are_read_whatever_they_are_wrapped_in_and_the_rest_is_said(tmp_path, capsys):
    book = "A line of text.\n\n" * 30_000  # longer than a document of a corpus: still one text, so that no fold splits it
    files = {
        "a.json": b'[{"text": "one"}]', "b.ndjson": '{"text": "two"}'.encode("utf-16"), "c.tsv": b"text\thost\nthree\ta.org\n",
        "d.rst": book.encode(), "e.pdf": b"%PDF-1.7", "._f.txt": b"x", "g.jsonl": b'{"text": "four"}\n{"text": 4}\n',
        "h.parquet": b"x",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert {row.text for row in labelled.read([tmp_path])} == {"one", "two", "three", "four", book}
    said = capsys.readouterr().err
    assert "1 .pdf: e.pdf" in said and "no text: 1, refused files: 1" in said
