"""Text <-> token ids, and the folder that other tools read.

The folder holds `tokenizer.json` in the format of Hugging Face's `tokenizers`, which is the truth; encoding is done by
tiktoken, built from the same merges. Ids: 256 bytes, the merges in order, then the special tokens.
Text is never a special token: "<|im_end|>" in a document is ten ordinary characters, whoever wrote it.
"""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import regex
import tiktoken

from groundup.core.errors import UserError
from groundup.core.files import read_json
from groundup.core.seals import checked
from groundup.core.text import well_formed
from groundup.tokenizer.bpe import ALPHABET, SPECIAL_TOKENS, VISIBLE
from groundup.tokenizer.patterns import PATTERNS, Pattern, pattern_of
from groundup.tokenizer.tokenizer_folder import ByteTokens, bpe_model, describe

# tiktoken's time for one pre-token grows faster than its length, and its regular expressions need stack for a long run of
# one kind. A run of at least twice this many characters of one kind holds a whole block of them, and is encoded in chunks.
BLOCK = 20_000
_OF_ONE_KIND = regex.compile(r"\p{L}++|\s++|[^\s\p{L}\p{N}]++")
CHUNK = 1 << 15  # bytes of a long pre-token encoded at once
# A pattern that looks ahead over all digits of a number takes time that grows with the square of their number. Cut at
# multiples of three from its end, a number gives the same pre-tokens in parts.
LONGEST_DIGITS = 300
_DIGITS = regex.compile(r"\p{N}+")

_CHARACTERS = [chr(byte) for byte in VISIBLE] + [chr(256 + i) for i in range(256 - len(VISIBLE))]
_CHARACTER_OF_BYTE = dict(zip(ALPHABET, _CHARACTERS, strict=True))
_BYTE_OF_CHARACTER = dict(zip(_CHARACTERS, ALPHABET, strict=True))


class Tokenizer(ByteTokens):
    """Byte-level BPE. Make one with `from_merges` (after `bpe.train`) or `load`, which also reads Qwen's."""

    def __init__(
        self,
        merges: Sequence[tuple[bytes, bytes]],
        tokens: dict[bytes, int],
        pattern: Pattern,
        special: Sequence[str] = SPECIAL_TOKENS,
        composed: bool = False,
    ) -> None:
        """`composed`: text is normalised to Unicode's form NFC before it is cut, as for Qwen's tokenizer."""
        super().__init__(tokens, special)
        self.merges, self.pattern, self.composed = list(merges), pattern, composed
        self._opening: list[int] | None = None  # of a foreign folder, once it is asked for
        # It knows no special token, so none can come out of text. Ids serve as ranks: they grow in the order of merges.
        self._encoding = tiktoken.Encoding("groundup", pat_str=pattern.regex, mergeable_ranks=tokens, special_tokens={})

    @classmethod
    def from_merges(
        cls,
        merges: Sequence[tuple[bytes, bytes]],
        pattern: Pattern = PATTERNS["qwen2"],
        special: Sequence[str] = SPECIAL_TOKENS,
        composed: bool = False,
    ) -> Self:
        """Raises UserError when a merge joins tokens that do not exist yet, or makes one that does."""
        tokens = {bytes([byte]): number for number, byte in enumerate(ALPHABET)}
        for left, right in merges:
            if left not in tokens or right not in tokens or left + right in tokens:
                raise UserError(f"merge {len(tokens) - 256} ({left!r}, {right!r}) does not follow from those before it")
            tokens[left + right] = len(tokens)
        return cls(merges, tokens, pattern, special, composed)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `tokenizer.json`. Raises UserError when it is missing, damaged, or follows other rules than ours and Qwen's."""
        path = checked(Path(folder) / "tokenizer.json")
        description = read_json(path)
        try:
            # Releases before 2024 wrote a merge as one string.
            pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in description["model"]["merges"]]
            pattern = pattern_of(description["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]) or PATTERNS["qwen2"]
            added = {token["id"]: token["content"] for token in description["added_tokens"]}
            special, composed = [added[number] for number in sorted(added)], description["normalizer"] == {"type": "NFC"}
            if missing := [name for name in SPECIAL_TOKENS[:3] if name not in special]:
                raise UserError(f"no token {missing[0]}")
            merges = [(_to_bytes(left), _to_bytes(right)) for left, right in pairs]
            tokenizer = cls.from_merges(merges, pattern, special, composed)
            ours = tokenizer.as_json()
            # Other tools that saved the file again may have added keys; only these parts decide the ids.
            same = {
                "model": description["model"]["vocab"] == ours["model"]["vocab"] and _pairs_bytes(description["model"]),
                "added_tokens": added == {number: name for name, number in tokenizer.special_tokens.items()},
                "normalizer": description["normalizer"] == ours["normalizer"],
                "pre_tokenizer": _cuts(description["pre_tokenizer"]) == _cuts(ours["pre_tokenizer"]),
            }
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: not a byte-level BPE ({error!r}); train the tokenizer again") from None
        except UserError as error:
            raise UserError(f"{path}: {error}; train the tokenizer again, or take one of groundup's or Qwen's") from None
        if other := [part for part, is_same in same.items() if not is_same]:
            raise UserError(
                f"{path}: {other[0]} is neither groundup's nor Qwen's; train the tokenizer again, or take one of these"
            )
        tokenizer.remember_files(path.parent)
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of any string. Lone surrogates, which UTF-8 cannot hold, are encoded as U+FFFD."""
        text = well_formed(text)
        if self.composed:
            text = unicodedata.normalize("NFC", text)
        return [token for part in self._parts(text) for token in self._encode_part(part)]

    def opening(self) -> list[int]:
        """As its tokenizer.json says, where that is not ours: maybe none."""
        if not self.foreign_files:
            return super().opening()
        if self._opening is None:
            from groundup.tokenizer.hf_tokenizer import backend_of, opening_of

            path = Path("tokenizer.json")
            self._opening = opening_of(backend_of(json.loads(self.foreign_files[path.name].lstrip("\ufeff")), path), path)
        return self._opening

    def encode_batch(self, texts: Iterable[str], threads: int = 1) -> list[np.ndarray]:
        """Ids of each text (int32), as `encode` gives them, in the order of the texts."""
        with ThreadPoolExecutor(threads) as pool:  # tiktoken releases the interpreter lock
            return list(pool.map(self._encode_array, texts))

    def _encode_array(self, text: str) -> np.ndarray:
        return np.array(self.encode(text), np.int32)

    def _parts(self, text: str) -> list[str]:
        """Parts that encode to the same ids as the whole, without numbers on which the pattern would take long."""
        cuts: list[int] = []
        if self.pattern.name == "threes-from-right" and len(text) > LONGEST_DIGITS:
            runs = (run.span() for run in _DIGITS.finditer(text))
            cuts = sorted(cut for start, end in runs for cut in range(end - LONGEST_DIGITS, start, -LONGEST_DIGITS))
        return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)] if cuts else [text]

    def _encode_part(self, text: str) -> Iterable[int]:
        blocks = range(0, len(text) - BLOCK + 1, BLOCK)
        if not any(_OF_ONE_KIND.fullmatch(text, start, start + BLOCK) for start in blocks):
            return self._encoding.encode_ordinary(text)
        pretokens = regex.finditer(self.pattern.regex, text)
        return (token for pretoken in pretokens for token in self._encode_pretoken(pretoken[0].encode()))

    def _encode_pretoken(self, data: bytes) -> list[int]:
        """Ids of a long pre-token, from overlapping chunks that are joined where both have the same token at the same offset.

        That gives the ids of the whole, because tokens in a row are the encoding of their bytes if and only if every
        two neighbours are the encoding of theirs (van Antwerpen and Neubeck 2024, "So many tokens, so little time").
        """
        encode, size = self._encoding._encode_single_piece, CHUNK
        ids: list[int] = []
        start, chunk_ids = 0, encode(data[:size])
        while start + size < len(data):
            ends = np.cumsum(self.bytes_per_token[chunk_ids])
            count = int(np.searchsorted(ends, size * 7 // 8, "right"))  # the last ones may depend on the bytes after the chunk
            cut = start + int(ends[count - 1])
            next_ids = encode(data[cut : cut + size])
            if count and next_ids[0] == chunk_ids[count]:
                ids += chunk_ids[:count]
                start, chunk_ids = cut, next_ids
            else:
                size *= 2
                chunk_ids = encode(data[start : start + size])
        return ids + chunk_ids

    def as_json(self) -> dict[str, Any]:
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        split = {"type": "Split", "pattern": {"Regex": self.pattern.regex}, "behavior": "Isolated", "invert": False}
        ordinary = self._tokens[: len(self._tokens) - len(self.special_tokens)]
        vocabulary = {to_characters(token): number for number, token in enumerate(ordinary)}
        merges = [[to_characters(left), to_characters(right)] for left, right in self.merges]
        return describe(
            self.special_tokens,
            normalizer={"type": "NFC"} if self.composed else None,
            pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]},
            decoder=byte_level,
            model=bpe_model(vocabulary, merges, byte_fallback=False),
        )


def longest_words(tokenizer: ByteTokens, count: int) -> list[str]:
    """The longest tokens that hold a letter, the longest first: without that condition they are runs of spaces and rules.

    A token that is part of a longer one in the list is left out.
    """
    texts = []
    for token in range(tokenizer.size):
        try:
            texts.append(tokenizer.token_bytes(token).decode("utf-8"))
        except UnicodeDecodeError:  # a part of a character
            continue
    texts = [text for text in texts if any(map(str.isalpha, text))]
    longest: list[str] = []
    for text in sorted(texts, key=lambda text: (-len(text.strip()), text)):
        if len(longest) == count:
            break
        if not any(text in other for other in longest):
            longest.append(text)
    return longest


class StreamDecoder:
    """Decodes tokens one by one, and holds back bytes until their character is complete.

    The pieces of `push` and the last one of `finish` together are `tokenizer.decode` of all tokens, or `decode_within` where
    they continue other text (`within`).
    """

    def __init__(self, tokenizer: Tokenizer, within: bool = False) -> None:
        self._step = tokenizer.incremental(drops=not within)

    def push(self, token: int) -> str:
        return self._step(token)

    def finish(self) -> str:
        return self._step(None)


def _pairs_bytes(model: dict[str, Any]) -> bool:
    """Whether the model merges as ours: plain pairs of bytes, without marks where a word begins, continues or ends."""
    others = ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    return model.get("type", "BPE") == "BPE" and not any(map(model.get, others))


def _cuts(pre_tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of a `pre_tokenizer` that decide where text is cut, without `trim_offsets`, which changes only offsets."""
    return [{key: value for key, value in part.items() if key != "trim_offsets"} for part in pre_tokenizer["pretokenizers"]]


def to_characters(token: bytes) -> str:
    return "".join(_CHARACTER_OF_BYTE[byte] for byte in token)


def _to_bytes(characters: str) -> bytes:
    return bytes(_BYTE_OF_CHARACTER[character] for character in characters)
