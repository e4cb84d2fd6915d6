"""Conversations and preferences of every format and wrapping; each bad row is counted with its place, each bad file refused."""

import codecs
import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.data.contracts import read_conversations, read_preferences, read_prompts, split
from groundup.data.conversations import Conversation, conversation_of
from groundup.data.convert import convert
from groundup.data.messages import BadRow, Message
from groundup.data.preferences import Preference, preference_format_of, preference_of, prompt_of


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def turn(name, value):
    return {"from": name, "value": value}


SYSTEM, ASKED, ANSWERED, MORE, LAST = (
    said("system", "Be brief."), said("user", "What is it?"), said("assistant", "A file."), said("user", "And this?"),
    said("assistant", "A folder."),
)  # fmt: skip
WHOLE = [SYSTEM, ASKED, ANSWERED, MORE, LAST]
OTHER = said("assistant", "A pipe.")
GOOD = {"messages": [ASKED, ANSWERED]}
PAIR = {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [OTHER]}
HH = "\n\nHuman: What is it?\n\nAssistant: A file.\n\nHuman: And this?\n\nAssistant: "


def messages(*rows, trained=None):
    answers = iter(trained or [True] * len(rows))
    return tuple(Message(r["role"], r["content"], r["role"] != "assistant" or bool(next(answers))) for r in rows)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": WHOLE}, messages(*WHOLE)),
        ({"messages": json.dumps(WHOLE)}, messages(*WHOLE)),
        ({"messages": WHOLE, "prompt": None, "tools": []}, messages(*WHOLE)),
        ({"messages": [said("developer", "Be brief."), *WHOLE[1:]]}, messages(*WHOLE)),
        ({"messages": [said("User", "What is it?"), said("Model", "A file.")]}, messages(ASKED, ANSWERED)),
        ({"messages": [{**ASKED, "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}]}, ANSWERED]},
         messages(ASKED, ANSWERED)),
        ({"messages": [SYSTEM, ASKED, {**ANSWERED, "weight": 0}, MORE, {**LAST, "weight": 1}]}, messages(*WHOLE, trained=[0, 1])),
        ({"prompt": "What is it?", "completion": "A file."}, messages(ASKED, ANSWERED)),
        ({"prompt": WHOLE[:4], "completion": [LAST]}, messages(*WHOLE, trained=[0, 1])),
        ({"prompt": HH, "completion": "A folder."}, messages(*WHOLE[1:], trained=[0, 1])),
        ({"instruction": "What is it?", "input": "", "output": "A file."}, messages(ASKED, ANSWERED)),
        ({"instruction": "What is", "input": "it?", "response": "A file."}, messages(said("user", "What is\nit?"), ANSWERED)),
        ({"system": "Be brief.", "history": [["What is it?", "A file."]], "instruction": "And this?", "output": "A folder."},
         messages(*WHOLE)),
        ({"conversations": [turn("human", "What is it?"), turn("gpt", "A file.")]}, messages(ASKED, ANSWERED)),
        ({"system": "Be brief.", "conversations": [turn("human", "What is it?"), turn("gpt", "A file.")]},
         messages(SYSTEM, ASKED, ANSWERED)),
    ],
)  # fmt: skip
def test_every_format_of_conversations(row, expected):
    found = conversation_of(row)
    assert found.messages == expected
    assert conversation_of(found.row) == found


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": WHOLE[1:4], "chosen": [LAST], "rejected": [OTHER]},
        {"prompt": HH, "chosen": "A folder.", "rejected": "A pipe."},
        {"chosen": WHOLE[1:], "rejected": [*WHOLE[1:4], OTHER]},
        {"chosen": HH + "A folder.", "rejected": HH + "A pipe."},
        {"prompt": "And this?", "chosen": WHOLE[1:], "rejected": [*WHOLE[1:4], OTHER]},
        {"instruction": "And this?", "history": [["What is it?", "A file."]], "chosen": "A folder.", "rejected": "A pipe."},
        {"conversations": [turn("human", "What is it?"), turn("gpt", "A file."), turn("human", "And this?")],
         "chosen": turn("gpt", "A folder."), "rejected": turn("gpt", "A pipe.")},
        {"input": {"messages": WHOLE[1:4]}, "preferred_output": [LAST], "non_preferred_output": [OTHER]},
    ],
)  # fmt: skip
def test_every_format_of_preferences_keeps_the_whole_history(row):
    expected = Preference(messages(*WHOLE[1:4]), *messages(LAST, OTHER))
    assert preference_of(row) == expected
    assert preference_of({**row, "margin": 0.5}).margin == 0.5
    assert preference_of(expected.row) == expected
    assert prompt_of(row) == expected.prompt


SYSTEM_OF = [
    {"messages": [ASKED, ANSWERED]}, {"conversations": [turn("human", "What is it?"), turn("gpt", "A file.")]},
    {"prompt": "What is it?", "completion": "A file."}, {"instruction": "What is it?", "response": "A file."},
    {"prompt": "What is it?", "chosen": "A file.", "rejected": "A pipe."},
    {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, OTHER]},
    {"instruction": "What is it?", "chosen": "A file.", "rejected": "No."},
    {"chosen": "Human: A\n\nAssistant: b", "rejected": "Human: A\n\nAssistant: c"},
    {"input": {"messages": [ASKED]}, "preferred_output": [ANSWERED], "non_preferred_output": [OTHER]},
]  # fmt: skip


@pytest.mark.parametrize("name", ["system", "system_prompt"])
@pytest.mark.parametrize("row", SYSTEM_OF)
def test_a_column_of_system_messages_is_read_in_every_format(row, name):
    read = preference_of if preference_format_of(row) else conversation_of
    system = Message("system", "Be brief.")
    assert tuple(read({**row, name: "Be brief."}).prompt) == (system, *read(row).prompt) == prompt_of({**row, name: "Be brief."})
    assert read({**row, name: None}) == read({**row, name: " "}) == read(row)
    with pytest.raises(BadRow, match="system must be text"):
        read({**row, name: ["Be brief."]})


def test_a_system_message_may_be_empty_or_stand_there_twice_the_same_but_not_two():
    row = {"messages": [{"role": "system", "content": ""}, ASKED, ANSWERED]}
    assert conversation_of(row).messages == messages(ASKED, ANSWERED)
    row["messages"][0]["content"] = "Be brief."
    assert conversation_of({**row, "system": "Be brief."}).messages == messages(*row["messages"])
    with pytest.raises(BadRow, match="message 2 of 4: role 'system', expected user"):
        conversation_of({**row, "system": "Be long."})


def test_the_context_of_dolly_is_part_of_the_question():
    row = {"instruction": "What is it?", "context": "It is a file.", "response": "A file.", "category": "closed_qa"}
    assert conversation_of(row).messages[0].content == "What is it?\nIt is a file."
    assert conversation_of({**row, "context": ""}).messages[0].content == "What is it?"


@pytest.mark.parametrize("asked", ["prompt", "question", "query"])
@pytest.mark.parametrize("answered", ["completion", "response", "answer"])
def test_a_question_and_its_answer_by_the_names_of_columns_that_people_give_them(asked, answered):
    row = {"id": 1, asked: "What is it?", answered: "A file.", "system": "Be brief."}
    assert [message.content for message in conversation_of(row).messages] == ["Be brief.", "What is it?", "A file."]
    assert prompt_of({asked: "What is it?"}) == messages(ASKED)
    pair = preference_of({asked: "What is it?", "chosen": "A file.", "rejected": "No."})
    assert pair.prompt == messages(ASKED) and pair.chosen.content == "A file."
    with pytest.raises(BadRow, match="messages must be a list or text, not int"):  # the number of a choice
        conversation_of({**row, answered: 2})


@pytest.mark.parametrize("label", [False, 0, 0.0, "False", "false", "0"])
def test_an_answer_that_was_found_bad_is_not_learned_however_it_is_written(label):
    with pytest.raises(BadRow, match="found bad"):
        conversation_of({"prompt": "What is it?", "completion": "A file.", "label": label})


def test_prompts_of_every_kind_of_row():
    for row in ({"prompt": WHOLE[:4]}, {"messages": WHOLE}, {"messages": WHOLE[:4]}, {"prompt": WHOLE[:4], "completion": "x"}):
        assert [message.content for message in prompt_of(row)] == [message["content"] for message in WHOLE[:4]]
    assert prompt_of({"prompt": "What is it?"}) == messages(ASKED) == prompt_of({"instruction": "What is it?", "output": "x"})
    with pytest.raises(BadRow):
        prompt_of({"prompt": [ASKED, ANSWERED]})


# --- bad data: a counted drop beside good rows, and one clear line with file and row without any ----------------------

RAW = json.dumps(GOOD).encode()


def conversation(*rows, **more):
    return json.dumps({"messages": list(rows), **more}).encode()


def alpaca(**columns):
    return json.dumps({"instruction": "What?", "input": "", "output": "It.", **columns}).encode()


BAD_CONVERSATIONS = {
    "a missing column": (b'{"text": "What is it?"}', "missing column"),
    "a missing answer": (b'{"prompt": "What is it?"}', "missing column"),
    "an empty object": (b"{}", "missing column"),
    "a column of nulls": (b'{"messages": null}', "missing column"),
    "a preference": (json.dumps(PAIR).encode(), "missing column"),
    "wrong role order": (conversation(ANSWERED, ASKED, ANSWERED), "wrong role order"),
    "two questions in a row": (conversation(ASKED, ASKED, ANSWERED), "wrong role order"),
    "a late system message": (conversation(ASKED, SYSTEM, ANSWERED), "wrong role order"),
    "an unknown role": (conversation(said("narrator", "x"), ASKED, ANSWERED), "unknown role"),
    "a role that is a number": (conversation(said(1, "x"), ASKED, ANSWERED), "unknown role"),
    "no answer at its end": (conversation(ASKED, ANSWERED, MORE), "the last message is not the assistant's"),
    "no messages": (conversation(), "no message of the user"),
    "an empty answer": (conversation(ASKED, said("assistant", "")), "empty answer"),
    "an answer of white space": (alpaca(output=" \n"), "empty answer"),
    "an empty question": (alpaca(instruction=""), "empty question"),
    "mixed types: messages that are text": (b'{"messages": "What is it?"}', "no list of messages"),
    "mixed types: messages that are a number": (b'{"messages": 7}', "no list of messages"),
    "mixed types: a message that is text": (conversation("What is it?", ANSWERED), "no message"),
    "mixed types: an answer that is a number": (alpaca(output=42), "content that is no text"),
    "mixed types: an input that is a list": (alpaca(input=["a"]), "content that is no text"),
    "mixed types: a row that is a list": (b'["What is it?", "A file."]', "not a JSON object"),
    "an answer that is null": (conversation(ASKED, said("assistant", None)), "content that is no text"),
    "a picture": (conversation(said("user", [{"type": "image_url"}]), ANSWERED), "content that is no text"),
    "a tool call": (conversation(ASKED, {**ANSWERED, "tool_calls": [{}, 1]}), "tool_calls: this chat format has no place for it"),
    "tools": (conversation(ASKED, ANSWERED, tools=[{"type": "function"}]), "tools: this chat format has no place for them"),
    "a weight of one half": (conversation(ASKED, {**ANSWERED, "weight": 0.5}), "weight that is neither 0 nor 1"),
    "nothing to learn": (conversation(ASKED, {**ANSWERED, "weight": 0}), "no answer is learned: every weight is 0"),
    "invalid UTF-8": (b'{"prompt": "caf\xe9", "completion": "yes"}', "invalid UTF-8"),
    "half of a surrogate pair": (rb'{"prompt": "\ud83d", "completion": "yes"}', "invalid UTF-8"),
    "a NUL character": (rb'{"prompt": "a\u0000b", "completion": "yes"}', "a NUL character"),
    "a NUL byte": (b'{"prompt": "a\0b", "completion": "yes"}', "a NUL character"),
    "a line that is cut off": (RAW[:-9], "not a JSON object"),
    "a line of words": (b"What is it? A file.", "not a JSON object"),
    "a line without end": (conversation(ASKED, said("assistant", "a" * 5000)), "size"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "reason"), BAD_CONVERSATIONS.values(), ids=BAD_CONVERSATIONS)
def test_a_bad_row_is_counted_with_its_place(tmp_path, line, reason):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(RAW + b"\n" + line + b"\n" + RAW + b"\n")
    found = read_conversations([path], 4000)
    assert len(found.rows) == 2 and dict(found.dropped) == {reason: 1}
    assert found.dropped.first.startswith(f"{path}: line 2: ") and "\n" not in found.dropped.first
    assert f"1 dropped ({reason}: 1; first {path}: line 2" in str(found)
    path.write_bytes(line + b"\n")
    with pytest.raises(UserError) as refused:
        read_conversations([path], 4000)
    message = str(refused.value)
    assert message.startswith(f"{path}: ") and len(message) - len(str(path)) < 260 and "\n" not in message


def preference(**columns):
    return {**PAIR, **columns}


BAD_PREFERENCES = {
    "chosen equal to rejected": (preference(rejected=[ANSWERED]), "chosen equal to rejected"),
    "equal but for white space": (preference(rejected=[said("assistant", " A file.\n")]), "chosen equal to rejected"),
    "the same conversation twice": ({"chosen": WHOLE, "rejected": WHOLE}, "chosen equal to rejected"),
    "an empty rejected": (preference(rejected=[said("assistant", "")]), "empty answer"),
    "no rejected": ({"prompt": "x", "chosen": "y"}, "missing column"),
    "an answer of the user": (preference(rejected=[said("user", "x")], prompt=[]), "wrong role order"),
    "answers without a message": (preference(chosen=[]), "empty answer"),
    "no prompt": ({"chosen": "x", "rejected": "y"}, "no prompt"),
    "a prompt that the assistant ends": (preference(prompt=[ASKED, ANSWERED]), "the assistant has the last word"),
    "a prompt of a number": (preference(prompt=3), "no list of messages"),
    "another prompt": (preference(prompt="Why?", chosen=WHOLE, rejected=[*WHOLE[:4], OTHER]),
                       "chosen does not begin with the prompt"),
    "two messages after the prompt": ({"chosen": WHOLE, "rejected": [SYSTEM, ASKED, OTHER]},
                                      "chosen and rejected part before their last message"),
    "a margin of text": (preference(margin="0.5"), "margin must be a number from -1,000 to 1,000"),
    "an endless margin": (preference(margin=float("inf")), "margin must be a number from -1,000 to 1,000"),
    "a conversation": (GOOD, "missing column"),
    "OpenAI without messages": ({"input": {}, "preferred_output": [LAST], "non_preferred_output": [OTHER]},
                                "no list of messages"),
    "invalid UTF-8": (preference(chosen="caf\udce9"), "invalid UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD_PREFERENCES.values(), ids=BAD_PREFERENCES)
def test_a_bad_preference_is_counted_with_its_place(tmp_path, row, reason):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n\n".join(json.dumps(one) for one in (PAIR, row)))
    found = read_preferences([path])
    assert len(found.rows) == 1 and dict(found.dropped) == {reason: 1}
    assert found.dropped.first.startswith(f"{path}: line 3: ")
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"mine\.jsonl: none of its 1 rows can be used as preferences; first line 1: "):
        read_preferences([path])


def test_an_id_is_of_one_row_of_a_file(tmp_path):
    rows = [{**GOOD, "id": identifier} for identifier in ("a", 1, "a", "1", 1, None, None, "", "")]
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    found = read_conversations([tmp_path])
    assert dict(found.dropped) == {"duplicate id": 4} and len(found.rows) == 14
    assert found.dropped.first.endswith("a.jsonl: line 3: an earlier row has the id 'a' too")


BAD_FILES = {
    "empty.jsonl": (b"", "holds no rows"),
    "blank.jsonl": (b"\n \r\n", "holds no rows"),
    "words.txt": (b"What is it? A file.", "plain text, not rows"),
    "binary.jsonl": (bytes(range(256)) * 20, "not text"),
    "page.pdf": (b"%PDF-1.7 ...", "a PDF"),
    "bad.parquet": (b"PAR1" + b"x" * 99, "not a Parquet file"),
    "cut.jsonl.gz": (gzip.compress(RAW * 9)[:20], "none of its 1 rows can be used as conversations; first damaged"),
    "broken.json": (b'[{"messages": [', "none of its 1 rows can be used as conversations; first value 1: damaged"),
    "unquoted.csv": (b"instruction,output\nwhat,it is, I think, a file\n", "first row 1: more cells than columns"),
    "header.csv": (b"instruction,output\n", "holds no rows"),
    "narrow.csv": (b"instruction\nwhat\n", "no columns of a conversation; it has instruction; known: "),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_without_a_good_row_is_refused_in_one_line(tmp_path, name):
    content, why = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_conversations([tmp_path / name])
    message = str(refused.value)
    assert message.startswith(str(tmp_path / name)) and why in message and "\n" not in message
    if name.endswith((".txt", ".pdf")):
        return
    (tmp_path / "good.jsonl").write_bytes(RAW)  # beside good files in a folder, it is counted where it lost anything
    found = read_conversations([tmp_path])
    assert len(found.rows) == 1 and (found.dropped or "holds no rows" in why)


def test_what_is_not_there_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, why in ((tmp_path / "none.jsonl", "no such file"), (tmp_path / "empty", "no file of rows in it")):
        with pytest.raises(UserError, match=why):
            read_conversations([path])


def test_parquet_with_invalid_text_loses_that_row_alone(tmp_path):
    answers = pa.array([b"yes", b"caf\xe9", b"no"]).cast(pa.string(), safe=False)
    columns = {"prompt": ["a", "b", "c"], "completion": pa.StringArray.from_buffers(3, *answers.buffers()[1:])}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = read_conversations([tmp_path / "a.parquet"])
    assert [one.messages[-1].content for one in found.rows] == ["yes", "no"] and dict(found.dropped) == {"invalid UTF-8": 1}
    assert found.dropped.first.endswith("a.parquet: row 2: invalid UTF-8")


def as_csv(rows):
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["instruction", "input", "output", "margin"])
    writer.writerows(rows)
    return out.getvalue()


WRAPPED = {
    "lines": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "CRLF": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows),
    "array": lambda rows: json.dumps(rows, indent=1),
    "csv": lambda rows: as_csv([[row["instruction"], row["input"], row["output"], ""] for row in rows]),
}
ENCODED = {
    "UTF-8": str.encode,
    "BOM": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "gzip": lambda text: gzip.compress(text.encode()),
}


def test_files_that_were_put_together_have_marks_in_the_middle(tmp_path):
    (tmp_path / "a.jsonl").write_bytes((codecs.BOM_UTF8 + RAW + b"\n") * 3)
    found = read_conversations([tmp_path / "a.jsonl"])
    assert len(found.rows) == 3 and not found.dropped


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("form", WRAPPED)
def test_the_same_conversations_come_out_of_every_wrapping(tmp_path, form, encoding):
    rows = [{"instruction": f"was ist {n}, \u00fc?", "input": "a\nb", "output": '"ja"'} for n in range(3)]
    path = tmp_path / ("mine.csv" if form == "csv" else "mine.jsonl")
    path.write_bytes(ENCODED[encoding](WRAPPED[form](rows)))
    found = read_conversations([path])
    assert [one.messages[0].content for one in found.rows] == [f"was ist {n}, \u00fc?\na\nb" for n in range(3)]
    assert not found.dropped and dict(found.formats) == {"Alpaca": 3}


def test_parquet_and_margins_of_csv(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"messages": WHOLE, "id": 1}, {"messages": WHOLE[1:], "id": 2}]), tmp_path / "a.parquet")
    assert [len(one.messages) for one in read_conversations([tmp_path / "a.parquet"]).rows] == [5, 4]
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,margin\na,b,c,0.5\na,b,c,\na,b,c,much\n")
    found = read_preferences([tmp_path / "a.csv"])
    assert [one.margin for one in found.rows] == [0.5, 0.0]
    assert dict(found.dropped) == {"margin must be a number from -1,000 to 1,000": 1}


def test_files_of_a_folder_that_are_no_rows_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(RAW)
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "b.json").write_bytes(b"\x00\x01\x02" * 99)
    found = read_conversations([tmp_path])
    assert dict(found.dropped) == {"files that are not read": 1, "files that cannot be read": 1} and len(found.rows) == 1


# --- properties -------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type", "text", "weight"]), inner, max_size=4),
    max_leaves=8,
)
COLUMNS = st.sampled_from(
    ["messages", "conversations", "prompt", "completion", "chosen", "rejected", "instruction", "input", "output", "history",
     "system", "margin", "tools", "preferred_output", "non_preferred_output", "id"]
)  # fmt: skip


@settings(max_examples=300)
@given(st.dictionaries(COLUMNS, JSON, max_size=5))
def test_any_row_is_read_or_refused_in_one_line(row):
    for read in (conversation_of, preference_of, prompt_of):
        try:
            assert read(row)
        except BadRow as error:
            assert len(str(error)) <= 300 and "\n" not in str(error) and len(error.reason) <= 60


WORDS = st.text(st.sampled_from("ab \n\u00fc<|>:"), min_size=1, max_size=8).filter(str.strip)
TURNS = st.lists(st.tuples(WORDS, WORDS, st.booleans()), min_size=1, max_size=4)


@given(TURNS, st.none() | WORDS, st.booleans())
def test_a_written_conversation_is_read_again(turns, system, last):
    found = [Message("system", system)] if system else []
    for number, (question, answer, trained) in enumerate(turns, start=1):
        found += [Message("user", question), Message("assistant", answer, trained or number == len(turns))]
    one = Conversation(tuple(found))
    assert conversation_of(json.loads(json.dumps(one.row))) == one


@given(st.lists(WORDS, min_size=2, max_size=60))
def test_a_prompt_is_on_one_side_whatever_else_there_is(prompts):
    rows = [(Message("user", prompt),) for prompt in prompts]
    train, held_out = split(rows)
    distinct = {prompt.strip() for prompt in prompts}
    if len(distinct) == 1:
        assert train == held_out == rows
        return
    assert len(train) + len(held_out) == len(rows) and train and held_out
    assert not {row[0].content.strip() for row in train} & {row[0].content.strip() for row in held_out}
    assert split(rows[::-1])[1] == held_out[::-1]


# --- conversion -------------------------------------------------------------------------------------------------------


def test_conversion_to_trl(tmp_path, run_groundup):
    row = {"chosen": HH + "A folder.", "rejected": HH + "A pipe."}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n{}\n" + RAW.decode())
    out = tmp_path / "out.jsonl"
    outcome = run_groundup("data", "convert", tmp_path / "a.jsonl", "--to", out)
    assert outcome.returncode == 0, outcome.stderr
    result = json.loads(outcome.stdout)
    assert result["what"] == "preferences" and result["rows"] == 1 and result["formats"] == {"HH-RLHF": 1}
    assert result["dropped"] == {"conversations among preferences": 1, "missing column": 1}
    [row] = [json.loads(line) for line in out.read_text().splitlines()]
    assert row == {"prompt": WHOLE[1:4], "chosen": [LAST], "rejected": [OTHER], "margin": 0.0}


def test_nothing_is_written_where_nothing_can_be_converted(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    for files, out, why in (
        (["a.jsonl"], "out.jsonl", "none of its 1 rows can be used as conversations or preferences; first line 1: no columns"),
        (["none.jsonl"], "out.jsonl", "no such file"),
        (["a.jsonl"], "a.jsonl", "is read and written"),
        (["a.jsonl"], ".", "is a folder"),
    ):
        with pytest.raises(UserError, match=why):
            convert([tmp_path / name for name in files], tmp_path / out)
    assert (tmp_path / "a.jsonl").read_text() == "{}" and {path.name for path in tmp_path.iterdir()} == {"a.jsonl"}


def test_reading_prompts(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in (PAIR, GOOD, {"prompt": "Why?"}, {"text": "x"})))
    found = read_prompts([tmp_path / "a.jsonl"])
    assert [prompt[-1].content for prompt in found.rows] == ["What is it?", "What is it?", "Why?"]
    assert dict(found.formats) == {"TRL preference": 1, "TRL messages": 1, "prompts": 1} and found.dropped.total() == 1
