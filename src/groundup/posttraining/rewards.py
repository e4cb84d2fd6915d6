"""Where the reward of PPO and GRPO comes from: our reward model, anybody's folder of one, or a program.

The setting `reward` names it: a folder with a sequence classifier of one label; `arithmetic`, `length` or `count=WORD`
(`reward_functions.py`); or `module:function`, found in the folder where the command runs or on PYTHONPATH. A function takes
`prompts`, a list of conversations (lists of messages that end with the user), and `completions`, a list of texts, and
returns as many finite numbers.
"""

import importlib
import math
import os
import sys
from collections.abc import Coroutine, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from groundup.core.errors import UserError
from groundup.core.files import read_json
from groundup.core.plain_files import expanded
from groundup.core.text import shown
from groundup.model.decoder import RewardModel
from groundup.model.model_folder import load_reward_model, read_description
from groundup.posttraining import reward_functions
from groundup.posttraining.batches import Question, Row, collate, messages_of
from groundup.posttraining.reward import rewards
from groundup.posttraining.reward_files import COUNT, SHIPPED, kind_of
from groundup.tokenizer.chat import after_answer, render
from groundup.tokenizer.load import of_model
from groundup.tokenizer.tokenizer import Tokenizer

AT_ONCE = 128  # answers that a reward model reads together


class Prompt(NamedTuple):
    question: Question
    ids: list[int]


class Reward(Protocol):
    """`scale`: the mean and deviation that rewards are normalised by; None: those of the first rollout."""

    scale: tuple[float, float] | None

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[list[int]]) -> Tensor:
        """Reward (answers,) float32 of each answer, given as token ids of the policy with its end if it has one."""
        ...


class ModelReward:
    """A reward model that reads the ids of the policy, or, with a tokenizer of its own, their text in its chat format."""

    def __init__(
        self, reward_model: RewardModel, scale: tuple[float, float] | None, tokenizer: Tokenizer, dtype: torch.dtype,
        own_tokenizer: Tokenizer | None = None,
    ) -> None:  # fmt: skip
        self.reward_model, self.scale, self.dtype = reward_model, scale, dtype
        self.tokenizer, self.own_tokenizer = tokenizer, own_tokenizer
        self.tail = list(after_answer(tokenizer)) if own_tokenizer is None else []

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[list[int]]) -> Tensor:
        """Raises UserError where a conversation is longer than the reward model's context."""
        rows = [self._row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        limit = self.reward_model.config.max_position_embeddings
        if (longest := max(len(ids) for ids, _ in rows)) > limit:
            raise UserError(
                f"reward: a conversation has {longest:,} tokens, the reward model's context {limit:,}: ask for shorter answers"
            )
        device, pad = self.reward_model.score.weight.device, (self.own_tokenizer or self.tokenizer).pad
        parts = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
        return torch.cat([rewards(self.reward_model, collate(part, pad, device), self.dtype) for part in parts])

    def _row(self, prompt: Prompt, answer: list[int]) -> Row:
        if self.own_tokenizer is None:
            ids = prompt.ids + answer + self.tail
        else:
            message = {"role": "assistant", "content": self.tokenizer.decode(answer)}
            ids, _ = render(self.own_tokenizer, [*messages_of(prompt.question), message])
        return ids, [0] * (len(ids) - 1) + [1]


class ProgramReward:
    """A function of prompts and completions. Its numbers are not normalised: their scale is its author's."""

    scale = (0.0, 1.0)

    def __init__(self, name: str, function: reward_functions.RewardFunction, tokenizer: Tokenizer, device: torch.device) -> None:
        self.name, self.function, self.tokenizer, self.device = name, function, tokenizer, device

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[list[int]]) -> Tensor:
        """Raises UserError, which names the function, where it fails or does not return a finite number each."""
        # Copies, since the function may change them.
        conversations = [[dict(message) for message in messages_of(prompt.question)] for prompt in prompts]
        texts = [self.tokenizer.decode(answer).strip() for answer in answers]
        try:
            with _process_unchanged():
                returned = self.function(prompts=conversations, completions=texts)
                if isinstance(returned, Coroutine):
                    returned.close()
                    raise UserError("it is async, and nothing here awaits it; give a function that returns a list")
                numbers = list(islice(returned, len(answers) + 1))
        except UserError as error:
            raise UserError(f"reward {self.name}: {error}") from None
        except (Exception, SystemExit) as error:  # whatever somebody's function raises
            raise UserError(f"reward {self.name}: {_error_line(error)}") from None
        if isinstance(returned, Mapping | Set):  # whose order is not that of the completions
            raise UserError(f"reward {self.name}: it returned a {type(returned).__name__}, not a list of numbers")
        if len(numbers) != len(answers):
            count = f"more than {len(answers)}" if len(numbers) > len(answers) else len(numbers)
            raise UserError(f"reward {self.name}: it returned {count} numbers for {len(answers)} completions")
        return torch.tensor([self._number(value, index) for index, value in enumerate(numbers)], device=self.device)

    def _number(self, value: object, index: int) -> float:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if isinstance(value, str) or not abs(number) <= torch.finfo(torch.float32).max:
            what = f"for completion {index + 1} it returned {shown(value)}"
            raise UserError(f"reward {self.name}: {what}; wanted is a finite number")
        return number


@contextmanager
def _process_unchanged() -> Iterator[None]:
    """Foreign code keeps its working directory, gradients and default type to itself: programs that run an answer's code change
    into its folder, and many modules turn gradients off, without which nothing here can be trained.
    """
    folder, gradients, dtype = Path.cwd(), torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        with suppress(OSError):  # somebody deleted it
            os.chdir(folder)


def _error_line(error: BaseException) -> str:
    """What foreign code raised, on one line. Its `str` may raise as well."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = ""
    if isinstance(error, SystemExit):
        return f"it ends the whole program ({message[:60]}); a reward returns numbers"
    return f"{type(error).__name__}: {message[:150]}" if message else type(error).__name__


def open_reward(name: str, tokenizer: Tokenizer, dtype: torch.dtype, device: torch.device) -> Reward:
    """The reward of the setting. Raises UserError where there is none of this name, or it cannot be used."""
    kind = kind_of(name)
    if kind == "folder":
        folder = expanded(name)
        if "ForCausalLM" in str(read_description(folder / "config.json").get("architectures")):
            raise UserError(f"reward {name}: a model that writes text, no reward model; `groundup reward` makes one of it")
        return of_folder(folder, tokenizer, dtype, device, of_model(folder))
    if kind == "function":
        return ProgramReward(name, _import_function(name), tokenizer, device)
    word = name.removeprefix(COUNT)
    program = getattr(reward_functions, name) if name in SHIPPED else reward_functions.count_of(word)
    return ProgramReward(name, program, tokenizer, device)


def of_folder(
    folder: Path, tokenizer: Tokenizer, dtype: torch.dtype, device: torch.device, own_tokenizer: Tokenizer | None = None
) -> ModelReward:
    """A folder's reward model, with the scale that our step `reward` writes there. Raises UserError as its loader does."""
    file, scale = folder / "reward_scale.json", None
    if file.is_file():
        stats = read_json(file)
        try:
            scale = float(stats["reward_mean"]), float(stats["reward_std"])
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{file}: reward_mean and reward_std are wanted, two numbers") from None
        if not (math.isfinite(scale[0]) and 0 < scale[1] < math.inf):
            raise UserError(f"{file}: reward_mean must be finite, and reward_std above 0")
    return ModelReward(load_reward_model(folder).to(device), scale, tokenizer, dtype, own_tokenizer)


def _import_function(name: str) -> reward_functions.RewardFunction:
    module_name, _, function_name = name.partition(":")
    if (working_folder := str(Path.cwd())) not in sys.path:
        sys.path.append(working_folder)  # where the command runs; of modules of one name the installed one is taken
    try:
        with _process_unchanged():
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever somebody's module raises
        raise UserError(f"reward {name}: importing {module_name}: {_error_line(error)}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"reward {name}: {module_name} has no function {function_name}")
    return function
