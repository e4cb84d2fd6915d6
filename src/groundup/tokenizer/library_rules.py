"""What a `tokenizer.json` of others does to text, read from its parts; a part that is not known is refused by its name.

Ids are the `tokenizers` library's own business. What it does not tell, and a pipeline needs: the bytes of a token, what
decoding drops at the beginning of a text, and the ids of text that stands after other text, before which nothing is put.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from groundup.core.errors import UserError
from groundup.tokenizer.hf_tokenizer import META_SPACE
from groundup.tokenizer.template import Before

# Where a sequence has its own.
PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders", "post_processor": "processors"}
# None of these needs to know where in a text it is, but Prepend, Metaspace and ByteLevel, whose prefix can be turned off.
NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Lowercase", "StripAccents", "Nmt"}
PRE_TOKENIZERS = {"Split", "ByteLevel", "Digits", "Punctuation", "Metaspace"}
TO_SPACES = {"type": "Replace", "pattern": {"String": META_SPACE}, "content": " "}
FIRST_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
OF_BYTES = [TO_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"}]

Leading = Literal["nothing", "a space", "spaces of the first token"]


@dataclass(frozen=True)
class Rules:
    """`byte_level`: tokens are written with one character a byte; others with ▁ for a space.

    `byte_tokens`: <0x0A> is a byte. `leading`: what decoding drops of a text.
    """

    byte_level: bool
    byte_tokens: bool = False
    leading: Leading = "nothing"


def rules_of(found: Any, path: Path) -> Rules:
    """Raises UserError, naming `path`, for a tokenizer that does what is not known here."""
    model = found.get("model") if isinstance(found, dict) else None
    kind = model.get("type", "BPE") if isinstance(model, dict) else None  # which releases before 2020 did not write
    if kind != "BPE":
        raise UserError(f"{path}: its model is {str(kind)[:40]}; of other makers' tokenizers BPE is read")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UserError(f"{path}: {name} of its model is not read here; without it tokens are")
    normalizers, splitters, decoders = (list(_flat(found, part, path)) for part in list(PARTS)[:3])
    for part, steps, known in (("normalizer", normalizers, NORMALIZERS), ("pre_tokenizer", splitters, PRE_TOKENIZERS)):
        for place, step in enumerate(steps):
            if step["type"] not in known:
                raise UserError(f"{path}: {part} {str(step['type'])[:40]} is not read here; known: {', '.join(sorted(known))}")
            pattern = step.get("pattern")
            if step["type"] == "Replace" and not (isinstance(pattern, dict) and pattern.get("String")):
                raise UserError(f"{path}: a normalizer that replaces by a regular expression, or nothing, is not read here")
            if place and part == "pre_tokenizer" and _puts_before(step):
                raise UserError(f"{path}: {step['type']} puts a space before every part of a text; it must be the first step")
    if any(_undescribed(step) for step in _flat(found, "post_processor", path)):
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


def within(found: dict[str, Any], before: Before) -> dict[str, Any]:
    """The same tokenizer.json for text that stands after a special token or after other text.

    It is `found` itself where that makes no difference.
    """
    after_token = before == "token"
    changed = copy.deepcopy({part: found.get(part) for part in ("normalizer", "pre_tokenizer")})
    for step in _flat(changed, "pre_tokenizer"):
        if step["type"] == "Metaspace" and _scheme(step) == ("first" if after_token else _scheme(step)):
            step["prepend_scheme"] = "never"
            step.pop("add_prefix_space", None)
        if step["type"] == "ByteLevel" and not after_token:
            step["add_prefix_space"] = False
    if not after_token:
        steps = [step for step in _flat(changed, "normalizer") if step["type"] != "Prepend"]
        if len(steps) < len([*_flat(changed, "normalizer")]):
            changed["normalizer"] = {"type": "Sequence", "normalizers": steps} if steps else None
    same = all(changed[part] == found.get(part) for part in changed)
    return found if same else {**found, **changed}


def _flat(found: Any, part: str, path: Path | None = None) -> Iterator[dict[str, Any]]:
    """The steps of a part, those of sequences in sequences too. Raises UserError for what is no step."""
    waiting = [found.get(part)]
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
    """Whether a post-processor puts tokens where it does not say which: the library would break off."""
    single, described = step.get("single"), step.get("special_tokens")
    pieces = single if isinstance(single, list) else []
    put = [one["SpecialToken"] for one in pieces if isinstance(one, dict) and "SpecialToken" in one]
    known = list(described) if isinstance(described, dict) else []
    return any(not isinstance(one, dict) or one.get("id") not in known for one in put)


def _scheme(step: dict[str, Any]) -> str:
    """Of a Metaspace where it puts a space: "always", "first" or "never". Releases before 2024 wrote add_prefix_space."""
    scheme = step.get("prepend_scheme")
    return str(scheme) if scheme else "always" if step.get("add_prefix_space", True) else "never"


def _unknown(decoders: list[dict[str, Any]], path: Path) -> UserError:
    names = " + ".join(str(step["type"])[:30] for step in decoders[:6]) or "none"
    return UserError(
        f"{path}: a decoder of {names} is not read here with these settings; known: ByteLevel, Metaspace, and Replace + "
        "ByteFallback + Fuse, then Strip of one space or nothing"
    )
