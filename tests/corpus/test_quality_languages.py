"""Classifiers know languages, and say nothing of texts in others; those of quality are one a language."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.core.words import split
from groundup.corpus.annotate import corpus_quality
from groundup.corpus.annotate.measure import annotate
from groundup.corpus.archive.warc import WarcWriter
from groundup.corpus.classify import domains, labelled, quality, toxicity
from groundup.corpus.classify.linear import Classifier
from groundup.corpus.config import AnnotationsConfig, SelectionConfig
from groundup.corpus.select.selection import select

SENTENCES = json.loads((Path(__file__).parent / "languages.json").read_text(encoding="utf-8"))
MARKS = {"good": "(lemma theorem)", "bad": "(coupon sale)"}
ALL = AnnotationsConfig(languages=["all"], near_duplicate_jaccard=1.0, quality_positives=["good"])


def text(language: str, side: str, number: int) -> str:
    """Sentences of the language; the side shows in the words between them."""
    chosen = np.random.default_rng(number).permutation(SENTENCES[language])[:8]
    return f" {MARKS[side]} ".join(chosen.tolist())


def warc(path: Path, texts: list[str]) -> Path:
    with WarcWriter(path) as file:
        for number, one in enumerate(texts):
            file.resource(f"file:///{path.stem}/{number}.txt", "text/plain", one.encode())
    return path


def corpus(folder: Path, counts: dict[str, tuple[int, int]], **settings) -> tuple[dict, dict[str, float | None]]:
    """Counts, and the quality of each text, of a corpus with so many good and bad texts of each language."""
    folder.mkdir()
    pages = []
    for place, side in enumerate(("good", "bad")):
        texts = [text(name, side, number) for name, both in counts.items() for number in range(both[place])]
        pages.append((warc(folder / f"{side}.warc.gz", texts), side))
    counted = annotate(pages, folder / "out", ALL, workers=1, **settings)
    rows = [row for path in sorted((folder / "out").glob("annotations-*.parquet")) for row in pq.read_table(path).to_pylist()]
    return counted, {row["text"]: row["quality"] for row in rows}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Good German, bad English, and both of each; French has too few."""
    return corpus(tmp_path_factory.mktemp("mixed") / "a", {"de": (40, 20), "en": (20, 40), "fr": (25, 3)})


def test_each_language_has_a_classifier_and_one_with_too_few_texts_has_none(mixed):
    counts, found = mixed
    assert set(counts["quality_training_chunks"]) == {"de", "en"} and counts["without_quality"] == {"fr": 28}
    assert {name for one, name in found.items() if "matin" in one or one.split()[0] in ("Le", "La")} <= {None}


def test_quality_of_a_language_does_not_hang_on_the_others(mixed, tmp_path):
    _, found = mixed
    _, alone = corpus(tmp_path / "de", {"de": (40, 20)})
    assert alone == {one: found[one] for one in alone} and None not in alone.values()


def test_as_many_passes_as_memory_asks_for_give_the_same(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_quality, "CHUNK_BYTES", 1 << 20)
    assert corpus(tmp_path / "a", {"de": (40, 20), "en": (20, 40), "fr": (25, 3)}, memory_mb=1)[1] == mixed[1]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8), st.integers(1, 64))
def test_batches_hold_each_language_once_and_stay_in_memory(sizes, memory_mb):
    words = np.repeat(np.int32(100), sum(sizes))
    ends = np.cumsum(sizes)
    wanted = {str(end): [np.arange(end - size, end), np.zeros(0, np.int64)] for end, size in zip(ends, sizes, strict=True)}
    batches = list(corpus_quality._batches(wanted, words, memory_mb))
    assert [name for batch in batches for name in batch] == list(wanted)
    for batch in batches:
        size = sum(len(wanted[name][0]) for name in batch) * corpus_quality.CHUNK_BYTES
        assert len(batch) == 1 or size <= memory_mb << 20


def test_what_has_no_classifier_is_said(tmp_path, capsys):
    corpus(tmp_path / "a", {"en": (20, 20), "fr": (5, 0)})
    assert "no quality for 5 documents in fr: each language needs 20 chunks" in capsys.readouterr().err


def test_the_best_have_the_languages_of_the_rest(mixed, tmp_path):
    counts, _ = corpus(tmp_path / "a", {"de": (40, 20), "en": (20, 40), "fr": (25, 3)})
    settings = SelectionConfig(min_words=10, held_out=0.0, min_quality=0.0, max_contamination=1.0, best_share=0.4)
    select(tmp_path / "a" / "out", tmp_path / "a", settings, (), seed=0)
    rows = [row for row in pq.read_table(tmp_path / "a" / "documents.parquet").to_pylist() if row["domain"] == "good"]
    best = {name: sum(row["best"] for row in rows if row["language"] == name) for name in ("de", "en", "fr")}
    assert best["fr"] == 10 and best["de"] + best["en"] == 24 and min(best.values()) >= 6
    assert {row["quality"] for row in rows if row["language"] == "fr"} == {None}


def files(folder: Path, sides: dict[str, dict[str, int]]) -> list[Path]:
    made = []
    for side, counts in sides.items():
        made.append(folder / f"{side}.jsonl")
        rows = [{"text": text(name, side, n), "host": f"{name}{n % 12}"} for name, count in counts.items() for n in range(count)]
        made[-1].write_text("\n".join(map(json.dumps, rows)))
    return made


def test_train_quality_by_language(tmp_path):
    good, bad = files(tmp_path, {"good": {"de": 30, "en": 10, "zh": 20}, "bad": {"de": 10, "en": 40, "fr": 5}})
    found = quality.train([good], [bad], tmp_path / "q.npz")
    assert set(found["languages"]) == {"de", "en"} and found["texts_of_other_languages"] == {"fr": 5, "zh": 20}
    assert min(one["held_out_auc"] for one in found["languages"].values()) > 0.95
    whole = Classifier.load(tmp_path / "q.npz")
    assert whole.languages == ["de", "en"] and whole.of_language("fr") is None
    for name in ("de", "en"):
        scores = [quality.score(whole.of_language(name), split(text(name, side, 99))) for side in ("good", "bad")]
        assert scores[0] > 0.9 > scores[1]


@pytest.mark.parametrize("setting", ["quality_classifier", "toxicity_classifier", "domain_classifier"])
def test_a_classifier_measures_the_languages_that_it_knows(tmp_path, setting):
    good, bad = files(tmp_path, {"good": {"de": 25, "en": 25, "fr": 3}, "bad": {"de": 25, "en": 25}})
    out = tmp_path / "c.npz"
    if setting == "domain_classifier":
        assert domains.train({"good": [good], "bad": [bad]}, out)["languages"] == ["de", "en"]
    elif setting == "toxicity_classifier":
        assert toxicity.train([bad], [good], out)["languages"] == ["de", "en"]
    else:
        quality.train([good], [bad], out)
    column = {"quality_classifier": "calibrated_quality", "toxicity_classifier": "worst_toxicity"}.get(setting, "domain_class")
    pages = warc(tmp_path / "p.warc.gz", [text(name, "good", 7) for name in SENTENCES])
    annotate([(pages, "web")], tmp_path / "out", ALL.model_copy(update={setting: str(out)}), workers=1)
    rows = [row for path in (tmp_path / "out").glob("annotations-*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["language"] for row in rows if row[column] is not None} == {"de", "en"}
    assert {row["language"] for row in rows} == set(SENTENCES)


def test_texts_that_tell_no_language_are_refused_and_few_count_as_the_commonest(tmp_path):
    rows = [labelled.Text(b"", one, "") for one in ("12 34", text("de", "good", 1), "???")]
    assert labelled.named_languages(rows) == ["de", "de", "de"]
    with pytest.raises(UserError, match="the language of none of 1 texts is known"):
        labelled.named_languages(rows[:1])


def test_a_classifier_that_does_not_say_its_languages_is_refused(tmp_path):
    Classifier(["quality"], np.zeros((1 << 18, 1), np.float32), np.zeros(1, np.float32)).save(tmp_path / "q.npz")
    pages = warc(tmp_path / "p.warc.gz", ["one"])
    settings = AnnotationsConfig(quality_classifier=str(tmp_path / "q.npz"))
    with pytest.raises(UserError, match="does not name the languages that it knows; train the classifier again"):
        annotate([(pages, "web")], tmp_path / "out", settings, workers=1)
