"""Vocabularies without a trained cut: bytes, and characters with bytes for the rest (ByT5, Xue et al. 2022; CANINE).

Ids: 0 .. 255 are the bytes themselves, then the characters, then the special tokens. A character of the vocabulary is
one token and any other its UTF-8 bytes, so every text round-trips exactly and nothing is unknown. Without characters it
is the tokenizer of byte-level models.
It is used like `tokenizer.Tokenizer`. Text is never a special token.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from groundup.errors import UserError
from groundup.files import read_json
from groundup.tokenizer.bpe import SPECIAL_TOKENS, well_formed
from groundup.tokenizer.folder import added_tokens, write_with_chat

BYTES = 256


def count_characters(texts: Iterable[str]) -> Counter[str]:
    """How often each character occurs; counters of shards add up."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(well_formed(text))
    return counts


def train(counts: Counter[str], vocabulary: int) -> str:
    """The most frequent characters, of equals the smallest code points, as many as a vocabulary has room for.

    They are in the order of code points. Raises UserError when there is no room for bytes and special tokens.
    """
    room = vocabulary - BYTES - len(SPECIAL_TOKENS)
    if room < 0:
        raise UserError(
            f"a vocabulary of {vocabulary} is too small: bytes and special tokens alone are {vocabulary - room}"
        )
    return "".join(sorted(sorted(counts, key=lambda character: (-counts[character], character))[:room]))


class Characters:
    """`characters` in the order of their ids; the empty string makes a tokenizer of bytes."""

    def __init__(self, characters: str = "") -> None:
        if len(set(characters)) < len(characters) or well_formed(characters) != characters:
            raise UserError("a vocabulary of characters holds each once, and no lone surrogate")
        self.characters = characters
        self._tokens = [bytes([byte]) for byte in range(BYTES)]
        self._tokens += [character.encode() for character in characters]
        self._ids = {character: [BYTES + number] for number, character in enumerate(characters)}
        self.special_tokens = {name: len(self._tokens) + number for number, name in enumerate(SPECIAL_TOKENS)}
        self._tokens += [b""] * len(SPECIAL_TOKENS)
        self.end_of_text, self.message_start, self.message_end, self.pad = self.special_tokens.values()
        self.bytes_per_token = np.array([len(token) for token in self._tokens], np.int64)  # (size,), 0: special tokens

    @property
    def size(self) -> int:
        """Ids are 0 .. size - 1: bytes, characters and special tokens."""
        return len(self._tokens)

    def encode(self, text: str) -> list[int]:
        """Ids of any string. Lone surrogates, which UTF-8 cannot hold, are encoded as U+FFFD."""
        text = well_formed(text)
        if not self.characters:
            return [*text.encode()]
        ids = self._ids
        return [number for character in text for number in ids.get(character) or character.encode()]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes: what is UTF-8 as `encode` has it, every other byte as itself."""
        if not self.characters:
            return [*data]
        # Python writes a byte that is not UTF-8 as the lone surrogate 0xDC00 + byte.
        found = data.decode("utf-8", "surrogateescape")
        return [n for c in found for n in self._ids.get(c) or c.encode("utf-8", "surrogateescape")]

    def encode_batch(self, texts: Iterable[str], threads: int = 1) -> list[np.ndarray]:
        """Ids of each text (int32), as `encode` gives them, in the order of the texts. One thread does it all."""
        return [np.array(self.encode(text), np.int32) for text in texts]

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; none for special tokens."""
        if not 0 <= token < self.size:
            raise IndexError(f"token {token} is outside the vocabulary of {self.size}")
        return self._tokens[token]

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return b"".join(map(self.token_bytes, tokens))

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of the tokens. Special tokens are no text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `tokenizer.json`. Raises UserError when it is missing, damaged, or follows other rules than ours."""
        path = Path(folder) / "tokenizer.json"
        found = read_json(path)
        try:
            vocabulary = found["model"]["vocab"]
            names = sorted(vocabulary, key=vocabulary.__getitem__)
            tokenizer = cls("".join(names[BYTES:]))
            ours = tokenizer.as_json()
            same = found["model"]["vocab"] == ours["model"]["vocab"] and found["model"]["merges"] == []
            same &= [(t["content"], t["id"]) for t in found["added_tokens"]] == list(tokenizer.special_tokens.items())
            same &= found["model"]["byte_fallback"] and all(found[part] is None for part in ("normalizer", "pre_tokenizer"))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a vocabulary of characters ({error!r}); train the tokenizer again") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if not same:
            raise UserError(f"{path}: not a vocabulary of groundup's characters or bytes; train the tokenizer again")
        return tokenizer

    def save(self, folder: Path, model_max_length: int | None = None, chat: bool = False) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`: same characters, same bytes.

        `chat`: other tools are told that a text ends with the end of a message rather than of a document.
        """
        write_with_chat(folder, self.as_json(), self.special_tokens, model_max_length, chat)

    def as_json(self) -> dict[str, Any]:
        """To other tools: byte-pair encoding without a pair, whose byte fallback does the work."""
        names = [f"<0x{byte:02X}>" for byte in range(BYTES)] + [*self.characters]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added_tokens(self.special_tokens),
            "normalizer": None,
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {name: number for number, name in enumerate(names)},
                "merges": [],
            },
        }
