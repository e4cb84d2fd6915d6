import json
import random
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from groundup.cli import app
from groundup.core.errors import UserError
from groundup.core.locks import alone
from groundup.report import vocabulary_page
from groundup.scaling import vocabulary_sweep, vocabulary_trial
from groundup.scaling.vocabulary_trial import flop_per_token
from groundup.tokenizer import documents
from groundup.tokenizer.bpe import count_pretokens, train
from groundup.tokenizer.sample import LONGEST_PART, Document, sample
from groundup.tokenizer.tokenizer import Tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "<script>", "漢字", "12"]


def write(path, texts, **columns):
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), **columns}), path, row_group_size=7)
    return path


def some_texts(count, seed=0):
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(WORDS, k=chosen.randrange(20, 60))) + f" {number}" for number in range(count)]


def drawn(path, max_bytes, seed=0):
    return [document.text for document in sample(documents.find([path]), max_bytes, seed)]


def test_a_sample_hangs_on_texts_and_seed_only(tmp_path):
    texts = some_texts(40)
    shuffled = random.Random(1).sample([*texts, *texts[:10]], 50)
    first = drawn(write(tmp_path / "a.parquet", texts), 3000)
    assert first == drawn(write(tmp_path / "b.parquet", shuffled), 3000)
    assert 2500 < sum(len(text.encode()) for text in first) <= 3000
    assert drawn(tmp_path / "a.parquet", 1000) == first[: len(drawn(tmp_path / "a.parquet", 1000))]
    assert first != drawn(tmp_path / "a.parquet", 3000, seed=1)
    assert sorted(drawn(tmp_path / "a.parquet", 10**6)) == sorted(texts)


def test_a_long_text_is_sampled_in_parts(tmp_path):
    text = "a line of text\n" * 20_000
    (tmp_path / "book.txt").write_text(text[:-1] + " and its end")
    parts = drawn(tmp_path / "book.txt", 10**7)
    assert max(map(len, parts)) <= LONGEST_PART
    assert {part[-1] for part in parts} == {"\n", "d"}
    with pytest.raises(UserError, match="no text"):
        drawn(write(tmp_path / "empty.parquet", [""]), 1000)


def test_annotations_come_with_documents(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "language": "de", "split": "held_out"}\n{"text": "y", "domain": "web"}\n')
    found = sorted(sample(documents.find([path]), 100), key=lambda document: document.text)
    assert found == [Document("x", "a", "de", "held_out"), Document("y", "web", "", "")]
    assert [texts.to_pylist() for texts, _ in documents.read(documents.find([path])[0], "held_out")] == [["x", "y"]]


def some_documents(count, split=""):
    return [Document(text, "web", "en", split) for text in some_texts(count)]


def test_documents_are_held_out_by_their_own_split_or_the_first():
    found = vocabulary_sweep.split(some_documents(40), 500)
    sizes = [document.size for document in found if document.split == "held_out"]
    assert sum(sizes[:-1]) < 500 <= sum(sizes)
    assert [document.text for document in found] == [document.text for document in some_documents(40)]
    mixed = [*some_documents(10, "train"), *some_documents(5, "held_out"), *some_documents(2, "other")]
    assert [document.split for document in vocabulary_sweep.split(mixed, 10**6)] == ["held_out"] * 5 + ["train"] * 10
    other = vocabulary_sweep.split(some_documents(40, "train") + some_documents(40, "test"), 500)
    assert len(other) == 40
    small = vocabulary_sweep.split(some_documents(40), 10**6)
    assert sum(d.size for d in small if d.split == "held_out") < 0.25 * sum(d.size for d in small)
    one_held_out = [*some_documents(20, "train"), *some_documents(1, "held_out")]
    for few in (some_documents(9), one_held_out, some_documents(20, "held_out")):
        with pytest.raises(UserError, match="too few"):
            vocabulary_sweep.split(few, 10**6)


def test_a_small_vocabulary_is_the_beginning_of_a_large_one():
    counts = count_pretokens(some_texts(50))
    assert train(counts, 280) == train(counts, 310)[:20]


def test_operations_of_a_token():
    # Depth 1, width 64: queries, keys, values and output 4 x 64 x 64; MLP 3 x 64 x 192; two norms a block, one after it,
    # and one of 64 for queries and for keys; the head 64 x 300. Attention 12 x 64 x 16.
    parameters = 4 * 64 * 64 + 3 * 64 * 192 + 3 * 64 + 2 * 64 + 64 * 300
    assert flop_per_token(1, 300, 16) == 6 * parameters + 12 * 64 * 16


def test_paired_difference():
    generator = np.random.default_rng(0)
    sizes = generator.integers(50, 500, 400)
    nats = 0.01 * sizes + generator.normal(0, 1, 400)
    difference, error = vocabulary_sweep.paired_difference(nats, sizes)
    assert difference == pytest.approx(0.01 / np.log(2), rel=0.1)
    chosen = generator.integers(400, size=(4000, 400))
    resampled = nats[chosen].sum(1) / sizes[chosen].sum(1) / np.log(2)
    assert error == pytest.approx(resampled.std(), rel=0.05)
    assert vocabulary_sweep.paired_difference(np.zeros(3), sizes[:3]) == (0, 0)


def result(vocabulary, nats, sizes):
    return {"vocabulary": vocabulary, "nats": nats.tolist(), "bits_per_byte": {"all": nats.sum() / sizes.sum() / np.log(2)}}


def test_the_smallest_within_the_noise_is_recommended():
    sizes = np.full(100, 1000)
    noise = np.random.default_rng(0).normal(0, 20, 100)
    noise -= noise.mean()
    best = np.full(100, 700.0)
    rows = [(512, best + 50 + noise), (1024, best + 1 + noise), (2048, best)]
    found = vocabulary_sweep.verdict([result(size, nats, sizes) for size, nats in rows], sizes)
    assert found["recommended"] == 1024
    assert [row["as_good"] for row in found["sizes"]] == [False, True, True]
    assert "2048" in found["reason"] and "within" in found["reason"] and "try larger" in found["reason"]
    # What is common to all models is no noise: the comparison is paired.
    found = vocabulary_sweep.verdict([result(512, best + 9 * noise + 1, sizes), result(1024, best + 9 * noise, sizes)], sizes)
    assert found["recommended"] == 1024
    assert "nats" not in found["sizes"][0]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(vocabulary_trial, "BATCH_TOKENS", 256)
    write(tmp_path / "a.parquet", some_texts(60), language=pa.array(["en", "de"] * 30))
    return {"inputs": [tmp_path / "a.parquet"], "depth": 1, "tokens": 3000, "context": 16, "workers": 1}


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_sweep(tiny, tmp_path):
    found = vocabulary_sweep.sweep(sizes=[290, 270], out=tmp_path / "out", **tiny)
    assert [row["vocabulary"] for row in found["sizes"]] == [270, 290]
    step = flop_per_token(1, 290, 16) * 256
    assert all(abs(row["flop"] - found["flop"]) <= step / 2 for row in found["sizes"])
    for row in found["sizes"]:
        assert row["bytes_per_token"]["language"].keys() == {"de", "en"}
        assert row["bits_per_byte"]["domain"].keys() == {"a"}
        assert 0 < row["bits_per_byte"]["all"] < 9
        assert row["vocabulary_share"] == 2 * row["vocabulary"] * 64 / row["parameters"]
    assert found["recommended"] in (270, 290)
    assert Tokenizer.load(tmp_path / "out" / "270").merges == Tokenizer.load(tmp_path / "out" / "290").merges[:10]
    page = vocabulary_page.write(tmp_path / "out", found).read_text()
    assert "<svg" in page and not re.search(r"""(src|href)=["'](?!#)|<script|<link|url\((?!#)""", page)

    # Killed while the second size was training, and once more after it: the same bytes.
    before = files(tmp_path / "out")
    for path in ("290/result.json", "290/model.safetensors", "sweep.json"):
        (tmp_path / "out" / path).unlink()
    again = vocabulary_sweep.sweep(sizes=[270, 290], out=tmp_path / "out", **tiny)
    assert again == found
    assert files(tmp_path / "out") == before

    assert len(vocabulary_sweep.sweep(sizes=[270, 280, 290], out=tmp_path / "out", **tiny)["sizes"]) == 3
    with pytest.raises(UserError, match=r"other settings .*seed 0, now 1"):
        vocabulary_sweep.sweep(sizes=[270], out=tmp_path / "out", seed=1, **tiny)


def test_bad_sizes_are_one_line(tiny, tmp_path):
    with pytest.raises(UserError, match="give more tokens"):
        vocabulary_sweep.sweep(sizes=[270, 2000], out=tmp_path / "out", **tiny)
    with pytest.raises(UserError, match="too small"):
        vocabulary_sweep.sweep(sizes=[259, 300], out=tmp_path / "out", **tiny)
    with pytest.raises(UserError, match=r"pairs for .* tokens only"):
        vocabulary_sweep.sweep(sizes=[270, 900], out=tmp_path / "out2", **tiny | {"tokens": 20_000})
    with pytest.raises(UserError, match="sizes 'a,b'"):
        vocabulary_sweep.parse_sizes("a,b")
    assert vocabulary_sweep.parse_sizes("512,1024") == [512, 1024]
    ran = CliRunner().invoke(app, ["tokenizer", "sweep", str(tmp_path / "missing"), "--out", str(tmp_path / "o")])
    assert isinstance(ran.exception, UserError)


def test_a_sweep_that_was_refused_needs_no_other_folder(tiny, tmp_path):
    write(tmp_path / "few.parquet", some_texts(5))
    with pytest.raises(UserError, match="documents"):
        vocabulary_sweep.sweep(sizes=[270], out=tmp_path / "out", **tiny | {"inputs": [tmp_path / "few.parquet"]})
    with alone(tmp_path / "out"), pytest.raises(UserError, match="another groundup run is working there"):
        vocabulary_sweep.sweep(sizes=[270], out=tmp_path / "out", **tiny)
    assert vocabulary_sweep.sweep(sizes=[270], out=tmp_path / "out", **tiny)["recommended"] == 270


def test_the_last_line_is_json(tiny, tmp_path):
    words = ["tokenizer", "sweep", str(tiny["inputs"][0]), "--out", str(tmp_path / "o"), "--sizes", "262"]
    ran = CliRunner().invoke(app, [*words, "--depth", "1", "--tokens", "3000", "--context-length", "16", "--workers", "1"])
    assert ran.exception is None
    assert json.loads(ran.stdout.splitlines()[-1])["recommended"] == 262
