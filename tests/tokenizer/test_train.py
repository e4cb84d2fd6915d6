import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.core.errors import UserError
from groundup.data import readers
from groundup.data.token_files import TokenFile
from groundup.tokenizer import documents, encode, train
from groundup.tokenizer.bpe import train as merges_of
from groundup.tokenizer.counts import Counts, count_pretokens
from groundup.tokenizer.encode import choose, encode_corpus
from groundup.tokenizer.load import load
from groundup.tokenizer.patterns import PATTERNS
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import parse_weights, train_bpe, train_plain

WORDS = ["the", "cat", "sat", "on", "a", "mat", "漢字", "🙂", "return x", "\n    if 12345:", "don't"]


def some_documents(count=60, seed=0):
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(WORDS, k=chosen.randrange(30))) for _ in range(count)]


def write_parquet(path, texts, rows_a_group=25, **columns):
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), **columns}), path, row_group_size=rows_a_group)
    return path


def write_jsonl(path, texts, **common):
    path.write_text("".join(json.dumps({"text": text, **common}) + "\n" for text in texts))
    return path


def read_all(path, split=None):
    return [text for shard in documents.find([path]) for texts, _ in documents.read(shard, split) for text in texts.to_pylist()]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(documents, "SHARD_BYTES", 700)
    monkeypatch.setattr(readers, "BATCH_BYTES", 300)
    monkeypatch.setattr(readers, "BATCH_ROWS", 4)


def tokenizer_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_every_document_is_read_once_and_in_order(tmp_path):
    texts = some_documents()
    for path in (write_parquet(tmp_path / "a.parquet", texts), write_jsonl(tmp_path / "b.jsonl", texts)):
        assert len(documents.find([path])) > 4
        assert read_all(path) == texts
    assert read_all(tmp_path) == texts * 2
    (tmp_path / "c.md").write_bytes(b"caf\xc3\xa9 \xff\n")
    assert read_all(tmp_path / "c.md") == ["café \ufffd\n"]
    for size in range(1, 90):  # wherever a shard ends: before, in and after a line
        documents.SHARD_BYTES = size
        assert read_all(write_jsonl(tmp_path / "d.jsonl", ["ab", "", "cde"])) == ["ab", "", "cde"]


def test_splits_domains_nulls_and_bytes_that_are_not_utf8(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["x", None, "z"], domain=["p", "q", None], split=["train", "train", "held_out"])
    (shard,) = documents.find([path])
    ((texts, domains),) = documents.read(shard)
    assert texts.to_pylist() == ["x", "z"] and domains.to_pylist() == ["p", "a"]
    assert read_all(path, "held_out") == ["z"] and read_all(path, "train") == ["x"]
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 3], np.int32)), pa.py_buffer(b"a\xffb")])
    pq.write_table(pa.table({"text": broken}), path)
    assert read_all(path) == ["a\ufffdb"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": 3}\n{"text"\n', r"no text in .* \(no text: 1, not a JSON object: 1; first .*a.jsonl: row 1"),
        ("a.jsonl", b'{"txt": "x"}\n', "no column 'text', it has txt"),
        ("a.jsonl", b"[1]\n", "no text in .*not a JSON object: 1"),
        ("a.parquet", b"PAR1", "not a Parquet file"),
        ("a.txt", b"%PDF-1.7", "a PDF"),
        ("a.zip", b"PK\x03\x04", "a zip archive"),
        ("a.jsonl", b"", "no text in"),
        ("a.txt", b"", "no text in"),
        ("a.txt", b"ACGT" * 5000, "over 16 KB are left out"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        train_bpe([tmp_path / name], tmp_path / "out", 300)


def test_missing_inputs_and_columns(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        documents.find([tmp_path / "x"])
    with pytest.raises(UserError, match="no corpus and no"):
        documents.find([tmp_path])
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'text', it has body"):
        documents.find([tmp_path])


def test_a_corpus_folder_and_a_run_folder_are_their_documents(tmp_path):
    (tmp_path / "corpus").mkdir()
    path = write_parquet(tmp_path / "corpus" / "documents.parquet", ["x", "y"], split=["train", "held_out"])
    for given in (tmp_path, tmp_path / "corpus"):
        assert [shard.path for shard in documents.find([given])] == [path]
    result = train_bpe([tmp_path], tmp_path / "out", 300)
    assert result["distinct"] == 1  # held-out documents are not learned from


@pytest.mark.parametrize("name", PATTERNS)
def test_training_from_files_is_training_from_texts(tmp_path, name):
    texts = some_documents()
    result = train_bpe([write_parquet(tmp_path / "a.parquet", texts)], tmp_path / "out", 290, name, workers=1)
    expected = merges_of(count_pretokens(texts, PATTERNS[name]), 290)
    loaded = Tokenizer.load(tmp_path / "out")
    assert loaded.merges == expected and loaded.pattern is PATTERNS[name]
    assert result["vocabulary"] == 290 and result["bytes"] == {"a": sum(len(text.encode()) for text in texts)}


def test_any_order_format_and_number_of_workers_give_the_same_files(tmp_path):
    texts = some_documents()
    shuffled = random.Random(1).sample(texts, len(texts))
    train_bpe([write_parquet(tmp_path / "a.parquet", texts)], tmp_path / "one", 290, workers=1)
    train_bpe([write_parquet(tmp_path / "b.parquet", shuffled, 9)], tmp_path / "two", 290, workers=2)
    half = [write_jsonl(tmp_path / "c.jsonl", shuffled[30:]), write_parquet(tmp_path / "d.parquet", shuffled[:30])]
    train_bpe(half, tmp_path / "five", 290, workers=5)
    assert tokenizer_files(tmp_path / "one") == tokenizer_files(tmp_path / "two") == tokenizer_files(tmp_path / "five")


def test_a_killed_count_continues_with_what_is_counted(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", some_documents())
    train_bpe([path], tmp_path / "whole", 290, workers=1)
    done = []

    def dies_at_the_third(*job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job)
        return counted(*job)

    counted = train.count_shard
    monkeypatch.setattr(train, "count_shard", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        train_bpe([path], tmp_path / "cut", 290, workers=1)
    again = []
    monkeypatch.setattr(train, "count_shard", lambda *job: (again.append(job), counted(*job))[1])
    train_bpe([path], tmp_path / "cut", 290, workers=1)
    assert len(again) == len(documents.find([path])) - 2
    assert tokenizer_files(tmp_path / "cut") == tokenizer_files(tmp_path / "whole")
    again.clear()
    train_bpe([path], tmp_path / "cut", 300, workers=1)  # another vocabulary needs no counting
    assert not again


def test_weights_make_the_shares_of_the_domains(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["aa " * 100, "bb"], domain=["large", "small"])
    by_domain = train.count_inputs([path], tmp_path / "counts", PATTERNS["qwen2"], 1)
    sizes = train.mix(by_domain, {"large": 1, "small": 3}).as_dict()
    small = sum(len(key) * number for key, number in sizes.items() if b"b" in key)
    assert small == pytest.approx(3 * sum(len(key) * number for key, number in sizes.items() if b"b" not in key), rel=0.01)
    assert set(train.mix(by_domain, {"small": 1}).as_dict()) == {b"bb"}
    with pytest.raises(UserError, match="no text of domain 'smal' to weigh; there is: large, small"):
        train.mix(by_domain, {"smal": 1})
    for far in ({"large": 1e300, "small": 1e-300}, {"large": 1.0, "small": 5e-324}, {"large": 1e-4, "small": 1e12}):
        with pytest.raises(UserError, match="times as often"):
            train.mix(by_domain, far)
    assert parse_weights(["a=0.5", "b=2", "lang=en=3"]) == {"a": 0.5, "b": 2.0, "lang=en": 3.0}
    for wrong in ("a", "a=x", "a=0", "a=-1", "a=inf", "a=nan"):
        with pytest.raises(UserError, match="expected DOMAIN=SHARE"):
            parse_weights([wrong])


def test_a_memory_bound_prunes_and_says_what_is_lost(tmp_path, capsys):
    path = write_parquet(tmp_path / "a.parquet", some_documents())
    result = train_bpe([path], tmp_path / "out", 280, workers=1, memory=3000)
    assert 0 < result["left_out"]["occurrences"] < result["left_out"]["of"] and result["distinct"] > 0
    assert "rare or overlong pre-tokens left out" in capsys.readouterr().err


def test_counts_of_files_beyond_32_bits(tmp_path, monkeypatch):
    big = Counts.of({b"ab": 2**31 - 1, b"cd": 2**31 - 2})
    monkeypatch.setattr(train.Tally, "counts", lambda self: big)
    path = write_parquet(tmp_path / "a.parquet", ["x", "y", "z"], 1)
    total = train.mix(train.count_inputs([path], tmp_path / "counts", PATTERNS["qwen2"], 1), {})
    assert total.as_dict() == {b"ab": 3 * (2**31 - 1), b"cd": 3 * (2**31 - 2)}
    assert merges_of(total, 262) == [(b"a", b"b"), (b"c", b"d")]


def test_a_corpus_is_encoded_document_by_document(tmp_path, monkeypatch):
    texts = [*some_documents(), "", "<|im_end|>"]
    path = write_parquet(tmp_path / "a.parquet", texts)
    train_bpe([path], tmp_path / "tokenizer", 290, workers=1)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    result = encode_corpus(tmp_path / "tokenizer", [path], tmp_path / "one" / "all", workers=1)
    file = TokenFile(tmp_path / "one" / "all")
    assert [file[i].tolist() for i in range(len(file))] == [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in texts]
    assert result["documents"] == len(texts) and result["bytes"] == sum(len(text.encode()) for text in texts)
    assert result["same_as_tokenizers"] is True
    assert sorted(found.name for found in (tmp_path / "one").iterdir()) == ["all.bin", "all.idx"]

    encode_corpus(tmp_path / "tokenizer", [path], tmp_path / "two" / "all", workers=2)
    done, encoded = [], encode.encode_shard

    def dies_at_the_third(*job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job)
        return encoded(*job)

    monkeypatch.setattr(encode, "encode_shard", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(tmp_path / "tokenizer", [path], tmp_path / "cut" / "all", workers=1)
    monkeypatch.setattr(encode, "encode_shard", encoded)
    encode_corpus(tmp_path / "tokenizer", [path], tmp_path / "cut" / "all", workers=1)
    assert tokenizer_files(tmp_path / "one") == tokenizer_files(tmp_path / "two") == tokenizer_files(tmp_path / "cut")
    (tmp_path / "one" / "all.parts").mkdir()
    (tmp_path / "one" / "all.parts" / "chapter.txt").write_text("mine")
    with pytest.raises(UserError, match=r"all\.parts: holds chapter\.txt, which is not ours"):
        encode_corpus(tmp_path / "tokenizer", [path], tmp_path / "one" / "all", workers=1)
    assert (tmp_path / "one" / "all.parts" / "chapter.txt").read_text() == "mine"
    with pytest.raises(UserError, match="no documents of split 'test'"):
        encode_corpus(tmp_path / "tokenizer", [write_jsonl(tmp_path / "b.jsonl", ["x"], split="train")], tmp_path / "x", "test")


def test_another_library_is_used_only_when_it_gives_our_ids(monkeypatch):
    tokenizer = Tokenizer.from_merges(merges_of(count_pretokens(some_documents()), 290))
    monkeypatch.setattr(encode, "_gigatoken", lambda tokenizer: tokenizer.encode_batch)
    assert choose(tokenizer, ["a cat"]) == ("gigatoken", "the same ids as tiktoken on 8 texts")
    monkeypatch.setattr(encode, "_gigatoken", lambda tokenizer: lambda texts: [np.array([1])] * len(texts))
    assert choose(tokenizer, ["a cat"]) == ("tiktoken", "gigatoken gives other ids on a sample")

    def broken(tokenizer):
        raise ValueError("unknown pattern")

    monkeypatch.setattr(encode, "_gigatoken", broken)
    assert choose(tokenizer, ["a cat"]) == ("tiktoken", "gigatoken fails (unknown pattern)")


@pytest.mark.parametrize("kind", ["wordpiece", "characters", "bytes"])
def test_other_kinds_are_trained_from_files_and_open_again(tmp_path, kind):
    path = write_jsonl(tmp_path / "texts.jsonl", some_documents())
    told = train_plain(kind, [path], tmp_path / "tokenizer", 300)
    tokenizer = load(tmp_path / "tokenizer")
    assert told["vocabulary"] == tokenizer.size <= 300
    assert tokenizer.decode(tokenizer.encode("the cat sat")) == "the cat sat"


@pytest.mark.parametrize("kind", ["wordpiece", "characters"])
def test_other_kinds_are_not_trained_from_nothing(tmp_path, kind):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="no text in"):
        train_plain(kind, [tmp_path / "empty.txt"], tmp_path / "tokenizer", 300)
    assert not (tmp_path / "tokenizer").exists()


def test_no_rule_is_said_to_be_read_by_llama_cpp():
    """Its converter refuses a vocabulary that it does not know by its hash, and knows none that was trained here."""
    for pattern in PATTERNS.values():
        assert "llama.cpp" not in pattern.compatibility or "its converter refuses" in " ".join(pattern.compatibility.split())
        assert "Hugging Face" in pattern.compatibility
