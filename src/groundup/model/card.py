"""README.md of a model's folder: what the hub shows of a model, with the YAML head that it reads.

Nothing in it depends on when or where it was written, so that a folder made twice is the same twice. Names and texts of others
are escaped: in Markdown they are no markup, in YAML no structure.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.core.files import read_text, write_text
from groundup.core.text import visible

FILE = "README.md"
TAG = "groundup"
MAX_README_LENGTH, MAX_NAME_LENGTH = 20_000, 200  # characters: of somebody's README, of a name
# What a card takes over from the YAML head of another model's card, with its pattern: codes of licence and language, hub name.
HEAD_PATTERNS = {
    "license": r"[a-z0-9][a-z0-9._-]{0,40}",
    "language": r"[a-z]{2,3}(-[A-Za-z]{2,8})?",
    "base_model": r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?",
}
TASKS = {  # by the end of the architecture's name: the hub's task, and transformers' class that loads it
    "ForCausalLM": ("text-generation", "AutoModelForCausalLM"),
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForQuestionAnswering": ("question-answering", "AutoModelForQuestionAnswering"),
    "ForMaskedLM": ("fill-mask", "AutoModelForMaskedLM"),
}
SIZE_LABELS = {
    "num_hidden_layers": "layers", "hidden_size": "width", "num_attention_heads": "heads",
    "num_key_value_heads": "key/value heads", "num_experts": "experts a layer",
    "num_experts_per_tok": "experts a token", "vocab_size": "vocabulary",
    "max_position_embeddings": "context, tokens", "dtype": "weights in",
}  # fmt: skip
GENERATE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
{inputs}
answer = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```"""
INPUTS = {
    True: 'messages = [{"role": "user", "content": "What is a prime number?"}]\n'
    'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
    False: 'inputs = tokenizer("A prime number is", return_tensors="pt", return_token_type_ids=False)',
}
LOAD = """```python
from transformers import {loader}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {loader}.from_pretrained("FOLDER", dtype="auto")
```"""
OUR_CALLS = {
    "chat": 'groundup.load("FOLDER").chat("What is a prime number?")',
    "text-generation": 'groundup.load("FOLDER").generate("A prime number is")',
    "text-classification": 'groundup.PreferenceModel.load("FOLDER").score(messages)',
}
LIMITS = {
    "text-generation": "It writes what is likely, not what is true, prejudices and errors of its texts among it.",
    "text-classification": "Its number compares answers to one question with each other, not those to different ones.",
    "question-answering": "It finds an answer only where one stands in the text, word by word.",
    "fill-mask": "It is of use where it is trained on; by itself it answers nothing.",
}


@dataclass(frozen=True)
class Card:
    """What only the maker of a model knows. `data` and `figures` may be nested; numbers and texts in them are shown."""

    how: str = "A language model."
    language: str = ""  # its code, as the hub has it
    data: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


def write(folder: Path, description: Mapping[str, Any], parameters: int, chat: bool, card: Card, head: Mapping[str, str]) -> None:
    """Write the card of the model whose config.json is `description`. One that a person wrote is left as it is.

    head: "license", "language" and "base_model" of the model that it was trained from.
    """
    path = folder / FILE
    if path.exists() and not _is_ours(path):
        return
    architecture = str(description["architectures"][0])
    task, loader = next((TASKS[end] for end in TASKS if architecture.endswith(end)), ("text-generation", ""))
    in_transformers = not str(description["model_type"]).startswith("groundup_")  # by transformers
    head = {**({"language": card.language} if re.fullmatch(HEAD_PATTERNS["language"], card.language) else {}), **head}
    lines = ["---", *(f"{name}: {json.dumps(head[name])}" for name in ("license", "base_model") if head.get(name))]
    lines += ["language:", f"- {json.dumps(head['language'])}"] if head.get("language") else []
    lines += [f"library_name: {'transformers' if in_transformers else TAG}", f"pipeline_tag: {task}", "tags:", f"- {TAG}"]
    lines += [*(["- conversational"] if chat and task == "text-generation" else []), "---", ""]
    lines += [f"# {architecture}, {parameters:,} parameters", "", f"{card.how} Made with groundup.", ""]
    if head.get("base_model"):
        lines += [f"It began as {escaped(head['base_model'])}, whose licence and limits are its own too.", ""]
    sizes = {label: description[name] for name, label in SIZE_LABELS.items() if description.get(name) is not None}
    for title, rows in (("Sizes", sizes), ("What it was trained on", card.data), ("Figures", card.figures)):
        lines += _table(title, rows)
    lines += ["## How to load it", "", "`FOLDER` is this folder, or its name on the hub.", ""]
    if in_transformers:
        example = GENERATE.format(inputs=INPUTS[chat]) if task == "text-generation" else LOAD.format(loader=loader)
        lines += [*example.split("\n"), ""]
    if call := OUR_CALLS.get("chat" if chat and task == "text-generation" else task):
        lines += ["```python", "import groundup", "", call, "```", ""]
    elif task == "question-answering":
        lines += ["`groundup ask` finds answers with it.", ""]
    lines += ["## Limits", "", LIMITS[task]]
    if not head.get("license"):
        lines += ["", "No licence is stated: that of its texts is not known here."]
    write_text(path, "\n".join(lines) + "\n")


def head_of(folder: Path) -> dict[str, str]:
    """What a model trained from the one in `folder` takes over of its card; if that is not ours, its name as `base_model`."""
    path = folder / FILE
    entries = {}
    text = _yaml_head(path)
    for name, pattern in HEAD_PATTERNS.items():
        match = re.search(rf"^{name}:[ \t]*(?:\n[ \t]*-[ \t]+)?[\"']?({pattern})[\"']?[ \t]*$", text, re.MULTILINE)
        if match:
            entries[name] = match[1]
    if _is_ours(path):
        return entries
    hub_cache = re.search(r"models--([^/]+)--([^/]+)/snapshots/", f"{folder.absolute().as_posix()}/")
    name = f"{hub_cache[1]}/{hub_cache[2]}" if hub_cache else folder.resolve().name
    entries.pop("base_model", None)
    return {**entries, "base_model": name} if re.fullmatch(HEAD_PATTERNS["base_model"], name) else entries


def keep(folder: Path, source: Path) -> None:
    """Copy the card of the model in `source` to its copy in `folder`, if that card is ours: it says how it was trained."""
    if _is_ours(source / FILE) and (_is_ours(folder / FILE) or not (folder / FILE).exists()):
        write_text(folder / FILE, read_text(source / FILE))


def escaped(text: str) -> str:
    """Anybody's text as one line of Markdown that is no markup, link or HTML, at most 200 characters of it."""
    line = " ".join(visible(text).split())
    line = line if len(line) <= MAX_NAME_LENGTH else f"{line[: MAX_NAME_LENGTH - 3]}..."
    return re.sub(r"([\\`*_{}\[\]<>()#!|&~$:@.^=])", r"\\\1", line)


def _table(title: str, rows: Mapping[str, Any]) -> list[str]:
    flat = [(name, value) for name, value in _flat(rows) if value is not None and value != ""]
    if not flat:
        return []
    cells = [f"| {escaped(name)} | {_formatted(value)} |" for name, value in flat]
    return [f"## {title}", "", "| | |", "| --- | --- |", *cells, ""]


def _flat(rows: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in rows.items():
        label = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat += _flat(value, f"{label}, ")
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            flat.append((label, value))
    return flat


def _formatted(value: float | str) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else escaped(value)


def _yaml_head(path: Path) -> str:
    """The YAML head of a README, "" where there is none."""
    try:
        if not path.is_file():
            return ""
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            text = file.read(MAX_README_LENGTH)
    except OSError:
        return ""
    head = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", text, re.DOTALL)
    return head[1] if head else ""


def _is_ours(path: Path) -> bool:
    return re.search(rf"^- {TAG}$", _yaml_head(path), re.MULTILINE) is not None
