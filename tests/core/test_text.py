import ast
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import groundup
from groundup.core.text import MESSAGE_CHARACTERS, json_printable, message, printable, visible

SOURCES = Path(groundup.__file__).parent
# `marked_rows` has its own colours around text that passed the first.
OUTLETS = {"printable", "message", "json_printable", "marked_rows"}
ANYTHING = st.text(st.characters(exclude_categories=()))
HOSTILE = st.text(st.sampled_from("a[/b]\x00\x1b\x7f\x9b\r\u202e\u2066\ud800\udfff\ufeff\U000e0041 \n\tü語"))


@given(ANYTHING | HOSTILE)
def test_what_is_printed_can_be_encoded_and_commands_no_terminal(text):
    shown = printable(text)
    shown.encode("utf-8")
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    turning = {"LRO", "RLO", "LRE", "RLE", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert not [c for c in shown if unicodedata.bidirectional(c) in turning]


def test_plain_text_of_any_script_stays_as_it_is():
    for text in ("naïve", "語 と", "ไทย", "हिन्दी", "a\u200db", "👩‍👩‍👧", "web=a[/b]", "two\nlines\t"):
        assert printable(text) == text


def test_controls_are_shown_by_their_escapes():
    assert printable("\x1b[2J\x9b\u202e\ud800\U000e0041") == "\\x1b[2J\\x9b\\u202e\\ud800\\U000e0041"


@given(ANYTHING | HOSTILE)
def test_a_message_is_one_short_line_that_keeps_its_ends(text):
    line = message(f"what {text * 50} what to do")
    assert len(line) <= MESSAGE_CHARACTERS and len(line.splitlines()) == 1
    assert line.startswith("what ") and line.endswith(" what to do")


@given(st.dictionaries(ANYTHING | HOSTILE, ANYTHING | HOSTILE, max_size=3))
def test_the_json_line_reads_back_as_the_same_value(value):
    line = json_printable(json.dumps(value, ensure_ascii=False))
    line.encode("utf-8")
    assert printable(line) == line
    again = json.loads(line)
    # Two halves of a surrogate pair side by side are one character to JSON, whoever writes them.
    assert again == json.loads(json.dumps(value))


@given(ANYTHING | HOSTILE)
def test_visible_keeps_what_can_be_seen(text):
    seen = visible(text)
    seen.encode()
    assert not set(seen) & set("\xad\u180e\u200b\ufffe\uffff\x1b\x9b\u202e")
    assert visible(seen) == seen
    if text.isprintable():
        assert seen == text


def test_visible_reaches_into_data():
    assert visible({"a\x00": ["\x1b", 1, None, "\u200b"]}) == {"a\\x00": ["\\x1b", 1, None, "\\u200b"]}
    assert visible("one\n\ttwo") == "one\n\ttwo"


def _unguarded(tree):
    """Lines that print, or write to a standard stream, what passed none of the functions above."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in ("sys.stdout.write", "sys.stderr.write", "typer.echo"):
            yield node.lineno
        if name == "print" and any(
            not (isinstance(given, ast.Call) and ast.unparse(given.func) in OUTLETS)
            and not isinstance(given, ast.Constant)
            for given in node.args
        ):
            yield node.lineno


def test_whatever_is_printed_anywhere_passes_here():
    found = [
        f"{path.relative_to(SOURCES)}:{line}"
        for path in sorted(SOURCES.rglob("*.py"))
        for line in _unguarded(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize("line", ["print(name)", "print(f'{name}')", "print('a', name)", "sys.stderr.write(name)"])
def test_an_unguarded_print_would_be_found(line):
    assert list(_unguarded(ast.parse(line))) == [1]
