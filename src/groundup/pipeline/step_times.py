"""The work of the steps after the base model, and how fast this machine does each kind of it at a depth.

Pre-training, scoring, fine-tuning and writing answers each have their own speed, which differs between processors and between
our kernels. So each is measured for a moment on real rows, with a model that is not trained.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from groundup.pipeline.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np

    from groundup.core.device import Device
    from groundup.model.base import LanguageModel
    from groundup.model.decoder import Decoder
    from groundup.tokenizer.tokenizer import Tokenizer

DECIDED_SHARE = 0.5  # of the pairs that are compared: about half are ties
# Forward passes over an answer. PPO: the policy writes it (1); policy, reference, reward model and value function read it (4);
# policy and value function are updated (3 each). GRPO has no value function.
FORWARD_PASSES = {"ppo": 1 + 4 + 3 + 3, "grpo": 1 + 3 + 3}
TRAINING_PASSES = 3  # of a training step, in forward passes
NGRAM_SECONDS = 1.3e-6  # per training token, to count 3-grams and 5-grams and to compress the text
EVALUATION_SECONDS, REPORT_SECONDS = 3.0, 4.0
PAIR_TOKENS, QUESTION_TOKENS = 100, 300  # of a sentence pair, two sentences scored two ways; of a question with its four answers
TOKENS_A_BYTE = 0.3  # where the text is not there yet
SCORED_TOKENS = 16_384  # that are scored to measure the speed of scoring
WARM_BATCHES, TIMED_BATCHES, TIMED_ANSWERS = 1, 6, 128  # batches of fine-tuning; answers that are written
# Costs in tokens of pre-training, where nothing can be measured (from an AMD EPYC with AVX2): of a token scored, as windows
# overlap by half; of a token written; of a row of fine-tuning per token of its mean length, as a batch is padded to its longest.
SCORED_TOKEN_COST, WRITTEN_TOKEN_COST, PADDING_FACTOR = 1.4, 1.6, 1.15


class LaterStep(NamedTuple):
    """A step that comes after the base model."""

    name: str
    kind: str
    recipe: Recipe


@dataclass(frozen=True)
class Questions:
    """How many rows each side of SFT has, and of a sample the mean length of a row and of its answer, in tokens."""

    train: int = 0
    preference: int = 0
    held_out: int = 0
    length: float = 0.0
    answer: float = 0.0
    sample: tuple[dict[str, Any], ...] = ()  # rows to measure with
    seconds: float = 0.0  # that making all rows took, which SFT does again


class Work(NamedTuple):
    """The work of later steps: tokens of pre-training and of scoring, rows of fine-tuning, answers, and seconds of all else."""

    trained: float
    scored: float
    rows: float
    answers: float
    seconds: float
    unknown: list[str]  # steps that were not counted


class Speeds(NamedTuple):
    """Seconds that a model of one depth takes per token of pre-training, per token scored, per row of fine-tuning, per answer."""

    trained: float
    scored: float
    row: float
    answer: float


def total_seconds(work: Work, speeds: Speeds) -> float:
    """Seconds of this work at these speeds."""
    of_model = zip((work.trained, work.scored, work.rows, work.answers), speeds, strict=True)
    return work.seconds + sum(count * seconds for count, seconds in of_model)


def work_of(later: Sequence[LaterStep], questions: Questions, train_tokens: int, train_bytes: int) -> Work:
    """The work of later steps. Answers are assumed to be as long as those of SFT's rows.

    train_tokens, train_bytes: of the training documents, 0 where not known.
    """
    per_byte = train_tokens / train_bytes if train_bytes else TOKENS_A_BYTE
    trained, scored, rows, answers, seconds, unknown = 0.0, 0.0, 0.0, 0.0, REPORT_SECONDS, []
    for step in later:
        recipe, kind = step.recipe, step.kind
        compared = 2 * min(recipe.preferences.held_out_prompts, questions.held_out)
        pairs = DECIDED_SHARE * min(recipe.preferences.prompts, questions.preference)
        if kind == "evaluation":
            sizes = recipe.evaluation
            scored += sizes.held_out_kb * 1000 * per_byte
            scored += sizes.sentence_pairs * PAIR_TOKENS + (sizes.questions * QUESTION_TOKENS if questions.train else 0)
            seconds += EVALUATION_SECONDS + NGRAM_SECONDS * train_tokens
        elif kind == "long_context":
            trained += recipe.long_context.tokens
        elif kind == "report":
            continue  # counted already: every run has it
        elif kind not in ("sft", "preferences", "reward", "dpo", *FORWARD_PASSES):
            unknown.append(step.name)
        elif not questions.train:
            continue  # skipped, as there is nothing to learn from
        elif kind == "sft":
            count = min(questions.held_out, recipe.sft.held_out_questions)
            rows, seconds = rows + recipe.sft.epochs * questions.train, seconds + questions.seconds
            answers, scored = answers + 2 * count, scored + 2 * 2 * count * questions.length
        elif kind == "preferences":
            answers += 2 * min(recipe.preferences.prompts, questions.preference) + compared
        elif kind in FORWARD_PASSES:
            settings = getattr(recipe, kind)
            written = settings.iterations * (settings.rollouts if kind == "ppo" else settings.prompts * settings.generations)
            rows += written * (FORWARD_PASSES[kind] - 1) * settings.epochs / TRAINING_PASSES
            answers += written + compared
        else:  # DPO's reference reads each pair once; the reward model is measured on those that are held out
            rows += 2 * getattr(recipe, kind).epochs * pairs
            rows += (2 * pairs if kind == "dpo" else DECIDED_SHARE * compared) / TRAINING_PASSES
            answers += compared if kind == "dpo" else 0
    return Work(trained, scored, rows, answers, seconds, unknown)


def guess_speeds(tokens_per_second: float, questions: Questions) -> Speeds:
    """Speeds from that of pre-training alone."""
    token = 1 / tokens_per_second
    return Speeds(
        token,
        SCORED_TOKEN_COST * token,
        PADDING_FACTOR * questions.length * token,
        WRITTEN_TOKEN_COST * questions.answer * token,
    )


def measure_speeds(
    recipe: Recipe, depth: int, tokens_per_second: float, tokenizer: "Tokenizer", device: "Device",
    held_out: "Sequence[np.ndarray]", questions: Questions,
) -> Speeds:  # fmt: skip
    """Speeds of an untrained model; those that cannot be measured, without held-out text or questions, are guessed."""
    from groundup.model import architectures
    from groundup.model.decoder import Decoder

    base, speeds = recipe.base, guess_speeds(tokens_per_second, questions)
    model, _ = architectures.build(
        base.architecture, depth, tokenizer.size, base.context_length, recipe.seed, base.experts, base.experts_per_token
    )
    model.to(device.torch_device)
    if held_out:
        speeds = speeds._replace(scored=_seconds_per_scored_token(model, held_out))
    if questions.sample and isinstance(model, Decoder):
        row = _seconds_per_row(model, tokenizer, questions, recipe, device)
        speeds = speeds._replace(row=row, answer=_seconds_per_answer(model, tokenizer, questions, recipe))
    return speeds


def _seconds_per_scored_token(model: "LanguageModel", held_out: "Sequence[np.ndarray]") -> float:
    from groundup.model.likelihood import score

    sample: list[Any] = []
    for document in held_out:
        if sum(map(len, sample)) < SCORED_TOKENS:
            sample.append(document[:SCORED_TOKENS])
    score(model, [sample[0][:2]])
    start = time.perf_counter()
    score(model, sample)
    return (time.perf_counter() - start) / sum(map(len, sample))


def _seconds_per_row(model: "Decoder", tokenizer: "Tokenizer", questions: Questions, recipe: Recipe, device: "Device") -> float:
    """In batches of the step's size: the median of the batches after the first, which allocates its memory."""
    from groundup.posttraining.sft import batches_of
    from groundup.posttraining.tokenize_rows import conversation
    from groundup.training.by_kernels import by_kernels
    from groundup.training.loop import tune
    from groundup.training.objectives import Batch, next_token
    from groundup.training.runtime import Runtime

    longest, batch = model.config.max_position_embeddings + 1, recipe.sft.batch_examples
    rows = [conversation(tokenizer, row) for row in questions.sample]
    rows = [row for row in rows if len(row[0]) <= longest] or [
        (ids[:longest], answer_mask[:longest]) for ids, answer_mask in rows
    ]
    batch_starts: list[float] = []

    def batches(step: int) -> list[Batch]:
        batch_starts.append(time.perf_counter())
        chosen = [rows[number % len(rows)] for number in range(step * batch, (step + 1) * batch)]
        return batches_of(chosen, tokenizer.pad, recipe.sft, device.torch_device)

    with TemporaryDirectory() as folder:
        runtime = Runtime(device, Path(folder), "plan: fine-tuning", recipe.seed, lambda text: None)
        with by_kernels([model], runtime):
            objective = partial(next_token, dtype=device.training_dtype)
            tune(model, objective, batches, recipe.sft.learning_rate, WARM_BATCHES + TIMED_BATCHES + 1, runtime)
    return statistics.median(later - earlier for earlier, later in pairwise(batch_starts[WARM_BATCHES:])) / batch


def _seconds_per_answer(model: "Decoder", tokenizer: "Tokenizer", questions: Questions, recipe: Recipe) -> float:
    """An untrained model hardly ever ends an answer, so each is as long as the limit."""
    from groundup.generation.engine import Sampling
    from groundup.posttraining.batches import question_of
    from groundup.posttraining.reference_answers import answer

    prompts = [question_of(questions.sample[number % len(questions.sample)]) for number in range(TIMED_ANSWERS)]
    longest = max(1, min(recipe.sft.max_answer_tokens, round(questions.answer)))
    start = time.perf_counter()
    answer(model, tokenizer, prompts, Sampling(longest, temperature=1.0), recipe.seed)
    return (time.perf_counter() - start) / TIMED_ANSWERS
