"""Bad files of rows, by every reader of a command: one clear line that names the file, or counted drops that name the row."""

import gzip
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.core.errors import UserError
from groundup.corpus.acquire.sources import collect
from groundup.corpus.archive.warc import Losses, read_pages
from groundup.corpus.config import SourceConfig
from groundup.data.contracts import read_conversations, read_preferences, read_prompts
from groundup.data.convert import convert
from groundup.data.readers import Refused
from groundup.evaluation.questions import read_questions
from groundup.tokenizer import documents
from groundup.tokenizer.train import train_bpe

ASKED, ANSWER = {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A file."}
ROWS = {  # of each kind a good row, and the column without which it is bad
    "conversations": ({"messages": [ASKED, ANSWER]}, "messages"),
    "alpaca": ({"instruction": "What is it?", "output": "A file."}, "output"),
    "preferences": ({"prompt": "What is it?", "chosen": "A file.", "rejected": "A pipe."}, "rejected"),
    "prompts": ({"prompt": "What is it?"}, "prompt"),
    "convert": ({"prompt": "What is it?", "completion": "A file."}, "completion"),
    "tokenizer": ({"text": "A file is here."}, "text"),
    "corpus": ({"text": "A file is here."}, "text"),
    "questions": ({"question": "What is it?", "choices": ["A file.", "A pipe."], "answer": 0}, "answer"),
}
FLAT = ("alpaca", "preferences", "prompts", "convert", "tokenizer", "corpus")  # rows that CSV can hold


def contract(read):
    def count(path, work):
        found = read([path])
        return len(found.rows), found.dropped.total(), found.dropped.first

    return count


def converted(path, work):
    result = convert([path], work / "out.jsonl")
    return result["rows"], sum(result["dropped"].values()), result["first_dropped"]


def tokenized(path, work):
    refused = Refused()
    found = list(documents.texts(documents.find([path]), refused=refused))
    if not found:
        train_bpe([path], work / "tokenizer", 300, workers=1)
    return len(found), refused.total(), refused.first


def collected(path, work, caplog):
    caplog.set_level("INFO")
    counts = collect(SourceConfig(source=str(path), domain="a"), work, "a", 1.0, "a")
    assert len(list(read_pages(work / "a.warc.gz", Losses()))) == counts["pages"]
    return counts["pages"], sum(counts["refused"].values()), caplog.text


def asked(path, work):
    refused = Refused()
    return len(read_questions([path], refused)), refused.total(), refused.first


READERS = {
    "conversations": contract(read_conversations), "alpaca": contract(read_conversations),
    "preferences": contract(read_preferences), "prompts": contract(read_prompts), "convert": converted,
    "tokenizer": tokenized, "corpus": collected, "questions": asked,
}  # fmt: skip


def line(row, **changes):
    return json.dumps({**row, **changes}).encode() + b"\n"


def table(rows):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def arrow(rows):
    out, made = io.BytesIO(), pa.Table.from_pylist(rows)
    with pa.ipc.new_file(out, made.schema) as file:
        file.write_table(made)
    return out.getvalue()


def as_csv(rows):
    return "\n".join([",".join(rows[0]), *(",".join(f'"{cell}"' for cell in row.values()) for row in rows)]).encode() + b"\n"


def without(row, column):
    return {name: value for name, value in row.items() if name != column} | {"other": "x"}


def packed(content, codec):
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, codec) as stream:
        stream.write(content)
    return out.getvalue().to_pybytes()


def many(row):
    return b"".join(line(row, note=os.urandom(30).hex()) for _ in range(3000))


def first_text(value):
    """A row's value with its first text cut off and replaced."""
    if isinstance(value, str):
        return "\u0001"
    return [{**value[0], "content": "\u0001"}, *value[1:]] if isinstance(value[0], dict) else ["\u0001", *value[1:]]


def with_bytes(row, column, raw):
    return line(row, **{column: first_text(row[column])}).replace(b"\\u0001", raw)


def table_of_none(good):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([good]).slice(0, 0), out)
    return out.getvalue()


ANY = None  # at least one
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
# name -> (content of a good row and its column, good rows, drops); None for both where the file must be refused.
LINES = {
    "empty.jsonl": (lambda good, column: b"", None, None),
    "blank.jsonl": (lambda good, column: b"\n\r\n \n", None, None),
    "missing column.jsonl": (lambda good, column: line(good) + line(without(good, column)), 1, 1),
    "no such column at all.jsonl": (lambda good, column: line(without(good, column)) * 2, None, None),
    "null.jsonl": (lambda good, column: line(good, **{column: None}) + line(good), 1, 1),
    "a number for a text.jsonl": (lambda good, column: line(good) + line(good, **{column: 4.5}), 1, 1),
    "an object for a text.jsonl": (lambda good, column: line(good) + line(good, **{column: {"a": 1}}), 1, 1),
    "lists as rows.jsonl": (lambda good, column: line(good) + b"[1, 2]\n", 1, 1),
    "words.jsonl": (lambda good, column: line(good) + b"What is it?\n", 1, 1),
    "cut off.jsonl": (lambda good, column: line(good) + line(good)[:-9], 1, 1),
    "deep.jsonl": (lambda good, column: line(good) + b"[" * 50_000 + b"\n", 1, 1),
    "digits.jsonl": (lambda good, column: line(good) + b'{"a": ' + b"9" * 5000 + b"}\n", 1, 1),
    "a NUL byte.jsonl": (lambda good, column: line(good) + line(good).replace(b'": ', b'":\0 ', 1), 1, 1),
    "binary.jsonl": (lambda good, column: bytes(range(256)) * 8, None, None),
    "a picture.jsonl": (lambda good, column: b"\x89PNG\r\n\x1a\n" + b"\0" * 90, None, None),
    "a zip.jsonl": (lambda good, column: b"PK\x03\x04" + b"\0" * 90, None, None),
    "mark.jsonl": (lambda good, column: b"\xef\xbb\xbf" + line(good) * 2, 2, 0),
    "marks in the middle.jsonl": (lambda good, column: (b"\xef\xbb\xbf" + line(good)) * 2, 2, 0),
    "CRLF.jsonl": (lambda good, column: line(good).replace(b"\n", b"\r\n") * 2, 2, 0),
    "UTF-16.jsonl": (lambda good, column: (line(good) * 2).decode().encode("utf-16"), 2, 0),
    "UTF-16 without a mark.jsonl": (lambda good, column: (line(good) * 40).decode().encode("utf-16-le"), None, None),
    "a long line.jsonl": (lambda good, column: line(good) + line(good, note="x" * 3_000_000) + line(good), 3, 0),
    "array cut off.json": (lambda good, column: b"[" + line(good) + b"," + line(good)[:-9], 1, 1),
    "an array with a number.json": (lambda good, column: b"[" + line(good) + b", 7]", 1, 1),
    "text after the array.json": (lambda good, column: b"[" + line(good) + b"] and more", 1, 1),
    "nothing but a number.json": (lambda good, column: b"7", None, None),
    "cut off.jsonl.gz": (lambda good, column: gzip.compress(many(good))[:-5000], ANY, 1),
    "cut off at once.jsonl.gz": (lambda good, column: gzip.compress(many(good))[:12], None, None),
    "garbage behind.jsonl.gz": (lambda good, column: gzip.compress(many(good)) + b"garbage" * 3, ANY, 1),
    "cut off.jsonl.zst": (lambda good, column: packed(many(good), "zstd")[:-5000], ANY, 1),
    "twice.jsonl.gz": (lambda good, column: gzip.compress(gzip.compress(line(good))), None, None),
    "table.parquet": (lambda good, column: table([good, {**good, column: None}]), 1, 1),
    "cut off.parquet": (lambda good, column: table([good] * 50)[:-60], None, None),
    "no rows.parquet": (lambda good, column: table_of_none(good), None, None),
    "lines.parquet": (lambda good, column: line(good), None, None),
    "parquet.jsonl": (lambda good, column: table([good, good]), 2, 0),
    "another column.parquet": (lambda good, column: table([without(good, column)]), None, None),
    "a pointer of git-lfs.jsonl": (lambda good, column: POINTER, None, None),
    "a pointer of git-lfs.parquet": (lambda good, column: POINTER, None, None),
    "a page that says 404.jsonl": (lambda good, column: b"<!DOCTYPE html>\n<h1>Not Found</h1>\n", None, None),
    "a mark alone.jsonl": (lambda good, column: b"\xef\xbb\xbf", None, None),
    "UTF-32.jsonl": (lambda good, column: (line(good) * 2).decode().encode("utf-32"), 2, 0),
    "what Python prints.jsonl": (lambda good, column: repr(good).encode() + b"\n" + line(good), 1, 1),
    "comma at the end.jsonl": (lambda good, column: line(good)[:-2] + b",}\n" + line(good), 1, 1),
    "comments.jsonl": (lambda good, column: b"// rows\n" + line(good) + b"# end\n", 1, 2),
    "in several lines.jsonl": (lambda good, column: (json.dumps(good, indent=2) + "\n").encode() * 2, 2, 0),
    "array with a comma at the end.json": (lambda good, column: b"[" + line(good) + b"," + line(good) + b",]", 2, 0),
    "names with spaces.jsonl": (lambda good, column: line({f" {name} ": value for name, value in good.items()}), None, None),
    "lists for a text.jsonl": (
        lambda good, column: line(good) + line(good, **{column: []}) + line(good, **{column: [None]}), 1, 2,
    ),
    "not finite.jsonl": (lambda good, column: line(good) + line(good, **{column: float("nan")}) + line(good, note=1e999), 2, 1),
    "no columns.jsonl": (lambda good, column: line(good) + b'{}\n{"\\ud800": 1, "": 2}\n', 1, 2),
    "separators in a text.jsonl": (lambda good, column: line(good, note="a").replace(b'"a"', '"\u2028\x85"'.encode()) * 2, 2, 0),
    "under one name.json": (lambda good, column: json.dumps({"data": [good, good]}).encode(), None, None),
    "Arrow.parquet": (lambda good, column: arrow([good]), None, None),
    "Arrow.jsonl": (lambda good, column: arrow([good]), None, None),
}  # fmt: skip
CELLS = {
    "header.csv": (lambda good, column: ",".join(good).encode() + b"\n", None, None),
    "no comma.csv": (lambda good, column: b"other\nx\n", None, None),
    "mark.csv": (lambda good, column: b"\xef\xbb\xbf" + as_csv([good, good]), 2, 0),
    "CRLF.csv": (lambda good, column: as_csv([good, good]).replace(b"\n", b"\r\n"), 2, 0),
    "more cells.csv": (lambda good, column: as_csv([good]) + b"a,b,c,d,e,f\n", 1, 1),
    "semicolons.csv": (lambda good, column: as_csv([good, good]).replace(b",", b";"), 2, 0),
}  # fmt: skip
TEXTS = {  # what is wrong with a text, which only a contract looks at
    "invalid UTF-8.jsonl": (lambda good, column: line(good) + with_bytes(good, column, b"caf\xe9"), 1, 1),
    "half of a pair.jsonl": (lambda good, column: line(good) + with_bytes(good, column, rb"\ud83d"), 1, 1),
    "a NUL.jsonl": (lambda good, column: line(good) + with_bytes(good, column, rb"a\u0000b"), 1, 1),
    "duplicate ids.jsonl": (lambda good, column: line(good, id=1) + line(good, id=1), 1, 1),
    "empty.jsonl": (lambda good, column: line(good) + with_bytes(good, column, b" "), 1, 1),
}  # fmt: skip


CASES = [(reader, name, *case) for name, case in LINES.items() for reader in READERS]
CASES += [(reader, name, *case) for name, case in CELLS.items() for reader in FLAT]
CASES += [(reader, f"text: {name}", *case) for name, case in TEXTS.items() for reader in list(READERS)[:5]]


def test_there_are_fifty():
    assert len({name for _, name, *_ in CASES}) >= 50


@pytest.mark.parametrize(("reader", "name", "make", "good", "bad"), CASES, ids=[f"{case[0]}: {case[1]}" for case in CASES])
def test_a_bad_file_is_one_line_or_counted_drops(tmp_path, caplog, reader, name, make, good, bad):
    path = tmp_path / name.replace(": ", " ")
    path.write_bytes(make(*ROWS[reader]))
    more = (caplog,) if reader == "corpus" else ()
    if good is None and bad is None:
        with pytest.raises(UserError) as refused:
            READERS[reader](path, tmp_path, *more)
        said = str(refused.value)
        assert str(path) in said and "\n" not in said and len(said.replace(str(path), "")) <= 300
        return
    rows, drops, first = READERS[reader](path, tmp_path, *more)
    assert (rows >= 1 if good is ANY else rows == good) and (drops >= 1 if bad is ANY else drops == bad), (rows, drops, first)
    if drops:
        assert f"{path}: " in first


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused(tmp_path, caplog, reader):
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "nowhere.jsonl").symlink_to(tmp_path / "gone.jsonl")
    more = (caplog,) if reader == "corpus" else ()
    for name in ("folder.jsonl", "pipe.jsonl", "nowhere.jsonl", "missing.jsonl"):
        with pytest.raises(UserError) as refused:
            READERS[reader](tmp_path / name, tmp_path, *more)
        assert name in str(refused.value) and "\n" not in str(refused.value)
