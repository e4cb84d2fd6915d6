"""The folder of a tokenizer as other tools read it; what all kinds of tokenizers share."""

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
    """Base of the tokenizers whose tokens stand for bytes; a subclass has `as_json`, the content of `tokenizer.json`."""

    def __init__(self, tokens: Iterable[bytes], special: Sequence[str] = SPECIAL_TOKENS) -> None:
        """`tokens` in the order of their ids; the `special` tokens come after them. Without <|pad|> padding is the end-of-text
        token, as Qwen's is.
        """
        self._tokens = [*tokens, *(b"" for _ in special)]
        first = len(self._tokens) - len(special)
        self.special_tokens = {name: first + number for number, name in enumerate(special)}
        self.end_of_text, self.message_start, self.message_end = (self.special_tokens[name] for name in SPECIAL_TOKENS[:3])
        self.begin_of_text = self.end_of_text  # every document begins with it
        self.pad = self.special_tokens.get(SPECIAL_TOKENS[3], self.end_of_text)
        self.ends = [self.end_of_text, self.message_end]  # of a text or of an answer
        self.foreign_files: dict[str, str] = {}  # by name, the files of a folder that is not ours, written again unchanged
        self.folder_has_template = False
        self.template: ChatTemplate | None = None  # that folder's chat template, where it is not ours
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
        """Ids of a text that follows `before`. Some tokenizers put a space before a text, but not before its parts."""
        return self.encode(text)

    def prompt(self, text: str) -> list[int]:
        """Ids of a text to continue: after the token that other tools put before it, if any. At least one token."""
        return [*self.opening(), *self.encode(text)] or [self.begin_of_text]

    def opening(self) -> list[int]:
        """Ids that other tools put before every text."""
        return [self.begin_of_text]

    def document(self, text_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Ids of a document as training reads it (int32): after the token that begins one, and before the one that ends it
        where these are two.
        """
        end = [] if self.begin_of_text == self.end_of_text else [self.end_of_text]
        return np.concatenate([[self.begin_of_text], text_ids, end]).astype(np.int32)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; empty for special tokens, except those that their folder calls text."""
        if not 0 <= token < self.size:
            raise IndexError(f"token {token} is outside the vocabulary of {self.size}")
        return self._tokens[token]

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return b"".join(map(self.token_bytes, tokens))

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of the tokens. Special tokens are no text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def decode_within(self, tokens: Iterable[int]) -> str:
        """Text of tokens that continue other text: where a tokenizer puts a space before a text, the first space stays."""
        return self.decode(tokens)

    def incremental(self, drops: bool = True) -> Callable[[int | None], str]:
        """A function that takes each next token, or None at the end, and returns the text of the characters completed by it.

        `drops`: as `decode`, else as `decode_within`.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda token: decoder.decode(b"" if token is None else self.token_bytes(token), final=token is None)

    def save(self, folder: Path, model_max_length: int | None = None, chat: bool = False) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`: same tokens, same bytes.

        `chat`: the files tell other tools that a text ends with the end of a message rather than of a document. Either way they
        tell them that it begins with the end-of-text token, as every document does in training: without it the
        likelihoods of lm-eval, transformers and vLLM are not ours. (A rendered conversation has it already: `chat.py`.)
        A folder that is not ours is written as it was (see `remember_files`), with our chat template only where it has none.
        """
        if self.foreign_files:
            for name, text in self.foreign_files.items():
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

    def remember_files(self, folder: Path) -> None:
        """Keep the files of `folder`, unless we wrote it ourselves. Raises UserError as `tokenizer_files.read` does."""
        files = tokenizer_files.read(folder)
        other_template = files.template is not None and files.template.strip() != CHAT_TEMPLATE.strip()
        if not other_template and self._wrote(files.settings):
            return
        self.foreign_files, self.folder_has_template = dict(files.texts), files.template is not None
        if (eos := files.named.get("eos_token")) is not None:
            if eos not in self.special_tokens:
                raise UserError(f"{folder}: its eos_token {eos[:40]!r} is none of the special tokens in tokenizer.json")
            self.ends = sorted({*self.ends, self.special_tokens[eos]})
        for name in tokenizer_files.textual(files):  # Qwen3's <think>
            if (token := self.special_tokens[name]) not in self.ends:
                self._tokens[token] = name.encode()
        if other_template:
            self.template = tokenizer_files.template_of(files, self.special_tokens, self.ends, folder)

    def _wrote(self, settings: Mapping[str, Any] | None) -> bool:
        """Whether `settings`, a folder's tokenizer_config.json if it has one, are as `save` writes them."""
        if settings is None:
            return True
        stated = {name: value for name, value in settings.items() if name != "model_max_length"}
        return any(stated == _config(self._settings(chat), None) for chat in (False, True))

    def forget_files(self) -> None:
        """For a new model: drop a foreign folder's files, so that the files and the chat template written are ours."""
        self.foreign_files, self.template, self.ends = {}, None, [self.end_of_text, self.message_end]
        special = {*self.special_tokens.values()}
        self._tokens = [b"" if number in special else token for number, token in enumerate(self._tokens)]

    def digest(self) -> str:
        """Digest of everything that `is_that_of` compares."""
        content = json.dumps([self.as_json(), self.special_tokens, self.foreign_files], sort_keys=True)
        return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def is_that_of(self, other: "ByteTokens") -> bool:
        """Whether both make the same ids of texts and conversations, and write the same folder."""
        ours, theirs = ((each.as_json(), each.special_tokens, each.foreign_files) for each in (self, other))
        return ours == theirs


def _begins_with(name: str, number: int) -> dict[str, Any]:
    """A post-processor that puts one token before a text, or before the first of two texts."""
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
        # Without it transformers chooses by the model's type, and picks a class with another pre-tokenization.
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
    """The content of `tokenizer.json`."""
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
    """The `model` of tokenizer.json, for byte-pair encoding of bytes or characters."""
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
