import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os

import pyarrow as pa
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.data import streams
from groundup.data.file_kinds import files_of, kind_of, skipped_lines
from groundup.data.readers import BATCH_BYTES, Refused, batches, records, text_ranges


def read(path, others=(), **more):
    refused = Refused()
    found = [row for batch in batches(path, "text", others, refused, **more) for row in batch.to_pylist()]
    return found, dict(refused)


def texts(path, **more):
    return [row["text"] for row in read(path, **more)[0]]


def packed_by(codec):
    def pack(content):
        out = pa.BufferOutputStream()
        with pa.CompressedOutputStream(out, codec) as stream:
            stream.write(content)
        return out.getvalue().to_pybytes()

    return pack


PACKINGS = {
    "": bytes, ".gz": gzip.compress, ".zst": packed_by("zstd"), ".lz4": packed_by("lz4"), ".bz2": bz2.compress,
    ".xz": lzma.compress,
}  # fmt: skip
ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "marked": lambda text: text.encode("utf-8-sig"),
    "utf-16-le": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
}


def as_csv(documents, delimiter):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["id", "text"])
    writer.writerows(enumerate(documents))
    return out.getvalue()


FORMS = {
    ".jsonl": lambda documents: "".join(json.dumps({"text": text}) + "\n" for text in documents),
    ".ndjson": lambda documents: "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in documents),
    ".json": lambda documents: json.dumps([{"id": 1, "text": text} for text in documents]),
    ".array.jsonl": lambda documents: json.dumps([{"text": text} for text in documents], indent=2),
    ".pretty.json": lambda documents: "\n".join(json.dumps({"text": text}, indent=1) for text in documents),
    ".csv": lambda documents: as_csv(documents, ","),
    ".semicolon.csv": lambda documents: as_csv(documents, ";"),
    ".tsv": lambda documents: as_csv(documents, "\t"),
}
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")) | st.sampled_from("\n\t\",;"), max_size=40)


@settings(max_examples=60)
@given(
    st.lists(TEXT, min_size=1, max_size=6),
    st.sampled_from(sorted(FORMS)),
    st.sampled_from(sorted(ENCODINGS)),
    st.sampled_from(sorted(PACKINGS)),
    st.booleans(),
)
def test_the_same_documents_come_out_of_every_wrapping(tmp_path_factory, documents, form, encoding, packing, told):
    content = PACKINGS[packing](ENCODINGS[encoding](FORMS[form](documents)))
    path = tmp_path_factory.mktemp("in") / f"a{form}{packing if told else ''}"
    path.write_bytes(content)
    assert texts(path) == documents


TYPES = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
    pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string()),
]  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.none() | TEXT, min_size=1, max_size=9), st.sampled_from(TYPES), st.booleans(), st.integers(1, 4))
def test_every_type_of_parquet_gives_the_same_documents(tmp_path_factory, documents, kind, dictionary, rows):
    path = tmp_path_factory.mktemp("in") / "part-0001"
    column = pa.array([text.encode() if text is not None and "binary" in str(kind) else text for text in documents], pa.string())
    table = pa.table({"text": column.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else column.cast(kind)})
    pq.write_table(table, path, row_group_size=rows, use_dictionary=dictionary)
    found, refused = read(path)
    assert [row["text"] for row in found] == [text for text in documents if text is not None]
    assert [row["row"] for row in found] == [number for number, text in enumerate(documents) if text is not None]
    assert refused.get("no text", 0) == documents.count(None)
    pieces = [row["text"] for part in text_ranges(path, "text", 8) for row in read(path, part=part)[0]]
    assert pieces == [text for text in documents if text is not None]


@pytest.mark.parametrize(
    "column", [pa.array([["a"]]), pa.array([{"a": 1}]), pa.array([1]), pa.array([1.5]), pa.array([True]), pa.array([[b"a"]])]
)
def test_a_column_of_another_type_is_refused_with_its_type(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"a.parquet: column 'text' is {str(column.type)[:4]}.*not text"):
        read(tmp_path / "a.parquet")


def test_a_column_of_nulls_gives_nothing_and_other_columns_of_any_type_are_text_or_absent(tmp_path):
    pq.write_table(pa.table({"text": pa.nulls(2)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ([], {"no text": 2})
    columns = {"text": ["a"], "list": [["x"]], "number": [3], "struct": [{"a": 1}], "word": pa.array(["w"]).dictionary_encode()}
    columns["bytes"] = [b"\xff"]
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    expected = {"row": 0, "text": "a", "list": None, "number": "3", "struct": None, "word": "w", "bytes": "\ufffd", "none": None}
    assert read(tmp_path / "b.parquet", [*list(columns)[1:], "none"])[0] == [expected]
    row = {"text": "a", "list": ["x"], "number": 3, "struct": {"a": 1}, "word": "w", "bytes": "\ud800"}
    (tmp_path / "b.jsonl").write_text(json.dumps(row))
    assert read(tmp_path / "b.jsonl", [*list(columns)[1:], "none"])[0] == [expected]


def test_pictures_in_a_column_of_bytes_are_no_texts(tmp_path):
    pq.write_table(pa.table({"text": [b"\x89PNG\r\n\x1a\n\0\0\0", "ü".encode(), b"caf\xe9"]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0][0]["text"] == "ü" and texts(tmp_path / "a.parquet")[1] == "caf\ufffd"
    assert read(tmp_path / "a.parquet")[1] == {"not text": 1}


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_batch_is_bounded_by_bytes_not_by_rows(tmp_path, form):
    rows = [f"{number} " * 250_000 for number in range(12)]  # 0.5 MB and more
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pq.write_table(pa.table({"text": rows}), path)
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    sizes = [batch["text"].nbytes for batch in batches(path, "text", (), Refused())]
    assert len(sizes) > 1 and max(sizes) < BATCH_BYTES + 1_000_000
    assert texts(path) == rows


def test_texts_over_the_limit_are_counted_where_they_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "x" * size}) + "\n" for size in (5, 100, 300, 7)))
    pq.write_table(pa.table({"text": ["x" * size for size in (5, 100, 300, 7)]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text\n" + "".join("x" * size + "\n" for size in (5, 100, 7)))
    for name, refused in (("a.jsonl", 2), ("a.parquet", 2), ("a.csv", 1)):
        found, counts = read(tmp_path / name, max_bytes=90)
        assert [len(row["text"]) for row in found] == [5, 7] and counts == {"size": refused}


def test_a_row_of_csv_with_commas_that_nobody_quoted_is_counted_not_cut(tmp_path):
    rows = ["text,host", "whole,a.org", "ended, too early,b.org", '"quoted, whole",c.org', "short", "empty,d.org,,"]
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    found, counts = read(tmp_path / "a.csv", others=["host"])
    assert [row["text"] for row in found] == ["whole", "quoted, whole", "short", "empty"]
    assert counts == {"more cells than columns": 1}


def test_bad_rows_are_counted_by_reason_and_the_first_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    deep, digits = b"[" * 100_000, b'{"text": ' + b"1" * 5000 + b"}"
    path.write_bytes(b'{"text": "a"}\n{"text": \n\n[1]\n' + deep + b"\n" + digits)
    with path.open("ab") as file:
        file.write(b'\n{"text": 3}\n{"text": "\xff\\ud800b"}\n{"x": 1}')
    refused = Refused()
    found = [row for batch in batches(path, "text", (), refused) for row in batch["text"].to_pylist()]
    assert found == ["a", "\ufffd\ufffdb"]
    assert refused == {"not a JSON object": 3, "no text": 3}
    assert str(refused) == f"no text: 3, not a JSON object: 3; first {path}: line 2: not a JSON object"


@pytest.mark.parametrize("content", [b'[{"text": "a"}, {"text": "b"', b'[{"text": "a"}, 5, {"text": "b"} x'])
def test_an_array_that_breaks_off_is_read_as_far_as_it_goes(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    found, refused = read(tmp_path / "a.json")
    assert found[0]["text"] == "a" and refused["damaged"] == 1


def test_an_array_of_small_rows_takes_time_by_its_size(tmp_path, growth):
    def read_array(rows):
        path = tmp_path / f"{rows}.json"
        path.write_text(json.dumps([{"text": "a \U0001f600 b " * 8}] * rows, ensure_ascii=False))
        assert sum(1 for _ in records(path, Refused())) == rows

    assert growth(read_array, 1500) < 9  # all in one chunk; of copies of what is left of it 16


@pytest.mark.parametrize("packing", [packing for packing in PACKINGS if packing])
def test_compressed_files_that_break_off_are_read_as_far_as_they_go(tmp_path, packing):
    content = "".join(json.dumps({"text": os.urandom(20).hex()}) + "\n" for _ in range(20_000)).encode()
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(PACKINGS[packing](content)[:-9000])
    found, refused = read(path)
    assert 1000 < len(found) < 20_000 and refused["damaged"] == 1


BINARY = {
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
    "zip": b"PK\x03\x04\x14\0\0\0",
    "png": b"\x89PNG\r\n\x1a\n",
    "bytes": bytes(range(256)) * 4,
    "nothing told": b"a\0b\0c\0" * 40,
    "parquet inside": gzip.compress(b"PAR1 and more"),
    "twice": gzip.compress(gzip.compress(b"text")),
    "png inside": gzip.compress(b"\x89PNG\r\n\x1a\n"),
    "damaged": b"\x1f\x8b\x08",
    "marked": b"\xff\xfe" + os.urandom(5000),
}


@pytest.mark.parametrize("content", BINARY.values(), ids=BINARY)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a", "a.csv", "a.json.gz"])
def test_what_is_no_text_is_refused_by_name_in_one_line(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"/{name}: ") as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_only_plain_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    os.mkfifo(tmp_path / "a.parquet")
    (tmp_path / "b.txt").mkdir()
    cases = [("a.jsonl", "a pipe"), ("a.parquet", "a pipe"), ("b.txt", "is a folder"), ("c.txt", "no such file")]
    cases += [("d\0.txt", "not a file name"), ("/dev/zero", "a pipe, socket"), ("n" * 5000, "File name too long")]
    for name, why in cases:
        with pytest.raises(UserError, match=why):
            read(tmp_path / name)


def test_a_file_without_the_column_is_refused_naming_those_it_has(tmp_path):
    (tmp_path / "a.csv").write_text("id,body\n1,x\n")
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        with pytest.raises(UserError, match=r"no column 'text', it has .*body"):
            read(tmp_path / name)


def test_columns_of_one_name_are_the_first_of_them(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["a"]


def test_files_of_a_folder_that_are_data_and_those_that_are_not(tmp_path):
    names = ["a.jsonl.gz", "b/c.RST", "d.pdf", "noending", "z.tar.gz"]
    clutter = ["._x.parquet", ".DS_Store", "_SUCCESS", "_metadata", ".git/x.txt", "__MACOSX/a.txt", "_committed_12", "b/.x.txt"]
    for name in names + clutter:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "p.txt")
    assert files_of(tmp_path, [".jsonl", ".rst"]) == (["a.jsonl.gz", "b/c.RST"], ["d.pdf", "noending", "p.txt", "z.tar.gz"])


def test_folders_that_are_not_entered_are_named(tmp_path, monkeypatch):
    for name in ("a/x.txt", "closed.d/y.txt", "elsewhere/z.txt", ".git/c.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_text("x")
    (tmp_path / "data" / "elsewhere").rename(tmp_path / "elsewhere")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    scan = os.scandir

    def closed(path):  # as without the permission, which root always has
        if str(path).endswith("closed.d"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    taken, skipped = files_of(tmp_path / "data", [".txt"])
    assert (taken, skipped) == (["a/x.txt"], ["closed.d/", "link/"])
    assert skipped_lines(skipped) == ["skipped 2 folders that are links or cannot be read: closed.d/, link/"]
    (tmp_path / "closed.d").mkdir()
    with pytest.raises(UserError, match=r"closed\.d: cannot be read"):
        files_of(tmp_path / "closed.d", [".txt"])


@pytest.mark.parametrize("name", ["Inbox", "mail.mbox", "mail.mbox.gz"])
def test_a_mailbox_is_no_text_unless_it_says_so(tmp_path, name):
    mail = b"From ada@example.org Mon Jan  1 10:00:00 2024\nSubject: A\nContent-Type: text/plain\n\nHello, Bob.\n\n"
    (tmp_path / name).write_bytes(gzip.compress(mail * 3) if name.endswith(".gz") else mail * 3)
    with pytest.raises(UserError, match=f"{name}: a mailbox"):
        kind_of(tmp_path / name)
    (tmp_path / "2024-January.txt").write_bytes(mail)
    (tmp_path / "letter").write_bytes(b"From Paris it is an hour to Lyon at 10:00 by train.\n\nNote: sit on the left.\n")
    assert kind_of(tmp_path / "2024-January.txt").form == kind_of(tmp_path / "letter").form == "text"


@pytest.mark.parametrize("header", ["Content-Transfer-Encoding: base64", "Content-Type: multipart/mixed;\r\n boundary=x"])
def test_a_mail_that_is_encoded_is_no_text_unless_its_name_says_so(tmp_path, header):
    received = "".join(f"Received: from {number}\r\n\tby example.org\r\n" for number in range(30))
    body = "R3LDvMOfZQ==\r\n" * 9
    for name in ("1.eml", "mail", "mail.txt"):
        (tmp_path / name).write_text(f"{received}Subject: A\r\n{header}\r\n\r\n{body}", newline="")
    for name in ("1.eml", "mail"):
        with pytest.raises(UserError, match=f"{name}: a mail, encoded or in parts"):
            kind_of(tmp_path / name)
    (tmp_path / "post").write_text(f"Newsgroups: sci.space\nSubject: Orbits\n\n{header}\n\nis what a mail begins with.\n")
    assert kind_of(tmp_path / "mail.txt").form == kind_of(tmp_path / "post").form == "text"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"text": {"0": "one", "1": "two"}}, r"one JSON object \(text\), not rows: give an array or lines of objects"),
        ({"name": "chat", "messages": [{"text": "one"}]}, r"one JSON object \(name, messages\), not rows"),
        ([{"text": ["one"]}, {"text": {"de": "two"}}], "column 'text' holds lists or objects, not text"),
        ({"title": "one"}, "no column 'text', it has title"),
    ],
)
def test_json_whose_texts_are_deeper_is_told_what_rows_are(tmp_path, content, message):
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps([{"text": {"de": "two"}}, {"text": "one"}]))
    assert read(tmp_path / "a.json")[1] == {"no text": 1}


PIECES = ["word ", "\n", "\n\n", "# Title\n", "ü", "a" * 40, "漢字", "Title\n=====\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=200), st.integers(8, 90))
def test_parts_of_a_text_are_the_text_and_within_the_limit(pieces, most):
    body = "".join(pieces).encode()
    before, streams.PART_BYTES = streams.PART_BYTES, most
    try:
        found = list(streams.parts(io.BytesIO(body)))
    finally:
        streams.PART_BYTES = before
    assert b"".join(found) == body
    assert all(0 < len(part) <= most for part in found)
    assert "".join(part.decode() for part in found) == body.decode()  # no character is cut
    assert len(body) > most or len(found) == bool(body)


HEADINGS = ["# Part {}\n", "Chapter {}\n", "\\section{{{}}}\n", "Part {}\n=======\n", "== Part {}\n", "* Part {}\n"]


@pytest.mark.parametrize("heading", HEADINGS)
def test_long_texts_are_cut_before_headings(tmp_path, heading):
    chapters = [f"{heading.format(number)}\n" + "A line of text.\n\n" * 3000 for number in range(1, 30)]
    (tmp_path / "a.md").write_text("".join(chapters))
    found = texts(tmp_path / "a.md")
    assert "".join(found) == "".join(chapters) and len(found) > 7
    assert all(part.startswith(heading.format("0").split("0")[0].split("{")[0]) for part in found)


def test_a_long_text_without_headings_is_cut_at_blank_lines_whatever_it_is_wrapped_in(tmp_path):
    text = "".join(f"Paragraph {number} of ü.\n{'and more of it ' * 9}\n\n" for number in range(9000))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode("utf-16")))
    found = texts(tmp_path / "a.txt")
    assert "".join(found) == text and all(part.startswith("Paragraph") for part in found)
    assert texts(tmp_path / "b.txt.gz") == found


@pytest.mark.parametrize("columns", [{"text": ["a word " * 40]}, {"id": list(range(9)), "text": ["ü"] * 9}], ids=",".join)
def test_an_orc_file_is_no_text_whatever_its_first_column_is(tmp_path, columns):
    """Uncompressed, most of it is text: it was read as one, with success."""
    orc.write_table(pa.table(columns), tmp_path / "part-0000")
    with pytest.raises(UserError, match="an Avro or ORC file: save it as Parquet"):
        kind_of(tmp_path / "part-0000")


def test_names_and_contents_that_disagree(tmp_path):
    cases = {
        "a.txt": (b'{"text": "x"}\n', "text"), "a": (b'{"text": "x"}\n', "lines"), "b": (b"plain", "text"),
        "c.log": (b"x", "text"),
        "d.jsonl": (b'{"text": \n{"text": "x"}\n', "lines"), "e.json": (b'{"text": "x"}\n{"text": "y"}\n', "lines"),
        "f.json": (b'{\n "text": "x"}', "values"), "g": (b"WARC/1.0\r\n", "archive"), "h.jsonl": (b"[1]\n", "lines"),
        "i.parquet": (b"", ""), "j.json": (b"", "values"), "k.txt": (b"BZh is no bz2", "text"), "l.txt": (b"ORCs", "text"),
    }  # fmt: skip
    for name, (content, form) in cases.items():
        (tmp_path / name).write_bytes(content)
        if form:
            assert kind_of(tmp_path / name).form == form, name
        else:
            with pytest.raises(UserError, match="not a Parquet file"):
                kind_of(tmp_path / name)
