"""Rows of conversations and preferences as other tools write them: what they say of an answer is not lost."""

import json
from decimal import Decimal

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.core.errors import UserError
from groundup.data.contracts import read_conversations, read_preferences, read_prompts
from groundup.data.conversations import conversation_of
from groundup.data.convert import convert
from groundup.data.messages import LEARNED_FLAGS, BadRow
from groundup.data.plain_values import plain
from groundup.data.preferences import preference_of, prompt_of

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


FLAGS = [{name: value} for name in LEARNED_FLAGS for value in (0, 0.0, False) if name != "weight" or value is not False]


@pytest.mark.parametrize("flag", FLAGS)
def test_an_answer_that_is_said_not_to_be_learned_is_not(flag):
    found = conversation_of({"messages": [USER, ANSWER | flag, USER, ANSWER]})
    assert [message.trained for message in found.messages] == [True, False, True, True]
    learned = {name: type(value)(1) for name, value in flag.items()}
    assert all(message.trained for message in conversation_of({"messages": [USER, ANSWER | learned]}).messages)


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ({"train": "no"}, "train no"),
        ({"weight": True}, "weight True"),
        ({"loss": 0.3}, "loss 0.3"),
        ({"train_detail": [{"train": True}]}, "whole"),
    ],
)
def test_a_flag_that_says_something_else_is_refused(flag, reason):
    with pytest.raises(BadRow, match=reason):
        conversation_of({"messages": [USER, ANSWER | flag]})


@pytest.mark.parametrize("label", [True, 1, 1.0, "True", "1.0", None, ""])
def test_labels_of_answers_that_were_found_good(label):
    assert conversation_of({"prompt": "p", "completion": "c", "label": label}).messages[-1].content == "c"


@pytest.mark.parametrize("label", [False, 0, "False", "0.0", "bad", "no", -1, 2, float("nan"), [1]])
def test_labels_of_others_are_not_learned(label):
    with pytest.raises(BadRow, match=r"found bad|where TRL's rows say whether"):
        conversation_of({"prompt": "p", "completion": "c", "label": label})


def test_messages_that_were_written_as_text():
    """As pandas and databases write a column of lists into CSV."""
    row = {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER | {"content": "no"}]}
    as_text = {name: json.dumps(value) for name, value in row.items()}
    assert preference_of(as_text) == preference_of(row)
    assert conversation_of({"prompt": as_text["prompt"], "completion": as_text["chosen"]}).messages[0].content == "hi"
    assert prompt_of({"prompt": as_text["prompt"]})[0].content == "hi"
    with pytest.raises(BadRow, match="a list as JSON"):
        preference_of({name: str(value) for name, value in row.items()})
    plain = {"prompt": 'Say [{"role"', "completion": "[1, 2]"}
    assert [one.content for one in conversation_of(plain).messages] == [*plain.values()]


def test_nothing_as_alpaca_writes_it():
    assert conversation_of({"instruction": "do", "input": "<noinput>", "output": "y"}).messages[0].content == "do"
    with pytest.raises(UserError, match="empty answer"):
        read_conversations([{"instruction": "do", "input": "", "output": "<nooutput>"}])


@pytest.mark.parametrize("tools", ["[]", "", "null", "None", [], None])
def test_no_tools(tools):
    assert conversation_of({"messages": [USER, ANSWER], "tools": tools})


def test_an_empty_prompt_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": ""}\n{"prompt": "x"}\n')
    found = read_prompts([tmp_path / "a.jsonl"])
    assert len(found.rows) == 1 and "empty question: 1" in str(found.dropped)


JSON = ('[{"from": "Paris", "to": "Rome"}]', '[{"value": 3}]', "[{'from': 'Paris'}]", '[{"role": "lead"}')


@pytest.mark.parametrize("answer", JSON)
def test_an_answer_that_is_json_is_a_text(answer):
    assert conversation_of({"prompt": "As JSON.", "completion": answer}).messages[-1].content == answer
    assert preference_of({"prompt": "As JSON.", "chosen": answer, "rejected": "no"}).chosen.content == answer


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"images": ["cat.png"]}, "images: .* for them"),
        ({"image": {"bytes": b"\x89PNG", "path": None}}, "image: .* for it"),
        ({"videos": ["cat.mp4"]}, "videos"),
        ({"audio": "cat.wav"}, "audio"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
    ],
)
def test_what_is_beside_a_conversation_and_would_be_lost_is_said(beside, reason):
    """A model that is asked what a picture shows, and never sees it, learns to make things up."""
    for row in ({"messages": [USER, ANSWER]} | beside, {"messages": [USER | beside, ANSWER]}):
        with pytest.raises(BadRow, match=reason):
            conversation_of(row)
    with pytest.raises(BadRow, match=reason):
        preference_of({"prompt": "p", "chosen": "c", "rejected": "r"} | beside)
    with pytest.raises(BadRow, match=reason):
        prompt_of({"prompt": "p"} | beside)


def test_fields_that_other_rows_need_are_nothing():
    """As Arrow has them: a struct has all fields in each row."""
    empty = {"tool_calls": None, "function_call": {"name": None, "arguments": None}, "audio": {"id": None}, "images": []}
    assert conversation_of({"messages": [USER | empty, ANSWER | empty], "image": "", "chat_template_kwargs": {"a": None}})


MISSING = [
    {"instruction": "do", "input": float("nan"), "output": "y"},
    {"messages": [USER, ANSWER], "system": float("nan"), "tools": float("nan"), "id": float("nan")},
    {"messages": [USER, ANSWER | {"weight": float("nan")}]},
]


@pytest.mark.parametrize("row", MISSING)
def test_what_is_missing_in_a_table_is_missing(tmp_path, row):
    """pandas has NaN there, and json.dumps writes it."""
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    for given in (row, tmp_path / "a.jsonl"):
        found = read_conversations([given])
        assert len(found.rows) == 1 and not found.dropped
    preference = {"prompt": "p", "chosen": "c", "rejected": "r", "margin": float("nan")}
    assert read_preferences([preference]).rows[0].margin == 0


def test_rows_of_numpy_and_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame([{"messages": [USER, ANSWER | {"weight": 1}], "system": system} for system in ("s", None)])
    table.to_parquet(tmp_path / "a.parquet")
    read = pandas.read_parquet(tmp_path / "a.parquet")
    assert type(read["messages"][0]).__name__ == "ndarray"
    assert read_conversations(read.to_dict("records")).rows == read_conversations([tmp_path / "a.parquet"]).rows
    margin = numpy.float32(0.5)
    assert read_preferences([{"prompt": "p", "chosen": "c", "rejected": "r", "margin": margin}]).rows[0].margin == 0.5
    with pytest.raises(UserError, match="tools: this chat format"):
        read_conversations([{"messages": [USER, ANSWER], "tools": numpy.array([{}, {"name": "f"}])}])
    with pytest.raises(UserError, match="nested too deep"):
        read_conversations([{"messages": [USER, ANSWER], "x": deep(100_000)}])


def deep(levels):
    found = []
    for _ in range(levels):
        found = [found]
    return found


def test_halves_of_a_character_are_joined(tmp_path):
    """Escapes of JSON in two parts of a content, or in a string of Python."""
    halves = [{"type": "text", "text": "a \ud83d"}, {"type": "text", "text": "\ude00"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": halves}, ANSWER]}))
    convert([tmp_path / "a.jsonl"], tmp_path / "b.jsonl")
    assert "a \N{GRINNING FACE}" in (tmp_path / "b.jsonl").read_text(encoding="utf-8")


def test_maps_and_decimals_of_databases(tmp_path):
    """Spark and DuckDB write messages as lists of maps, and numbers with a point as decimals."""
    kind = pa.list_(pa.map_(pa.string(), pa.string()))
    messages = pa.array([[list(USER.items()), list(ANSWER.items())], [[], list(ANSWER.items())]], kind)
    pq.write_table(pa.table({"messages": messages}), tmp_path / "maps.parquet")
    found = read_conversations([tmp_path / "maps.parquet"])
    assert [message.row for message in found.rows[0].messages] == [USER, ANSWER] and found.dropped.total() == 1
    margins = pa.array([Decimal("1.50"), Decimal("2.00"), None])
    table = pa.table({"prompt": ["a", "b", "c"], "chosen": ["x"] * 3, "rejected": ["y"] * 3, "margin": margins})
    pq.write_table(table, tmp_path / "decimals.parquet")
    assert [row.margin for row in read_preferences([tmp_path / "decimals.parquet"]).rows] == [1.5, 2.0, 0.0]


@pytest.mark.parametrize(("value", "found"), [("NaN", None), ("sNaN", None), ("1E+999999", numpy.inf), ("-0.5", -0.5)])
def test_decimals_are_numbers(value, found):
    assert plain(Decimal(value)) == found


def test_keys_of_maps_that_json_has_not_stay_pairs(tmp_path):
    by_number = pa.array([[(1, "a")]], pa.map_(pa.int32(), pa.string()))
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"], "notes": by_number}), tmp_path / "a.parquet")
    assert len(read_conversations([tmp_path / "a.parquet"]).rows) == 1


def test_empty_cells_of_a_table_are_no_columns(tmp_path):
    """Rows of several formats in one CSV: each has empty cells for the columns of the others."""
    messages = json.dumps([USER, ANSWER]).replace('"', '""')
    table = f'messages,prompt,completion\n"{messages}",,\n,hi,hello\n'
    (tmp_path / "rows.csv").write_text(table)
    found = read_conversations([tmp_path / "rows.csv"])
    assert [row.messages[-1].content for row in found.rows] == ["hello", "hello"] and not found.dropped

    (tmp_path / "pairs.csv").write_text("prompt,instruction,chosen,rejected\n,hi,yes,no\nhi,,yes,no\n")
    assert [row.prompt[0].content for row in read_preferences([tmp_path / "pairs.csv"]).rows] == ["hi", "hi"]

    (tmp_path / "both.csv").write_text(f'messages,prompt,chosen,rejected\n"{messages}",,,\n')
    assert len(read_conversations([tmp_path / "both.csv"]).rows) == len(read_prompts([tmp_path / "both.csv"]).rows) == 1
    assert convert([tmp_path / "both.csv"], tmp_path / "both.jsonl")["what"] == "conversations"
    assert prompt_of({"messages": [], "prompt": "hi"})[0].content == "hi"
    row = {"messages": "", "prompt": "", "question": "hi", "completion": " ", "answer": "hello"}
    assert [message.content for message in conversation_of(row).messages] == ["hi", "hello"]
    assert [message.content for message in preference_of({**row, "chosen": "a", "rejected": "b"}).prompt] == ["hi"]
    transcript = "\n\nHuman: hi\n\nAssistant: "
    assert preference_of({"question": "", "chosen": f"{transcript}a", "rejected": f"{transcript}b"}).prompt[0].content == "hi"


@pytest.mark.parametrize("empty", ["", " ", None])
def test_the_context_of_a_question_with_an_empty_input_is_not_lost(empty):
    row = {"instruction": "Who?", "input": empty, "context": "Ada did.", "output": empty, "response": "Ada"}
    assert [message.content for message in conversation_of(row).messages] == ["Who?\nAda did.", "Ada"]


def test_the_history_of_alpaca_in_a_cell_of_csv(tmp_path):
    (tmp_path / "rows.csv").write_text('instruction,output,history\nq,a,[]\nq,a,"[[""x"", ""y""]]"\nq,a,\nq,a,yesterday\n')
    found = read_conversations([tmp_path / "rows.csv"])
    assert [len(row.messages) for row in found.rows] == [2, 4, 2] and found.dropped == {"no list of messages": 1}


def test_a_prompt_may_differ_in_white_space_from_that_of_its_conversations():
    row = {"prompt": "hi\n", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER | {"content": "no"}]}
    assert preference_of(row).prompt[0].content == "hi"
    with pytest.raises(BadRow, match="another prompt"):
        preference_of(row | {"prompt": "ho"})
