import hashlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.core.files import digest, read_json, read_jsonl, read_text, replacing, write_json, write_jsonl, write_text

text = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("\u2028\u2029\x85\r\n\x0b\x0c\x1c")))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def test_content_appears_whole_and_only_at_the_end(tmp_path):
    path = tmp_path / "below" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "whole"
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_file_is_never_replaced(tmp_path, linked):
    pipe, path = tmp_path / "pipe", tmp_path / ("link" if linked else "pipe")
    os.mkfifo(pipe)
    if linked:
        path.symlink_to(pipe)
    with pytest.raises(UserError, match="a device, pipe or socket, which is never replaced"):
        write_text(path, "new")
    assert pipe.is_fifo() and sorted(tmp_path.iterdir()) == sorted({pipe, path})


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, ["old"])
    with pytest.raises(UnicodeEncodeError):
        write_json(path, ["\ud800"])
    assert read_json(path) == ["old"] and list(tmp_path.iterdir()) == [path]


def test_what_a_crash_left_is_overwritten(tmp_path):
    path = tmp_path / "file.txt"
    path.with_name("file.txt.partial").write_text("left over by a crash, longer than what follows")
    write_text(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@given(values)
def test_json_round_trip(folder, value):
    write_json(folder / "value.json", value)
    assert read_json(folder / "value.json") == value


@given(st.lists(st.dictionaries(text, values, max_size=3), max_size=4))
def test_jsonl_round_trip(folder, rows):
    path = folder / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows
    assert path.read_bytes().count(b"\n") == len(rows)


def test_line_separators_inside_a_string_do_not_end_a_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one\u2028two\u2029three\x85four"}\n{"text": "five"}\n', encoding="utf-8")
    assert [row["text"] for row in read_jsonl(path)] == ["one\u2028two\u2029three\x85four", "five"]


def test_files_from_other_tools(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\r\n{"a": 2}')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]


def test_damaged_files_are_named_with_the_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(UserError, match=r"rows\.jsonl:3: not valid JSON"):
        read_jsonl(path)
    with pytest.raises(UserError, match=r"nowhere\.json: no such file"):
        read_json(tmp_path / "nowhere.json")
    for damaged in (b'{"a": ', b"", b'"\xff"'):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"rows\.jsonl: not valid JSON"):
            read_json(path)


def test_json_lines_that_are_missing_or_no_text_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        read_jsonl(tmp_path / "nowhere.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl"):
        read_jsonl(tmp_path / "rows.jsonl")


def test_output_is_plain_utf8_with_unix_line_ends(tmp_path):
    write_json(tmp_path / "value.json", {"é": "漢"})
    assert (tmp_path / "value.json").read_bytes() == '{\n  "é": "漢"\n}\n'.encode()
    write_jsonl(tmp_path / "rows.jsonl", [{"é": 1}])
    assert (tmp_path / "rows.jsonl").read_bytes() == '{"é": 1}\n'.encode()
    assert json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8")) == {"é": 1}


@given(st.binary(max_size=300))
def test_digest_is_blake2b(folder, content):
    (folder / "content").write_bytes(content)
    assert digest(folder / "content") == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_a_byte_order_mark_is_no_part_of_what_is_read(tmp_path):
    (tmp_path / "a").write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8-sig")
    (tmp_path / "b").write_text('{"a": 1}\n', encoding="utf-8-sig")
    assert read_jsonl(tmp_path / "a") == [{"a": 1}, {"a": 2}]
    assert read_json(tmp_path / "b") == {"a": 1} and read_text(tmp_path / "b") == '{"a": 1}\n'
