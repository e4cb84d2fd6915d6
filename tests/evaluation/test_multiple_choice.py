import re
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from groundup.core.errors import UserError
from groundup.data.docstring_questions import STDLIB, documented, first_sentence
from groundup.data.simulated_annotator import overlap
from groundup.evaluation import multiple_choice


@pytest.fixture(scope="module")
def library():
    folder = Path(shutil.__file__).parent
    names = ["shutil.py", "argparse.py", "configparser.py", "threading.py", "email/message.py", "tarfile.py"]
    return [(STDLIB + name, (folder / name).read_text(encoding="utf-8")) for name in names]


@pytest.fixture(scope="module")
def rows(library):
    return multiple_choice.from_documents(library, questions=120, seed=0)


def test_the_right_choice_is_the_first_sentence(library, rows):
    items = {item.name: item for item in documented(library)}
    assert len(rows) == 120 and len({row["object"] for row in rows}) == 120
    of_kind: dict[str, set[str]] = {}
    for item in items.values():
        of_kind.setdefault(item.kind, set()).add(first_sentence(item.docstring))
    for row in rows:
        item = items[row["object"]]
        assert row["choices"][row["answer"]] == first_sentence(item.docstring)
        assert set(row["choices"]) <= of_kind[item.kind]
        assert f"`{item.name}`" in row["question"]


def test_no_choice_gives_itself_away(rows):
    for row in rows:
        short = row["object"].rpartition(".")[2].lower()
        assert not any(re.search(rf"(?<!\w){short}(?!\w)", choice.lower()) for choice in row["choices"])
        assert all(overlap(a, b) < multiple_choice.NEAR_IDENTICAL for a, b in combinations(row["choices"], 2))
    places = Counter(row["answer"] for row in rows)
    assert all(15 <= places[place] <= 45 for place in range(4))


def test_distractors_come_from_the_same_module_where_it_has_enough(library, rows):
    by_sentence: dict[str, set[str]] = {}
    for item in documented(library):
        by_sentence.setdefault(first_sentence(item.docstring), set()).add(item.module)
    methods = [row for row in rows if row["object"].startswith("configparser.RawConfigParser.")]
    assert methods
    for row in methods:
        assert all("configparser" in by_sentence[choice] for choice in row["choices"])


def test_the_same_test_whatever_the_order_of_documents(library, rows):
    assert multiple_choice.from_documents(library[::-1], 120, seed=0) == rows
    assert multiple_choice.from_documents(library, 120, seed=1) != rows
    assert multiple_choice.from_documents(library[:1], 10_000, seed=0)  # fewer than asked for is no error
    assert multiple_choice.from_documents([], 10, seed=0) == []


def scored(rows, nats):
    return multiple_choice.score(rows, lambda pairs: [nats(*pair) for pair in pairs])


def test_one_model_has_three_scores():
    """By hand: the letter A, the shortest answer, and the answer with the best average win in turn."""
    row = {"question": "Which?", "choices": ["aaaaaaaaa", "bb", "cccc", "dddddd"], "object": "x"}
    table = {"aaaaaaaaa": -9.0, "bb": -4.0, "cccc": -4.5, "dddddd": -5.0}
    letters = {"A": -1.0, "B": -1.5, "C": -2.0, "D": -0.5}

    def nats(context, continuation):
        assert continuation.startswith(" ") and context.endswith("Answer:")
        if (letter := continuation[1:]) in letters:
            assert context == "Question: Which?\nA. aaaaaaaaa\nB. bb\nC. cccc\nD. dddddd\nAnswer:"
            return letters[letter]
        assert context == "Question: Which?\nAnswer:"
        return table[continuation[1:]]

    # Letter: D. Sum: bb (-4). Per byte of " bb", " dddddd", ...: dddddd (-5/7) beats aaaaaaaaa (-9/10), cccc (-4.5/5).
    right = {place: scored([{**row, "answer": place}], nats) for place in range(4)}
    assert [
        [right[place][way]["accuracy"] for way in ("letter", "answer", "answer per byte")] for place in range(4)
    ] == [
        [0, 0, 0],
        [0, 1, 0],
        [0, 0, 0],
        [1, 0, 1],
    ]
    assert [right[place]["spread"] for place in range(4)] == [0, 1, 0, 1]
    assert right[0]["chance"] == 0.25 and right[0]["letter"]["n"] == 1


def test_a_model_that_knows_scores_all_and_one_that_does_not_scores_chance(rows):
    right = {row["choices"][row["answer"]] for row in rows}
    answers = {multiple_choice.listed(row): multiple_choice.LETTERS[row["answer"]] for row in rows}

    def knows(context, continuation):
        own = {row["question"]: row for row in rows}[context.split("\n")[0].removeprefix("Question: ")]
        expected = answers[context] if context in answers else own["choices"][own["answer"]]
        return 0.0 if continuation == f" {expected}" else -100.0

    perfect = scored(rows, knows)
    assert right and all(perfect[way]["accuracy"] == 1 for way in ("letter", "answer", "answer per byte"))
    assert perfect["spread"] == 0
    for way in ("letter", "answer", "answer per byte"):
        blind = scored(rows, lambda context, continuation: -1.0)[way]
        assert blind["low"] < 0.25 < blind["high"]


def test_nothing_to_score_is_an_error():
    with pytest.raises(UserError, match="no questions"):
        multiple_choice.score([], lambda pairs: [])
