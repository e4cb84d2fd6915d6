"""A model that is served: its tokenizer, its scheduler, and how its prompts are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.core.files import read_object
from groundup.core.plain_files import expanded
from groundup.generation.open_folder import model_folder
from groundup.generation.scheduler import CACHE_MB, Scheduler
from groundup.model.model_folder import load_decoder
from groundup.tokenizer.chat import answer_ends, render
from groundup.tokenizer.load import of_model
from groundup.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Capacity:
    slots: int = 16  # requests that are decoded together
    waiting: int = 256  # requests that wait for a slot; more are refused (429)
    context_length: int | None = None  # prompt and answer; the model's if not given
    cache_mb: int = CACHE_MB  # for keys and values


@dataclass(frozen=True, eq=False)
class ServedModel:
    """`name` is what clients call it."""

    name: str
    folder: Path
    tokenizer: Tokenizer
    scheduler: Scheduler

    @classmethod
    def open(cls, spec: str, capacity: Capacity) -> "ServedModel":
        """`spec`: `[name=]folder`, of a model or a run. Raises UserError where there is no model that writes text."""
        name, sign, given = spec.partition("=")
        if not sign or expanded(spec).exists():  # `runs/lr=0.1/dpo` is a folder
            name, given = "", spec
        folder = model_folder(expanded(given))
        network = load_decoder(folder).to(choose().torch_device)
        scheduler = Scheduler(network, capacity.slots, capacity.waiting, capacity.context_length, capacity.cache_mb)
        return cls(name or folder.resolve().name, folder, of_model(folder), scheduler)

    @property
    def context_length(self) -> int:
        """Tokens of a prompt and its answer."""
        return self.scheduler.length

    @property
    def generation_defaults(self) -> Any:
        """Sampling as the folder's generation_config.json states it."""
        return self.scheduler.model.generation

    @property
    def chats(self) -> bool:
        """Whether the model ends its answers with the end of a message."""
        return self.tokenizer.message_end in self.generation_defaults.ends

    def prompt_of_text(self, text: str) -> list[int]:
        return self.tokenizer.prompt(text)

    def prompt_of_messages(self, messages: Sequence[dict[str, Any]], generation_prompt: bool = True) -> list[int]:
        """`developer`, as newer clients of OpenAI call the system, is read as system.

        Raises UserError for what is no conversation, and for a model that was not trained to chat.
        """
        if not self.chats:
            raise UserError(f"{self.name} was not trained to chat; use /v1/completions, or fine-tune it first")
        refuse_unread_fields(messages)
        messages = [{**message, "role": "system"} if message.get("role") == "developer" else message for message in messages]
        return render(self.tokenizer, messages, add_generation_prompt=generation_prompt)[0]

    def ends(self, chat: bool) -> frozenset[int]:
        if chat:
            return frozenset(answer_ends(self.tokenizer, self.generation_defaults.ends))
        return frozenset([self.tokenizer.end_of_text, *self.generation_defaults.ends])

    def tokenizer_info(self) -> dict[str, Any]:
        """tokenizer_config.json of its folder, with the chat template, as vLLM answers it."""
        settings = read_object(self.folder / "tokenizer_config.json")
        template = self.folder / "chat_template.jinja"
        if template.is_file():
            settings["chat_template"] = template.read_text(encoding="utf-8")
        return settings


def refuse_unread_fields(messages: Sequence[dict[str, Any]]) -> None:
    """Raises UserError for a field of a message, or of a part of its content, besides role and text: it would not be used.

    Accepted are fields without a value, which OpenAI's client gives with an answer that is sent back, and `type: text` of a
    message, which older versions of lm-eval give with each.
    """
    for number, message in enumerate(messages, start=1):
        content = message.get("content")
        parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
        for read, fields in ((("role", "content"), message), *((("type", "text"), part) for part in parts)):
            for name, value in fields.items():
                if name not in read and value not in (None, [], {}, "") and (name, value) != ("type", "text"):
                    raise UserError(f"message {number} of {len(messages)}: {name[:40]}: this chat format has no place for it")


def open_all(specs: Sequence[str], capacity: Capacity) -> dict[str, ServedModel]:
    """By name. Raises UserError for two of one name."""
    models: dict[str, ServedModel] = {}
    for spec in specs:
        model = ServedModel.open(spec, capacity)
        if model.name in models:
            raise UserError(f"two models are called {model.name}: give one a name, as {model.name}-2={model.folder}")
        models[model.name] = model
    return models
