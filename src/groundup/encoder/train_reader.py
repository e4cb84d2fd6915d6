"""From files of questions to the folder of a reader: the command `groundup train-reader`."""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.core.files import digest
from groundup.core.seals import read_sealed, write_sealed
from groundup.data.readers import Refused
from groundup.encoder import squad
from groundup.encoder.cloze_questions import paragraphs
from groundup.encoder.question_answering import ReaderSettings, answer, build, fits
from groundup.encoder.squad import Question
from groundup.tokenizer import documents, load
from groundup.tokenizer.wordpiece import WordPiece, count_words, train

logger = logging.getLogger(__name__)

KEY, RESULT = "questions.json", "reader.json"
HELD_OUT_EVERY, MAX_HELD_OUT = 10, 500  # one of ten contexts is held out; at most so many questions
PRACTICE_MB = 64  # of text; practice reads some thousand paragraphs


def train_reader(
    files: Sequence[Path], out: Path, texts: Sequence[Path], tokenizer: Path | None, vocabulary: int, settings: ReaderSettings,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Train a reader on SQuAD files, with questions made of `texts` to practise on, into folder `out`; returns its scores.

    Every tenth context is held out to evaluate on. Without a tokenizer one is trained on contexts, questions and texts. The
    same command resumes where it was interrupted, and does nothing once it is finished.
    Raises UserError for a file without a usable question, a tokenizer that is no WordPiece, an `out` with something else in it.
    """
    refused = Refused()
    questions = list({q.id: q for path in files for q in _named(path, squad.read(path, refused), len(files) > 1)}.values())
    practice = _practice(texts)
    wordpiece = _tokenizer(tokenizer, questions, practice, vocabulary)
    questions = _fitting(wordpiece, questions, settings.length, refused)
    if refused:
        logger.warning(f"passed over: {refused}")
    key = {
        "files": {str(path): digest(path) for path in files},
        "practice": hashlib.blake2b("\n".join(practice).encode("utf-8", "replace"), digest_size=16).hexdigest(),
        "tokenizer": hashlib.blake2b(json.dumps(wordpiece.as_json()).encode("utf-8", "replace"), digest_size=16).hexdigest(),
        "settings": asdict(settings),
        "seed": seed,
    }
    if (finished := _begin(out, key)) is not None:
        return finished
    training, held_out = _split(questions)
    logger.info(f"{len(training):,} questions to learn from, {len(held_out):,} held out")
    device = choose()
    model = build(wordpiece, training, practice, settings, device, out, seed)
    scores = None
    if held_out:
        answers = {name: result.text for name, result in answer(model, wordpiece, held_out, device).items()}
        baseline = {q.id: squad.sliding_window(q.question, q.context) for q in held_out}
        scores = {"questions": len(held_out), **squad.score(answers, held_out)}
        scores["nearest_phrase_f1"] = squad.score(baseline, held_out)["f1"]
    result = {
        "reader": str(out),
        "questions": len(training),
        "passed_over": {reason: count for reason, count in sorted(refused.items()) if count},
        "practice_paragraphs": len(practice),
        "vocabulary": wordpiece.size,
        "steps": settings.steps,
        "held_out": scores,
    }
    write_sealed(out / RESULT, {"key": key, "result": result})
    return result


def _named(path: Path, questions: list[Question], many_files: bool) -> list[Question]:
    """With ids made distinct: two files may number their questions alike."""
    return [Question(f"{path}:{q.id}", *list(vars(q).values())[1:]) for q in questions] if many_files else questions


def _practice(texts: Sequence[Path]) -> list[str]:
    practice, characters = [], 0
    for paragraph in paragraphs(documents.texts(documents.find(texts), "train")) if texts else ():
        practice.append(paragraph)
        characters += len(paragraph)
        if characters > PRACTICE_MB << 20:
            break
    if texts and not practice:
        raise UserError(
            f"{', '.join(map(str, texts))}: no paragraph to practise on: a line of 50 to 220 words, of three sentences or more"
        )
    return practice


def _tokenizer(folder: Path | None, questions: list[Question], practice: list[str], vocabulary: int) -> WordPiece:
    if folder is None:
        contexts = dict.fromkeys(q.context for q in questions)
        return WordPiece(train(count_words([*contexts, *(q.question for q in questions), *practice]), vocabulary))
    tokenizer = load.load(folder)
    if not isinstance(tokenizer, WordPiece):
        raise UserError(
            f"{folder}: a reader reads WordPiece, which this is not; `groundup tokenizer train` makes one of the "
            "kind wordpiece, and without a tokenizer one is made of the questions"
        )
    return tokenizer


def _fitting(tokenizer: WordPiece, questions: list[Question], length: int, refused: Refused) -> list[Question]:
    """Without the questions that leave a window too little room for the context."""
    too_long = {q.id for q in questions if not fits(tokenizer, q, length)}
    refused.add("a question longer than a third of a window", "one of them", len(too_long))
    fitting = [q for q in questions if q.id not in too_long]
    if not fitting:
        raise UserError(f"every question is longer than a third of a window of {length} tokens; take a larger length")
    return fitting


def _split(questions: list[Question]) -> tuple[list[Question], list[Question]]:
    """Questions to train on, and those about every tenth context, which no training question is about."""
    contexts = list(dict.fromkeys(q.context for q in questions))
    held_out_contexts = set(contexts[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    training = [q for q in questions if q.context not in held_out_contexts]
    return training, [q for q in questions if q.context in held_out_contexts][:MAX_HELD_OUT]


def _begin(out: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The result of the same command if it was finished; otherwise None, with `out` ready and its interrupted work kept."""
    finished = read_sealed(out / RESULT)
    if finished and finished["key"] == json.loads(json.dumps(key)) and (out / "model.safetensors").is_file():
        return finished["result"]
    previous_key = read_sealed(out / KEY)
    if previous_key is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: there is something else already; give another folder, or delete it")
    if previous_key is not None and previous_key != json.loads(json.dumps(key)):
        logger.warning(f"{out} is of other questions or settings: started again")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_sealed(out / KEY, key)
    return None
