"""What is trained of one's own rows, shown."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.text import printable
from groundup.posttraining import show
from groundup.posttraining.tokenize_rows import conversation
from groundup.tokenizer.tokenizer import Tokenizer

TURNS = [("user", "what"), ("assistant", "the\npath"), ("user", "and 漢"), ("assistant", "it")]
COLOURS = re.compile("\x1b\\[[0-9;]*m")


def marked(tokenizer, row, colour):
    return show._marked([*show._texts(tokenizer, row)], colour)


def row(texts, **more):
    return {"messages": [{"role": role, "content": text} for role, text in texts], **more}


def test_what_is_trained_stands_between_marks(toy_tokenizer):
    found = marked(toy_tokenizer, conversation(toy_tokenizer, row(TURNS)), colour=False)
    assert re.findall(r"\{\+(.*?)\+\}", found, flags=re.DOTALL) == ["the\npath<|im_end|>", "it<|im_end|>"]
    assert "<|im_start|>user\nand 漢<|im_end|>" in found


@given(st.text(max_size=30), st.text(max_size=30))
def test_colours_change_no_text_and_no_text_is_a_command(toy_tokenizer, asked, answered):
    one = conversation(toy_tokenizer, row([("user", asked), ("assistant", answered)]))
    plain, coloured = (marked(toy_tokenizer, one, colour) for colour in (False, True))
    assert COLOURS.sub("", coloured) == re.sub(r"^(.*)\{\+(.*)\+\}$", r"\1\2", plain, flags=re.DOTALL)
    assert printable(plain) == plain and printable(COLOURS.sub("", coloured)) == COLOURS.sub("", coloured)
    assert all(line.endswith("\x1b[0m") for line in coloured.split("\n") if line)


@pytest.fixture
def place(toy_tokenizer, tmp_path):
    toy_tokenizer.save(tmp_path / "model", model_max_length=64, chat=True)
    rows = [row(TURNS), {"messages": 3}, row(TURNS[:2])]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "what", "chosen": "\\u001b[31mit", "rejected": "the path"}\n')
    return tmp_path


def test_by_command(groundup_here, place):
    files = ("--data", place / "talks.jsonl", "--data", place / "pairs.jsonl")
    outcome = groundup_here("data", "show", place / "model", *files)
    found = json.loads(outcome.stdout)
    assert found["rows"] == 3 and found["left_out"] and 0 < found["trained"] < found["tokens"]
    assert all(f"left out, {count:,} of these rows: {reason}" in outcome.stderr for reason, count in found["left_out"].items())
    assert "row 3, chosen" in outcome.stderr and "{+\\x1b[31mit<|im_end|>+}" in outcome.stderr
    assert "\x1b" not in outcome.stderr
    assert json.loads(groundup_here("data", "show", place / "model", *files[:2], "--rows", 1).stdout)["rows"] == 1


@pytest.mark.parametrize("model, data, said", [("model", "none", "none"), ("none", "talks.jsonl", "tokenizer.json")])
def test_what_is_missing(groundup_here, place, model, data, said):
    outcome = groundup_here("data", "show", place / model, "--data", place / data)
    assert outcome.returncode == 2 and said in outcome.stderr and len(outcome.stderr.splitlines()) == 1


def test_a_character_of_several_tokens_is_shown_once(toy_tokenizer: Tokenizer):
    found = marked(toy_tokenizer, conversation(toy_tokenizer, row([("user", "漢字"), ("assistant", "字")])), colour=True)
    assert COLOURS.sub("", found).count("字") == 2
