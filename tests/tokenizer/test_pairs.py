import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.encoder.pairs import encode_pair, show
from groundup.tokenizer.characters import Characters
from groundup.tokenizer.wordpiece import WordPiece, count_words, train

QUESTION = "What is tokenization?"
CONTEXT = "Tokenization cuts text into tokens [SEP]."


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece(train(count_words([QUESTION, CONTEXT, "token"] * 2), 75))


def test_a_pair(tokenizer):
    [window] = encode_pair(tokenizer, QUESTION, CONTEXT, length=40, pad=True)
    asked, read = len(tokenizer.encode(QUESTION)), len(tokenizer.encode(CONTEXT))
    inside = [tokenizer.classify, *tokenizer.encode(QUESTION), tokenizer.separator, *tokenizer.encode(CONTEXT)]
    assert window.ids == [*inside, tokenizer.separator] + [tokenizer.pad] * (40 - asked - read - 3)
    assert window.segments == [0] * (asked + 2) + [1] * (read + 1) + [0] * (40 - asked - read - 3)
    assert window.mask == [1] * (asked + read + 3) + [0] * (40 - asked - read - 3)
    first = window.segments.index(1)
    assert CONTEXT[slice(*window.offsets[first])].lower() == tokenizer.pieces[window.ids[first]]
    assert window.ids.count(tokenizer.separator) == 2  # the written one is text


def test_one_text(tokenizer):
    [window] = encode_pair(tokenizer, QUESTION)
    assert window.ids == [tokenizer.classify, *tokenizer.encode(QUESTION), tokenizer.separator]
    assert {*window.segments} == {0}


@given(st.integers(0, 60), st.integers(1, 30), st.integers(0, 12))
def test_windows_cover_the_context_and_overlap(tokenizer, words, room, overlap):
    context = " ".join(["cuts"] * words)
    length = len(tokenizer.encode(QUESTION)) + 3 + room
    read = tokenizer.encode_with_offsets(context)
    if room <= overlap and room < len(read):
        with pytest.raises(UserError, match="shorten the question or the overlap"):
            encode_pair(tokenizer, QUESTION, context, length, overlap)
        return
    windows = encode_pair(tokenizer, QUESTION, context, length, overlap)
    assert all(len(window.ids) <= length for window in windows)
    spans = [[p for p, s in zip(w.offsets, w.segments, strict=True) if p and s == 1] for w in windows]
    for before, after in pairwise(spans):
        assert before[len(before) - overlap :] == after[:overlap] and len(after) > overlap
    assert spans[0] + [p for span in spans[1:] for p in span[overlap:]] == [(start, end) for _, start, end in read]


def test_a_question_is_never_cut(tokenizer):
    with pytest.raises(UserError, match="the question has"):
        encode_pair(tokenizer, QUESTION * 9, CONTEXT, 12)


def test_show(tokenizer):
    table, [window] = show(tokenizer, QUESTION, CONTEXT)
    assert window["tokens"][:2] == ["[CLS]", "what"] and {*window} == {"tokens", "ids", "segments", "mask"}
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["tokens", "ids", "segments", "mask"]
    assert len({len(line) for line in lines[:4]}) == 1 and max(map(len, lines)) <= 100


def test_show_other_kinds():
    table, [window] = show(Characters(), "é b")
    assert window == {"tokens": ["\\xc3", "\\xa9", " ", "b"], "ids": [195, 169, 32, 98]} and "␣" in table
    with pytest.raises(UserError, match="only a WordPiece tokenizer"):
        show(Characters(), "a", "b")


def test_the_command(tokenizer, run_groundup, tmp_path):
    tokenizer.save(tmp_path)
    length = len(tokenizer.encode(QUESTION)) + 3 + 5
    done = run_groundup("tokenizer", "show", tmp_path, QUESTION, CONTEXT, "--length", length, "--overlap", "2")
    assert done.returncode == 0 and "segments" in done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    [whole] = encode_pair(tokenizer, QUESTION, CONTEXT, 99)
    assert said["windows"][0]["ids"][:9] == whole.ids[:9] and len(said["windows"]) > 1
    assert run_groundup("tokenizer", "show", tmp_path / "none", "x").returncode == 2
