"""Inputs that are odd rather than broken: dates that Python has not, bytes for text, tables as spreadsheets write them."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.core.errors import UserError
from groundup.data.contracts import read_conversations, read_preferences
from groundup.data.csv_table import csv_table
from groundup.data.file_kinds import kind_of
from groundup.data.readers import Refused, batches, records
from groundup.scaling import mixture_laws, run_table
from groundup.tokenizer import documents

ASKED, ANSWER = {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A file."}
DATES = {
    "nanoseconds": pa.array([1, 2], pa.timestamp("ns")), "far future": pa.array([2**53] * 2, pa.timestamp("s")),
    "long ago": pa.array([-(2**30)] * 2, pa.date32()), "long": pa.array([2**53] * 2, pa.duration("s")),
    "no such zone": pa.array([1, 2], pa.timestamp("s", "Mars/Phobos")),
    "in a dictionary": pa.array([1, 2], pa.timestamp("ns")).dictionary_encode(),
    "in a list": pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), pa.array([1, 2], pa.timestamp("ns"))),
    "in a struct": pa.StructArray.from_arrays([pa.array([1, 2], pa.timestamp("s", "Mars/Phobos"))], ["at"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DATES)
def test_a_row_is_not_lost_for_its_date(tmp_path, name):
    table = pa.table({"messages": pa.array([[ASKED, ANSWER]] * 2), "when": DATES[name]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = read_conversations([tmp_path / "a.parquet"])
    assert len(found.rows) == 2 and not found.dropped


@pytest.mark.parametrize("name", ["far future", "long ago", "no such zone", "in a list"])
def test_a_date_that_no_calendar_has_is_absent(tmp_path, name):
    pq.write_table(pa.table({"text": ["a", "b"], "domain": DATES[name]}), tmp_path / "a.parquet")
    [batch] = batches(tmp_path / "a.parquet", "text", ["domain"], Refused())
    assert batch["text"].to_pylist() == ["a", "b"] and batch["domain"].null_count == 2


@pytest.mark.parametrize("name", ["a.parquet", "part-0001"])
@pytest.mark.parametrize("footer", ["hidden", "signed"])
def test_encrypted_parquet_is_called_so(tmp_path, name, footer):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    length = int.from_bytes(content[-8:-4], "little") + 28
    signed = content[:-8] + bytes(28) + length.to_bytes(4, "little") + b"PAR1"
    (tmp_path / name).write_bytes(b"PARE" + content[4:-4] + b"PARE" if footer == "hidden" else signed)
    for read in (lambda path: list(batches(path, "text", [], Refused())), lambda path: list(records(path, Refused()))):
        with pytest.raises(UserError, match=f"{name}: encrypted Parquet: save it without a key first"):
            read(tmp_path / name)


def test_a_text_that_begins_with_the_mark_of_encrypted_parquet_is_a_text(tmp_path):
    (tmp_path / "a").write_text("PARENTS and children")
    assert [row["text"] for batch in batches(tmp_path / "a", "text", [], Refused()) for row in batch.to_pylist()]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.txt", "part-0001"])
def test_a_pointer_of_git_lfs_is_called_so(tmp_path, name):
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    with pytest.raises(UserError, match=f"{name}: a pointer of Git LFS"):
        list(batches(tmp_path / name, "text", [], Refused()))


def test_a_damaged_name_of_a_column_is_refused_in_a_line(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "zzzz": ["b"]}), tmp_path / "a.parquet", store_schema=False)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"zzzz", b"z\xffzz"))
    with pytest.raises(UserError, match=r"a\.parquet: not a Parquet file"):
        list(batches(tmp_path / "a.parquet", "text", ["zzzz"], Refused()))


def test_bytes_that_are_text_are_read_as_text(tmp_path):
    said = [{name: text.encode() for name, text in message.items()} for message in (ASKED, ANSWER)]
    pq.write_table(pa.table({"messages": pa.array([said])}), tmp_path / "a.parquet")
    pq.write_table(pa.table({name: [name.encode()] for name in ("prompt", "chosen", "rejected")}), tmp_path / "b.parquet")
    [conversation], [pair] = read_conversations([tmp_path / "a.parquet"]).rows, read_preferences([tmp_path / "b.parquet"]).rows
    assert conversation.row == {"messages": [ASKED, ANSWER]} and pair.chosen.content == "chosen"
    pq.write_table(pa.table({"prompt": [b"\xff"], "completion": [b"a"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="none of its 1 rows"):
        read_conversations([tmp_path / "c.parquet"])


def test_an_answer_that_was_found_bad_is_no_answer_to_learn(tmp_path):
    row = {"prompt": "What is it?", "completion": "A file."}
    content = "".join(json.dumps(row | more) + "\n" for more in ({}, {"label": True}, {"label": False}, {"label": None}))
    (tmp_path / "a.jsonl").write_text(content)
    found = read_conversations([tmp_path / "a.jsonl"])
    assert len(found.rows) == 3 and dict(found.dropped) == {"an answer that was found bad (label false)": 1}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_rows_of_another_encoding_are_refused_and_a_few_stray_bytes_are_not(name, tmp_path):
    rows = ["text", "Grüße", "ein Satz über Öl", "noch eine Straße"]
    if name == "a.jsonl":
        rows = [json.dumps({"text": row}, ensure_ascii=False) for row in rows[1:]]
    path, lines = tmp_path / name, "\n".join(rows) + "\n"
    path.write_bytes(lines.encode("cp1252"))
    with pytest.raises(UserError, match=r"not UTF-8 .*Windows-1252.*save the file as UTF-8"):
        kind_of(path)
    stray = '{"text": "a stray \xff byte"}\n' if name == "a.jsonl" else "a stray \xff byte\n"
    for text in (lines.encode() + stray.encode("latin-1"), lines.replace("ü", "\ufffd").replace("ß", "\ufffd").encode()):
        path.write_bytes(text)
        assert kind_of(path).form == ("lines" if name == "a.jsonl" else "csv")


@pytest.mark.parametrize("text", ["Größe für Straße und Übermut ".encode("latin-1") * 50, "hello world ".encode("cp037") * 99])
def test_text_of_another_encoding_is_counted_not_trained_on(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text)
    refused = Refused()
    assert not list(documents.texts(documents.find([tmp_path / "a.txt"]), refused=refused))
    assert dict(refused) == {"not UTF-8": 1}
    (tmp_path / "b.txt").write_bytes(b"hello world " * 50 + b"\xff")  # a few bytes are replaced
    assert len(list(documents.texts(documents.find([tmp_path / "b.txt"]), refused=refused))) == 1


@pytest.mark.parametrize("content", ["<!DOCTYPE html>\n<p>404</p>", "\n <HTML lang=en><body>", "<html>"])
@pytest.mark.parametrize("name", ["a.html", "a.txt", "a.txt.gz"])
def test_a_web_page_is_no_text_whatever_it_is_called(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    with pytest.raises(UserError, match="a web page, not a text: `groundup corpus`"):
        list(batches(path, "text", (), Refused()))
    path.write_text("A page begins with <html>.")
    assert len(list(batches(path, "text", (), Refused()))) == 1


def test_damage_is_said_with_what_to_do():
    refused = Refused()
    refused.add("not a JSON object", "a.jsonl: line 1")
    refused.add("damaged", "a.jsonl")
    assert str(refused).endswith("first a.jsonl: line 1: not a JSON object; damaged: get the file again")
    refused = Refused()
    refused.add("damaged", "a.jsonl.gz")
    assert str(refused) == "damaged: 1; first a.jsonl.gz: damaged: get the file again"


HEAD, ROWS = "parameters,tokens,loss", [f"{n + 1}e6,{n + 1}e8,{3 - n / 10}" for n in range(3)]
TABLE = "\n".join([HEAD, *ROWS])
TABLES = {
    "plain": TABLE.encode(), "gzip": gzip.compress(TABLE.encode()), "UTF-16": TABLE.encode("utf-16"),
    "mark": ("\ufeff" + TABLE.replace("\n", "\r\n")).encode(), "semicolons": TABLE.replace(",", ";").encode(),
    "tabs": TABLE.replace(",", "\t").encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_runs_is_the_same_in_every_wrapping(tmp_path, name):
    (tmp_path / "runs.csv").write_bytes(TABLES[name])
    assert [row for _, row in csv_table(tmp_path / "runs.csv")] == [line.split(",") for line in (HEAD, *ROWS)]
    assert run_table.read(tmp_path / "runs.csv").parameters.tolist() == [1e6, 2e6, 3e6]


def test_tables_that_are_none(tmp_path):
    path = tmp_path / "table.csv"
    for content, said in ((b"PK\x03\x04" + b"\0" * 99, "zip archive"), (b"PAR1" + b"\0" * 99, "a text is wanted")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            csv_table(path)
    path.write_text("weight_,weight_b,loss_x\n" + "0.5,0.5,3\n" * 9)
    with pytest.raises(UserError, match="without the name of its domain"):
        mixture_laws.read(path)


ROW, TEXT = '{"text": "a b"}', "he left, she said"
OTHER_WRITERS = {  # rows as programs write them that ask nobody; name -> content, and how many rows of it are read
    "Excel.csv": (f'sep=;\r\ntext;b\r\n"{TEXT}";1\r\n', 1), "tabs of Excel.csv": (f"sep=\t\ntext\tb\n{TEXT}\t1\n", 1),
    "pipes.csv": (f'"sep=|"\ntext|b\n{TEXT}|1\n', 1), "a column.csv": ("sep=;x,text\n1,a\n", 1),
    "Firehose.jsonl": (ROW * 3, 3), "Firehose without an ending": (f"{ROW} {ROW}", 2), "old Macs.jsonl": (f"{ROW}\r" * 3, 3),
    "RFC 7464.jsonl": (f"\x1e{ROW}\n" * 3, 3), "RFC 7464.json": (f"\x1e{ROW}\n" * 3, 3),
    "names in quotes.csv": (f'"a; b; c",text\n1,"{TEXT}"\n', 1), "Macs.csv": ("a;text;b\r" + f"1;{TEXT};x,y,z,w\r" * 2, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_WRITERS)
def test_rows_as_other_programs_write_them(tmp_path, name):
    content, rows = OTHER_WRITERS[name]
    (tmp_path / name).write_bytes(content.encode())
    refused = Refused()
    found = [text for batch in batches(tmp_path / name, "text", (), refused) for text in batch["text"].to_pylist()]
    assert len(found) == rows and set(found) <= {"a b", TEXT, "a"} and not refused


def test_the_line_of_a_bad_row_counts_the_line_that_states_the_delimiter(tmp_path):
    path = tmp_path / "table.csv"
    for stated, line in (("", 3), ("sep=;\n", 4)):
        path.write_text(f'{stated}text;b\na;1\n"c"d;2\n')
        refused = Refused()
        assert [row["text"] for _, row in records(path, refused)] == ["a"]
        assert refused.first == f"{path}: line {line}: not CSV"


def test_a_table_says_its_delimiter(tmp_path):
    (tmp_path / "runs.csv").write_text("sep=;\n" + TABLE.replace(",", ";"))
    assert [row for _, row in csv_table(tmp_path / "runs.csv")] == [line.split(",") for line in (HEAD, *ROWS)]


def test_the_line_of_a_row_is_the_files(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text('sep=;\n\nparameters;tokens;loss;note\n1e6;1e8;3;"two\nlines"\n;;;\n1e6;1e8;x;\n')
    with pytest.raises(UserError, match=r"runs\.csv:7: loss 'x' is no number"):
        run_table.read(path)
    path.write_text("weight_a,weight_b,loss_x\n\n" + "0.5,0.5,3\n" * 9 + "0.5,0.6,3\n")
    with pytest.raises(UserError, match=r"runs\.csv:12: its weights add up to 1\.1"):
        mixture_laws.read(path)


def test_quotes_that_are_none_of_csv_are_counted_and_change_no_text(tmp_path):
    path, refused = tmp_path / "a.csv", Refused()
    path.write_text('text,b\nfirst,1\n"as \\"Spark\\" writes",1\n"a ""b"" c",2\n"never closed\nlast,3\n')
    assert [row["text"] for _, row in records(path, refused)] == ["first", 'a "b" c']
    assert refused == {"not CSV": 1, "all behind a quote that is not closed": 1} and refused.first == f"{path}: line 3: not CSV"


QUOTED = ["a", '"Come in", he said', '"', 'never "closed', 'at the end"']


@pytest.mark.parametrize("opened", [2, 5000])
def test_quotes_are_letters_where_a_table_cut_at_tabs_has_none_of_csv(tmp_path, opened):
    path, refused = tmp_path / "a.tsv", Refused()
    rows = [*QUOTED, *["a b"] * opened, '"opened and no other quote behind', *["a b"] * 5000]
    path.write_text("id\ttext\n" + "".join(f"{number}\t{text}\n" for number, text in enumerate(rows)))
    assert [row["text"] for _, row in records(path, refused)] == rows and not refused
    path.write_text("id\ttext\n" + "".join(f"{number}\t{text}\n" for number, text in enumerate(rows[len(QUOTED) :])))
    if opened == 2:  # within what is looked at
        assert [row["text"] for _, row in records(path, refused)] == rows[len(QUOTED) :] and not refused


def test_a_quoted_cell_longer_than_what_is_looked_at_stays_one(tmp_path):
    path, text = tmp_path / "a.tsv", 'he said ""yes""\tand\n' * 9000
    path.write_text(f'id\ttext\n1\t"{text}"\n2\tb\n')
    assert [row["text"] for _, row in records(path, Refused())] == [text.replace('""', '"'), "b"]


def test_a_window_that_the_decoder_does_not_take_is_no_damage(tmp_path):
    # A frame of zstd whose header asks for 2 GB, as the dumps of Reddit do: zstd --long=31.
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x19\0\0a\n\n")
    with pytest.raises(UserError, match="a window above 128 MB: unpack it") as refusal:
        [*records(tmp_path / "a.jsonl.zst", Refused())]
    assert len(str(refusal.value)) < 300


def test_a_batch_of_a_column_with_a_dot_in_its_name_is_bounded_too(tmp_path):
    pq.write_table(pa.table({"my.text": [f"{number} " * 250_000 for number in range(12)]}), tmp_path / "a.parquet")
    assert max(map(len, batches(tmp_path / "a.parquet", "my.text", (), Refused()))) < 4


@pytest.mark.parametrize("columns", [1, 900])
def test_what_the_library_of_data_sets_saves_is_named(tmp_path, columns):
    table = pa.table({f"column {number}": ["a"] for number in range(columns)})
    with pa.OSFile(str(tmp_path / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(UserError, match="an Arrow file"):
        list(batches(tmp_path / "data-00000-of-00001.arrow", "text", (), Refused()))


@pytest.mark.parametrize("value", ['"a\tb"', '"a\x01b"', '"x", "n": ' + "9" * 5000, '"x", "n": NaN'])
def test_json_that_only_some_readers_take_costs_no_row(tmp_path, value):
    """Of an array all behind the first tab in a text was lost."""
    rows = [f'{{"text": {value}}}', '{"text": "b"}', '{"text": "c"}']
    (tmp_path / "a.json").write_text(f"[{', '.join(rows)}]")
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "part-0001").write_text("\n".join(rows))
    for name in ("a.json", "a.jsonl", "part-0001"):
        refused = Refused()
        assert [len(batch) for batch in batches(tmp_path / name, "text", [], refused)] == [3] and not refused


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_lines_of_any_name_whose_first_line_is_long(tmp_path, mark):
    """They were one text, with the braces."""
    path = tmp_path / "part-0001"
    path.write_bytes(mark + b"".join(json.dumps({"text": text}).encode() + b"\n" for text in ("word " * 20_000, "b")))
    assert [len(batch) for batch in batches(path, "text", [], Refused())] == [2]


def test_a_header_that_begins_with_a_tab(tmp_path):
    """As pandas writes a table of one column: its texts began with the numbers of their rows."""
    (tmp_path / "a.csv").write_text("\ttext\n0\thello\n1\tworld\n")
    [batch] = batches(tmp_path / "a.csv", "text", [], Refused())
    assert batch["text"].to_pylist() == ["hello", "world"]


def test_of_columns_of_one_name_the_first_counts(tmp_path):
    (tmp_path / "a.csv").write_text("id,text,text,url\n1,hello,,u\n2,world\n")
    pq.write_table(pa.Table.from_arrays([pa.array(["hello", "world"]), pa.nulls(2)], ["text", "text"]), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        [batch] = batches(tmp_path / name, "text", ["url"], Refused())
        assert batch["text"].to_pylist() == ["hello", "world"]


def test_lines_of_json_with_commas_as_in_an_array(tmp_path):
    for name in ("a.jsonl", "part-0001"):
        (tmp_path / name).write_text('{"text": "a"},\n{"text": "b"},\n{"text": "c"}\n')
        refused = Refused()
        assert [len(batch) for batch in batches(tmp_path / name, "text", [], refused)] == [3] and not refused


def test_rows_in_another_encoding_are_told_what_to_do(tmp_path):
    (tmp_path / "a.csv").write_bytes("text\n日本語のテキストがここにあります\n".encode("shift_jis"))
    refused = Refused()
    assert [*batches(tmp_path / "a.csv", "text", [], refused)] == []
    assert str(refused) == f"not UTF-8: 1; first {tmp_path}/a.csv: row 1: not UTF-8: save the file as UTF-8"
    refused.first = "b.csv: row 1: no text"
    refused["damaged"] += 1
    assert str(refused).endswith("; first b.csv: row 1: no text; damaged: get the file again; not UTF-8: save the file as UTF-8")
