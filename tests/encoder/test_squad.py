import gzip
import json
import os
import random
import string
from pathlib import Path

import pytest

from groundup.core.errors import UserError
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
    with pytest.raises(UserError, match="question 1 has no answer"):
        read(squad_file(tmp_path / "a.json", answers=[], is_impossible=True))
    with pytest.raises(UserError, match="'cat' does not stand at character 5"):
        read(squad_file(tmp_path / "a.json", answers=[{"answer_start": 5, "text": "cat"}]))
    for content in (b"", b"[]", b'{"data": 3}', b"\x1f\x8b"):
        for name in ("b.json", "b.json.gz"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError, match=r"not a SQuAD file|damaged gzip"):
                read(tmp_path / name)


def test_phrases_are_runs_of_content_words():
    text = "The Duke of Normandy, William I, was born in 1028."
    assert [text[start:end] for start, end in phrases_of(text)] == ["Duke", "Normandy", "William I", "born", "1028"]


def test_the_baseline_takes_the_phrase_nearest_to_the_words_of_the_question():
    context = "Mary lives in Paris. The Duke of Normandy was born in 1028. Peter likes cheese."
    assert sliding_window("When was the Duke of Normandy born?", context) == "1028"
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
