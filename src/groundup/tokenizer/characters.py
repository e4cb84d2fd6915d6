"""Vocabularies without trained merges: bytes, and characters with bytes for the rest (ByT5, Xue et al. 2022; CANINE).

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

from groundup.core.errors import UserError
from groundup.core.files import read_json
from groundup.core.seals import checked
from groundup.core.text import well_formed
from groundup.tokenizer.bpe import SPECIAL_TOKENS
from groundup.tokenizer.tokenizer_folder import ByteTokens, bpe_model, describe

BYTES = 256


def count_characters(texts: Iterable[str]) -> Counter[str]:
    """How often each character occurs; counters of shards add up."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(well_formed(text))
    return counts


def train(counts: Counter[str], vocabulary: int) -> str:
    """The most frequent characters, of equals the smallest code points, as many as fit into a vocabulary.

    They are in the order of code points. Raises UserError when bytes and special tokens do not fit.
    """
    max_characters = vocabulary - BYTES - len(SPECIAL_TOKENS)
    if max_characters < 0:
        raise UserError(
            f"a vocabulary of {vocabulary} is too small: bytes and special tokens alone are {vocabulary - max_characters}"
        )
    return "".join(sorted(sorted(counts, key=lambda character: (-counts[character], character))[:max_characters]))


class Characters(ByteTokens):
    """`characters` in the order of their ids; the empty string makes a tokenizer of bytes."""

    def __init__(self, characters: str = "") -> None:
        if len(set(characters)) < len(characters) or well_formed(characters) != characters:
            raise UserError("a vocabulary of characters holds each once, and no lone surrogate")
        super().__init__([*(bytes([byte]) for byte in range(BYTES)), *map(str.encode, characters)])
        self.characters = characters
        self._ids = {character: [BYTES + number] for number, character in enumerate(characters)}

    def encode(self, text: str) -> list[int]:
        """Ids of any string. Lone surrogates, which UTF-8 cannot hold, are encoded as U+FFFD."""
        text = well_formed(text)
        if not self.characters:
            return [*text.encode()]
        ids = self._ids
        return [number for character in text for number in ids.get(character) or character.encode()]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes: UTF-8 as `encode` gives it, every other byte as itself."""
        if not self.characters:
            return [*data]
        # Python writes a byte that is not UTF-8 as the lone surrogate 0xDC00 + byte.
        text = data.decode("utf-8", "surrogateescape")
        return [token for char in text for token in self._ids.get(char) or char.encode("utf-8", "surrogateescape")]

    def encode_batch(self, texts: Iterable[str], threads: int = 1) -> list[np.ndarray]:
        """Ids of each text (int32), as `encode` gives them, in the order of the texts. One thread does it all."""
        return [np.array(self.encode(text), np.int32) for text in texts]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `tokenizer.json`. Raises UserError when it is missing, damaged, or follows other rules than ours."""
        path = checked(Path(folder) / "tokenizer.json")
        description = read_json(path)
        try:
            vocabulary = description["model"]["vocab"]
            names = sorted(vocabulary, key=vocabulary.__getitem__)
            tokenizer = cls("".join(names[BYTES:]))
            ours = tokenizer.as_json()
            same = description["model"]["vocab"] == ours["model"]["vocab"] and description["model"]["merges"] == []
            same &= [(token["content"], token["id"]) for token in description["added_tokens"]] == list(
                tokenizer.special_tokens.items()
            )
            same &= description["model"]["byte_fallback"] and all(
                description[part] is None for part in ("normalizer", "pre_tokenizer")
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a vocabulary of characters ({error!r}); train the tokenizer again") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if not same:
            raise UserError(f"{path}: not a vocabulary of groundup's characters or bytes; train the tokenizer again")
        return tokenizer

    def as_json(self) -> dict[str, Any]:
        """For other tools: byte-pair encoding without merges, whose byte fallback encodes all other characters."""
        names = [f"<0x{byte:02X}>" for byte in range(BYTES)] + [*self.characters]
        return describe(
            self.special_tokens,
            decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            model=bpe_model({name: number for number, name in enumerate(names)}, [], byte_fallback=True),
        )
