import bz2
import gzip
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.core.errors import UserError
from groundup.data.file_kinds import files_of
from groundup.data.readers import Refused
from groundup.tokenizer import documents
from groundup.tokenizer.encode import encode_corpus
from groundup.tokenizer.train import train_bpe, train_plain

TEXTS = [f"the {number}th cat sat on a mat, für 漢字 {number * 7}" for number in range(60)]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)


def zstd(content):
    return pa.compress(content, "zstd", asbytes=True)


WRAPPED = {
    "a.jsonl.gz": gzip.compress(LINES.encode()),
    "a.json.gz": gzip.compress(LINES.encode()),
    "a.jsonl.zst": zstd(LINES.encode()),
    "a.jsonl.bz2": bz2.compress(LINES.encode()),
    "a.jsonl.xz": lzma.compress(LINES.encode()),
    "a.ndjson": LINES.encode("utf-8-sig"),
    "a.jsonl": gzip.compress(LINES.encode()),
    "a.json": json.dumps([{"text": text} for text in TEXTS], indent=1).encode(),
    "a": LINES.encode("utf-16"),
    "a.tsv": ("text\n" + "\n".join(TEXTS)).encode(),
    "a.csv": ("id,text\n" + "\n".join(f'1,"{text}"' for text in TEXTS)).encode("utf-16"),
}


def made(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    (folder / "a.jsonl").write_text(LINES)
    train_bpe([folder / "a.jsonl"], folder / "out", 300, workers=1)
    train_plain("characters", [folder / "a.jsonl"], folder / "characters", 300)
    encode_corpus(folder / "out", [folder / "a.jsonl"], folder / "tokens" / "all", workers=1)
    return folder


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_files_give_the_tokenizer_and_tokens_of_the_plain_one(tmp_path, plain, name):
    (tmp_path / name).write_bytes(WRAPPED[name])
    train_bpe([tmp_path / name], tmp_path / "out", 300, workers=1)
    assert made(tmp_path / "out") == made(plain / "out")
    train_plain("characters", [tmp_path / name], tmp_path / "characters", 300)
    assert made(tmp_path / "characters") == made(plain / "characters")
    encode_corpus(plain / "out", [tmp_path / name], tmp_path / "tokens" / "all", workers=1)
    assert made(tmp_path / "tokens") == made(plain / "tokens")


def test_any_number_of_workers_gives_the_same_tokenizer_of_compressed_files(tmp_path, capfd):
    for number in range(4):
        lines = "".join(LINES.splitlines(True)[number::4]) + '{"text": \n'
        (tmp_path / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for workers in (1, 3):
        train_bpe([tmp_path], tmp_path / f"out-{workers}", 300, workers=workers)
        said = capfd.readouterr().err
        assert f"passed over: not a JSON object: 4; first {tmp_path / '0.jsonl.gz'}: line 16" in said
    assert made(tmp_path / "out-1") == made(tmp_path / "out-3")


def test_a_folder_is_its_texts_and_the_rest_is_named(tmp_path, capsys):
    folder = tmp_path / "all"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jsonl").write_text(LINES)
    (folder / "deep" / "b.rst").write_text("text")
    (folder / "c.txt").write_bytes(b"%PDF-1.4")
    (folder / "d.json").write_text('{"model": 1}')
    pq.write_table(pa.table({"text": [["a"]]}), folder / "e.parquet")
    for name in ("f.pdf", "._x.parquet", ".DS_Store", "_SUCCESS"):
        (folder / name).write_bytes(b"\0")
    os.mkfifo(folder / "g.jsonl")
    assert files_of(folder, documents.ENDINGS)[1] == ["f.pdf", "g.jsonl"]
    shards = documents.find([folder])
    assert [shard.path.name for shard in shards] == ["a.jsonl", "b.rst"]
    said = capsys.readouterr().err
    named = ("1 .pdf: f.pdf", "1 .jsonl: g.jsonl", "c.txt: a PDF", "d.json: no column 'text', it has model", "'text' is list")
    assert all(words in said for words in named)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet", "a"])
def test_pipes_are_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="a pipe, socket or device"):
        train_bpe([tmp_path / name], tmp_path / "out", 300)


def test_a_run_without_a_corpus_is_no_folder_of_texts(tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "stage.json").write_text("{}")
    with pytest.raises(UserError, match="a run without a finished corpus"):
        documents.find([tmp_path])


def test_a_domain_of_another_type_is_the_files_name(tmp_path):
    columns = {"text": ["x"], "domain": [["a", "b"]], "split": pa.array(["train"]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "x", "domain": ["a"], "split": None}))
    for name, split in (("a.parquet", "train"), ("b.jsonl", "")):
        (batch,) = documents.read_annotated(documents.find([tmp_path / name])[0], "train")
        assert batch.to_pylist() == [{"text": "x", "domain": name[0], "language": "", "split": split}]


def test_a_folder_of_files_is_one_domain_and_a_file_by_itself_another(tmp_path):
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    for name in ("1.md", "2.md", "deep/3.txt"):
        (tmp_path / "notes" / name).write_text(f"Note {name} of today. " * 20)
    (tmp_path / "notes" / "part-0.jsonl").write_text('{"text": "stated", "domain": "web"}\n{"text": "not stated"}\n')
    of_folder = train_bpe([tmp_path / "notes"], tmp_path / "out", 300)
    assert of_folder["bytes"].keys() == {"notes", "web"}
    # The counts of the folder's file are not those of the file by itself, which has another domain.
    (tmp_path / "out" / "tokenizer.json").unlink()
    assert train_bpe([tmp_path / "notes" / "1.md"], tmp_path / "out", 300)["bytes"].keys() == {"1"}


def test_the_same_bytes_under_another_name_are_not_taken_for_what_was_counted(tmp_path):
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_text(LINES)
    first, second = (documents.find([tmp_path / name])[0].name for name in ("a.jsonl", "a.txt"))
    assert first != second
    (tmp_path / ("n" * 240 + ".jsonl")).write_text(LINES)
    train_bpe([tmp_path / ("n" * 240 + ".jsonl")], tmp_path / "out", 300, workers=1)


def test_of_many_files_that_cannot_be_read_ten_are_named_and_all_counted(tmp_path, capsys):
    for number in range(14):
        (tmp_path / f"{number}.json").write_text("{}")
    (tmp_path / "z.jsonl").write_text(LINES)
    assert len(documents.find([tmp_path])) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 11 and said[-1] == "  skipped 4 more files that cannot be read"


def test_rows_without_a_split_are_of_every_split_however_the_file_writes_none(tmp_path):
    (tmp_path / "a.csv").write_text("text,split\none,train\ntwo,\nthree,test\n")
    rows = [{"text": "one", "split": "train"}, {"text": "two", "split": ""}, {"text": "four"}, {"text": "three", "split": "test"}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, expected in (("a.csv", ["one", "two"]), ("b.jsonl", ["one", "two", "four"])):
        shards = documents.find([tmp_path / name])
        assert list(documents.texts(shards, "train")) == expected
        assert [row["text"] for row in documents.read_sides(shards, "train", 0.0, Refused())] == expected
