"""A tokenizer as the two files that make a `tiktoken.Encoding`.

`NAME.tiktoken` is OpenAI's format of vocabularies, a token in base64 and its rank on each line; `NAME.tiktoken.json` has the
other arguments of `tiktoken.Encoding`: `pat_str` and `special_tokens`.
"""

import base64
import logging
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.files import write_json, write_text
from groundup.core.outputs import require_new
from groundup.tokenizer.load import of_model
from groundup.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def export(folder: Path, out: Path) -> dict[str, Any]:
    """Write `out` and `out`.json; returns their names and sizes. Raises UserError for a tokenizer that is not by our rules."""
    tokenizer = of_model(folder)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"{folder}: its tokenizer is no byte-level BPE by our rules, and tiktoken has no other kind")
    special, settings = tokenizer.special_tokens, out.with_name(f"{out.name}.json")
    tokens = [tokenizer.token_bytes(number) for number in range(len(tokenizer) - len(special))]
    require_new(settings)
    write_text(out, "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    write_json(settings, {"pat_str": tokenizer.pattern.regex, "special_tokens": special})
    if tokenizer.composed:
        logger.warning("this tokenizer brings text to Unicode's form NFC, which tiktoken does not: do so before it encodes")
    sizes = {"tokens": len(tokens), "special_tokens": len(special), "nfc": tokenizer.composed}
    return {"tiktoken": str(out), "settings": str(settings), **sizes}
