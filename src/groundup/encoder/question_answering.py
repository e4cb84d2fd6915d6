"""A reader: an encoder that points at the first and the last token of the answer (Devlin et al. 2019, section 4.2).

Question and context are one sequence; every token gets a logit for "the answer begins here" and one for "it ends here".
A long context is read through overlapping windows. A window without the answer is trained to point at [CLS]. The likeliest
span of all windows is the answer, copied from the context.

A reader trained from scratch has two aids. It practises first on questions made from plain text (`cloze_questions`). And segment
2 in place of 1 marks the tokens of the context that the question has too: the exact-match feature of DrQA (Chen et al. 2017),
which a large pre-trained encoder finds by itself. A BERT with two segments is used without it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.core.device import Device, choose
from groundup.core.errors import UserError
from groundup.core.files import read_object
from groundup.core.progress import Progress
from groundup.data.whole_file import read_whole
from groundup.encoder import bert
from groundup.encoder.bert import EncoderConfig, SpanReader
from groundup.encoder.cloze_questions import cloze
from groundup.encoder.pairs import Window, encode_pair
from groundup.encoder.squad import Question
from groundup.tokenizer.wordpiece import WordPiece
from groundup.training import checkpoint
from groundup.training.epoch_order import chosen_rows
from groundup.training.loop import train
from groundup.training.objectives import Batch, Metrics
from groundup.training.optimizer import Optimizer, one_lr
from groundup.training.schedule import warmup_stable_decay

OVERLAP = 128  # tokens of context that a window shares with the next (BERT's), at most a third of it
HOW_TO_TRAIN = "`groundup train-reader`"
MAX_ANSWER_TOKENS = 30  # BERT's


@dataclass(frozen=True)
class ReaderSettings:
    depth: int = 2
    length: int = 320  # tokens of a window
    batch: int = 32  # windows per step
    practice_steps: int = 0  # on questions made from plain text
    steps: int = 500
    rate: float = 2e-3  # the learning rate, by this name in `reader.json` too


@dataclass(frozen=True)
class LabelledWindow:
    window: Window
    first: int  # indices of the answer's first and last token in the window; both 0, [CLS], if it is not inside
    last: int


@dataclass(frozen=True)
class Answer:
    text: str
    start: int  # its offset in the context
    score: float  # log-probability of its first token plus that of its last


def windows_of(tokenizer: WordPiece, question: Question, length: int) -> list[Window]:
    return encode_pair(tokenizer, question.question, question.context, length, min(OVERLAP, length // 3))


def fits(tokenizer: WordPiece, question: Question, length: int) -> bool:
    """Whether the question leaves most of a window of `length` tokens to the context."""
    return len(tokenizer.encode(question.question)) <= length // 3


def labelled_windows(tokenizer: WordPiece, question: Question, length: int) -> list[LabelledWindow]:
    """The windows of a question, each with the span of the first right answer in it."""
    start, text = question.answers[0]
    windows = windows_of(tokenizer, question, length)
    return [LabelledWindow(window, *_span(window, start, start + len(text))) for window in windows]


def _span(window: Window, start: int, end: int) -> tuple[int, int]:
    context = [(index, span) for index, span in enumerate(window.offsets) if span and window.segments[index] == 1]
    inside = [index for index, span in context if span[0] < end and span[1] > start]
    # An answer that the window's edge cuts is not inside it.
    complete = inside and context[0][1][0] <= start and context[-1][1][1] >= end
    return (inside[0], inside[-1]) if complete else (0, 0)


def collate(windows: Sequence[Window], config: EncoderConfig, device: torch.device) -> Batch:
    """ids, segments, mask (batch, time) int64; allowed (batch, time) bool: [CLS] and the tokens of the context."""
    longest = max(len(window.ids) for window in windows)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows]).to(device)

    context = [
        [int(index == 0 or (segment == 1 and window.offsets[index] is not None)) for index, segment in enumerate(window.segments)]
        for window in windows
    ]
    return {
        "ids": padded([window.ids for window in windows], config.pad_token_id),
        "segments": padded([_segments(window, config.type_vocab_size > 2) for window in windows], 0),
        "mask": padded([window.mask for window in windows], 0),
        "allowed": padded(context, 0).bool(),
    }


def _is_reader(folder: Path) -> bool:
    """Whether the config says that it answers questions; whether it is complete is checked on loading."""
    path = folder / "config.json"
    return path.is_file() and [SpanReader.architecture] == read_object(path).get("architectures")


def _segments(window: Window, mark_shared: bool) -> list[int]:
    if not mark_shared:
        return window.segments
    words = [index for index, offsets in enumerate(window.offsets) if offsets]
    question_ids = {window.ids[index] for index in words if window.segments[index] == 0}
    shared = {index for index in words if window.segments[index] == 1 and window.ids[index] in question_ids}
    return [segment + (index in shared) for index, segment in enumerate(window.segments)]


def log_probabilities(model: SpanReader, batch: Batch) -> Tensor:
    """Log-probabilities (batch, time, 2) that the answer begins, and ends, at each token; -inf where not allowed."""
    # In float32: at width 64 the backward pass in bfloat16 takes twice as long (44 against 20 ms a step, AMX).
    logits = model(batch["ids"], batch["segments"], batch["mask"])
    return F.log_softmax(logits.masked_fill(~batch["allowed"][:, :, None], -torch.inf), dim=1)


def span_loss(model: SpanReader, batch: Batch) -> tuple[Tensor, Metrics]:
    """Cross-entropy of the first and the last token, in nats, averaged over the two.

    batch: as returned by `collate`, and spans (batch, 2) int64, weight (batch,) float32 that adds up to one over a step.
    """
    logp = log_probabilities(model, batch).gather(1, batch["spans"][:, None, :])[:, 0]
    loss = -(logp.mean(1) * batch["weight"]).sum()
    return loss, {"loss": loss.item()}


def build(
    tokenizer: WordPiece,
    questions: Sequence[Question],
    practice: Sequence[str],
    settings: ReaderSettings,
    device: Device,
    folder: Path,
    seed: int = 0,
) -> SpanReader:
    """Train a reader from scratch and write it to `folder`, which transformers opens as `BertForQuestionAnswering`.

    `practice`: paragraphs (see `cloze_questions.paragraphs`) that questions are made from. Resumes when called again.
    Raises UserError without any questions or paragraphs.
    """
    if not (questions or practice):
        raise UserError("no questions to learn from, and no paragraphs to make some of")
    width = 64
    config = EncoderConfig(
        tokenizer.size, width, settings.depth, width // 32, 4 * width, settings.length, type_vocab_size=3,
        pad_token_id=tokenizer.pad,
    )  # fmt: skip
    model = SpanReader(config)
    bert.initialise(model, seed)
    model.to(device.torch_device)
    practice_steps = settings.practice_steps if practice else 0

    def practice_rows(step: int, count: int) -> list[LabelledWindow]:
        numbers = range(step * settings.batch, step * settings.batch + count)
        clozes = [cloze(practice[number % len(practice)], (seed, number)) for number in numbers]
        fitting_questions = [question for question in clozes if question and fits(tokenizer, question, settings.length)]
        return [labelled_windows(tokenizer, question, settings.length)[0] for question in fitting_questions]

    if practice_steps:
        practice_batch = partial(practice_rows, count=settings.batch)
        _train(model, practice_batch, practice_steps, settings.rate, device, folder / "practice")
    if questions and settings.steps:
        labelled = []
        with Progress("encoding", len(questions), "questions") as progress:
            for question in questions:
                labelled += labelled_windows(tokenizer, question, settings.length)
                progress.advance()
        question_count = max(1, settings.batch // 2) if practice_steps else settings.batch

        def rows(step: int) -> list[LabelledWindow]:
            chosen = [labelled[index] for index in chosen_rows(step, question_count, len(labelled), seed)]
            # Half of each step still practises: real questions alone are soon memorised.
            return chosen + (practice_rows(practice_steps + step, settings.batch - question_count) if practice_steps else [])

        _train(model, rows, settings.steps, settings.rate, device, folder / "reader")
    bert.save(folder, model, tokenizer)
    for part in (folder / "practice", folder / "reader"):
        checkpoint.clear(part)
    return model


def _train(
    model: SpanReader, step_rows: Callable[[int], list[LabelledWindow]], steps: int, lr: float, device: Device, folder: Path
) -> None:
    def batches(step: int) -> list[Batch]:
        chosen = sorted(step_rows(step), key=lambda row: len(row.window.ids))
        if not chosen:
            raise UserError("no paragraph of this step gives a question; they need sentences with several phrases")
        halves = [half for half in (chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]) if half]  # less padding
        return [
            collate([row.window for row in half], model.config, device.torch_device)
            | {
                "spans": torch.tensor([[row.first, row.last] for row in half]).to(device.torch_device),
                "weight": torch.full((len(half),), 1 / len(chosen), device=device.torch_device),
            }
            for half in halves
        ]

    train(
        model,
        span_loss,
        batches,
        Optimizer(model, one_lr(lr), betas=(0.9, 0.98)),
        lambda step: warmup_stable_decay(step, steps, max(1, steps // 20), steps // 2),
        steps,
        folder,
        folder.name,
        max_grad_norm=1.0,
    )


@torch.no_grad()
def answer(
    model: SpanReader, tokenizer: WordPiece, questions: Sequence[Question], device: Device, batch_size: int = 16
) -> dict[str, Answer]:
    """The likeliest span of each question's context, by question id; an empty answer where the context has no words."""
    length = model.config.max_position_embeddings
    windows = [(q, window) for q in questions for window in windows_of(tokenizer, q, length)]
    answers = {q.id: Answer("", 0, float("-inf")) for q in questions}
    for first in range(0, len(windows), batch_size):
        batch_windows = windows[first : first + batch_size]
        logp = log_probabilities(model, collate([window for _, window in batch_windows], model.config, device.torch_device))
        logp[:, 0] = -torch.inf  # [CLS]: "not in this window"
        spans = logp[:, :, None, 0] + logp[:, None, :, 1]  # (windows, first token, last token)
        allowed = torch.ones(spans.shape[1:], dtype=torch.bool, device=spans.device)
        scores, flat = spans.masked_fill(~allowed.triu().tril(MAX_ANSWER_TOKENS - 1), -torch.inf).flatten(1).max(1)
        for (question, window), score, flat_index in zip(batch_windows, scores.tolist(), flat.tolist(), strict=True):
            if score > answers[question.id].score:
                first_token, last_token = divmod(flat_index, spans.shape[2])
                start, end = window.offsets[first_token][0], window.offsets[last_token][1]
                answers[question.id] = Answer(question.context[start:end], start, score)
    return answers


def ask(folder: Path | None, context: Path, question: str) -> dict:
    """Answer one question about a text file with the reader of `folder`.

    Raises UserError when either is missing or not what it should be.
    """
    text = read_whole(context)
    device = choose()
    if folder is None or not _is_reader(folder):
        problem = "no reader given" if folder is None else f"{folder}: not the folder of a reader"
        raise UserError(f"{problem}; {HOW_TO_TRAIN} makes one of questions in SQuAD's format")
    model = SpanReader.load(folder).to(device.torch_device)
    result = answer(model, WordPiece.load(folder), [Question("", question, text, [])], device)[""]
    return {"answer": result.text, "start": result.start, "probability": math.exp(result.score)}
