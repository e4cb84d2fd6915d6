"""Open a tokenizer of any kind by its folder."""

from pathlib import Path

from groundup.files import read_json
from groundup.tokenizer.characters import Characters
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.wordpiece import WordPiece

AnyTokenizer = Tokenizer | Characters | WordPiece


def load(folder: Path) -> AnyTokenizer:
    """Byte-level BPE, characters, bytes or WordPiece. Raises UserError when it is missing, damaged or none of these."""
    found = read_json(Path(folder) / "tokenizer.json")
    model = found.get("model", {}) if isinstance(found, dict) else {}
    if model.get("type") == "WordPiece":
        return WordPiece.load(folder)
    return Characters.load(folder) if model.get("byte_fallback") else Tokenizer.load(folder)
