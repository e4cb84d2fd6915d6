"""groundup from Python: open, use, train and measure models. All names are in `groundup` itself: `groundup.load(...)`.

Training functions take a model or tokenizer, data, a folder to write and the settings of their chapter
(`<chapter>/config.py`) by name, and return what the folder then holds. The same call with the same data does nothing where it
was finished, and resumes where it was killed. Arguments are not changed.
Texts are an iterable of `str`, each a document, and of `pathlib.Path`, each a file or folder of documents. Conversations,
preferences and questions are rows (mappings) or paths of files of them. Input that cannot be used is counted, and logged as a
warning of the logger "groundup". Bad input raises UserError.
"""

import copy
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, overload

import torch

from groundup.core.config import Section, configured, python_number
from groundup.core.device import Device, choose
from groundup.core.errors import UserError
from groundup.core.executor import cores
from groundup.core.outputs import require_new
from groundup.core.plain_files import expanded
from groundup.core.seals import MANIFEST, open_stage, read_manifest, verify
from groundup.data.config import MixtureConfig
from groundup.data.contracts import RowOrPath, read_conversations, read_preferences
from groundup.data.python_inputs import checked_files, each, files_of, rows_of, warn
from groundup.data.readers import Refused
from groundup.evaluation import multiple_choice
from groundup.evaluation.questions import are_questions, read_questions
from groundup.evaluation.suite import continuations
from groundup.evaluation.text_scores import score_texts
from groundup.generation.engine import Sampling
from groundup.generation.engine import generate as generate_ids
from groundup.generation.open_folder import DEFAULT, STAGES, model_folder
from groundup.model import model_folder as model_files
from groundup.model.base import LanguageModel
from groundup.model.card import keep as keep_card
from groundup.model.decoder import RewardModel
from groundup.model.weights import digest_of_model
from groundup.pipeline import model_cards
from groundup.pipeline.run import make_single_step
from groundup.pipeline.step_kinds import STANDARD
from groundup.posttraining import dpo as dpo_chapter
from groundup.posttraining import reward as reward_chapter
from groundup.posttraining import sft as sft_chapter
from groundup.posttraining.config import DpoConfig, RewardConfig, SftConfig
from groundup.posttraining.tokenize_rows import top_reasons
from groundup.tokenizer import documents, token_folder
from groundup.tokenizer import load as tokenizers
from groundup.tokenizer.characters import Characters
from groundup.tokenizer.chat import answer_ends, render
from groundup.tokenizer.config import TokenizerConfig
from groundup.tokenizer.load import AnyTokenizer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import train_bpe, train_plain
from groundup.tokenizer.wordpiece import WordPiece
from groundup.training import checkpoint
from groundup.training.config import PretrainingConfig
from groundup.training.pretraining import pretrain as pretrain_chapter
from groundup.training.runtime import Runtime

__all__ = [
    "Model", "PreferenceModel", "RunView", "Tokenizer", "UserError", "dpo", "evaluate", "load", "load_tokenizer", "open_run",
    "pretrain", "reward", "sft", "train_tokenizer",
]  # fmt: skip
Folder = str | Path
Message = Mapping[str, Any]  # {"role": "system", "user" or "assistant", "content": text}
Texts = Path | Iterable[str | Path]
Rows = RowOrPath | Iterable[RowOrPath]
ONLY_IN_RUNS = ("shard", "minutes")  # settings of pre-training that need torchrun or a whole run
TrainRows = list[dict[str, Any]]  # as TRL has them
Trained = tuple[LanguageModel | RewardModel, dict[str, Any]]  # and its results
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Model:
    """A language model with its tokenizer. `network` is the torch module, `folder` where it came from."""

    network: LanguageModel = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    folder: Path
    results: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of the step that trained it, {} where not known

    def generate(
        self, text: str, max_tokens: int = 128, temperature: float | None = None, top_p: float | None = None,
        top_k: int | None = None, seed: int = 0,
    ) -> str:  # fmt: skip
        """What the model writes after `text`, up to the end of the text or `max_tokens`; the same seed gives the same words.

        Sampling settings that are not given are the folder's (generation_config.json); temperature 0 takes the likeliest token.
        Raises UserError for a value out of range, and for a text that leaves no room in the context for an answer.
        """
        ids = self.tokenizer.prompt(_text(text, "text"))
        ends = [self.tokenizer.end_of_text, *self.network.generation.ends]
        return self._generate(ids, ends, max_tokens, temperature, top_p, top_k, seed)

    def chat(
        self, messages: str | Sequence[Message], max_tokens: int = 128, temperature: float | None = None,
        top_p: float | None = None, top_k: int | None = None, seed: int = 0,
    ) -> str:  # fmt: skip
        """The answer to a question, or to a conversation that ends with the user's message; rendered by the model's template.

        Raises UserError as `generate` does, where the messages are no conversation, and where the model was not trained to chat.
        """
        if not self.chats:
            raise UserError(f"{self.folder}: was not trained to chat; use generate, or sft it first")
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        ids, _ = render(self.tokenizer, conversation, add_generation_prompt=True)
        ends = answer_ends(self.tokenizer, self.network.generation.ends)
        return self._generate(ids, ends, max_tokens, temperature, top_p, top_k, seed).strip()

    @property
    def chats(self) -> bool:
        """Whether the model was trained to chat: it ends an answer with the token that ends a message."""
        return self.tokenizer.message_end in self.network.generation.ends

    def log_likelihood(self, context: str, continuation: str) -> float:
        """Log-probability in nats that `continuation` follows `context`, or begins a document if that is empty; as in lm-eval.

        Raises UserError for an empty continuation.
        """
        pair = (_text(context, "context"), _text(continuation, "continuation"))
        return continuations(self.network, self.tokenizer, [pair])[0]

    def perplexity(self, text: str) -> float:
        """Perplexity per token of a document of any length. It compares only models of one tokenizer."""
        return float(score_texts(self.network, self.tokenizer, [_text(text, "text")])["perplexity"])

    def bits_per_byte(self, text: str) -> float:
        """Bits per byte of a document of any length. It compares models of different tokenizers too."""
        return float(score_texts(self.network, self.tokenizer, [_text(text, "text")])["bits_per_byte"])

    def save(self, folder: Folder) -> None:
        """Write a Hugging Face folder. Raises UserError where the folder is a finished step or holds another model."""
        target = expanded(folder)
        if (target / MANIFEST).exists():
            raise UserError(f"{target}: a finished step, which would be altered; give another folder")
        if target.is_file():
            raise UserError(f"{target}: a file, where a folder is to be written; give another name")
        require_new(*(target / name for name in ("config.json", "model.safetensors", "tokenizer.json")))
        model_files.save(target, self.network, self.tokenizer, chat=self.chats)
        keep_card(target, self.folder)

    def _generate(
        self, ids: list[int], ends: list[int], max_tokens: int, temperature: float | None, top_p: float | None,
        top_k: int | None, seed: int,
    ) -> str:  # fmt: skip
        defaults = Sampling.from_config(self.network.generation, python_number(max_tokens), python_number(temperature))
        overrides = {"top_p": python_number(top_p), "top_k": python_number(top_k)}
        sampling = replace(defaults, **{name: value for name, value in overrides.items() if value is not None})
        return self.tokenizer.decode_within(generate_ids(self.network, [ids], ends, sampling, _seed(seed))[0])


@dataclass(frozen=True, eq=False)
class PreferenceModel:
    """A reward model, which predicts which of two answers people prefer."""

    network: RewardModel = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    folder: Path
    results: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @staticmethod
    def load(folder: Folder) -> "PreferenceModel":
        """Raises UserError when the folder is not a complete sequence classifier with one label."""
        path = expanded(folder)
        verify(path)
        network = model_files.load_reward_model(path).to(_device().torch_device)
        return PreferenceModel(network, tokenizers.of_model(path), path, _results(path))

    def score(self, messages: Sequence[Message]) -> float:
        """The reward of a conversation's last answer. Raises UserError where it does not end with one."""
        ids, answer_mask = render(self.tokenizer, messages)
        if not answer_mask or not any(answer_mask) or messages[-1]["role"] != "assistant":
            raise UserError("score: the last message must be the assistant's")
        if len(ids) > (limit := self.network.config.max_position_embeddings):
            raise UserError(f"score: the conversation has {len(ids):,} tokens, the reward model's context {limit:,}: shorten it")
        row = (ids, [1] * len(ids))  # read at the very last token, as in training and by transformers
        return float(reward_chapter.score_rows(self.network, self.tokenizer, [row])[0])


@dataclass(frozen=True)
class RunView:
    """A view of a run folder: each property reads the folder anew."""

    folder: Path

    @property
    def steps(self) -> list[str]:
        """The names of the finished steps: standard ones first, in order, then added ones, then the report."""
        names = [path.parent.name for path in self.folder.glob(f"*/{MANIFEST}") if path.parent.suffix != ".partial"]
        standard = [step.name for step in STANDARD[:-1]]
        order = {name: position for position, name in enumerate(standard)}
        return sorted(names, key=lambda name: (name == STANDARD[-1].name, order.get(name, len(order)), name))

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """The results of each finished step."""
        return {name: _results(self.folder / name) for name in self.steps}

    def model(self, step: str) -> Model:
        """The model of a finished step. Raises UserError where the step is not finished, was altered, or makes no model that
        writes text."""
        if step not in self.steps:
            raise UserError(f"{self.folder}: no finished step {str(step)[:40]!r}; finished are: {', '.join(self.steps)}")
        return load(self.folder / step)

    @property
    def report(self) -> Path:
        """The path of the report's page. Raises UserError where it is not written yet."""
        return open_stage(self.folder, "report") / "report.html"


def load(folder: Folder, step: str | None = None) -> Model:
    """The model of a folder: of Hugging Face, of a run's step, or of a whole run, whose `step` is "dpo" if not given.

    Raises UserError where there is none that writes text, and where it is damaged or of another architecture.
    """
    path = expanded(folder)
    if step is not None:
        return open_run(path).model(step)
    if not (path / "config.json").is_file():
        models = [name for name in STAGES if (path / name / MANIFEST).is_file()]
        if models and DEFAULT not in models:
            raise UserError(f"{path}: no finished step {DEFAULT!r}; name another, as step={models[-1]!r}")
    path = model_folder(path)
    network = model_files.load_decoder(path).to(_device().torch_device)
    return Model(network, tokenizers.of_model(path), path, _results(path))


def load_tokenizer(folder: Folder) -> AnyTokenizer:
    """The tokenizer of a folder or of a run: BPE of ours or of others, characters, bytes or WordPiece. Called on a text, its ids.

    Raises UserError where there is none, or one of another kind.
    """
    path = expanded(folder)
    of_run = path / "tokenizer"
    return tokenizers.load(of_run if not (path / "tokenizer.json").is_file() and of_run.is_dir() else path)


def open_run(folder: Folder) -> RunView:
    """A view of a run folder. Raises UserError where no step is finished."""
    run = RunView(expanded(folder))
    if not run.steps:
        raise UserError(f"{run.folder}: no finished step of a run in it; `groundup run RECIPE --run {run.folder}` makes them")
    return run


@overload
def train_tokenizer(texts: Texts, vocabulary: int, folder: Folder, *, pattern: str = ...) -> Tokenizer: ...
@overload
def train_tokenizer(
    texts: Texts, vocabulary: int, folder: Folder, kind: Literal["bpe"], *, pattern: str = ...
) -> Tokenizer: ...
@overload
def train_tokenizer(texts: Texts, vocabulary: int, folder: Folder, kind: Literal["wordpiece"]) -> WordPiece: ...
@overload
def train_tokenizer(texts: Texts, vocabulary: int, folder: Folder, kind: Literal["characters", "bytes"]) -> Characters: ...
def train_tokenizer(
    texts: Texts, vocabulary: int, folder: Folder, kind: str = "bpe", *, pattern: str = "qwen2"
) -> AnyTokenizer:
    """A tokenizer of kind "bpe" (byte-level), "wordpiece", "characters" or "bytes".

    `pattern`: how BPE cuts text first (docs/tokenizers.md).
    Raises UserError where there is no text, or the vocabulary is too small.
    """
    kinds = ("bpe", "wordpiece", "characters", "bytes")
    if kind not in kinds:
        raise UserError(f"train_tokenizer: no kind {str(kind)[:40]!r}; known: {', '.join(kinds)}")
    vocabulary = python_number(vocabulary)
    if kind == "bpe":
        configured(TokenizerConfig, {"vocabulary": vocabulary}, "train_tokenizer")
    elif isinstance(vocabulary, bool) or not isinstance(vocabulary, int):
        raise UserError(f"train_tokenizer: vocabulary = {str(vocabulary)[:40]}: it must be a whole number")

    def make(work: Path) -> dict[str, Any]:
        if kind != "bpe":
            return train_plain(kind, files, work, vocabulary)
        results = train_bpe(files, work, vocabulary, pattern)
        shutil.rmtree(work / "counts")
        return results

    target = expanded(folder)
    with files_of(texts, target) as files:
        content = documents.digest_of_shards(documents.find(files))
        settings = {"kind": kind, "vocabulary": vocabulary, "pattern": pattern, "texts": content}
        make_single_step(target, "tokenizer", settings, make)
    return tokenizers.load(target)


def pretrain(
    texts: Texts, tokenizer: AnyTokenizer, folder: Folder, *, held_out: float = 0.05, seed: int = 0, **settings: Any
) -> Model:
    """A new model trained on these texts; or, with `start_from=` a model's folder and its tokenizer, that model trained further.

    `held_out`: the share of the texts that are only measured on, where their files do not name a split. Settings: those of
    PretrainingConfig, above all `depth`, from which the rest follows, and of MixtureConfig.
    Raises UserError for settings that are not valid, and for texts that do not fill one row of the context.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"pretrain: takes byte-level BPE, not {type(tokenizer).__name__}; a vocabulary of 260 is bytes alone")
    held_out = python_number(held_out)
    if not isinstance(held_out, int | float) or not 0 <= held_out < 1:
        raise UserError(f"pretrain: held_out = {str(held_out)[:40]}: it must be a share from 0 to less than 1")
    if isinstance(start := settings.get("start_from"), Path):
        settings["start_from"] = str(expanded(start))
    mixture_settings = {name: value for name, value in settings.items() if name in MixtureConfig.model_fields}
    mixture = configured(MixtureConfig, mixture_settings, "pretrain")
    config = configured(
        PretrainingConfig, {k: v for k, v in settings.items() if k not in mixture_settings}, "pretrain", ONLY_IN_RUNS
    )
    if not config.start_from:
        tokenizer = copy.copy(tokenizer)
        tokenizer.forget_files()

    def make(work: Path) -> dict[str, Any]:
        tokens, refused = work / "tokens", Refused()
        if not (tokens / token_folder.TABLE).is_file():
            sides = {
                side: documents.read_sides(shards, side, held_out, Refused() if side == "held_out" else refused)
                for side in ("train", "held_out")
            }
            token_folder.write(tokens, sides, tokenizer, cores())
            warn(refused)
        runtime = Runtime(device, work, "pretrain", _seed(seed))
        network, results = pretrain_chapter(tokenizer, tokens, config, runtime, mixture)
        model_files.save(work, network, tokenizer, chat=False, card=model_cards.pretrained(results), dtype=config.save_dtype)
        checkpoint.clear(runtime.training)
        shutil.rmtree(tokens)
        return {**results, "device": device.name}

    device, target = _device(), expanded(folder)
    with files_of(texts, target) as files:
        shards = documents.find(files)
        key = {"texts": documents.digest_of_shards(shards), "held_out": held_out, "mixture": mixture.model_dump()}
        if config.start_from:
            key["model"] = digest_of_model(load(config.start_from).network)
        make_single_step(target, "base", {**_key(config, seed), **key, "tokenizer": tokenizer.digest()}, make)
    return load(target)


def sft(model: Model, data: Rows, folder: Folder, *, held_out: Rows = (), seed: int = 0, **settings: Any) -> Model:
    """A model fine-tuned on the conversations `data`; settings: those of SftConfig.

    `held_out`: conversations whose loss is in metrics.jsonl. Raises UserError where no conversation can be used.
    """
    config = configured(SftConfig, settings, "sft", ("data", "held_out", "max_objects", "held_out_questions"))

    def train(network: Any, rows: TrainRows, unseen: TrainRows, runtime: Runtime) -> Trained:
        return network, {"steps": sft_chapter.train(network, model.tokenizer, rows, config, runtime, unseen)}

    return load(_train_copy("sft", config, read_conversations, train, model, data, folder, held_out, seed))


def dpo(model: Model, data: Rows, folder: Folder, *, held_out: Rows = (), seed: int = 0, **settings: Any) -> Model:
    """A model trained to prefer the chosen to the rejected answers of the preferences `data`; settings: those of DpoConfig.

    `held_out`: preferences whose loss is in metrics.jsonl. Raises UserError where no preference can be used.
    """
    config = configured(DpoConfig, settings, "dpo", ("data", "held_out"))

    def train(network: Any, rows: TrainRows, unseen: TrainRows, runtime: Runtime) -> Trained:
        return network, {"steps": dpo_chapter.train(network, model.tokenizer, rows, config, runtime, unseen)}

    return load(_train_copy("dpo", config, read_preferences, train, model, data, folder, held_out, seed))


def reward(
    model: Model, data: Rows, folder: Folder, *, held_out: Rows = (), seed: int = 0, **settings: Any
) -> PreferenceModel:
    """A reward model trained on the preferences `data`, from the model that answered; settings: those of RewardConfig.

    Its results are measured on the preferences `held_out`, or on `data` where there are none.
    Raises UserError where no preference can be used.
    """
    config = configured(RewardConfig, settings, "reward", ("data", "held_out"))

    def train(network: Any, rows: TrainRows, unseen: TrainRows, runtime: Runtime) -> Trained:
        trained = reward_chapter.train(network, model.tokenizer, rows, config, runtime)
        results, _ = reward_chapter.assess(trained, model.tokenizer, unseen or rows, runtime.left_out, network)
        return trained, {"measured_on": "held_out" if unseen else "data", **results}

    return PreferenceModel.load(_train_copy("reward", config, read_preferences, train, model, data, folder, held_out, seed))


def evaluate(model: Model, data: Texts | Rows, *, seed: int = 0) -> dict[str, Any]:
    """Of texts: bits per byte with an interval, and perplexity. Of questions: accuracy by three conventions.

    Questions have the columns `question`, `choices` and `answer`, an index from 0 or a letter. `evaluation/text_scores.py` and
    `evaluation/multiple_choice.py` explain the figures. Raises UserError where there is nothing to measure.
    """
    _require_model(model)
    if isinstance(data, str):  # else the name of a file would be scored as a text
        checked_files(data, Path())
    items = each(data)
    first = next(items, None)
    if isinstance(first, Mapping | Path) and are_questions(first):
        refused = Refused()
        rows = read_questions(chain([first], items), refused)
        warn(refused)
        scores = multiple_choice.score(rows, partial(continuations, model.network, model.tokenizer))
        return {**scores, "dropped": refused.total()}
    with TemporaryDirectory() as folder:
        texts = [] if first is None else chain([first], items)
        files = checked_files(texts, Path(folder))
        refused = Refused()
        file_texts = documents.texts(documents.find(files), None, refused)
        scored = score_texts(model.network, model.tokenizer, file_texts, _seed(seed))
        warn(refused)
        return scored


def _train_copy(
    kind: str, config: SftConfig | DpoConfig | RewardConfig, read: Callable[[Iterable[RowOrPath]], Any],
    train: Callable[[LanguageModel, TrainRows, TrainRows, Runtime], Trained],
    model: Model, data: Rows, folder: Folder, held_out: Rows, seed: int,
) -> Path:  # fmt: skip
    """Train a copy of the model with `train` and save it in `folder`; returns the folder."""
    _require_model(model)
    rows, unseen = rows_of(read, data), rows_of(read, held_out, may_be_none=True)

    def make(work: Path) -> dict[str, Any]:
        runtime = Runtime(_device(), work, kind, _seed(seed))
        trained, results = train(copy.deepcopy(model.network), rows, unseen, runtime)
        card = model_cards.tuned(kind, {"rows": {"trained on": len(rows), "held out": len(unseen)}}, results)
        model_files.save(work, trained, model.tokenizer, chat=True, card=card, dtype=config.save_dtype)
        checkpoint.clear(runtime.training)
        if left_out := runtime.left_out:
            logger.warning("%s: %s rows left out: %s", kind, f"{left_out.total():,}", top_reasons(left_out))
        return {**results, "left_out": dict(left_out)}

    target = expanded(folder)
    content = hashlib.blake2b(json.dumps([rows, unseen], sort_keys=True).encode(), digest_size=16).hexdigest()
    key = {**_key(config, seed), "data": content, "model": digest_of_model(model.network), "tokenizer": model.tokenizer.digest()}
    make_single_step(target, kind, key, make)
    return target


def _text(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{name}: {type(text).__name__}, where a text is wanted")
    return text


def _require_model(model: object) -> None:
    if not isinstance(model, Model):
        raise UserError(f"model: {type(model).__name__}, where a Model is wanted; groundup.load(folder) opens one")


def _seed(seed: Any) -> int:
    seed = python_number(seed)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed = {str(seed)[:40]}: it must be a whole number from 0 to {2**32 - 1:,}")
    return int(seed)


def _key(config: Section, seed: int) -> dict[str, Any]:
    return {"settings": config.model_dump(), "seed": _seed(seed)}


def _device() -> Device:
    return choose(torch.get_num_threads())  # as the program may have set them


def _results(folder: Path) -> dict[str, Any]:
    return dict(read_manifest(folder)["results"]) if (folder / MANIFEST).is_file() else {}
