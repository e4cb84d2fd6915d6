import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.core.errors import UserError
from groundup.corpus.annotate import personal, rules
from groundup.corpus.annotate.measure import SCHEMA
from groundup.corpus.select.thresholds import described, tune


def shard(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def row(number, **changes):
    base = dict.fromkeys(rules.COLUMNS, 0) | {"url": f"https://a.org/{number}", "text": f"text {number}", "language": "en"}
    base |= {"words": 10 * number, "alphabetic_words": 1.0, "stop_words": 8, "toxic_words": 0} | changes
    return base | {"personal": [span._asdict() for span in personal.find(base["text"], base["language"])]}


@pytest.fixture
def folder(tmp_path):
    shard(tmp_path / "annotations-a-00000.parquet", [row(number) for number in range(1, 6)])
    mail = "write to jane@acme.com"
    shard(tmp_path / "annotations-a-00001.parquet", [row(number, text=mail) for number in range(6, 11)])
    return tmp_path


def test_what_a_threshold_keeps(folder):
    found = tune(folder, ["words"], samples=1)
    (words,) = found["thresholds"]
    assert found["documents"] == 10
    assert words["minimum"] == 50 and words["kept_documents"] == 0.6
    assert words["kept_words"] == pytest.approx(450 / 550)
    shown = "\n".join(described(words))
    assert "keeps 60.00% of documents, 81.82% of words" in shown
    # The texts nearest to the threshold: 50 words are kept, 40 are not.
    assert "kept    https://a.org/5  text 5" in shown and "dropped https://a.org/4  text 4" in shown


def test_samples_show_no_personal_data_and_scores_come_without_a_paper(folder):
    shard(folder / "annotations-b-00000.parquet", [row(n, toxicity=n / 10, text="mail jane@acme.com") for n in range(11)])
    (toxicity,) = tune(folder, ["toxicity"], samples=3)["thresholds"]
    assert toxicity["paper"] == "score" and toxicity["kept_documents"] == pytest.approx(10 / 11)
    shown = "\n".join(described(toxicity))
    assert "jane" not in shown and "mail <email>" in shown


def test_personal_data_is_redacted_by_the_rules_of_the_texts_language(tmp_path):
    shard(tmp_path / "annotations-a-00000.parquet", [row(1, text="Die Nummer ist 0431 35 06 90 bis acht Uhr.", language="de")])
    (words,) = tune(tmp_path, ["words"], samples=1)["thresholds"]
    assert words["samples"]["dropped"] == ["https://a.org/1  Die Nummer ist <phone> bis acht Uhr."]


def test_nothing_is_left_of_personal_data_that_a_cut_would_part(tmp_path):
    for blanks in range(600, 660, 4):
        shard(tmp_path / f"annotations-{blanks}-00000.parquet", [row(1, text="a" + " " * blanks + "jane.doe@acme.com")])
    (words,) = tune(tmp_path, ["words"], samples=20)["thresholds"]
    shown = "\n".join(described(words))
    assert "a <email>" in shown and "jane" not in shown


def test_as_many_samples_are_shown_as_are_asked_for(folder):
    shard(folder / "annotations-b-00000.parquet", [row(number) for number in range(11, 31)])
    (words,) = tune(folder, ["words"], samples=20)["thresholds"]
    assert [len(texts) for texts in words["samples"].values()] == [20, 4]


def test_every_published_threshold_is_shown(folder):
    found = tune(folder, [], samples=0)["thresholds"]
    published = [row for row in found if row["paper"] != "score"]
    assert [(row["column"], row["paper"]) for row in published] == [(t.column, t.paper) for t in rules.THRESHOLDS]


def test_no_annotations_and_unknown_columns_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no annotations"):
        tune(tmp_path / "other", [], 0)
    with pytest.raises(UserError, match="no threshold on 'wrods'"):
        tune(folder, ["wrods"], 0)
