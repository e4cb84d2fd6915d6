import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.core.words import split
from groundup.corpus.dedup.decontamination import contains_benchmark, contamination, read_benchmarks


def sentences(seed, count):
    generator = np.random.default_rng(seed)
    return " ".join(f"w{number}" for number in generator.integers(0, 5000, count))


def test_contamination_in_both_directions():
    held = sentences(1, 200)
    words = held.split()
    excerpt = " ".join(words[50:100])
    quoting = f"{sentences(2, 1000)} {held} {sentences(3, 1000)}"
    half = " ".join(words[:106]) + " " + sentences(4, 3000)
    other = sentences(5, 200)
    overlaps = list(contamination([sentences(9, 50), held], [excerpt, quoting, half, other]))
    assert overlaps[0] == (1.0, 1)
    assert overlaps[1] == (1.0, 1)
    assert overlaps[2] == (94 / 188, 1)
    assert overlaps[3] == (0.0, -1)


def test_contamination_leaves_boilerplate_out():
    licence = sentences(1, 60)
    held = [f"{licence} {sentences(2, 60)}"]
    train = [f"{licence} {sentences(seed, 60)}" for seed in range(10, 40)]
    assert all(share == 0 for share, _ in contamination(held, train))
    assert all(share > 0.4 for share, _ in contamination(held, train[:5]))


def test_contamination_without_text():
    assert list(contamination([], ["a b c"])) == [(0.0, -1)]
    assert list(contamination(["a b c"], ["", "A, b. c!"])) == [(0.0, -1), (1.0, 0)]


def test_a_held_out_text_is_found_beside_its_translation():
    """Most of the page is in another script than the text, so its own n-grams have another length than the text's."""
    generator = np.random.default_rng(7)
    chinese = "".join(chr(0x4E00 + number) for number in generator.integers(0, 3000, 300))
    english, short = sentences(1, 600), sentences(2, 60)
    pages = [f"{chinese}\n\n{english}", f"{short}\n\n{chinese}", chinese, english, short]
    for held in pages:
        found = [share > 0.3 for share, _ in contamination([sentences(3, 90), held], pages)]
        assert found == [any(text in held and text in page for text in (chinese, english, short)) for page in pages]


@given(st.lists(st.text("aあ อ", min_size=1, max_size=12), min_size=2, max_size=6), st.integers(1, 4))
def test_overlaps_are_those_of_a_search_through_all_pairs(texts, n):
    held, train = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    lengths = {text: n * split(text).per_word for text in held}

    def grams(text, length):
        units = split(text).hashes.tolist()
        length = min(length, len(units))
        return {tuple(units[start : start + length]) for start in range(len(units) - length + 1)} if length else set()

    def overlap(text, other, length):
        ours, theirs = grams(text, length), grams(other, lengths[other])
        return len(ours & theirs) / max(1, min(len(ours), len(theirs)))

    expected = [max(overlap(text, other, length) for other in held for length in lengths.values()) for text in train]
    assert [share for share, _ in contamination(held, train, n)] == expected


QUESTION = "Which of the following bodies of the solar system has the greatest mass of all?"
ROW = {"question": QUESTION, "choices": ["Sun", "Moon", "Mars"], "answer": 0}


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "txt", "parquet"])
def test_benchmark_files(tmp_path, kind):
    path = tmp_path / f"exam.{kind}"
    rows = {
        "jsonl": json.dumps({"question": "How?"}) + "\n" + json.dumps(ROW) + "\n\n",
        "csv": f'How?\n"{QUESTION}",Sun,Moon,Mars\n',
        "txt": f"How?\n\n{QUESTION}\nSun\n",
    }
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{**ROW, "question": "How?", "choices": []}, ROW]), path)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(rows["jsonl"].encode()))
    else:
        path.write_text(rows[kind])
    benchmarks = read_benchmarks([path])
    leaked = f"{sentences(1, 40)} WHICH of the following -- bodies of the solar system has the greatest mass {sentences(2, 9)}"
    named, found = contains_benchmark([sentences(3, 50), leaked], benchmarks)
    assert named == [None, f"{path}:2"]
    assert found == [{"file": str(path), "examples": 1, "found": 1, "too_short": 1}]


def test_short_examples_are_one_ngram_and_frequent_ones_count_for_nothing(tmp_path):
    path = tmp_path / "exam.txt"
    path.write_text("one two three four five six seven eight nine\n\na licence that is on every page of the site here")
    benchmarks = read_benchmarks([path])
    licence = "a licence that is on every page of the site here"
    texts = [f"{licence} {sentences(seed, 20)}" for seed in range(12)]
    texts.append("Zero one two three four five six seven eight nine ten")
    named, found = contains_benchmark(texts, benchmarks)
    assert named == [None] * 12 + [f"{path}:1"]
    assert (found[0]["examples"], found[0]["found"]) == (2, 1)
    assert contains_benchmark(texts[:10], benchmarks)[0] == [f"{path}:2"] * 10


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), min_size=8, max_size=30))
def test_a_document_is_named_exactly_when_it_holds_a_run_of_an_example(tmp_path_factory, document, example):
    path = tmp_path_factory.mktemp("exam") / "exam.txt"
    path.write_text(" ".join(f"w{number}" for number in example))
    n = min(13, len(example))
    runs = {tuple(example[place : place + n]) for place in range(len(example) - n + 1)}
    holds = any(tuple(document[place : place + n]) in runs for place in range(len(document) - n + 1))
    text = " ".join(f"w{number}" for number in document)
    assert (contains_benchmark([text], read_benchmarks([path]))[0] == [None]) != holds


def test_no_benchmarks():
    assert contains_benchmark(["a b c"], read_benchmarks([])) == ([None], [])


@pytest.mark.parametrize(
    "name,content",
    [("a.jsonl", "{"), ("a.parquet", "x"), ("a.jsonl.gz", "x"), ("a.pdf", "%PDF-1.7"),
     ("a.csv", 'q,a\n"never closed,b\n'), ("a.txt", "<!DOCTYPE html>\n<p>Not Found")],
)  # fmt: skip
def test_files_that_cannot_be_read_are_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name}: (a damaged benchmark file|not a Parquet file|a PDF|a web page)"):
        read_benchmarks([tmp_path / name])
    with pytest.raises(UserError, match="no such file"):
        read_benchmarks([tmp_path / f"no-{name}"])


def test_benchmarks_are_told_by_their_content(tmp_path):
    row = json.dumps({"question": QUESTION, "deep": [["Sun"], {"a": "Moon"}]}) + "\n"
    wrapped = {
        "a.jsonl.zst": pa.compress(row.encode(), "zstd", asbytes=True), "b.json": f"[{row}]".encode(), "c": row.encode("utf-16"),
        "d.csv": f"\ufeff{QUESTION},Sun,Moon\n".encode(), "e.txt": gzip.compress(f"{QUESTION}\nSun\nMoon".encode()),
    }  # fmt: skip
    for name, content in wrapped.items():
        (tmp_path / name).write_bytes(content)
    benchmarks = read_benchmarks([tmp_path / name for name in wrapped])
    assert len(benchmarks.examples) == len(wrapped)
    grams = [set(np.flatnonzero([file in owners for owners in np.split(benchmarks.owners, benchmarks.starts[1:-1])]))
             for file in range(len(wrapped))]  # fmt: skip
    assert all(found == grams[0] for found in grams)


def test_one_bad_row_of_a_benchmark_is_not_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "' + "word " * 20 + '"}\n{"question": \n')
    with pytest.raises(UserError, match=r"damaged benchmark file \(not a JSON object: 1; first .*line 2"):
        read_benchmarks([tmp_path / "a.jsonl"])
