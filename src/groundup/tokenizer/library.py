"""Tokenizers that others made, as the `tokenizers` library reads them: Llama's, Mistral's, Gemma's, GPT-2's and their kind.

Used wherever `Tokenizer`, which is several times as fast, would not give the same ids. The ids are those of the library without
special tokens around a text, and text is never a special token. Tokens that the file calls not special are text, as they were
when the model was trained: Gemma has some for line ends and for HTML.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import regex
import tokenizers

from groundup.core.errors import UserError
from groundup.core.files import read_json
from groundup.core.seals import checked
from groundup.core.text import well_formed
from groundup.tokenizer import tokenizer_files
from groundup.tokenizer.bpe import NO_TOKEN
from groundup.tokenizer.hf_tokenizer import META_SPACE, backend_of, character_bytes, opening_of, refusing
from groundup.tokenizer.library_rules import ContinuationEncoder, rules_of
from groundup.tokenizer.template import Before
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.tokenizer_files import TokenizerFiles

BATCH = 1024  # texts encoded at once
UNUSED = 1 << 16  # ids that a vocabulary may leave out, in addition to as many as it has
# The end of a document, where a folder names none, or names the end of an answer.
ENDS_OF_TEXT = ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>")
_BYTE_TOKEN = regex.compile(r"<0x([0-9A-Fa-f]{2})>")


class LibraryTokenizer(Tokenizer):
    """A `Tokenizer` whose ids the library makes. Where its folder has no chat template it knows no conversation, and its
    `message_end` is NO_TOKEN.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError when `tokenizer.json` is missing or damaged, or does what is not known here."""
        path = checked(Path(folder) / "tokenizer.json")
        self._path, self._description = path, read_json(path)
        self._rules = rules_of(self._description, path)
        files = tokenizer_files.read(path.parent)
        for token in self._added_tokens():  # transformers treats tokens that a folder names, such as eos_token, as special
            token["special"] = token.get("special") is True or token["content"] in files.named.values()
        self._backend = backend_of(self._description, path)
        self._continuations = ContinuationEncoder(self._description, path)
        self._read_tokens()
        self._read_special(files)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises UserError as the constructor does."""
        return cls(folder)

    def _added_tokens(self) -> list[dict[str, Any]]:
        """The added tokens as the file has them."""
        added = self._description.get("added_tokens") or []
        if not isinstance(added, list) or any(not isinstance(token, dict) or not token.get("content") for token in added):
            raise UserError(f"{self._path}: an added token is no object with text; no text can hold it")
        return added

    def _read_tokens(self) -> None:
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self._names = {number: name for name, number in vocabulary.items()}
        if len(self._names) < max(len(vocabulary), 1) or max(self._names) > 2 * len(vocabulary) + UNUSED:
            raise UserError(f"{self._path}: no vocabulary: {len(vocabulary):,} tokens, {len(self._names):,} ids up to "
                            f"{max(self._names, default=0):,}")
        for token in self._added_tokens():
            if self._backend.token_to_id(token["content"]) != token.get("id"):  # the library numbers them itself
                raise UserError(f"{self._path}: the id of {token['content'][:40]!r} does not follow those of the other tokens")
            # With the ▁ that a normalizer puts before it: in a text the token stands for the space too.
            self._names[token["id"]] = self._backend.id_to_token(token["id"])
        self.special_tokens = {token["content"]: token["id"] for token in self._added_tokens() if token["special"]}
        self._special = set(self.special_tokens.values())
        self._textual = {token["id"] for token in self._added_tokens()} - self._special
        self._tokens = [self._bytes_of(number) for number in range(max(self._names) + 1)]
        self.bytes_per_token = np.array([len(token) for token in self._tokens], np.int64)  # (size,), 0: special tokens

    def _bytes_of(self, number: int) -> bytes:
        """The bytes of a token within a text."""
        name = self._names.get(number)
        if name is None or number in self._special:
            return b""
        if self._rules.byte_level:
            content = character_bytes(name)
            return name.encode() if content is None else content
        if self._rules.byte_tokens and (byte := _BYTE_TOKEN.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        return name.replace(META_SPACE, " ").encode()

    def _read_special(self, files: TokenizerFiles) -> None:
        """Set the tokens that begin and end texts and answers, from the folder's names and what it puts before a text."""
        self.foreign_files, self.folder_has_template = dict(files.texts), files.template is not None
        self.merges, self.template, self.message_start, self.message_end = [], None, NO_TOKEN, NO_TOKEN
        if (eos := files.named.get("eos_token")) is not None and eos not in self.special_tokens:
            raise UserError(f"{self._path.parent}: its eos_token {eos[:40]!r} is none of the special tokens in tokenizer.json")
        ends = [self.special_tokens[name] for name in (eos, *ENDS_OF_TEXT) if name in self.special_tokens]
        if not ends:
            raise UserError(f"{self._path.parent}: no token ends a text; name its eos_token in tokenizer_config.json")
        if files.template is not None:
            self.template = tokenizer_files.template_of(files, self.special_tokens, ends, self._path.parent, self._find_special)
            end = self.template.ends_answers()
            self.message_end = ends[0] if end is None else end
        self.end_of_text = next((token for token in ends if token != self.message_end), ends[0])
        self.ends = sorted({self.end_of_text, ends[0], *({self.message_end} - {NO_TOKEN})})
        if self.template is not None:
            self.template.spoken_ends = frozenset(self.ends)
        opening = self.opening()
        if len(opening) > 1 or not self._special.issuperset(opening):
            raise UserError(f"{self._path}: it puts {len(opening)} tokens before a text; at most one special token is supported")
        named = {name: self.special_tokens[text] for name, text in files.named.items() if text in self.special_tokens}
        self.begin_of_text = opening[0] if opening else named.get("bos_token", self.end_of_text)
        other = self.begin_of_text if self.begin_of_text not in self.ends else self.end_of_text
        self.pad = named.get("pad_token", named.get("unk_token", other))

    def opening(self) -> list[int]:
        return opening_of(self._backend, self._path)

    def _find_special(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, id) of the special tokens in a rendered conversation, with the white space that some of them include."""
        if not hasattr(self, "_finder"):
            self._finder = tokenizers.Tokenizer(tokenizers.models.WordLevel({"": 0}, unk_token=""))
            flags = ("single_word", "lstrip", "rstrip")
            self._finder.add_special_tokens(
                [
                    tokenizers.AddedToken(added["content"], normalized=False, **{flag: added.get(flag) is True for flag in flags})
                    for added in self._added_tokens()
                    if added["special"]
                ]
            )
            self._ids = {self._finder.token_to_id(name): number for name, number in self.special_tokens.items()}
        encoding = self._finder.encode(text, add_special_tokens=False)
        return [
            (*span, self._ids[token]) for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token in self._ids
        ]

    def encode(self, text: str) -> list[int]:
        """Ids of any string. Lone surrogates, which UTF-8 cannot hold, are encoded as U+FFFD."""
        return self.encode_after(text, "nothing")

    def encode_after(self, text: str, before: Before) -> list[int]:
        ids = None if before == "nothing" else self._continuations.encode(text, before)
        return self._encoded(self._backend, [text])[0].ids if ids is None else ids

    def encode_batch(self, texts: Iterable[str], threads: int = 1) -> list[np.ndarray]:
        """Ids of each text (int32), as `encode` gives them. The library chooses the number of threads itself."""
        arrays: list[np.ndarray] = []
        remaining = iter(texts)
        while batch := [*islice(remaining, BATCH)]:
            arrays += [np.array(encoding.ids, np.int32) for encoding in self._encoded(self._backend, batch)]
        return arrays

    def _encoded(self, backend: tokenizers.Tokenizer, texts: list[str]) -> list[tokenizers.Encoding]:
        with refusing(self._path, "cannot encode a text"):
            return backend.encode_batch_fast([well_formed(text) for text in texts], add_special_tokens=False)

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of the tokens as the library decodes it: without special tokens, and maybe without a space at the beginning."""
        return self._joined(tokens, drops=True)

    def decode_within(self, tokens: Iterable[int]) -> str:
        return self._joined(tokens, drops=False)

    def _joined(self, tokens: Iterable[int], drops: bool) -> str:
        step = self.incremental(drops)
        return "".join([*map(step, tokens), step(None)])

    def incremental(self, drops: bool = True) -> Callable[[int | None], str]:
        if self._rules.byte_level:
            return super().incremental()
        leading = self._rules.leading if drops else "nothing"
        held = bytearray()

        def text_held() -> str:
            """The text of consecutive byte tokens; as in the library, each byte is U+FFFD if one belongs to no character."""
            try:
                text = held.decode()
            except UnicodeDecodeError:
                text = "\ufffd" * len(held)
            held.clear()
            return text

        def step(token: int | None) -> str:
            nonlocal leading
            name = None if token is None else self._names.get(token)
            if token is not None and (name is None or token in self._special):
                return ""
            if name is not None and self._rules.byte_tokens and _BYTE_TOKEN.fullmatch(name):
                held.extend(self._tokens[token])
                return ""
            text = text_held()
            if name is not None:
                if leading == "spaces of the first token":
                    name, leading = name.replace(META_SPACE, ""), "nothing"
                text += name.replace(META_SPACE, " ")
            if text and leading == "a space":
                text, leading = text.removeprefix(" "), "nothing"
            return text

        return step

    def as_json(self) -> dict[str, Any]:
        return {"of": self.foreign_files["tokenizer.json"]}

    def forget_files(self) -> None:
        """A new model keeps the foreign files, too: ours would not fit these tokens."""
