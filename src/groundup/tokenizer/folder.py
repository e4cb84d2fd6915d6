"""The folder of a tokenizer as other tools read it; what its kinds have in common."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groundup.files import write_json, write_text
from groundup.tokenizer.chat import CHAT_TEMPLATE


def write(folder: Path, description: Mapping[str, Any], settings: Mapping[str, Any], model_max_length: int | None) -> None:
    """Write `tokenizer_config.json` with the settings, and the description as `tokenizer.json`."""
    config = {
        # Without it transformers goes by the model's type, and picks a class with another pre-tokenization.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({"model_max_length": model_max_length} if model_max_length else {}),
        **settings,
        "clean_up_tokenization_spaces": False,
    }
    write_json(Path(folder) / "tokenizer_config.json", config)
    write_json(Path(folder) / "tokenizer.json", dict(description))


def write_with_chat(
    folder: Path, description: Mapping[str, Any], special_tokens: Mapping[str, int], model_max_length: int | None, chat: bool
) -> None:
    """The same with our chat template. `chat`: a text ends with the end of a message rather than of a document."""
    end_of_text, message_start, message_end, pad = special_tokens
    write_text(Path(folder) / "chat_template.jinja", CHAT_TEMPLATE)
    settings = {
        "eos_token": message_end if chat else end_of_text,
        "pad_token": pad,
        "additional_special_tokens": [message_start, end_of_text if chat else message_end],
        "padding_side": "left",  # a batch of prompts must end where the answers begin
        "chat_template": CHAT_TEMPLATE,  # older readers look here, newer ones in chat_template.jinja
    }
    write(folder, description, settings, model_max_length)


def added_tokens(special_tokens: Mapping[str, int]) -> list[dict[str, Any]]:
    """The special tokens in `tokenizer.json`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": number, "content": name, **flags} for name, number in sorted(special_tokens.items(), key=lambda t: t[1])]
