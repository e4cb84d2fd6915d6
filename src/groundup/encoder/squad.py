"""SQuAD (Rajpurkar et al. 2016): its files, the scores of many answers, and the baseline that a reader has to beat.

Of several right answers the best match counts; `core/answer_scores.py` measures it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.core.answer_scores import exact_match, f1
from groundup.core.errors import UserError
from groundup.data.readers import Refused
from groundup.data.whole_file import read_whole

SHAPE = "it needs data > paragraphs > context, qas > question, answers > answer_start, text"


@dataclass(frozen=True)
class Question:
    id: str
    question: str
    context: str
    answers: list[tuple[int, str]]  # offset in the context and text of each right answer
    title: str = ""


def read(path: Path, refused: Refused | None = None) -> list[Question]:
    """Questions of a SQuAD 1.1 file (JSON, plain or compressed), in its order.

    Unusable ones are counted in `refused`: without an answer (SQuAD 2.0 has such), with no answer that is where it should be,
    without text. Raises UserError for another kind of file, and for one without a usable question.
    """
    refused = Refused() if refused is None else refused
    try:
        articles = json.loads(read_whole(path))["data"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a SQuAD file ({str(error)[:100]!r}); {SHAPE}") from None
    questions = list(_questions(articles, str(path), refused))
    if not questions:
        raise UserError(f"{path}: no question to learn from ({refused or 'it is empty'}); {SHAPE}")
    return questions


def _questions(articles: Any, file: str, refused: Refused) -> Iterator[Question]:
    """Raises nothing: whatever is malformed is counted, at the deepest level that can be named."""
    number, seen_ids = 0, set()
    for article in _listed(articles, "data", file, refused):
        title = article.get("title")
        for paragraph in _listed(article.get("paragraphs"), "paragraphs", file, refused):
            context = paragraph.get("context")
            for row in _listed(paragraph.get("qas"), "qas", file, refused):
                number += 1
                location = f"{file}, question {number}"
                name, question, answers = row.get("id", str(number)), row.get("question"), row.get("answers")
                valid = list(_valid_answers(answers, context)) if isinstance(context, str) else []
                if not (isinstance(context, str) and isinstance(question, str) and context.strip() and question.strip()):
                    refused.add("no question or context", location)
                elif not answers or not isinstance(answers, list):
                    refused.add("no answer", location)
                elif not valid:
                    refused.add("an answer that does not stand where it should", location)
                elif not isinstance(name, str | int) or str(name) in seen_ids:
                    refused.add("an id that is no text or came before", location)
                else:
                    seen_ids.add(str(name))
                    yield Question(str(name), question, context, valid, title if isinstance(title, str) else "")


def _listed(value: Any, name: str, location: str, refused: Refused) -> Iterator[dict[str, Any]]:
    if not isinstance(value, list):
        refused.add(f"no list of {name}", location)
        return
    for entry in value:
        if isinstance(entry, dict):
            yield entry
        else:
            refused.add(f"an entry of {name} that is no object", location)


def _valid_answers(answers: Any, context: str) -> Iterator[tuple[int, str]]:
    """The answers that are in the context at their offset."""
    for answer in answers if isinstance(answers, list) else []:
        start, text = (answer.get("answer_start"), answer.get("text")) if isinstance(answer, dict) else (None, None)
        if type(start) is int and start >= 0 and isinstance(text, str) and text.strip() and context.startswith(text, start):
            yield start, text


def score(answers: Mapping[str, str], questions: Sequence[Question]) -> dict[str, float]:
    """Mean exact match and F1 (0 to 1) of the answers by question id; a question without an answer counts 0."""
    if not questions:
        raise UserError("no questions to score")
    answered = [(answers[q.id], [text for _, text in q.answers]) for q in questions if q.id in answers]
    return {
        "exact_match": sum(max(exact_match(answer, text) for text in accepted) for answer, accepted in answered) / len(questions),
        "f1": sum(max(f1(answer, text) for text in accepted) for answer, accepted in answered) / len(questions),
    }


_WORD = re.compile(r"\w+(?:[.,'’–-]\w+)*|\S")
_FUNCTION_WORDS = frozenset(
    """
    a an the of in on at to for from by with and or but as is are was were be been being it its this that
    these those he she they his her their him them which who whom whose what when where why how many much did
    do does has have had not no nor so than then there into about between during after before over under
    through also such would could can will may most more other some any all each both only while if because
    until against
    """.split()  # noqa: SIM905
)
_DISTANCE_SCALE = 15.0  # words; the best of 5, 10, 15, 20 and 30 on the 1,190 questions of XQuAD


def phrases_of(text: str) -> list[tuple[int, int]]:
    """Start and end of each run of words between punctuation and function words."""
    return [(run[0][1], run[-1][2]) for run in _runs(_words(text), frozenset())]


def sliding_window(question: str, context: str) -> str:
    """The baseline: the phrase of the context that is nearest to the words of the question; "" if there is none.

    As Richardson et al. 2013, with distance; phrases are those of `phrases_of`, split at the question's words too. A
    word shared with the question counts log(1 + 1 / its frequency in the context), so rare ones count more, times
    exp(-distance / 15) to the middle of the phrase. Of equals, the first phrase.
    """
    words = _words(context)
    question_words = frozenset(word for word, _, _, _ in _words(question) if word[0].isalnum())
    frequency = Counter(word for word, _, _, _ in words)
    shared_words = [(position, math.log(1 + 1 / frequency[word])) for word, _, _, position in words if word in question_words]

    def nearness(run: list[_Word]) -> float:
        middle = (run[0][3] + run[-1][3]) / 2
        # Exact, so that equals are equal in any order and any Python: from 3.12 on `sum` rounds differently.
        return math.fsum(weight * math.exp(-abs(position - middle) / _DISTANCE_SCALE) for position, weight in shared_words)

    nearest = max(_runs(words, question_words), key=nearness, default=None)
    return context[nearest[0][1] : nearest[-1][2]] if nearest else ""


_Word = tuple[str, int, int, int]  # in lower case; its start and end; its index


def _words(text: str) -> list[_Word]:
    return [(match.group().lower(), *match.span(), number) for number, match in enumerate(_WORD.finditer(text))]


def _runs(words: list[_Word], question_words: frozenset[str]) -> list[list[_Word]]:
    runs: list[list[_Word]] = [[]]
    for word in words:
        if word[0][0].isalnum() and word[0] not in question_words and word[0] not in _FUNCTION_WORDS:
            runs[-1].append(word)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
