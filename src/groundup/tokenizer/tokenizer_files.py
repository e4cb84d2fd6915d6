"""The files of a tokenizer's folder besides its vocabulary: chat template, special tokens, settings.

A folder of ours is written anew each time. A foreign folder's files are kept as they are, to the byte, so that a continued
published model has a folder that other tools use as they used the first.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.files import read_json
from groundup.core.seals import checked
from groundup.tokenizer.template import ChatTemplate, FindSpecial

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
MORE_TEMPLATES = "additional_chat_templates"
LARGEST = 1 << 27  # bytes of a file; the largest known tokenizer.json has 3.4e7
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """A folder's text files by name, its chat template and the tokens that it names, such as `eos_token`."""

    texts: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None  # tokenizer_config.json


def read(folder: Path) -> TokenizerFiles:
    """Raises UserError for a file that is damaged, no plain file or too large, and for templates without a default."""
    names = [name for name in FILES if (folder / name).exists()]
    names += sorted(f"{MORE_TEMPLATES}/{path.name}" for path in (folder / MORE_TEMPLATES).glob("*.jinja"))[:100]
    files = {name: _text(folder, name) for name in names}
    settings: dict[str, Any] = {}
    entries = None
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name in files:
            if not isinstance(entries := read_json(folder / name), dict):
                raise UserError(f"{folder / name}: not a JSON object; download it again")
            settings |= entries
    named = {name: text for name in NAMED if (text := _content(settings.get(name))) is not None}
    config = entries if "tokenizer_config.json" in files else None
    return TokenizerFiles(files, _template(files, settings, folder), named, config)


def textual(files: TokenizerFiles) -> list[str]:
    """The added tokens that tokenizer.json marks as not special: they count as text."""
    added = json.loads(files.texts["tokenizer.json"].lstrip("\ufeff")).get("added_tokens") or []
    return [token["content"] for token in added if token.get("special") is False]


def template_of(
    files: TokenizerFiles, special: Mapping[str, int], ends: list[int], folder: Path, find: FindSpecial | None = None
) -> ChatTemplate | None:
    if files.template is None:
        return None
    if "" in special:
        raise UserError(f"{folder}/tokenizer.json: a special token without text; no conversation can hold it")
    textual_tokens = [name for name in textual(files) if name in special]
    return ChatTemplate(files.template, files.named, special, textual_tokens, ends, str(folder), find)


def _text(folder: Path, name: str) -> str:
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path}: not a plain file")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes; a tokenizer's files have at most {LARGEST:,}")
    try:
        return (checked(path) if "/" not in name else path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); download it again") from None


def _content(token: Any) -> str | None:
    """A special token's text, given as a string or as an object with its matching flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _template(files: Mapping[str, str], settings: Mapping[str, Any], folder: Path) -> str | None:
    if "chat_template.jinja" in files:  # which wins over the settings in transformers too
        return files["chat_template.jinja"]
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        defaults = [entry.get("template") for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        if not defaults:
            raise UserError(f"{folder}/tokenizer_config.json: none of its chat templates is named default; name one so")
        template = defaults[0]
    if template is not None and not isinstance(template, str):
        raise UserError(f"{folder}/tokenizer_config.json: chat_template must be text, not {type(template).__name__}")
    return template
