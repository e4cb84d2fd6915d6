"""Any tokenizer by its `tokenizer.json`, ours or another's, through Hugging Face's `tokenizers`.

The file is data: nothing of it is run, and of the folder nothing else is read. What it asks for beside tokens (special
tokens around a text, truncation, padding, chance) is turned off, and text that looks like a special token is text.
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
    """Whatever the library ends with is a UserError: it raises no narrower class than Exception, and its panics not even that."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"{path}: {what} ({str(error)[:100]})") from None


def opened(found: Any, path: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer of a `tokenizer.json`. Raises UserError, naming `path`, where the library cannot read it."""
    with refusing(path, "not a tokenizer that can be read"):
        backend = tokenizers.Tokenizer.from_str(json.dumps(found))
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None
    return backend


def character_bytes(name: str) -> bytes | None:
    """The bytes of a token that is written with one character a byte; None where a character stands for none."""
    return bytes(_BYTE_OF[one] for one in name) if all(one in _BYTE_OF for one in name) else None


class HFTokenizer:
    """`names` (id -> token as the file writes it), `added` (ids that no training made), `size` (largest id + 1).

    `kind`: BPE, WordPiece, Unigram or WordLevel. `byte_level`: tokens are written with one character a byte.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError when the folder has no tokenizer.json that the library can read."""
        path = checked(Path(folder) / "tokenizer.json")
        found = read_json(path)
        self.backend = opened(found, path)
        self.path = path
        self.kind = found["model"].get("type") or type(self.backend.model).__name__
        self.names = {number: name for name, number in self.backend.get_vocab(with_added_tokens=True).items()}
        if not self.names:
            raise UserError(f"{path}: its vocabulary is empty")
        self.size = max(self.names) + 1
        self.added = set(self.backend.get_added_tokens_decoder())
        surroundings = json.dumps([found.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False)
        self.byte_level = '"ByteLevel"' in surroundings
        self.meta_space = not self.byte_level and META_SPACE in surroundings
        self.continues = getattr(self.backend.model, "continuing_subword_prefix", None) or ""
        self.ends = getattr(self.backend.model, "end_of_word_suffix", None) or ""
        unknown = getattr(self.backend.model, "unk_token", None)
        self.unknown = self.backend.token_to_id(unknown) if unknown else None

    @property
    def ordinary(self) -> list[int]:
        """Ids that text can become, in order: all but the added ones."""
        return [number for number in sorted(self.names) if number not in self.added]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._encodings(texts)]

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def counts(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text (int64)."""
        return np.array([len(ids) for ids in self.encode_batch(texts)], np.int64)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Which characters of the text each token stands for; parts of a character have the same."""
        return self._encodings([text], places=True)[0].offsets

    def pieces(self, text: str) -> list[str]:
        """Each token as it stands in the text; bytes that are a part of a character as \\xNN."""
        (found,) = self._encodings([text], places=True)
        shown, done = [], 0
        for number, name, (start, end) in zip(found.ids, found.tokens, found.offsets, strict=True):
            whole = not self.byte_level and end > done and number != self.unknown
            shown.append(text[start:end] if whole else self.written(name))
            done = max(done, end)
        return shown

    def written(self, name: str) -> str:
        """A token's name as text: bytes decoded, a space for its sign."""
        if (content := self.bytes_of(name)) is not None:
            return content.decode("utf-8", "backslashreplace")
        name = name.removesuffix(self.ends)
        return name.replace(META_SPACE, " ") if self.meta_space else name

    def bytes_of(self, name: str) -> bytes | None:
        """What a token of a byte-level vocabulary stands for; None for other tokens."""
        return character_bytes(name.removesuffix(self.ends)) if self.byte_level else None

    def text_of(self, token: int) -> str | None:
        """The text that a token stands for; None where no text of its own is known: part of a character or of a word."""
        name = self.names[token]
        if (content := self.bytes_of(name)) is not None:
            try:
                return content.decode("utf-8")
            except UnicodeDecodeError:
                return None
        if token == self.unknown or (self.continues and name.startswith(self.continues)) or name.startswith("<0x"):
            return None
        return self.written(name)

    def pretokens(self, text: str) -> list[str]:
        """What the model's rule is applied to, one after the other, in its own way of writing."""
        splitter, normalizer = self.backend.pre_tokenizer, self.backend.normalizer
        if splitter is None:  # the whole text is one: words will do, since few tokens hold a space inside
            return [normalizer.normalize_str(word) for word in text.split()] if normalizer else text.split()
        return [piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text) if normalizer else text)]

    def model_tokens(self, pretoken: str) -> list[str]:
        """Names of the tokens that the model's own rule cuts a pre-token into."""
        try:
            return [token.value for token in self.backend.model.tokenize(pretoken)]
        except Exception as error:
            raise UserError(f"{self.path}: cannot encode {pretoken!r} ({error})") from None

    def _encodings(self, texts: Sequence[str], places: bool = False) -> list[tokenizers.Encoding]:
        encode = self.backend.encode_batch if places else self.backend.encode_batch_fast
        with refusing(self.path, "cannot encode a text"):
            return encode([well_formed(text) for text in texts], add_special_tokens=False)
