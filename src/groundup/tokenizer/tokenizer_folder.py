"""The folder of a tokenizer as other tools read it; what its kinds have in common."""

import codecs
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.core.files import write_json, write_text
from groundup.tokenizer import tokenizer_files
from groundup.tokenizer.bpe import SPECIAL_TOKENS
from groundup.tokenizer.chat import CHAT_TEMPLATE
from groundup.tokenizer.template import Before, ChatTemplate


class ByteTokens:
    """What tokenizers share whose tokens stand for bytes; a subclass has `as_json`, which is its `tokenizer.json`."""

    def __init__(self, tokens: Iterable[bytes], special: Sequence[str] = SPECIAL_TOKENS) -> None:
        """`tokens` in the order of their ids; the `special` tokens come after them. One without <|pad|> is padded as
        Qwen's is, with the end of a text.
        """
        self._tokens = [*tokens, *(b"" for _ in special)]
        first = len(self._tokens) - len(special)
        self.special_tokens = {name: first + number for number, name in enumerate(special)}
        self.end_of_text, self.message_start, self.message_end = (self.special_tokens[name] for name in SPECIAL_TOKENS[:3])
        self.begin_of_text = self.end_of_text  # every document stands after it
        self.pad = self.special_tokens.get(SPECIAL_TOKENS[3], self.end_of_text)
        self.ends = [self.end_of_text, self.message_end]  # of a text or of an answer
        self.kept: dict[str, str] = {}  # by name the files of a folder that is not ours, which are written as they came
        self.folder_has_template = False
        self.template: ChatTemplate | None = None  # that folder's own, where it is another than ours
        self.bytes_per_token = np.array([len(token) for token in self._tokens], np.int64)  # (size,), 0: special tokens

    @property
    def size(self) -> int:
        """Ids are 0 .. size - 1, those of the special tokens included."""
        return len(self._tokens)

    def __len__(self) -> int:
        return self.size

    def encode(self, text: str) -> list[int]:
        """Ids of any string; each kind has its own."""
        raise NotImplementedError

    def __call__(self, text: str) -> list[int]:
        return self.encode(text)

    def encode_after(self, text: str, before: Before) -> list[int]:
        """Ids of a text in the midst of others. Some tokenizers put a space before a text, but not before its parts."""
        return self.encode(text)

    def document(self, text_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Ids of a document as training reads it (int32): between what begins and what ends one, where these are two."""
        end = [] if self.begin_of_text == self.end_of_text else [self.end_of_text]
        return np.concatenate([[self.begin_of_text], text_ids, end]).astype(np.int32)

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; none for special tokens, but for those that their folder calls text."""
        if not 0 <= token < self.size:
            raise IndexError(f"token {token} is outside the vocabulary of {self.size}")
        return self._tokens[token]

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return b"".join(map(self.token_bytes, tokens))

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of the tokens. Special tokens are no text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def decode_within(self, tokens: Iterable[int]) -> str:
        """Text of tokens that continue other text: of those tokenizers the first space stays."""
        return self.decode(tokens)

    def incremental(self, drops: bool = True) -> Callable[[int | None], str]:
        """What each next token adds to the text, once its characters are whole; None for a token is the end of them.

        `drops`: as `decode`, else as `decode_within`.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda token: decoder.decode(b"" if token is None else self.token_bytes(token), final=token is None)

    def save(self, folder: Path, model_max_length: int | None = None, chat: bool = False) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`: same tokens, same bytes.

        `chat`: other tools are told that a text ends with the end of a message rather than of a document. Either way they
        are told that it begins with the end-of-text token, as every document does in training: without it the
        likelihoods of lm-eval, transformers and vLLM are not ours. (A rendered conversation has it already: `chat.py`.)
        A folder that came from elsewhere is written as it came (see `keep`), with our chat template only where it has none.
        """
        if self.kept:
            for name, text in self.kept.items():
                write_text(Path(folder) / name, text)
            if chat and not self.folder_has_template:
                write_text(Path(folder) / "chat_template.jinja", CHAT_TEMPLATE)
            return
        write_text(Path(folder) / "chat_template.jinja", CHAT_TEMPLATE)
        first = _begins_with(SPECIAL_TOKENS[0], self.end_of_text)
        write(folder, {**self.as_json(), "post_processor": first}, self._settings(chat), model_max_length)

    def _settings(self, chat: bool) -> dict[str, Any]:
        end_of_text, message_start, message_end, pad = SPECIAL_TOKENS
        return {
            "bos_token": end_of_text,
            "eos_token": message_end if chat else end_of_text,
            "pad_token": pad if pad in self.special_tokens else end_of_text,
            "additional_special_tokens": [message_start, *([] if chat else [message_end])],
            "padding_side": "left",  # a batch of prompts must end where the answers begin
            "chat_template": CHAT_TEMPLATE,  # older readers look here, newer ones in chat_template.jinja
        }

    def keep(self, folder: Path) -> None:
        """Know what the folder came with, if it is not one that we wrote. Raises UserError as `tokenizer_files.read` does."""
        found = tokenizer_files.read(folder)
        other_template = found.template is not None and found.template.strip() != CHAT_TEMPLATE.strip()
        if not other_template and self._wrote(found.settings):
            return
        self.kept, self.folder_has_template = dict(found.files), found.template is not None
        if (eos := found.named.get("eos_token")) is not None:
            if eos not in self.special_tokens:
                raise UserError(f"{folder}: its eos_token {eos[:40]!r} is none of the special tokens in tokenizer.json")
            self.ends = sorted({*self.ends, self.special_tokens[eos]})
        for name in tokenizer_files.textual(found):  # Qwen3's <think>
            if (token := self.special_tokens[name]) not in self.ends:
                self._tokens[token] = name.encode()
        if other_template:
            self.template = tokenizer_files.template_of(found, self.special_tokens, self.ends, folder)

    def _wrote(self, settings: Mapping[str, Any] | None) -> bool:
        """Whether a tokenizer_config.json, if there is one, is as `save` writes it."""
        if settings is None:
            return True
        stated = {name: value for name, value in settings.items() if name != "model_max_length"}
        return any(stated == _config(self._settings(chat), None) for chat in (False, True))

    def forget(self) -> None:
        """For a model that is new: what is written is ours again, and so is the template."""
        self.kept, self.template, self.ends = {}, None, [self.end_of_text, self.message_end]
        special = {*self.special_tokens.values()}
        self._tokens = [b"" if number in special else token for number, token in enumerate(self._tokens)]

    def digest(self) -> str:
        """Of all that `is_that_of` compares."""
        content = json.dumps([self.as_json(), self.special_tokens, self.kept], sort_keys=True)
        return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def is_that_of(self, other: "ByteTokens") -> bool:
        """Whether both make the same ids of texts and conversations, and write the same folder."""
        mine, its = ((one.as_json(), one.special_tokens, one.kept) for one in (self, other))
        return mine == its


def _begins_with(name: str, number: int) -> dict[str, Any]:
    """A post-processor that puts one token before a text, or before the first of two."""
    token = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": text, "type_id": 0}} for text in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [token, first],
        "pair": [token, first, second],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }


def write(folder: Path, description: Mapping[str, Any], settings: Mapping[str, Any], model_max_length: int | None) -> None:
    """Write `tokenizer_config.json` with the settings, and the description as `tokenizer.json`."""
    write_json(Path(folder) / "tokenizer_config.json", _config(settings, model_max_length))
    write_json(Path(folder) / "tokenizer.json", dict(description))


def _config(settings: Mapping[str, Any], model_max_length: int | None) -> dict[str, Any]:
    return {
        # Without it transformers goes by the model's type, and picks a class with another pre-tokenization.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({"model_max_length": model_max_length} if model_max_length else {}),
        **settings,
        "clean_up_tokenization_spaces": False,
    }


def describe(
    special_tokens: Mapping[str, int],
    *,
    decoder: dict[str, Any],
    model: dict[str, Any],
    normalizer: dict[str, Any] | None = None,
    pre_tokenizer: dict[str, Any] | None = None,
    post_processor: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `tokenizer.json` holds."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ordered = sorted(special_tokens.items(), key=lambda token: token[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **flags} for name, number in ordered],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def bpe_model(vocabulary: dict[str, int], merges: list[list[str]], byte_fallback: bool) -> dict[str, Any]:
    """Its `model`, of a tokenizer that pairs bytes or characters."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }
