"""What the steps after the base model take, counted in work, and how fast this machine does each kind of it at a depth.

Pre-training, scoring, fine-tuning and writing answers go at rates of their own, which change from processor to processor
and from one of our kernels to the next. So each is measured for a moment on real rows, on weights that have learnt nothing.
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

DECIDED = 0.5  # of the pairs that are compared: about as many are ties
# Forward passes over an answer. PPO: written by the policy (1), then read by it, the reference, the reward model and the value
# function (4), and an update of policy and value function (3 each). GRPO has no value function.
PASSES = {"ppo": 1 + 4 + 3 + 3, "grpo": 1 + 3 + 3}
TRAINING_PASSES = 3  # of a training step
NGRAM_SECONDS = 1.3e-6  # a training token, to count 3-grams and 5-grams and to compress beside
EVALUATION_SECONDS, REPORT_SECONDS = 3.0, 4.0
PAIR_TOKENS, QUESTION_TOKENS = 100, 300  # that a sentence pair has, of two sentences two ways; a question with its four answers
TOKENS_A_BYTE = 0.3  # of text that is not there yet
SCORED_TOKENS = 16_384  # that are scored to measure how fast that is
WARM_BATCHES, TIMED_BATCHES, TIMED_ANSWERS = 1, 6, 128  # of fine-tuning; answers that are written
# Where there is nothing to measure with, in tokens of pre-training (an AMD EPYC with AVX2): a token scored, whose windows
# overlap by half; a token written; a row of fine-tuning beyond its mean length, as rows of a batch are as long as its longest.
SCORED, WRITTEN, PADDED = 1.4, 1.6, 1.15


class LaterStep(NamedTuple):
    """A step that comes after the base model."""

    name: str
    kind: str
    recipe: Recipe


@dataclass(frozen=True)
class Questions:
    """The sides of SFT: how many rows each has, and of some their mean length and that of their answers, in tokens."""

    train: int = 0
    preference: int = 0
    held_out: int = 0
    length: float = 0.0
    answer: float = 0.0
    some: tuple[dict[str, Any], ...] = ()  # rows to measure with
    seconds: float = 0.0  # that finding them took, which SFT does again


class Work(NamedTuple):
    """What later steps take: tokens of pre-training and of scoring, rows of fine-tuning, answers, and seconds of all else."""

    trained: float
    scored: float
    rows: float
    answers: float
    seconds: float
    unknown: list[str]  # steps that were not counted


class Speeds(NamedTuple):
    """Seconds, of a model of one depth: for a token of pre-training, one scored, a row of fine-tuning, an answer."""

    trained: float
    scored: float
    row: float
    answer: float


def taken(work: Work, speeds: Speeds) -> float:
    """Seconds."""
    of_model = zip((work.trained, work.scored, work.rows, work.answers), speeds, strict=True)
    return work.seconds + sum(count * seconds for count, seconds in of_model)


def work_of(later: Sequence[LaterStep], asked: Questions, train_tokens: int, train_bytes: int) -> Work:
    """The work of later steps. Answers are taken to be as long as those that are learned.

    train_tokens, train_bytes: of the training documents, 0 if not known.
    """
    per_byte = train_tokens / train_bytes if train_bytes else TOKENS_A_BYTE
    trained, scored, rows, answers, seconds, unknown = 0.0, 0.0, 0.0, 0.0, REPORT_SECONDS, []
    for one in later:
        recipe, kind = one.recipe, one.kind
        compared = 2 * min(recipe.preferences.held_out_prompts, asked.held_out)
        pairs = DECIDED * min(recipe.preferences.prompts, asked.preference)
        if kind == "evaluation":
            sizes = recipe.evaluation
            scored += sizes.held_out_kb * 1000 * per_byte
            scored += sizes.sentence_pairs * PAIR_TOKENS + (sizes.questions * QUESTION_TOKENS if asked.train else 0)
            seconds += EVALUATION_SECONDS + NGRAM_SECONDS * train_tokens
        elif kind == "long_context":
            trained += recipe.long_context.tokens
        elif kind == "report":
            continue  # which every run has
        elif kind not in ("sft", "preferences", "reward", "dpo", *PASSES):
            unknown.append(one.name)
        elif not asked.train:
            continue  # skipped, as there is nothing to learn from
        elif kind == "sft":
            some = min(asked.held_out, recipe.sft.held_out_questions)
            rows, seconds = rows + recipe.sft.epochs * asked.train, seconds + asked.seconds
            answers, scored = answers + 2 * some, scored + 2 * 2 * some * asked.length
        elif kind == "preferences":
            answers += 2 * min(recipe.preferences.prompts, asked.preference) + compared
        elif kind in PASSES:
            settings = getattr(recipe, kind)
            written = settings.iterations * (settings.rollouts if kind == "ppo" else settings.prompts * settings.generations)
            rows += written * (PASSES[kind] - 1) * settings.epochs / TRAINING_PASSES
            answers += written + compared
        else:  # DPO's reference reads each pair once; the reward model is measured on those that are held out
            rows += 2 * getattr(recipe, kind).epochs * pairs
            rows += (2 * pairs if kind == "dpo" else DECIDED * compared) / TRAINING_PASSES
            answers += compared if kind == "dpo" else 0
    return Work(trained, scored, rows, answers, seconds, unknown)


def guessed(tokens_per_second: float, asked: Questions) -> Speeds:
    """From the rate of pre-training alone."""
    token = 1 / tokens_per_second
    return Speeds(token, SCORED * token, PADDED * asked.length * token, WRITTEN * asked.answer * token)


def measured(
    recipe: Recipe, depth: int, tokens_per_second: float, tokenizer: "Tokenizer", device: "Device",
    held_out: "Sequence[np.ndarray]", asked: Questions,
) -> Speeds:  # fmt: skip
    """Of an untrained model; what there is nothing to measure with is guessed."""
    from groundup.model import architectures
    from groundup.model.decoder import Decoder

    base, found = recipe.base, guessed(tokens_per_second, asked)
    model, _ = architectures.build(
        base.architecture, depth, tokenizer.size, base.context_length, recipe.seed, base.experts, base.experts_per_token
    )
    model.to(device.torch_device)
    if held_out:
        found = found._replace(scored=_scoring(model, held_out))
    if asked.some and isinstance(model, Decoder):
        row = _tuning(model, tokenizer, asked, recipe, device)
        found = found._replace(row=row, answer=_writing(model, tokenizer, asked, recipe))
    return found


def _scoring(model: "LanguageModel", held_out: "Sequence[np.ndarray]") -> float:
    from groundup.model.likelihood import score

    some: list[Any] = []
    for one in held_out:
        if sum(map(len, some)) < SCORED_TOKENS:
            some.append(one[:SCORED_TOKENS])
    score(model, [some[0][:2]])
    begun = time.perf_counter()
    score(model, some)
    return (time.perf_counter() - begun) / sum(map(len, some))


def _tuning(model: "Decoder", tokenizer: "Tokenizer", asked: Questions, recipe: Recipe, device: "Device") -> float:
    """Seconds a row, in batches of the step's size: the median of those after the first, which takes its memory anew."""
    from groundup.posttraining.sft import batches_of
    from groundup.posttraining.tokenize_rows import conversation
    from groundup.training.by_kernels import by_kernels
    from groundup.training.loop import tune
    from groundup.training.objectives import Batch, next_token
    from groundup.training.runtime import Runtime

    longest, batch = model.config.max_position_embeddings + 1, recipe.sft.batch_examples
    rows = [conversation(tokenizer, row) for row in asked.some]
    rows = [row for row in rows if len(row[0]) <= longest] or [(ids[:longest], spoken[:longest]) for ids, spoken in rows]
    begun: list[float] = []

    def batches(step: int) -> list[Batch]:
        begun.append(time.perf_counter())
        chosen = [rows[number % len(rows)] for number in range(step * batch, (step + 1) * batch)]
        return batches_of(chosen, tokenizer.pad, recipe.sft, device.torch_device)

    with TemporaryDirectory() as folder:
        runtime = Runtime(device, Path(folder), "plan: fine-tuning", recipe.seed, lambda text: None)
        with by_kernels([model], runtime):
            objective = partial(next_token, dtype=device.training_dtype)
            tune(model, objective, batches, recipe.sft.learning_rate, WARM_BATCHES + TIMED_BATCHES + 1, runtime)
    return statistics.median(later - earlier for earlier, later in pairwise(begun[WARM_BATCHES:])) / batch


def _writing(model: "Decoder", tokenizer: "Tokenizer", asked: Questions, recipe: Recipe) -> float:
    """Seconds an answer. What has learnt nothing hardly ever ends by itself, so each is as long as it is told to be."""
    from groundup.generation.engine import Sampling
    from groundup.posttraining.batches import question_of
    from groundup.posttraining.reference_answers import answer

    questions = [question_of(asked.some[number % len(asked.some)]) for number in range(TIMED_ANSWERS)]
    longest = max(1, min(recipe.sft.max_answer_tokens, round(asked.answer)))
    begun = time.perf_counter()
    answer(model, tokenizer, questions, Sampling(longest, temperature=1.0), recipe.seed)
    return (time.perf_counter() - begun) / TIMED_ANSWERS
