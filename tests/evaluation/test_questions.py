"""Questions of one's own: what counts as one, and how questions of few and many choices are scored."""

import json
import math

import pytest

from groundup.core.errors import UserError
from groundup.data.readers import Refused
from groundup.evaluation import multiple_choice
from groundup.evaluation.questions import are_questions, read_questions

GOOD = {"question": "Which?", "choices": ["one", "two", "three"], "answer": 1}
BAD = [
    ({}, "missing column"), (3, "missing column"), ({**GOOD, "question": " "}, "no question"),
    ({**GOOD, "choices": "abc"}, "2 to 26"), ({**GOOD, "choices": ["a"]}, "2 to 26"),
    ({**GOOD, "choices": ["a"] * 27}, "2 to 26"),
    ({**GOOD, "choices": ["a", ""]}, "a choice is empty"), ({**GOOD, "answer": 3}, "none of the choices"),
    ({**GOOD, "answer": True}, "none of the choices"), ({**GOOD, "answer": "D"}, "none of the choices"),
    ({**GOOD, "answer": "1"}, "none of the choices"), ({**GOOD, "answer": None}, "none of the choices"),
]  # fmt: skip


@pytest.mark.parametrize("row, reason", BAD)
def test_bad_rows_are_counted_among_good_ones_and_refused_alone(row, reason):
    refused = Refused()
    assert read_questions([GOOD, row], refused) == [GOOD] and refused.total() == 1 and reason in str(refused)
    with pytest.raises(UserError, match=reason):
        read_questions([row], Refused())


def test_files_and_rows_and_letters(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (GOOD, {**GOOD, "answer": "b"}, {})), encoding="utf-8")
    refused = Refused()
    assert read_questions([path, GOOD], refused) == [GOOD] * 3 and f"{path}: row 3" in refused.first
    assert are_questions(path) and are_questions(GOOD) and not are_questions({"text": "a"})
    (tmp_path / "b.txt").write_text("a text")
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "d.jsonl").write_text("")
    assert not any(map(are_questions, (tmp_path, *(tmp_path / name for name in ("b.txt", "c.jsonl", "d.jsonl", "none")))))


def test_choices_of_any_number():
    rows = [GOOD, {"question": "a", "choices": ["b", "c"], "answer": 0}, {"question": "d", "choices": list("efghi"), "answer": 4}]
    asked = []

    def likes(pairs):  # by letter the last, by answer the right one
        asked.extend(pairs)
        right = {" " + row["choices"][row["answer"]] for row in rows}
        return [1.0 * (text in right) if not context.count("\n") > 1 else float(ord(text[-1])) for context, text in pairs]

    found = multiple_choice.score(rows, likes)
    assert len(asked) == 2 * (3 + 2 + 5) and (asked[4][1], asked[9][1]) == (" B", " E")
    assert found["answer"]["accuracy"] == 1 and math.isclose(found["letter"]["accuracy"], 1 / 3)
    assert math.isclose(found["chance"], (1 / 3 + 1 / 2 + 1 / 5) / 3)


def test_answers_that_count_from_1_are_refused(tmp_path):
    rows = [{"question": "?", "choices": ["x", "y"], "answer": answer} for answer in (1, 2)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"answers count from 1, as row 2 shows.*take 1 off each"):
        read_questions([tmp_path / "a.jsonl"], Refused())
