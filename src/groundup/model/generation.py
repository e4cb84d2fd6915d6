"""Sampling settings of a model folder's generation_config.json; chat, the API and the file that we write use the same values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.files import read_object

FILE = "generation_config.json"
TEMPERATURE, TOP_P, TOP_K = 0.7, 0.9, 0  # for a folder that states none
MAX_TEMPERATURE, MAX_TOP_K = 1e3, 2**31 - 1
# Settings that change which token is picked and that we do not have, with the value that changes nothing.
UNSUPPORTED: dict[str, Any] = {
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0, "min_p": 0,
    "top_h": None, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": 0, "guidance_scale": 1,
    "bad_words_ids": None, "sequence_bias": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "exponential_decay_length_penalty": None,
    "watermarking_config": None, "min_length": 0, "min_new_tokens": 0, "stop_strings": None, "max_time": None,
}  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """Sampling and end tokens as a folder states them. `temperature` 0 is greedy, `top_k` 0 is all tokens."""

    temperature: float = TEMPERATURE
    top_p: float = TOP_P
    top_k: int = TOP_K
    ends: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()  # names of the settings that are stated and `UNSUPPORTED`
    stated: Mapping[str, Any] | None = field(default=None, repr=False)  # the file as it is; None: there is none

    def sampling(self) -> dict[str, Any]:
        """The entries of the file; without top_k transformers would sample from 50 tokens, where vLLM and we do from all."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


def read(folder: Path, vocabulary: int, ends: Any) -> Generation:
    """The generation settings of a model folder; `ends`, those of its config.json, are used where the file has none.

    Where the file states any sampling, what it does not state is neutral, as in vLLM; where it states none, our values are used.
    Raises UserError, naming the entry, for a value of another type or out of range.
    """
    path = folder / FILE
    if not path.exists():
        return Generation(ends=_ids(ends, "eos_token_id", folder / "config.json", vocabulary))
    stated = read_object(path)
    entries = {name: value for name, value in stated.items() if value is not None}
    for name in ("bos_token_id", "pad_token_id"):
        if entries.get(name) != -1:  # the first Llamas have it for "none"
            _ids(entries.get(name), name, path, vocabulary)
    ends = _ids(entries.get("eos_token_id", ends), "eos_token_id", path, vocabulary)
    temperature = _number(entries, "temperature", path, "a number from 0 to 1,000", lambda value: 0 <= value <= MAX_TEMPERATURE)
    top_p = _number(entries, "top_p", path, "a number above 0, at most 1", lambda value: 0 < value <= 1)
    top_k = entries.get("top_k")
    if top_k is not None and (type(top_k) is not int or not -1 <= top_k <= MAX_TOP_K):
        raise UserError(f"{path}: top_k is {_shortened(top_k)}; it must be a whole number, 0 or -1 for all tokens")
    sampled = entries.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        raise UserError(f"{path}: do_sample is {_shortened(sampled)}; it must be true or false")
    unknown = tuple(name for name, neutral in UNSUPPORTED.items() if entries.get(name, neutral) != neutral)
    if (temperature, top_p, top_k, sampled) == (None, None, None, None):
        return Generation(ends=ends, unknown=unknown, stated=stated)
    temperature = 0.0 if sampled is False else 1.0 if temperature is None else temperature
    return Generation(temperature, 1.0 if top_p is None else top_p, max(top_k or 0, 0), ends, unknown, stated)


def _number(entries: Mapping[str, Any], name: str, path: Path, expected: str, fits: Any) -> float | None:
    value = entries.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value != value or not fits(value) or not math.isfinite(value):
        raise UserError(f"{path}: {name} is {_shortened(value)}; it must be {expected}")
    return float(value)


def _ids(value: Any, name: str, path: Path, vocabulary: int) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if (isinstance(value, list) and name != "eos_token_id") or any(
        type(token) is not int or not 0 <= token < vocabulary for token in ids
    ):
        raise UserError(f"{path}: {name} is {_shortened(value)}; ids are 0 to {vocabulary - 1}")
    return tuple(ids)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
