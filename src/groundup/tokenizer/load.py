"""Open a tokenizer of any kind by its folder."""

from pathlib import Path

from groundup.core.errors import UserError
from groundup.core.files import read_object
from groundup.core.seals import checked
from groundup.tokenizer.characters import Characters
from groundup.tokenizer.library import LibraryTokenizer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.wordpiece import WordPiece

AnyTokenizer = Tokenizer | Characters | WordPiece
OLDER = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")  # what a tokenizer.json is made of


def for_run(folder: Path, continued: str) -> Tokenizer:
    """The tokenizer of a run. Unless a model is `continued`, only its tokens are taken from the folder.

    A new model has our chat format and begins every text with the end-of-text token, whoever made its tokenizer. With a
    `LibraryTokenizer`, which lacks the tokens of our format, it has the folder's format.
    """
    tokenizer = of_model(folder)
    if not continued:
        tokenizer.forget_files()
    return tokenizer


def of_model(folder: Path) -> Tokenizer:
    """The tokenizer of a language model's folder: by our own code where that gives its ids, else by the library.

    Raises UserError when it is missing, damaged or of an unknown kind.
    """
    _require(folder)
    try:
        return Tokenizer.load(folder)
    except UserError:
        return LibraryTokenizer.load(folder)


def load(folder: Path) -> AnyTokenizer:
    """Byte-level BPE, characters, bytes or WordPiece, ours or foreign.

    Raises UserError when it is missing, damaged or of an unknown kind.
    """
    _require(folder)
    model = read_object(checked(Path(folder) / "tokenizer.json")).get("model")
    if not isinstance(model, dict):
        raise UserError(f"{folder}/tokenizer.json: it has no model; train the tokenizer again")
    if model.get("type") == "WordPiece":
        return WordPiece.load(folder)
    if model.get("byte_fallback") and not model.get("merges"):
        return Characters.load(folder)
    return of_model(folder)


def _require(folder: Path) -> None:
    """Raises UserError for a file, and where a folder has a tokenizer in an older format only."""
    if Path(folder).is_file():
        raise UserError(f"{folder}: a file; give the folder that it is in")
    if not (Path(folder) / "tokenizer.json").exists():
        for name in OLDER:
            if (Path(folder) / name).exists():
                made = f"AutoTokenizer.from_pretrained({str(folder)[:80]!r}).save_pretrained(...)"
                raise UserError(f"{folder}/tokenizer.json: no such file; transformers makes it of {name}: {made}")
