import gzip
import json
import os
import random
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.data.readers import Refused
from groundup.encoder.squad import Question, exact_match, f1, phrases_of, read, score, sliding_window

DATA = Path(__file__).parents[2] / os.environ.get("GROUNDUP_DATA", "../shared/data")
WORDS = ["the", "The", "a", "an", "An", "cat", "Cat", "cat's", "U.S.", "1,000", "—", "“x”", "naïve", "a.", "\t", "Theory", "...",
         "x-the-y", "the_a", "anthem"]  # fmt: skip


def official_words(text):
    """SQuAD's published rules, step by step: lower case, no ASCII punctuation, no articles, split at white space."""
    kept = [character for character in text.lower() if character not in string.punctuation]
    return [word for word in split_at_boundaries("".join(kept)) if word]


def split_at_boundaries(text):
    """Words at white space; inside them an article goes where it stands between boundaries, and leaves a gap."""
    pieces, current = [], ""
    for character in [*text, " "]:
        if character.isalnum() or character == "_":
            current += character
        else:
            pieces.append("" if current in ("a", "an", "the") else current)
            removed = current in ("a", "an", "the")
            pieces.append((" " if removed else "") + character)
            current = ""
    return "".join(piece or " " for piece in pieces).split()


def official(answers, questions):
    exact = overlap = 0.0
    for question in questions:
        if question.id not in answers:
            continue
        given, best_exact, best_overlap = official_words(answers[question.id]), 0.0, 0.0
        for _, right in question.answers:
            expected = official_words(right)
            left, common = [*expected], 0
            for word in given:
                if word in left:
                    left.remove(word)
                    common += 1
            best_exact = max(best_exact, float(given == expected))
            if common:
                precision, recall = common / len(given), common / len(expected)
                best_overlap = max(best_overlap, 2 * precision * recall / (precision + recall))
        exact += best_exact
        overlap += best_overlap
    return exact / len(questions), overlap / len(questions)


def test_scores_are_the_official_ones_on_1000_random_cases():
    chosen = random.Random(0)

    def text():
        return chosen.choice(["", " "]) + chosen.choice([" ", "  "]).join(chosen.choices(WORDS, k=chosen.randint(0, 6)))

    for size in [1] * 999 + [200]:
        questions = [Question(str(n), "", "", [(0, text()) for _ in range(chosen.randint(1, 3))]) for n in range(size)]
        answers = {q.id: chosen.choice([text(), q.answers[0][1]]) for q in questions if chosen.random() > 0.05}
        found = score(answers, questions)
        assert (found["exact_match"], found["f1"]) == pytest.approx(official(answers, questions), abs=1e-12)


def test_a_few_scores_by_hand():
    assert exact_match("The cat's.", "cats") == 1 and exact_match("cat", "cats") == 0
    assert f1("the big black cat", "a black cat!") == pytest.approx(0.8)
    assert f1("", "") == 0 and exact_match("the", "") == 1  # so the official script has it


def test_no_questions_have_no_score():
    with pytest.raises(UserError, match="no questions"):
        score({}, [])


def squad_file(path, **changes):
    row = {"id": "1", "question": "Who?", "answers": [{"answer_start": 4, "text": "cat"}], **changes}
    content = {"version": "1.1", "data": [{"title": "T", "paragraphs": [{"context": "The cat sat.", "qas": [row]}]}]}
    path.write_text(json.dumps(content))
    return path


def test_a_file_is_read_packed_or_not(tmp_path):
    path = squad_file(tmp_path / "a.json")
    packed = tmp_path / "a.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(path) == read(packed) == [Question("1", "Who?", "The cat sat.", [(4, "cat")], "T")]


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"no question to learn from .*no answer: 1"):
        read(squad_file(tmp_path / "a.json", answers=[], is_impossible=True))
    with pytest.raises(UserError, match=r"does not stand where it should: 1; first .*question 1"):
        read(squad_file(tmp_path / "a.json", answers=[{"answer_start": 5, "text": "cat"}]))
    for content in (b"", b"[]", b'{"data": 3}', b"\x1f\x8b"):
        for name in ("b.json", "b.json.gz"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError, match=r"not a SQuAD file|damaged gzip|no list of data"):
                read(tmp_path / name)


BAD_ROWS = {
    "no answer": [{"answers": []}, {"answers": None}, {"answers": {}}, {"answers": "cat"}],
    "an answer that does not stand where it should": [
        {"answers": [one]}
        for one in (3, {}, {"text": "cat"}, {"answer_start": True, "text": "h"}, {"answer_start": -8, "text": "cat"},
                    {"answer_start": 4, "text": ""}, {"answer_start": "4", "text": "cat"})
    ],
    "no question or context": [{"question": None}, {"question": " "}, {"question": ["Who?"]}],
    "an id that is no text or came before": [{"id": "1"}, {"id": None}, {"id": [1]}],
    "an entry of qas that is no object": [None, "row", []],
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_bad_rows_among_good_ones_are_counted_and_passed_over(tmp_path, reason):
    path = squad_file(tmp_path / "a.json")
    content = json.loads(path.read_text())
    rows = content["data"][0]["paragraphs"][0]["qas"]
    rows += [one if not isinstance(one, dict) else {**rows[0], "id": f"bad {n}", **one} for n, one in enumerate(BAD_ROWS[reason])]
    path.write_text(json.dumps(content))
    refused = Refused()
    assert read(path, refused) == [Question("1", "Who?", "The cat sat.", [(4, "cat")], "T")]
    assert refused == {reason: len(BAD_ROWS[reason])} and str(path) in str(refused)


KEYS = ("paragraphs", "context", "qas", "id", "question", "answers", "answer_start", "text")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 20) | st.text("cat", max_size=3),
    lambda parts: st.lists(parts, max_size=3)
    | st.dictionaries(st.sampled_from(KEYS), parts),
    max_leaves=30,
)


@given(JSON)
def test_any_json_is_read_or_refused_in_a_line(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps({"data": value}))
    try:
        found = read(path)
    except UserError as error:
        assert "SQuAD" in str(error) or "no question" in str(error)
    else:
        assert all(q.context.startswith(text, start) for q in found for start, text in q.answers)


def test_phrases_are_runs_of_content_words():
    text = "The Duke of Normandy, William I, was born in 1028."
    assert [text[start:end] for start, end in phrases_of(text)] == ["Duke", "Normandy", "William I", "born", "1028"]


def test_the_baseline_takes_the_phrase_nearest_to_the_words_of_the_question():
    context = "Mary lives in Paris. The Duke of Normandy was born in 1028. Peter likes cheese."
    question = "When was the Duke of Normandy born?"
    assert sliding_window(question, context.replace("Paris", "Paris, as we all have")) == "1028"
    assert sliding_window(question, context) == "Paris"  # as near as 1028, and the first
    assert sliding_window("Who likes cheese?", context) == "Peter"
    assert sliding_window("Who?", "") == ""


def test_real_questions_and_the_baseline_on_them():
    path = DATA / "benchmarks" / "xquad_en.json.gz"
    if not path.is_file():
        pytest.skip(f"{path} is missing: set GROUNDUP_DATA to the folder of test data")
    questions = read(path)
    assert len(questions) == 1190
    found = score({q.id: sliding_window(q.question, q.context) for q in questions}, questions)
    assert found["f1"] == pytest.approx(0.1877, abs=1e-4)
    assert score({q.id: q.answers[0][1] for q in questions}, questions) == {"exact_match": 1.0, "f1": 1.0}
