"""Any tokenizer by its `tokenizer.json`, ours or another's, through Hugging Face's `tokenizers`.

The file is data: nothing of it is run, and of the folder nothing else is read. Its settings beyond tokens (special
tokens around a text, truncation, padding, dropout) are turned off, and text that looks like a special token is text.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from groundup.core.errors import UserError
from groundup.core.files import read_json
from groundup.core.seals import checked
from groundup.core.text import well_formed
from groundup.tokenizer.bpe import ALPHABET, VISIBLE

META_SPACE = "▁"
_BYTE_OF = dict(zip([*map(chr, VISIBLE), *(chr(256 + i) for i in range(256 - len(VISIBLE)))], ALPHABET, strict=True))


@contextmanager
def refusing(path: Path, what: str) -> Iterator[None]:
    """Turns every error of the library into a UserError: it raises plain Exception, and its panics are BaseException."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"{path}: {what} ({str(error)[:100]})") from None


def backend_of(description: Any, path: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer of a `tokenizer.json`. Raises UserError, naming `path`, where the library cannot read it."""
    with refusing(path, "not a tokenizer that can be read"):
        backend = tokenizers.Tokenizer.from_str(json.dumps(description))
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None
    return backend


def character_bytes(name: str) -> bytes | None:
    """The bytes of a token that is written with one character per byte; None where a character stands for no byte."""
    return bytes(_BYTE_OF[character] for character in name) if all(character in _BYTE_OF for character in name) else None


def opening_of(backend: tokenizers.Tokenizer, path: Path) -> list[int]:
    """Ids that a tokenizer puts before every text with `add_special_tokens`; maybe none."""
    with refusing(path, "cannot encode a text"):
        plain, with_special = (backend.encode("a", add_special_tokens=special).ids for special in (False, True))
    return ids_before(plain, with_special)


def ids_before(plain: list[int], with_special: list[int]) -> list[int]:
    """The special tokens that stand before a text: `plain` are its ids without special tokens, `with_special` with them."""
    starts = [index for index in range(len(with_special)) if with_special[index : index + len(plain)] == plain]
    return with_special[: starts[0]] if starts and plain else []


class HFTokenizer:
    """`names` (id -> token as the file writes it), `added` (ids that no training made), `size` (largest id + 1).

    `kind`: BPE, WordPiece, Unigram or WordLevel. `byte_level`: tokens are written with one character per byte.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError when the folder has no tokenizer.json that the library can read."""
        path = checked(Path(folder) / "tokenizer.json")
        description = read_json(path)
        self.backend = backend_of(description, path)
        self.path = path
        self.kind = description["model"].get("type") or type(self.backend.model).__name__
        self.names = {number: name for name, number in self.backend.get_vocab(with_added_tokens=True).items()}
        if not self.names:
            raise UserError(f"{path}: its vocabulary is empty")
        self.size = max(self.names) + 1
        self.added = set(self.backend.get_added_tokens_decoder())
        surroundings = json.dumps(
            [description.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False
        )
        self.byte_level = '"ByteLevel"' in surroundings
        self.meta_space = not self.byte_level and META_SPACE in surroundings
        self.inner_prefix = getattr(self.backend.model, "continuing_subword_prefix", None) or ""
        self.word_suffix = getattr(self.backend.model, "end_of_word_suffix", None) or ""
        unknown = getattr(self.backend.model, "unk_token", None)
        self.unknown = self.backend.token_to_id(unknown) if unknown else None

    @property
    def ordinary(self) -> list[int]:
        """Ids that text can become, in order: all but the added ones."""
        return [number for number in sorted(self.names) if number not in self.added]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._encodings(texts)]

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def counts(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text (int64)."""
        return np.array([len(ids) for ids in self.encode_batch(texts)], np.int64)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The characters of the text that each token stands for, as (start, end); parts of a character have the same."""
        return self._encodings([text], with_offsets=True)[0].offsets

    def pieces(self, text: str) -> list[str]:
        """The text of each token; bytes that are part of a character as \\xNN."""
        (encoding,) = self._encodings([text], with_offsets=True)
        shown, covered = [], 0
        for number, name, (start, end) in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True):
            as_text = not self.byte_level and end > covered and number != self.unknown
            shown.append(text[start:end] if as_text else self.written(name))
            covered = max(covered, end)
        return shown

    def written(self, name: str) -> str:
        """A token's name as text: bytes decoded, a space for its sign ▁."""
        if (content := self.bytes_of(name)) is not None:
            return content.decode("utf-8", "backslashreplace")
        name = name.removesuffix(self.word_suffix)
        return name.replace(META_SPACE, " ") if self.meta_space else name

    def bytes_of(self, name: str) -> bytes | None:
        """The bytes of a token of a byte-level vocabulary; None for other tokens."""
        return character_bytes(name.removesuffix(self.word_suffix)) if self.byte_level else None

    def text_of(self, token: int) -> str | None:
        """The text that a token stands for; None where it has no text by itself: part of a character or of a word."""
        name = self.names[token]
        if (content := self.bytes_of(name)) is not None:
            try:
                return content.decode("utf-8")
            except UnicodeDecodeError:
                return None
        if token == self.unknown or (self.inner_prefix and name.startswith(self.inner_prefix)) or name.startswith("<0x"):
            return None
        return self.written(name)

    def pretokens(self, text: str) -> list[str]:
        """The pre-tokens that the model's rule is applied to, written as the vocabulary writes tokens."""
        splitter, normalizer = self.backend.pre_tokenizer, self.backend.normalizer
        if splitter is None:  # the whole text is one pre-token: words will do, since few tokens hold a space inside
            return [normalizer.normalize_str(word) for word in text.split()] if normalizer else text.split()
        return [piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text) if normalizer else text)]

    def model_tokens(self, pretoken: str) -> list[str]:
        """Names of the tokens that the model's rule cuts a pre-token into."""
        try:
            return [token.value for token in self.backend.model.tokenize(pretoken)]
        except Exception as error:
            raise UserError(f"{self.path}: cannot encode {pretoken!r} ({error})") from None

    def _encodings(self, texts: Sequence[str], with_offsets: bool = False) -> list[tokenizers.Encoding]:
        encode = self.backend.encode_batch if with_offsets else self.backend.encode_batch_fast
        with refusing(self.path, "cannot encode a text"):
            return encode([well_formed(text) for text in texts], add_special_tokens=False)
