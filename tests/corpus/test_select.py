import json
from collections import Counter
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.core.errors import UserError
from groundup.corpus.annotate import rules
from groundup.corpus.annotate.measure import SCHEMA
from groundup.corpus.config import SelectionConfig
from groundup.corpus.select.selection import select


def row(number, **changes):
    words = " ".join(f"word{number}x{place}" for place in range(60))
    base = {
        "id": f"{number:032x}",
        "url": f"https://a.org/{number}",
        "host": "a.org",
        "domain": "web",
        "kind": "html",
        "title": f"Page {number}",
        "text": f"Menu\n{words}",
        "language": "en",
        "language_score": 0.7,
        "language_share": 0.9,
        "memory_addresses": 0,
        **dict.fromkeys(rules.COLUMNS, 0),
        "words": 61,
        "alphabetic_words": 1.0,
        "toxic_words": 0,
        **dict.fromkeys(("toxicity", "worst_toxicity", "calibrated_quality", "domain_score", "domain_class")),
        "personal": [],
        "template_lines": [0],
        "duplicate_of": None,
        "near_duplicate_of": None,
        "cluster": f"{number:032x}",
        "quality": 0.5 + number / 1000,
    }
    return base | changes


def run(tmp_path, rows, settings=None, seed=0, languages=("en",)):
    tmp_path.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "annotations-a-00000.parquet")
    settings = settings or SelectionConfig(held_out=0.1)
    result = select(tmp_path, tmp_path / "out", settings, languages, seed=seed)
    documents = pq.read_table(tmp_path / "out" / "documents.parquet").to_pylist()
    dropped = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    return result, documents, {row["id"]: (row["reason"], row["detail"]) for row in dropped}


def test_toxicity_and_calibrated_quality_drop_only_where_they_were_measured(tmp_path):
    rows = [*GOOD, row(101, toxicity=0.9), row(102, toxic_words=13), row(103, calibrated_quality=0.4)]
    settings = SelectionConfig(max_toxicity=0.8, max_toxic_word_share=0.2, min_calibrated_quality=0.5, held_out=0.1)
    _, documents, dropped = run(tmp_path, rows, settings)
    assert dropped == {
        f"{101:032x}": ("toxicity", "toxicity 0.9 > 0.8"),
        f"{102:032x}": ("toxic words", "share of toxic words 0.2131 > 0.2"),
        f"{103:032x}": ("calibrated quality", "calibrated quality 0.4 < 0.5"),
    }
    assert len(documents) == len(GOOD)


GOOD = [row(number) for number in range(20)]


def test_each_document_is_dropped_once_with_its_reason(tmp_path):
    bad = [
        row(100, text=" ", words=0),
        row(101, duplicate_of="f" * 32, words=3),
        row(102, near_duplicate_of="e" * 32),
        row(103, language="de"),
        row(104, words=12, template_lines=[]),
        row(105, alphabetic_words=0.25),
        row(106, duplicate_lines=0.75),
        row(107, quality=0.01),
        row(108, text="Menu\nshort", words=61),
        row(109, kind="code", language="cs", alphabetic_words=0.1, quality=0.0, template_lines=[], domain="code"),
    ]
    result, documents, dropped = run(tmp_path, GOOD + bad)
    assert dropped == {
        f"{100:032x}": ("empty", "no text"),
        f"{101:032x}": ("exact duplicate", "of " + "f" * 32),
        f"{102:032x}": ("near duplicate", "of " + "e" * 32),
        f"{103:032x}": ("language", "language de, not en"),
        f"{104:032x}": ("length", "words 12 < 50"),
        f"{105:032x}": ("alphabetic words", "alphabetic words 0.25 < 0.5"),
        f"{106:032x}": ("repeated lines", "duplicate lines 0.75 > 0.5"),
        f"{107:032x}": ("quality", "quality 0.01 < 0.02"),
        f"{108:032x}": ("length without template lines", "words 1 < 50"),
    }
    assert len(documents) == 21
    assert [row["id"] for row in documents] == sorted(row["id"] for row in documents)
    steps = result["steps"]
    assert json.loads((tmp_path / "out" / "funnel.json").read_text()) == result
    for step, after in pairwise(steps):
        assert step["after"] == after["before"]
    assert next(step for step in steps if step["step"] == "language")["code_exempt"] == 1
    assert next(step for step in steps if step["step"] == "length")["samples"][0]["detail"] == "words 12 < 50"
    assert result["left"]["by_domain"]["code"]["documents"] == 1


def test_text_is_redacted_and_loses_its_template_lines(tmp_path):
    text = f"Menu\nwrite to jane@acme.com {GOOD[0]['text'][5:]}"
    start = text.index("jane")
    personal = [{"start": start, "end": start + 13, "type": "email"}]
    changed = row(50, text=text, personal=personal, title="Mail of joe@acme.com")
    result, documents, _ = run(tmp_path, [*GOOD[1:], changed])
    document = documents[-1]
    assert document["text"].startswith("write to <email> word0x0")
    assert document["title"] == "Mail of <email>"
    changes = {step["step"]: step["changed"] for step in result["steps"] if "changed" in step}
    assert changes["personal data redacted"] == {"email": 2}
    assert changes["template lines removed"] == {"bytes": 100, "documents": 20, "lines": 20}


def test_split_and_best(tmp_path):
    small = [row(number, domain="small") for number in range(200, 205)]
    _, documents, _ = run(tmp_path, GOOD + small, SelectionConfig(held_out=0.01, best_share=0.5))
    held = [document for document in documents if document["split"] == "held_out"]
    assert [document["domain"] for document in held] == ["web", "web"]
    assert not any(document["best"] for document in held)
    train = [document for document in documents if document["split"] == "train" and document["domain"] == "web"]
    assert [document["best"] for document in sorted(train, key=lambda row: row["quality"])] == [False] * 9 + [True] * 9
    _, again, _ = run(tmp_path, GOOD + small, SelectionConfig(held_out=0.01, best_share=0.5))
    assert again == documents
    _, other, _ = run(tmp_path, GOOD + small, SelectionConfig(held_out=0.01, best_share=0.5), seed=1)
    assert [document["split"] for document in other] != [document["split"] for document in documents]


def test_copies_of_held_out_text_do_not_train(tmp_path):
    _, documents, _ = run(tmp_path, GOOD)
    held = next(document for document in documents if document["split"] == "held_out")
    # In another domain too small to hold anything out.
    quoting = row(300, domain="other", template_lines=[], text=held["text"] + " " + "x y z " * 30)
    _, documents, dropped = run(tmp_path, [*GOOD, quoting])
    assert dropped[quoting["id"]] == ("contaminates held-out", f"1.00 of its 13-grams shared with {held['url']}")
    assert len(documents) == 20


def test_files_are_the_same_for_any_order_of_rows(tmp_path):
    run(tmp_path / "a", GOOD)
    run(tmp_path / "b", GOOD[::-1])
    for name in ("documents.parquet", "dropped.parquet", "funnel.json"):
        assert (tmp_path / "a" / "out" / name).read_bytes() == (tmp_path / "b" / "out" / name).read_bytes()


def test_published_thresholds_are_counted_but_drop_nothing(tmp_path):
    result, documents, _ = run(tmp_path, [*GOOD[1:], row(0, curly_bracket=1)])
    assert len(documents) == 20
    curly = next(row for row in result["published_thresholds"] if row["column"] == "curly_bracket")
    assert (curly["paper"], curly["would_drop"], curly["of"]) == ("C4", 1, 20)


def test_nothing_to_select_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="annotate pages first"):
        select(tmp_path, tmp_path / "out", SelectionConfig(), "en", 0)
    with pytest.raises(UserError, match=r"no document is left for training \(dropped by language: 1\); see "):
        run(tmp_path, [row(1, language="de")])


def test_domains_by_language(tmp_path):
    rows = [row(number, language=("en", "de", "cs")[number % 3], domain="web") for number in range(60)]
    rows += [row(number, language="no", kind="code", domain="src") for number in range(60, 80)]
    settings = SelectionConfig(held_out=0.1, domain_by_language=True)
    _, documents, dropped = run(tmp_path, rows, settings, languages=("en", "de"))
    sides = Counter((one["domain"], one["split"]) for one in documents)
    wanted = {"train": 18, "held_out": 2}
    assert sides == {(domain, side): wanted[side] for domain in ("web-en", "web-de", "src") for side in wanted}
    assert {detail for _, detail in dropped.values()} == {"language cs, not en or de"}
    _, documents, dropped = run(tmp_path / "all", rows, languages=())
    assert {one["domain"] for one in documents} == {"web", "src"} and not dropped


def test_a_score_or_share_of_language_that_is_too_low(tmp_path):
    rows = [row(1, language_score=0.4), row(2, language_share=0.3), row(3), row(4)]
    _, documents, dropped = run(tmp_path, rows, SelectionConfig(held_out=0.0, min_language_score=0.5, min_language_share=0.5))
    assert len(documents) == 2
    assert sorted(detail for _, detail in dropped.values()) == ["language score 0.40 < 0.5", "share in its language 0.30 < 0.5"]


def test_annotations_of_an_earlier_version_are_refused(tmp_path):
    table = pa.Table.from_pylist(GOOD, schema=SCHEMA).drop_columns("language_share")
    pq.write_table(table, tmp_path / "annotations-a-00000.parquet")
    with pytest.raises(UserError, match="no column 'language_share'"):
        select(tmp_path, tmp_path / "out", SelectionConfig(), ["en"], seed=0)
