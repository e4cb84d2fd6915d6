"""What a foreign `tokenizer.json` does to text, read from its parts; an unknown part is refused by its name.

The `tokenizers` library computes the ids. It does not give what a pipeline needs besides: the bytes of a token, what
decoding drops at the beginning of a text, and the ids of text that follows other text, before which nothing is put.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers

from groundup.core.errors import UserError
from groundup.core.text import well_formed
from groundup.tokenizer.hf_tokenizer import META_SPACE, backend_of, refusing
from groundup.tokenizer.template import STAND_INS, Before

# The key under which a Sequence holds its steps, for each part.
PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders", "post_processor": "processors"}
# The result of these does not depend on the position in a text, except Prepend's, Metaspace's and ByteLevel's, whose prefix can
# be turned off.
NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Lowercase", "StripAccents", "Nmt"}
PRE_TOKENIZERS = {"Split", "ByteLevel", "Digits", "Punctuation", "Metaspace"}
TO_SPACES = {"type": "Replace", "pattern": {"String": META_SPACE}, "content": " "}
FIRST_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
OF_BYTES = [TO_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"}]

Leading = Literal["nothing", "a space", "spaces of the first token"]


@dataclass(frozen=True)
class Rules:
    """`byte_level`: tokens are written with one character per byte; otherwise with ▁ for a space.

    `byte_tokens`: <0x0A> is a byte. `leading`: what decoding drops at the beginning of a text.
    """

    byte_level: bool
    byte_tokens: bool = False
    leading: Leading = "nothing"


def rules_of(description: Any, path: Path) -> Rules:
    """Raises UserError, naming `path`, for a tokenizer with an unknown part."""
    model = description.get("model") if isinstance(description, dict) else None
    kind = model.get("type", "BPE") if isinstance(model, dict) else None  # releases before 2020 did not write it
    if kind != "BPE":
        raise UserError(f"{path}: its model is {str(kind)[:40]}; of foreign tokenizers only BPE is supported")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UserError(f"{path}: {name} of its model is not supported")
    normalizers, splitters, decoders = (list(_flat(description, part, path)) for part in list(PARTS)[:3])
    for part, steps, known in (("normalizer", normalizers, NORMALIZERS), ("pre_tokenizer", splitters, PRE_TOKENIZERS)):
        for index, step in enumerate(steps):
            if step["type"] not in known:
                raise UserError(f"{path}: {part} {str(step['type'])[:40]} is not supported; known: {', '.join(sorted(known))}")
            pattern = step.get("pattern")
            if step["type"] == "Replace" and not (isinstance(pattern, dict) and pattern.get("String")):
                raise UserError(f"{path}: a normalizer that replaces a regular expression, or an empty text, is not supported")
            if index and part == "pre_tokenizer" and _puts_before(step):
                raise UserError(f"{path}: {step['type']} puts a space before every part of a text; it must be the first step")
    if any(_undescribed(step) for step in _flat(description, "post_processor", path)):
        raise UserError(f"{path}: its post_processor puts a token before or after texts that it does not describe")
    byte_level = any(step["type"] == "ByteLevel" for step in splitters)
    if byte_level:
        if [step["type"] for step in decoders] != ["ByteLevel"]:
            raise _unknown(decoders, path)
        return Rules(byte_level=True)
    if decoders == OF_BYTES or decoders == [*OF_BYTES, FIRST_SPACE]:
        return Rules(False, True, "nothing" if decoders == OF_BYTES else "a space")
    if [step["type"] for step in decoders] == ["Metaspace"] and decoders[0].get("replacement", META_SPACE) == META_SPACE:
        return Rules(False, False, "spaces of the first token" if _scheme(decoders[0]) != "never" else "nothing")
    raise _unknown(decoders, path)


class ContinuationEncoder:
    """Ids of texts that follow a special token or other text, by a `tokenizer.json` that is known (`rules_of`)."""

    def __init__(self, description: dict[str, Any], path: Path) -> None:
        self._description, self._path = description, path
        self._prepends = any(step["type"] == "Prepend" for step in _flat(description, "normalizer"))
        self._backends: dict[tuple[Before, str], tokenizers.Tokenizer | None] = {}

    def encode(self, text: str, before: Before) -> list[int] | None:
        """None where the ids are those of the text by itself."""
        mark = ""
        if before == "text" and self._prepends:
            if not text:
                return []
            mark = next((mark for mark in STAND_INS if mark not in text), "")
            if not mark:
                raise UserError("a text holds too many of Unicode's noncharacters (U+FDD0 to U+FDEF)")
        if (before, mark) not in self._backends:
            changed = _within(self._description, before, mark)
            self._backends[before, mark] = None if changed is self._description else backend_of(changed, self._path)
        if (backend := self._backends[before, mark]) is None:
            return None
        with refusing(self._path, "cannot encode a text"):
            return backend.encode(mark + well_formed(text), add_special_tokens=False).ids


def _within(description: dict[str, Any], before: Before, mark: str) -> dict[str, Any]:
    """The same tokenizer.json for text that follows a special token or other text.

    It is `description` itself where that makes no difference. After other text, a Prepend puts nothing before the `mark` that
    the text then begins with, and removes that. Without a Prepend, added tokens would be sought without what it puts before
    them, and nothing would be put before the text behind an added token.
    """
    after_token = before == "token"
    changed = copy.deepcopy({part: description.get(part) for part in ("normalizer", "pre_tokenizer")})
    for step in _flat(changed, "pre_tokenizer"):
        if step["type"] == "Metaspace" and _scheme(step) == ("first" if after_token else _scheme(step)):
            step["prepend_scheme"] = "never"
            step.pop("add_prefix_space", None)
        if step["type"] == "ByteLevel" and not after_token:
            step["add_prefix_space"] = False
    if not after_token:
        steps = []
        for step in _flat(changed, "normalizer"):
            steps.append(step)
            if step["type"] == "Prepend":
                steps.append({"type": "Replace", "pattern": {"String": str(step.get("prepend", "")) + mark}, "content": ""})
        if len(steps) > len([*_flat(changed, "normalizer")]):
            changed["normalizer"] = {"type": "Sequence", "normalizers": steps}
    same = all(changed[part] == description.get(part) for part in changed)
    return description if same else {**description, **changed}


def _flat(description: Any, part: str, path: Path | None = None) -> Iterator[dict[str, Any]]:
    """The steps of a part, those of nested sequences too. Raises UserError for what is no step."""
    waiting = [description.get(part)]
    while waiting:
        step = waiting.pop(0)
        if step is None:
            continue
        if not isinstance(step, dict) or not isinstance(step.get("type"), str):
            raise UserError(f"{path}: a step of its {part} is no object with a type")
        if step["type"] != "Sequence":
            yield step
        elif isinstance(steps := step.get(PARTS[part]), list):
            waiting = [*steps, *waiting]
        else:
            raise UserError(f"{path}: a Sequence of its {part} has no {PARTS[part]}")


def _puts_before(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return bool(step.get("add_prefix_space", True))
    return step["type"] == "Metaspace" and _scheme(step) == "always"


def _undescribed(step: dict[str, Any]) -> bool:
    """Whether a post-processor inserts tokens that it does not describe, on which the library would fail."""
    single, described = step.get("single"), step.get("special_tokens")
    pieces = single if isinstance(single, list) else []
    inserted = [piece["SpecialToken"] for piece in pieces if isinstance(piece, dict) and "SpecialToken" in piece]
    known = list(described) if isinstance(described, dict) else []
    return any(not isinstance(piece, dict) or piece.get("id") not in known for piece in inserted)


def _scheme(step: dict[str, Any]) -> str:
    """When a Metaspace puts a space first: "always", "first" or "never". Releases before 2024 wrote add_prefix_space."""
    scheme = step.get("prepend_scheme")
    return str(scheme) if scheme else "always" if step.get("add_prefix_space", True) else "never"


def _unknown(decoders: list[dict[str, Any]], path: Path) -> UserError:
    names = " + ".join(str(step["type"])[:30] for step in decoders[:6]) or "none"
    return UserError(
        f"{path}: a decoder of {names} is not supported with these settings; known: ByteLevel, Metaspace, and Replace + "
        "ByteFallback + Fuse, then Strip of one space or nothing"
    )
