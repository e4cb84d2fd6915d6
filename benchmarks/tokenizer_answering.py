"""A reader from nothing overfits 200 questions, and on held-out articles beats a sliding window of word overlap."""

import tempfile
import time
from pathlib import Path

from common import arguments, conclude
from groundup.core.device import Device, choose
from groundup.encoder.bert import SpanReader
from groundup.encoder.cloze_questions import paragraphs
from groundup.encoder.question_answering import ReaderSettings, answer, build
from groundup.encoder.squad import Question, read, score, sliding_window
from groundup.tokenizer.wordpiece import WordPiece, count_words, train

VOCABULARY = 8_000
OVERFIT = ReaderSettings(steps=300)
HELD_OUT = ReaderSettings(practice_steps=1_500, steps=300)
HELD_OUT_ARTICLES = 8


def measured(model: SpanReader, tokenizer: WordPiece, questions: list[Question], device: Device) -> dict[str, float]:
    answers = answer(model, tokenizer, questions, device)
    return score({number: span.text for number, span in answers.items()}, questions)


def main() -> None:
    claim = "reader from nothing: F1 on held-out articles against a sliding window"
    data = arguments(__doc__).data
    path, corpus = data / "benchmarks" / "xquad_en.json.gz", data / "text" / "openstax.parquet"
    if not (path.is_file() and corpus.is_file()):
        return conclude(claim, None, "F1", 0, None, reason="xquad_en or openstax is missing; give --data DIR")
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(corpus, columns=["text"]).column(0).to_pylist()
    practice = list(paragraphs(texts[::2]))
    questions, device = read(path), choose()
    titles = list(dict.fromkeys(question.title for question in questions))
    seen = {*titles[:-HELD_OUT_ARTICLES]}
    training = [question for question in questions if question.title in seen]
    held_out = [question for question in questions if question.title not in seen]
    tokenizer = WordPiece(train(count_words([*practice, *(q.context + " " + q.question for q in training)]), VOCABULARY))
    baseline = score({q.id: sliding_window(q.question, q.context) for q in held_out}, held_out)
    print(f"{len(practice):,} paragraphs to practise on; {len(training)} questions to learn, {len(held_out)} held out")
    print(f"sliding window on held out: exact match {baseline['exact_match']:.3f}, F1 {baseline['f1']:.3f}")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        model = build(tokenizer, training[:200], [], OVERFIT, device, Path(folder) / "overfit")
        overfit = measured(model, tokenizer, training[:200], device)
        print(f"overfit 200 questions: exact match {overfit['exact_match']:.3f}, F1 {overfit['f1']:.3f} (bar 0.95); "
              f"{time.perf_counter() - start:.0f} s")  # fmt: skip
        start = time.perf_counter()
        model = build(tokenizer, training, practice, HELD_OUT, device, Path(folder) / "held-out")
        scores = measured(model, tokenizer, held_out, device)
        print(f"practice, then questions: held out exact match {scores['exact_match']:.3f}, F1 {scores['f1']:.3f}, "
              f"{scores['f1'] - baseline['f1']:+.3f} against the window; {time.perf_counter() - start:.0f} s; "
              f"{len(training):,} questions, where SQuAD has 87,599")  # fmt: skip
    holds = overfit["f1"] >= 0.95 and scores["f1"] > baseline["f1"]
    conclude(claim, scores["f1"], "F1", baseline["f1"], holds, peer="sliding window", peer_figure=baseline["f1"])


if __name__ == "__main__":
    main()
